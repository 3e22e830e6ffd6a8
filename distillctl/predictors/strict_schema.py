"""Which JSON Schemas OpenAI's strict structured output takes
(https://platform.openai.com/docs/guides/structured-outputs#supported-schemas)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillctl.types import JSON

_KNOWN = frozenset({
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maximum", "minItems", "minimum", "multipleOf",
    "pattern", "properties", "required", "title", "type"})


def takes_strict(schema: Mapping[str, Any]) -> bool:
    """Whether strict mode takes a schema: every object closed with all its properties required, every part
    typed, no keyword that it does not know. In doubt no: a schema that is refused costs every answer."""
    return schema.get("type") == "object" and _takes(schema)


def _takes(schema: JSON) -> bool:
    if not isinstance(schema, Mapping) or not _KNOWN.issuperset(schema):
        return False
    if not schema.keys() & {"type", "anyOf", "$ref"}:
        return False
    kinds = schema.get("type")
    if kinds == "object" or (isinstance(kinds, list) and "object" in kinds):
        properties = schema.get("properties", {})
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(properties):
            return False
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(),
             *schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return all(map(_takes, inner))
