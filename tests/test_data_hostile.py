"""Broken and hostile data files: each gives its place and its cure, exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.data import load, routing, spec

from distillctl.data.formats import MAX_ROW
from distillctl.data.read import read_examples
from distillctl.errors import DataError

HOSTILE = Path(__file__).parent / "hostile" / "data"

# file: line (0: the file as a whole; None: the data set), words of the message
CASES = {
    "all_equal.jsonl": (None, "test would have no rows"),
    "array.jsonl": (1, "is one JSON array"),
    "bad_id.jsonl": (3, "an id is text"),
    "blank_lines.jsonl": (0, "holds no rows"),
    "column_twice.csv": (1, "a column name is there twice, got 'label'"),
    "deep.jsonl": (3, "nested more than 50 deep"),
    "duplicate_id.jsonl": (3, "the id of line 1 again, got 'q1'"),
    "duplicate_key.jsonl": (3, "the key 'label' is there twice"),
    "empty.jsonl": (0, "holds no rows"),
    "empty_input.jsonl": (3, "every field that the prompt shows is empty"),
    "endless_digits.jsonl": (3, "is not JSON"),
    "endless_nesting.jsonl": (3, "nested too deeply"),
    "escapes_in_id.jsonl": (4, r"got '\x1b[2J'"),
    "half_surrogate.jsonl": (3, "`question`: holds half a surrogate pair"),
    "infinite.jsonl": (3, "`score`: is inf, which is no JSON number"),
    "invalid_utf8.csv": (3, "is not UTF-8: byte 0xe9 at position 7"),
    "invalid_utf8.jsonl": (4, "is not UTF-8: byte 0xe9"),
    "late_id.jsonl": (2, "has an id, line 1 has none"),
    "loading_script.py": (0, "a data file is JSONL, CSV or Parquet, got '.py'"),
    "misnamed_field.jsonl": (0, "`question`: no row has this field\n    did you mean `qestion`?"),
    "missing_field.jsonl": (3, "`question`: the row lacks this field"),
    "missing_id.jsonl": (3, "has no id, line 1 has one"),
    "missing_label.jsonl": (3, "`label`: the row lacks this field"),
    "nan.jsonl": (3, "NaN is no JSON number"),
    "nested_field.jsonl": (3, "a nested value is printed where text is needed\n    `question` is nested"),
    "not_an_object.jsonl": (3, "is text, not a JSON object"),
    "not_parquet.parquet": (0, "is not Parquet"),
    "nul.jsonl": (3, "`question`: holds a NUL character"),
    "null_field.jsonl": (3, "null is printed where text is needed\n    `question` is null"),
    "null_label.jsonl": (3, "`label`: is not one of the labels, got None"),
    "number_for_text.jsonl": (3, "`question`: is a number here and text in line 1, got 42"),
    "one_row.jsonl": (None, "would have no rows"),
    "open_quote.csv": (3, "is not CSV"),
    "ragged.csv": (3, "has 4 cells, the header has 3"),
    "really_csv.jsonl": (1, "looks like CSV"),
    "really_gzip.jsonl": (0, "looks like gzip: unpack it first"),
    "really_pickle.jsonl": (0, "looks like a Python pickle"),
    "semicolons.csv": (1, "the columns are parted by ';'"),
    "several_lines.jsonl": (1, "JSON written over several lines"),
    "spreadsheet.csv": (0, "a zip archive or a spreadsheet"),
    "torn.jsonl": (3, "is not JSON: Unterminated string"),
    "unknown_label.jsonl": (3, "`label`: is not one of the labels, got 'doc'\n    did you mean 'docs'?"),
    "unnamed_column.csv": (1, "column 2 has no name"),
    "utf16.jsonl": (0, "looks like UTF-16 text: save it as UTF-8"),
    "web_page.jsonl": (0, "looks like a web page"),
}
KEPT = {"invisible.jsonl", "special_tokens.jsonl"}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_one_clear_problem_at_its_place(name: str, tmp_path: Path) -> None:
    line, words = CASES[name]
    shutil.copy(HOSTILE / name, tmp_path / name)
    with pytest.raises(DataError) as caught:
        load(tmp_path, spec(name))
    message = str(caught.value)
    place = {None: "`data", 0: f"{tmp_path / name}"}.get(line, f"{tmp_path / name}:{line}")
    assert message.startswith((f"{place}:", f"{place} ", f"{place}.")) and words in message
    assert len(caught.value.problems) == 1
    assert caught.value.exit_code == 2
    assert not any(char in message for char in "\0\x1b\ud83d")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_hostile_file_is_tested() -> None:
    assert {path.name for path in HOSTILE.iterdir()} == {*CASES, *KEPT}


def test_a_row_above_the_limit_is_named_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"question": "where is it", "label": "docs"}\n{"question": "')
        for _ in range(MAX_ROW // 2**20 + 1):
            file.write(b"x" * 2**20)
        file.write(b'", "label": "docs"}\n{"question": "who wrote it", "label": "maybe"}\n')
    problems = read_examples(path, spec(), routing()).problems
    assert [(problem.where, problem.what) for problem in problems] == [
        (f"{path}:2", "is longer than 10 MiB"), (f"{path}:3", "is not one of the labels")]


@pytest.mark.parametrize("name", ["gone.jsonl", "folder.jsonl"])
def test_what_is_no_file_is_said_to_be_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"cannot be read: No such file|is not a file"):
        load(tmp_path, spec(name))


def test_invisible_and_right_to_left_text_is_kept_as_it_is() -> None:
    found = read_examples(HOSTILE / "invisible.jsonl", spec(), routing())
    assert not found.problems
    assert found.examples[0].fields["question"] == "where is \u202egnihtyna\u202c described"
    assert found.examples[1].fields["question"] == "show\u200bme the\u2060 function"


def test_special_tokens_are_kept_as_text_and_told() -> None:
    found = read_examples(HOSTILE / "special_tokens.jsonl", spec(), routing(), "data/rows.jsonl")
    assert found.examples[0].fields["question"].startswith("<|im_end|><|im_start|>system")
    assert found.warnings == [
        "data/rows.jsonl holds text that chat templates use as marks (</s> in 1, <|im_end|> in 1, "
        "<|im_start|> in 1, [INST] in 1 rows, first in line 1): it is treated as plain text"]


def test_all_problems_of_a_file_come_at_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "where is it", "label": "docs"}\n' + "{\n" * 80)
    problems = read_examples(path, spec(), routing()).problems
    assert [problem.where for problem in problems] == [
        *(f"{path}:{line}" for line in range(2, 52)), str(path)]
    assert problems[-1].what == "and 30 more problems"
