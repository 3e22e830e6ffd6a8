"""The exported JSON Schema is current, complete, and agrees with the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.recipe import GOOD, STRUCTURED, TEXT

from distillctl.recipe.schema import recipe_schema, schema_text
from distillctl.recipe.yaml12 import parse

RECIPES = Path(__file__).parent.parent / "recipes"


def test_the_shipped_schema_is_current():
    shipped = (RECIPES / "recipe.schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(), "run: distillctl schema > recipes/recipe.schema.json"


def test_it_is_a_schema_of_its_dialect():
    schema = recipe_schema()
    assert schema["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(schema)


def _fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    models = {"Recipe": schema} | schema["$defs"] | schema["properties"]["backends"]["properties"]
    return [(f"{model}.{name}", field) for model, body in models.items()
            for name, field in body.get("properties", {}).items()]


def test_it_knows_the_settings_of_every_shipped_backend():
    known = recipe_schema()["properties"]["backends"]["properties"]
    assert {"local", "linear", "openai", "together", "vertex", "hf-jobs"} <= set(known)


def test_every_field_is_described():
    assert [name for name, field in _fields(recipe_schema()) if not field.get("description")] == []


@pytest.mark.parametrize("text", [GOOD, STRUCTURED, TEXT, *(
    path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml")))])
def test_good_recipes_fit_it(text: str):
    jsonschema.Draft202012Validator(recipe_schema()).validate(parse(text, "f").data)


@pytest.mark.parametrize("text", [
    GOOD + "epochs: 3\n", GOOD + "train: {learning_rte: 1e-3}\n", GOOD + "train: {batch_size: 0}\n",
    GOOD.replace("kind: classification", "kind: other"), GOOD.replace("name: tiny", "name: Tiny Name"),
    GOOD.replace("student:", "pupil:"), GOOD + "backends: {local: {engin: peft}}\n",
], ids=["misplaced", "unknown", "range", "kind", "name", "missing", "backend"])
def test_an_editor_sees_what_is_wrong(text: str):
    assert not jsonschema.Draft202012Validator(recipe_schema()).is_valid(parse(text, "f").data)
