"""The recipe's JSON Schema, from the models: what editors complete and check while one is written."""

from __future__ import annotations

import json
from typing import Any

from distillctl import registry
from distillctl.recipe.grid import axes
from distillctl.recipe.models import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, every field with its description; of `backends`, the blocks of those
    that are installed here."""
    schema = Recipe.model_json_schema(mode="validation")
    for axis in axes():
        properties = schema["$defs"][axis.model.__name__]["properties"]
        properties[axis.path[-1]] = _or_list(properties[axis.path[-1]])
    blocks = schema["properties"]["backends"]["properties"] = {}
    for name, settings in registry.settings().items():
        block = settings.model_json_schema(mode="validation", ref_template=f"#/$defs/{name}.{{model}}")
        schema["$defs"] |= {f"{name}.{model}": body for model, body in block.pop("$defs", {}).items()}
        blocks[name] = block
    return {"$schema": DIALECT} | schema | {"title": "distillctl recipe"}


def _or_list(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field that may also be a list of its values: a sweep."""
    about = {name: field[name] for name in ("default", "description", "title") if name in field}
    one = {name: rule for name, rule in field.items() if name not in about}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}], **about}


def schema_text() -> str:
    """The schema as `distillctl schema` prints it and as recipes/recipe.schema.json holds it."""
    return json.dumps(recipe_schema(), ensure_ascii=False, indent=2) + "\n"
