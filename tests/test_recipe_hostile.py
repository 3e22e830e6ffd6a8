"""Broken and hostile recipes: each gives one clear message with its place and its cure, and does nothing."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from support.recipe import GOOD, write_recipe

from distillctl.errors import RecipeError
from distillctl.recipe.load import load_recipe

HOSTILE = Path(__file__).parent / "hostile" / "recipe"
SECRET = "Fake"  # part of every made-up key in the files

# file: line, field, words of the message. Line 0: about the file as a whole.
CASES = {
    "alias_bomb": (18, "backends.b.x[0]", "an alias (*) is not allowed"),
    "array_schema": (4, "task.json_schema", "in data/array.schema.json"),
    "baseline_is_backend": (17, "baseline", "is the backend itself"),
    "binary_tag": (16, "description", "a tag (!) is not allowed"),
    "boolean_label": (4, "task.labels[1]", "must be text, got False"),
    "broken_template": (9, "task.prompt", "not a valid Jinja2 template"),
    "colon_in_text": (16, None, "needs quotes around it"),
    "dangling_reference": (4, "task.json_schema", "'#/$defs/gone' leads nowhere"),
    "date_as_number": (16, "train.epochs", "must be a whole number, got '2024-01-01'"),
    "deep_nesting": (16, "backends.local.x[0]", "nested deeper than"),
    "drops_reversed": (16, "verdict", "marginal_drop is below max_drop"),
    "duplicate_key": (17, "student", "twice (first at recipe.yaml:15)"),
    "duplicate_nested_key": (12, "data.examples", "twice (first at recipe.yaml:10)"),
    "empty": (0, None, "the file is empty"),
    "empty_block": (15, "student", "must be a mapping, and is empty"),
    "endless_digits": (16, "train.epochs", "5000 digits"),
    "endless_reference": (4, "task.json_schema", "back to itself"),
    "epochs_and_steps": (18, "train.max_steps", "stands beside `epochs`"),
    "expected_mapping": (11, "data.expected", "the name of one field"),
    "expected_name": (10, "data.expected", "{text: label}"),
    "expected_not_in_schema": (11, "data.expected.anwser", "did you mean `answer`?"),
    "expected_shown": (5, "task.prompt", "shows the expected answer: it uses the field `label`"),
    "expected_unchecked": (10, "data.expected.must_includ", "did you mean `must_include`?"),
    "file_reference": (4, "task.json_schema", "leaves the schema"),
    "float_as_count": (16, "train.max_steps", "must be a whole number, got 1e+30"),
    "infinite": (16, "budget.max_usd", "infinity"),
    "invalid_schema": (4, "task.json_schema", "$.properties.answer.type"),
    "key_as_field": (15, "teacher.api_key", "name the environment variable"),
    "key_as_key": (16, None, "the shape of a key"),
    "key_as_variable_name": (15, "teacher.api_key_env", "the NAME of an environment variable"),
    "key_header": (16, None, "the shape of a key"),
    "key_in_backend": (17, None, "the shape of a key"),
    "key_in_comment": (16, None, "the shape of a key"),
    "key_in_prompt": (8, None, "the shape of a key"),
    "key_not_text": (17, "backends", "a key must be text"),
    "key_pem": (17, None, "the shape of a key"),
    "key_without_shape": (15, "teacher.api_key_env", "the NAME of an environment variable"),
    "labels_alike": (4, "task.labels", "must differ by more than case and spaces"),
    "list_root": (1, None, "must be a mapping at the top"),
    "merge_key": (19, "backends.openai", "a merge key (<<) is not allowed"),
    "misplaced_key": (16, "epochs", "did you mean `train.epochs`?"),
    "missing_blocks": (1, "teacher", "is missing"),
    "missing_kind": (2, "task.kind", "one of: classification, structured, text"),
    "name_as_path": (1, "name", "got '../../tiny'"),
    "negative_learning_rate": (16, "train.learning_rate", "must be greater than 0, got -0.0001"),
    "no_variable": (5, "task.prompt", "has no variable"),
    "not_a_number": (16, "budget.max_usd", "NaN"),
    "number_as_text": (1, "name", "must be text, got 42"),
    "only_comments": (0, None, "the file is empty"),
    "overflowing_number": (16, "budget.max_usd", "too large"),
    "path_absolute": (10, "data.examples", "leaves both"),
    "path_control_character": (10, "data.examples", "control characters"),
    "path_device": (10, "data.examples", "the name of a device"),
    "path_device_file": (10, "data.examples", "the name of a device"),
    "path_file_url": (10, "data.examples", "a URL or a drive is not a path"),
    "path_folder": (10, "data.examples", "this is a folder"),
    "path_home": (10, "data.examples", "`~` is not expanded"),
    "path_http_url": (10, "data.examples", "a URL or a drive is not a path"),
    "path_missing": (10, "data.examples", "there is no such file, got 'data/exampels.jsonl'"),
    "path_network_share": (10, "data.examples", "a network share"),
    "path_network_slashes": (10, "data.examples", "a network share"),
    "path_nul": (10, "data.examples", "NUL"),
    "path_up": (10, "data.examples", "leaves both"),
    "python_tag": (16, "description", "a tag (!) is not allowed"),
    "remote_reference": (4, "task.json_schema", "leaves the schema"),
    "schema_is_number": (4, "task.json_schema", "must be a mapping or text, got 5"),
    "schema_key_twice": (4, "task.json_schema", "the key 'type' is there twice"),
    "self_reference": (17, "backends.local.again", "an alias (*) is not allowed"),
    "sexagesimal_number": (16, "train.epochs", "must be a whole number, got '1:30'"),
    "shares_not_whole": (12, "data.split", "must be 1, they are 1.3"),
    "split_and_files": (11, "data.split", "names a file per split"),
    "student_is_teacher": (15, "student.model", "is the teacher itself"),
    "tab_indent": (17, None, "a tab cannot indent"),
    "text_root": (1, None, "must be a mapping at the top"),
    "two_documents": (16, None, "a second document"),
    "unclosed_quote": (16, None, "opened and not closed"),
    "underscored_number": (16, "train.epochs", "must be a whole number, got '1_000'"),
    "unknown_filter": (8, "task.prompt", "No filter named 'shout'"),
    "unknown_key": (17, "train.learning_rte", "did you mean `learning_rate`?"),
    "url_link_local": (15, "teacher.base_url", "link-local"),
    "url_metadata": (15, "teacher.base_url", "metadata address"),
    "url_metadata_decimal": (15, "teacher.base_url", "metadata address"),
    "url_metadata_mapped": (15, "teacher.base_url", "metadata address"),
    "url_metadata_name": (15, "teacher.base_url", "metadata address"),
    "url_no_host": (15, "teacher.base_url", "not the address of a server"),
    "url_not_http": (15, "teacher.base_url", "not the address of a server"),
    "url_password": (15, "teacher.base_url", "a user name or a password"),
    "url_plain_http": (15, "teacher.base_url", "plain http to another machine"),
    "word_as_boolean": (16, "evaluate.base", "must be true or false, got 'no'"),
    "wrong_enum": (16, "train.schedule", "did you mean `cosine`?"),
    "wrong_kind": (3, "task.kind", "did you mean `classification`?"),
    "wrong_provider": (13, "teacher.provider", "did you mean `openai`?"),
    "zero_batch": (16, "train.batch_size", "must be at least 1, got 0"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, where nothing can be reached."""
    def refuse(*_: object) -> None:
        raise AssertionError("a recipe was read, and an address was contacted")

    folder = tmp_path / "project"
    write_recipe(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return folder


def refusal(recipe: str | bytes, place: Path) -> RecipeError:
    """The error for a recipe in the current folder; checks what holds for every one."""
    content = recipe if isinstance(recipe, bytes) else recipe.encode()
    (place / "recipe.yaml").write_bytes(content)
    before = {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"))
    error = caught.value
    assert error.exit_code == 2
    assert before == {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()}
    for problem in error.problems:
        assert problem.where and problem.where.startswith("recipe.yaml"), str(problem)
        assert problem.hint, f"no advice: {problem}"
        assert SECRET not in str(problem) and SECRET not in str(problem.as_json())
    return error


def test_every_hostile_file_is_expected_to_fail():
    assert {path.stem for path in HOSTILE.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_hostile_recipe_is_refused_with_place_and_cure(name: str, place: Path):
    for extra in (HOSTILE / "data").iterdir():
        shutil.copy(extra, place / "data")
    line, field, words = CASES[name]
    error = refusal((HOSTILE / f"{name}.yaml").read_bytes(), place)
    where = f"recipe.yaml:{line}" if line else "recipe.yaml"
    assert [p for p in error.problems if (p.where, p.field) == (where, field) and words in str(p)], str(error)


@pytest.mark.parametrize(("content", "words"), [
    (GOOD.encode("utf-16"), "UTF-16"),
    (GOOD.encode("utf-16-be"), "control character"),
    (GOOD.encode() + b"description: \xff\xfe\n", "not UTF-8"),
    (GOOD.encode() + b"description: a\0b\n", "control character (U+0000)"),
    (GOOD.encode() + b"description: \x1b[31mred\n", "control character (U+001B)"),
    (GOOD.encode() + b"# " + b"x" * (1 << 20), "larger than 1 MiB"),
    (b"\x80\x04\x95\x00", "not UTF-8"),
], ids=["utf-16", "utf-16-be", "bytes", "nul", "escape", "large", "pickle"])
def test_what_is_no_yaml_text_is_refused(content: bytes, words: str, place: Path):
    assert words in str(refusal(content, place))


def test_one_flaw_gives_one_problem(place: Path):
    several = {"alias_bomb", "boolean_label", "duplicate_key", "key_as_field", "key_as_key",
               "key_as_variable_name", "merge_key", "missing_blocks", "self_reference"}
    for extra in (HOSTILE / "data").iterdir():
        shutil.copy(extra, place / "data")
    counts = {name: len(refusal((HOSTILE / f"{name}.yaml").read_bytes(), place).problems) for name in CASES}
    assert {name for name, count in counts.items() if count != 1} <= several


def test_a_flood_of_problems_is_cut(place: Path):
    error = refusal(GOOD.replace("[yes, no]", "[" + "1, " * 5000 + "2]"), place)
    assert len(error.problems) == 51
    assert "more problems" in str(error.problems[-1])


def test_a_symbolic_link_out_of_the_folder_is_refused(place: Path, tmp_path: Path):
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}\n")
    (place / "data" / "link.jsonl").symlink_to(outside)
    assert "leaves both" in str(refusal(GOOD.replace("data/examples.jsonl", "data/link.jsonl"), place))


@pytest.mark.parametrize("option", [
    "teacher.outputs=/etc/passwd", "description=!!python/name:os.system", "student=&a [*a]",
    "budget.max_usd=.inf", "=1", "train.epochs", "train..epochs=2", "name.first=x", "train.epochs=[1",
    "description=\x1b[31m",
])
def test_hostile_overrides_are_refused(option: str, place: Path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"), [option])
    for problem in caught.value.problems:
        assert problem.where and problem.where.startswith("--set"), str(problem)
        assert problem.hint, f"no advice: {problem}"


def test_a_key_in_an_override_is_refused_and_not_shown(place: Path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("recipe.yaml"), ["description=sk-proj-Fake0Fake1Fake2Fake3"])
    assert caught.value.problems[0].where == "--set description"
    assert SECRET not in str(caught.value)
