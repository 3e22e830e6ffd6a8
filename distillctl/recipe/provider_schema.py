"""Which JSON Schemas the providers' structured output takes, and a schema as it is sent.

OpenAI: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
Anthropic: https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distillctl.types import JSON

_SAYS_NOTHING = frozenset({"$schema", "$id", "$comment", "default", "examples", "deprecated", "readOnly",
                           "writeOnly"})  # of what fits; strict mode refuses some of them
_OPENAI = frozenset({
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maximum", "minItems", "minimum", "multipleOf",
    "pattern", "properties", "required", "title", "type"})
_OPENAI_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6",
                             "uuid"})
_MOST_PROPERTIES, _MOST_LEVELS, _MOST_CHARACTERS, _MOST_ENUM_VALUES = 5000, 10, 120_000, 1000
_NAMED = ("properties", "$defs", "definitions")  # keywords that hold schemas by name
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")


def openai_strict(schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A schema as it is sent to OpenAI's strict mode, and what keeps that mode from taking it.

    Annotations are left out, and an object that says nothing of further properties is closed: whatever fits
    the result fits the schema. In doubt a schema is not taken: one that is refused costs every answer.
    """
    sent = _closed(schema)
    problems = [] if sent.get("type") == "object" else ["$: the top must be an object, and not a choice"]
    for path, part in _parts(sent):
        problems += [f"{path}: {why}" for why in _openai_problems(part)]
    properties, characters, values = 0, 0, 0
    for _, part in _parts(sent):
        if isinstance(part, Mapping):
            names = [*part.get("properties", {}), *part.get("$defs", {})]
            choices = [*part.get("enum", ()), *([part["const"]] if "const" in part else ())]
            properties += len(part.get("properties", {}))
            values += len(part.get("enum", ()))
            characters += sum(len(str(one)) for one in (*names, *choices))
    for what, found, most in (("fields", properties, _MOST_PROPERTIES), ("enum values", values,
                              _MOST_ENUM_VALUES), ("characters of names and enum values", characters,
                              _MOST_CHARACTERS), ("levels", _levels(sent), _MOST_LEVELS)):
        if found > most:
            problems.append(f"$: has {found} {what}, of which strict mode takes {most}")
    return sent, problems


def anthropic_problems(schema: Mapping[str, Any]) -> list[str]:
    """What keeps Anthropic's structured output from taking a schema. Limits of numbers, lengths and
    patterns are nothing that does: they are told to the model in words."""
    problems = [f"{path}: has no type" for path, part in _parts(schema) if not _typed_for_anthropic(part)]
    if back := _leads_back(schema):
        problems.append(f"$: {back!r} leads back to itself, which it does not take")
    return problems


def for_anthropic(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as the SDK's `transform_schema` takes it: no annotations, no lists of types."""
    def one_type(part: JSON) -> JSON:
        kinds = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kinds, list):
            return part
        rest = {key: value for key, value in part.items() if key not in ("type", "enum", "description")}
        told = {"description": part["description"]} if "description" in part else {}
        if "enum" in part:
            return {"enum": part["enum"], **told}
        return {"anyOf": [{"type": kind, **(rest if kind != "null" else {})} for kind in kinds], **told}

    return _rebuilt(schema, one_type)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    def close(part: JSON) -> JSON:
        if isinstance(part, dict) and _is_object(part):
            part.setdefault("additionalProperties", False)
        return part

    return _rebuilt(schema, close)


def _rebuilt(part: JSON, change: Any) -> JSON:
    """A copy without annotations, each schema in it changed, the inner ones first."""
    if not isinstance(part, Mapping):
        return part
    new = {key: value for key, value in part.items() if key not in _SAYS_NOTHING}
    for key in _NAMED:
        if isinstance(new.get(key), Mapping):
            new[key] = {name: _rebuilt(inner, change) for name, inner in new[key].items()}
    for key in _LISTED:
        if isinstance(new.get(key), list):
            new[key] = [_rebuilt(inner, change) for inner in new[key]]
    if "items" in new:
        new["items"] = _rebuilt(new["items"], change)
    return change(new)


def _parts(schema: JSON, path: str = "$") -> Iterator[tuple[str, JSON]]:
    """Every schema within a schema, itself first, with its place."""
    yield path, schema
    if not isinstance(schema, Mapping):
        return
    for key in _NAMED:
        for name, inner in schema.get(key, {}).items():
            yield from _parts(inner, f"{path}.{name}" if key == "properties" else f"{path}.{key}.{name}")
    for key in _LISTED:
        for number, inner in enumerate(schema.get(key, ())):
            yield from _parts(inner, f"{path}.{key}[{number}]")
    if "items" in schema:
        yield from _parts(schema["items"], f"{path}[]")


def _is_object(part: Mapping[str, Any]) -> bool:
    kinds = part.get("type")
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)


def _openai_problems(part: JSON) -> Iterator[str]:
    if not isinstance(part, Mapping):
        yield "must be a schema, not true or false"
        return
    if unknown := sorted(set(part) - _OPENAI):
        yield f"strict mode does not know {', '.join(f'`{key}`' for key in unknown)}"
    if not part.keys() & {"type", "anyOf", "$ref"}:
        yield "has no type"
    if "$ref" in part and len(part) > 1 + ("$defs" in part):
        yield "a $ref must stand alone"
    if part.get("format", "date") not in _OPENAI_FORMATS:
        yield f"strict mode does not know the format {part['format']!r}"
    if part.get("type") == "array" and "items" not in part:
        yield "a list must say what its `items` are"
    if _is_object(part):
        if part["additionalProperties"] is not False:
            yield "`additionalProperties` must be false"
        if optional := [name for name in part.get("properties", {}) if name not in part.get("required", ())]:
            yield (f"every field must be required, and {', '.join(f'`{name}`' for name in optional)} is not "
                   "(a required field may be null where its type says so)")


def _typed_for_anthropic(part: JSON) -> bool:
    if not isinstance(part, Mapping):
        return False
    literal = part.get("enum") or ([part["const"]] if "const" in part else [])
    return bool(part.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref"}) or (
        bool(literal) and not any(isinstance(value, dict | list) for value in literal))


def _levels(part: JSON) -> int:
    """How deep objects and lists stand in each other; a reference counts as one level."""
    if not isinstance(part, Mapping):
        return 0
    inner = [*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])]
    here = max(map(_levels, inner), default=0) + (_is_object(part) or part.get("type") == "array")
    beside = [*part.get("anyOf", ()), *part.get("$defs", {}).values()]
    return max([here, *map(_levels, beside)])


def _leads_back(schema: Mapping[str, Any]) -> str | None:
    """A reference within a schema that, followed, comes back to itself; None where none does."""
    safe: set[str] = set()

    def visit(part: JSON, under: tuple[str, ...]) -> str | None:
        if isinstance(part, list | tuple):
            return next((back for one in part if (back := visit(one, under))), None)
        if not isinstance(part, Mapping):
            return None
        target = part.get("$ref")
        if isinstance(target, str) and target not in safe:
            if target in under:
                return target
            if back := visit(_target(schema, target), (*under, target)):
                return back
            safe.add(target)
        return visit([value for key, value in part.items() if key not in ("$defs", "definitions")], under)

    return visit(schema, ("#",))


def _target(schema: JSON, reference: str) -> JSON:
    found = schema
    for key in reference.removeprefix("#").split("/")[1:]:
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
