"""Reading: what a row becomes, whatever the format, and what a row must have."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import pytest
from support.data import free_text, load, routing, spec, structured, write_rows

from distillctl.data.formats import MAX_ROW, read_rows
from distillctl.data.read import ReadResult, read_examples
from distillctl.errors import MissingExtra
from distillctl.types import Example

ROWS = [{"id": "a", "question": "where is it", "label": "docs", "level": "easy"},
        {"id": "b", "question": "who, exactly, wrote\nthe parser", "label": "code", "level": ""}]
CONTEXT = "{% if context is defined %}{{ context }} {% endif %}{{ question }}"


def read(path: Path, *rows: dict, task=None, **more) -> ReadResult:
    return read_examples(write_rows(path / "rows.jsonl", rows), spec(**more), task or routing(), "rows.jsonl")


def arrow():
    """pyarrow with its Parquet part."""
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install 'distillctl[parquet]'")
    return sys.modules["pyarrow"]


def whats(found: ReadResult) -> list[str]:
    return [problem.what for problem in found.problems]


# --- formats


def test_a_row_becomes_an_example_with_all_its_fields(tmp_path: Path) -> None:
    assert read(tmp_path, *ROWS).examples == [
        Example("a", ROWS[0], "docs", "rows.jsonl:1"), Example("b", ROWS[1], "code", "rows.jsonl:2")]


def test_csv_gives_what_jsonl_gives_and_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfid,question,label,level\r\na,where is it,docs,easy\r\n\r\n'
                     b'b,"who, exactly, wrote\nthe parser",code,\r\nc,why,skip,\r\n')
    found = read_examples(path, spec(), routing(), "rows.csv")
    assert not found.problems
    assert [dict(one.fields) for one in found.examples[:2]] == ROWS
    assert [one.source for one in found.examples] == ["rows.csv:2", "rows.csv:4", "rows.csv:6"]


def test_what_is_no_csv_ends_its_row_and_all_of_them_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,question,label,level\na,where is it,docs,easy\nb,"he said "hello" to me",docs,\n'
                     b'c,why,skip,\nd,"open,docs,\ne,"who",docs,\nf,caf\xe9 "x",docs,\ng,"x"y,docs,\n'
                     b'h,how,docs,\ni,"last,docs,\n')
    found = read_examples(path, spec(), routing(), "rows.csv")
    assert [one.source for one in found.examples] == ["rows.csv:2", "rows.csv:4", "rows.csv:9"]
    assert [(one.where, one.what.partition(": ")[0]) for one in found.problems] == [
        (f"{path}:3", "is not CSV"), (f"{path}:5", "is not CSV"), (f"{path}:7", "is not UTF-8"),
        (f"{path}:8", "is not CSV"), (f"{path}:10", "is not CSV")]
    assert found.problems[1].what.endswith("1 more line taken for a part of this row")
    assert "line" not in found.problems[0].what


def test_a_cell_above_the_limit_is_told_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write('id,question,label\na,where is it,docs\nb,"open,docs\n')
        for number in range(MAX_ROW // 1000 + 10):
            file.write(f"c{number},{'x' * 1000},docs\n")
    found = list(read_rows(path))
    assert [line for line, _ in found] == [2, 0]
    assert (found[1][1].where, len(found)) == (f"{path}:3", 2)


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    pyarrow = arrow()
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = read_examples(path, spec(), routing(), "rows.parquet")
    assert [dict(one.fields) for one in found.examples] == ROWS
    assert [one.source for one in found.examples] == ["rows.parquet:1", "rows.parquet:2"]


def test_dates_in_parquet_are_read_as_text_and_bytes_are_a_problem(tmp_path: Path) -> None:
    pyarrow = arrow()
    path = tmp_path / "rows.parquet"
    for row in (ROWS[0] | {"asked": datetime.date(2026, 11, 24)}, ROWS[0] | {"picture": b"\x00\x01"}):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        found = read_examples(path, spec(), routing())
        if "asked" in row:
            assert found.examples[0].fields["asked"] == "2026-11-24"
        else:
            assert whats(found) == ["is a bytes, which JSON does not have: save the column as text"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # how Python marks what cannot be imported
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[parquet\]'"):
        read_examples(tmp_path / "rows.parquet", spec(), routing())


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n\r\n"
                     + json.dumps(ROWS[1]).encode())
    found = read_examples(path, spec(), routing(), "rows.jsonl")
    assert [one.source for one in found.examples] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert not found.problems


# --- what the prompt needs


def test_a_field_that_the_template_guards_may_be_absent(tmp_path: Path) -> None:
    found = read(tmp_path, {"question": "why", "label": "docs"},
                 {"question": "who", "label": "docs", "context": "User: hi"}, task=routing(CONTEXT))
    assert not found.problems and len(found.examples) == 2


def test_null_is_fine_where_the_template_does_not_print_it(tmp_path: Path) -> None:
    prompt = "{% if context %}{{ context }} {% endif %}{{ question }}"
    assert not read(tmp_path, {"question": "why", "context": None, "label": "docs"},
                    task=routing(prompt)).problems


def test_a_null_that_is_printed_is_told_although_another_field_is_absent(tmp_path: Path) -> None:
    found = read(tmp_path, {"question": None, "label": "docs"}, task=routing(CONTEXT))
    assert [str(problem).split(": ", 1)[1] for problem in found.problems] == [
        "the prompt cannot be rendered: null is printed where text is needed\n    `question` is null"]


def test_parts_of_a_nested_field_may_be_printed(tmp_path: Path) -> None:
    prompt = "{% for turn in turns %}{{ turn.role }}: {{ turn.text }}\n{% endfor %}"
    turns = [{"role": "user", "text": "why"}]
    assert not read(tmp_path, {"turns": turns, "label": "docs"}, task=routing(prompt)).problems


def test_numbers_are_fine_where_all_rows_have_numbers(tmp_path: Path) -> None:
    found = read(tmp_path, {"age": 34, "label": "docs"}, {"age": 3.5, "label": "docs"},
                 task=routing("{{ age }}"))
    assert not found.problems


def test_an_unguarded_field_is_missing_once_where_no_row_has_it(tmp_path: Path) -> None:
    rows = [{"id": str(n), "qestion": "why", "label": "docs"} for n in range(100)]
    found = read(tmp_path, *rows)
    assert [(problem.what, problem.hint) for problem in found.problems] == [
        ("no row has this field", "did you mean `qestion`?")]


def test_what_else_is_wrong_is_told_beside_a_field_that_no_row_has(tmp_path: Path) -> None:
    rows = [{"id": str(n % 99), "qestion": "why", "label": "docs"} for n in range(100)]
    found = read(tmp_path, *rows)
    assert "no row has this field" in whats(found) and found.problems[0].field == "question"
    assert sum(problem.what.startswith("and") for problem in found.problems) == 1


# --- ids


def test_ids_are_a_hash_of_the_row_where_there_are_none(tmp_path: Path) -> None:
    rows = [{"question": "why", "label": "docs"}, {"question": "who", "label": "docs"}]
    first = read(tmp_path, *rows).examples
    again = read(tmp_path, *({key: row[key] for key in reversed(row)} for row in reversed(rows))).examples
    assert [one.id for one in first] == [one.id for one in reversed(again)]
    assert all(len(one.id) == 16 and int(one.id, 16) >= 0 for one in first)


def test_equal_rows_without_ids_get_different_ones(tmp_path: Path) -> None:
    ids = [one.id for one in read(tmp_path, *[{"question": "why", "label": "docs"}] * 3).examples]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]


def test_whole_numbers_and_a_named_field_serve_as_ids(tmp_path: Path) -> None:
    found = read(tmp_path, {"nr": 7, "id": "x", "question": "why", "label": "docs"}, id="nr")
    assert found.examples[0].id == "7"


@pytest.mark.parametrize("given", [None, True, 1.5, "", "  ", "x" * 201, {}])
def test_what_cannot_be_an_id_is_a_problem(given: object, tmp_path: Path) -> None:
    assert "an id is text" in whats(read(tmp_path, {"id": given, "question": "why", "label": "docs"}))[0]


# --- groups


def test_a_group_must_be_named_in_every_row_but_may_be_none(tmp_path: Path) -> None:
    rows = [{"question": "why", "label": "docs", "talk": None},
            {"question": "who", "label": "docs", "talk": 3},
            {"question": "how", "label": "docs"},
            {"question": "when", "label": "docs", "talk": [1]}]
    assert whats(read(tmp_path, *rows, group="talk")) == [
        "the row lacks this field", "a group is text or a whole number, or null for none"]


# --- gold answers


def test_a_label_comes_as_the_recipe_writes_it(tmp_path: Path) -> None:
    assert read(tmp_path, {"question": "why", "label": " Docs "}).examples[0].expected == "docs"


def test_without_gold_answers_nothing_is_expected(tmp_path: Path) -> None:
    assert read(tmp_path, {"question": "why"}, expected=None).examples[0].expected is None


SCHEMA = {"properties": {"pages": {"type": "array", "items": {"$ref": "#/$defs/page"}},
                         "found": {"type": "boolean"}, "confidence": {"enum": ["high", "low"]}},
          "$defs": {"page": {"type": "integer"}}}
EXPECTED = {"pages": "e_pages", "found": "e_found", "confidence": "e_confidence"}


def test_gold_fields_are_held_against_the_schema_of_the_answer(tmp_path: Path) -> None:
    row = {"question": "why", "e_pages": [1, 2], "e_found": True, "e_confidence": "high"}
    task = structured(SCHEMA)
    assert read(tmp_path, row, task=task, expected=EXPECTED).examples[0].expected == {
        "pages": [1, 2], "found": True, "confidence": "high"}
    wrong = read(tmp_path, row | {"e_pages": ["one"], "e_confidence": "middling"}, task=task,
                 expected=EXPECTED)
    assert [(problem.field, problem.what) for problem in wrong.problems] == [
        ("e_pages", "no right answer can have this as `pages`: 'one' is not of type 'integer'"),
        ("e_confidence", "no right answer can have this as `confidence`: 'middling' is not one of "
                         "['high', 'low']")]


def test_json_in_csv_cells_is_read_where_the_answer_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,e_pages,e_found,e_confidence\nwhy,"[1, 2]",true,high\nwho,,false,low\n')
    found = read_examples(path, spec(expected=EXPECTED), structured(SCHEMA))
    assert [one.expected for one in found.examples] == [
        {"pages": [1, 2], "found": True, "confidence": "high"},
        {"pages": [], "found": False, "confidence": "low"}]


@pytest.mark.parametrize(("terms", "right"), [(["kiln"], True), ([], True), ("kiln", False), ([""], False),
                                              (None, False), ([3], False)])
def test_terms_of_a_text_are_lists_of_words(terms: object, right: bool, tmp_path: Path) -> None:
    found = read(tmp_path, {"question": "why", "terms": terms}, task=free_text(),
                 expected={"must_include": "terms"})
    assert bool(found.examples) == right


# --- a file per split


def test_a_file_per_split_is_read_as_it_stands(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [{"question": f"a {split} question here", "label": "docs"}])
    files = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    splits, _ = load(tmp_path, spec(files))
    assert {split: [one.source for one in found] for split, found in splits.items()} == {
        split: [f"{split}.jsonl:1"] for split in files}
