"""The recipe's JSON Schema, from the models: what editors complete and check while one is written."""

from __future__ import annotations

import json
from typing import Any

from distillctl.recipe.models import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, every field with its description."""
    return {"$schema": DIALECT} | Recipe.model_json_schema(mode="validation") | {"title": "distillctl recipe"}


def schema_text() -> str:
    """The schema as `distillctl schema` prints it and as recipes/recipe.schema.json holds it."""
    return json.dumps(recipe_schema(), ensure_ascii=False, indent=2) + "\n"
