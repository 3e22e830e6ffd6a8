"""The four recipes in `recipes/`: each is sound, offline, and one word away from every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillctl.check import check_recipe
from distillctl.recipe.load import load_recipe
from distillctl.select import predictions_of, requests_of, select
from distillctl.types import Answer

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
HOSTED = {"local", "openai", "together", "vertex", "hf-jobs"}


def test_there_is_one_for_each_task_of_the_lesson():
    assert {path.stem for path in RECIPES} == {
        "routing", "query_rewriting", "evidence_summary", "bug_summary"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestEach:
    def test_passes_its_check_with_every_row(self, path):
        checked = check_recipe(path)
        assert all(checked.rows.values())

    def test_needs_no_key_and_no_network(self, path):
        recipe = load_recipe(path).recipe
        assert recipe.teacher.provider == "recorded"
        assert (recipe.backend, recipe.student.model) == ("local", "smollm2-135m")

    def test_has_settings_for_every_backend(self, path):
        assert set(load_recipe(path).recipe.backends) == HOSTED

    def test_names_the_schema_for_editors(self, path):
        assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")


@pytest.mark.parametrize(("name", "at_least"), [
    ("query_rewriting", 0.98), ("evidence_summary", 0.95), ("bug_summary", 0.94)])
def test_the_recorded_teacher_is_mostly_right(name, at_least):
    from distillctl.data import load_splits
    from distillctl.store.files import read_jsonl

    loaded = load_recipe(FOLDER / f"{name}.yaml")
    splits, _ = load_splits(loaded.recipe.data, loaded.task, loaded.resolve)
    examples = [example for split in splits.values() for example in split]
    outputs = {row["id"]: row["output"] for row in read_jsonl(FOLDER / f"data/{name}.teacher.jsonl")}
    said = predictions_of(loaded.task, requests_of(loaded.task, examples),
                          [Answer(outputs[example.id]) for example in examples])
    assert all(one.problem is None for one in said)
    assert len(select(loaded.task, examples, said).rows) >= at_least * len(examples)
