"""`init` lays down a recipe of each task kind that loads and agrees with its own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillctl.errors import UsageError
from distillctl.recipe.load import LoadedRecipe, load_recipe
from distillctl.recipe.scaffold import KINDS, scaffold

SMALLEST = {"classification": 24, "structured": 12, "text": 12}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def laid_down(kind: str, folder: Path) -> tuple[LoadedRecipe, list[dict], dict[str, str]]:
    """The loaded recipe, its examples, and the recorded answers by id."""
    scaffold(kind, folder)
    answers = rows(folder / "data" / "teacher.jsonl")
    return load_recipe(folder / "recipe.yaml"), rows(folder / "data" / "examples.jsonl"), {
        row["id"]: row["output"] for row in answers}


def expected(loaded: LoadedRecipe, row: dict) -> object:
    names = loaded.recipe.data.expected
    return row[names] if isinstance(names, str) else {part: row[name] for part, name in names.items()}


@pytest.mark.parametrize("kind", KINDS)
class TestEachKind:
    def test_the_files_are_named_and_there(self, kind: str, tmp_path: Path):
        written = scaffold(kind, tmp_path / "new" / "folder")
        assert sorted(written) == sorted(p for p in (tmp_path / "new" / "folder").rglob("*") if p.is_file())
        assert {p.name for p in written} == {
            "recipe.yaml", "recipe.schema.json", "examples.jsonl", "teacher.jsonl"}

    def test_the_recipe_loads_as_that_kind(self, kind: str, tmp_path: Path):
        loaded, _, _ = laid_down(kind, tmp_path)
        assert loaded.task.kind == kind

    def test_there_are_enough_rows_with_an_answer_each(self, kind: str, tmp_path: Path):
        _, examples, answers = laid_down(kind, tmp_path)
        assert len(examples) >= SMALLEST[kind]
        assert sorted(answers) == sorted({row["id"] for row in examples}) and len(answers) == len(examples)

    def test_every_row_renders_to_its_own_prompt(self, kind: str, tmp_path: Path):
        loaded, examples, _ = laid_down(kind, tmp_path)
        prompts = {loaded.task.render(row)[-1]["content"] for row in examples}
        assert len(prompts) == len(examples)

    def test_the_teacher_is_readable_and_mostly_right(self, kind: str, tmp_path: Path):
        loaded, examples, answers = laid_down(kind, tmp_path)
        task = loaded.task
        parsed = {row["id"]: task.parse(answers[row["id"]]) for row in examples}
        assert [i for i, p in parsed.items() if p.problem] == []
        right = [task.score(parsed[row["id"]].value, expected(loaded, row)).correct for row in examples]
        assert sum(right) >= len(right) - 1

    def test_what_is_expected_could_be_answered(self, kind: str, tmp_path: Path):
        loaded, examples, _ = laid_down(kind, tmp_path)
        for row in examples:
            wanted = expected(loaded, row)
            if kind == "text":
                note = row["note"].casefold()
                assert all(term.casefold() in note for term in wanted["must_include"]), row["id"]
            else:
                target = loaded.task.target(wanted)
                assert loaded.task.score(loaded.task.parse(target).value, wanted).correct, row["id"]

    def test_nothing_is_overwritten(self, kind: str, tmp_path: Path):
        mine = tmp_path / "data" / "teacher.jsonl"
        mine.parent.mkdir()
        mine.write_text("mine")
        with pytest.raises(UsageError, match="is there already"):
            scaffold(kind, tmp_path)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine] and mine.read_text() == "mine"


def test_every_label_has_its_share_of_rows(tmp_path: Path):
    loaded, examples, _ = laid_down("classification", tmp_path)
    given = [row["label"] for row in examples]
    assert [label for label in loaded.task.labels if given.count(label) < 6] == []


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path):
    with pytest.raises(UsageError, match="one of: classification, structured, text"):
        scaffold("ranking", tmp_path)  # type: ignore[arg-type]
