"""When a field or a text is right, by the kind that the recipe names."""

from __future__ import annotations

import pytest

from distillctl.errors import RecipeError
from distillctl.recipe import task_models
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import StructuredSpec
from distillctl.task import build_task
from tests.support.evaluating import text
from tests.support.recipe import TEXT, write_recipe


def right(how, value, wanted):
    task = build_task(StructuredSpec(kind="structured", prompt="{{ q }}", json_schema={"type": "object"},
                                     fields={"f": how}))
    return task.score({"f": value}, {"f": wanted}).correct


@pytest.mark.parametrize(("score", "value", "wanted", "is_right"), [
    ("exact", "a", "a", True), ("exact", "a", "A", False), ("exact", 1, True, False),
    ("exact", {"a": 1, "b": [2]}, {"b": [2], "a": 1}, True), ("exact", None, None, True),
    ("set", [2, 1, 1], [1, 2], True), ("set", [1], [1, 2], False), ("set", [1], [True], False),
    ("bag", [2, 1, 1], [1, 1, 2], True), ("bag", [1, 2], [1, 1, 2], False), ("bag", "ab", ["a", "b"], False),
    ("bag", [{"a": 1}, "x"], ["x", {"a": 1}], True),
    ("list", [1, 2], [1, 2], True), ("list", [2, 1], [1, 2], False), ("list", [1], [True], False)])
def test_a_field_is_right(score, value, wanted, is_right):
    assert right({"score": score}, value, wanted) is is_right


@pytest.mark.parametrize(("value", "is_right"), [(12, True), (12.1, False), ("12", False), (True, False)])
def test_a_number_is_right_within_its_tolerance(value, is_right):
    assert right({"score": "number", "tolerance": 2}, value, 10) is is_right


@pytest.mark.parametrize(("threshold", "is_right"), [(0.6, True), (0.9, False)])
def test_a_text_field_is_right_from_its_threshold(threshold, is_right):
    assert right({"score": "text", "threshold": threshold}, "a leak here", "a leak") is is_right


@pytest.mark.parametrize(("said", "is_right"), [
    ("one", False), ("one two", True), ("one two three", True), ("one two three four", False)])
def test_a_text_keeps_its_bounds(said, is_right):
    assert text(min_words=2, max_words=3).score(said, {}).correct is is_right


def test_likeness_is_measured_as_the_recipe_says():
    wanted = {"text": "Donaudampfschiff"}
    assert not text(min_similarity=0.6).score("Donaudampfschiffe", wanted).correct
    assert text(min_similarity=0.6, similarity="chrf").score("Donaudampfschiffe", wanted).correct


def problem(tmp_path, settings):
    recipe = write_recipe(tmp_path, TEXT.replace("  kind: text\n", f"  kind: text\n{settings}"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    (found,) = caught.value.problems
    return found


def test_chrf_without_its_extra_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(task_models, "missing_extra", {"chrf": "text"}.get)
    found = problem(tmp_path, "  similarity: chrf\n")
    assert found.field == "task.similarity"
    assert found.where.endswith("recipe.yaml:4")
    assert "distillctl[text]" in str(found)


def test_bounds_that_no_text_can_keep_are_an_error(tmp_path):
    assert "min_words is above max_words" in problem(tmp_path, "  min_words: 9\n  max_words: 3\n").what
