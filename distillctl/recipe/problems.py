"""pydantic's errors in plain words, each with its place in the file and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distillctl.errors import Problem
from distillctl.recipe.models import ENV_NAME, NAME, Recipe
from distillctl.recipe.secrets import names_secret
from distillctl.recipe.yaml12 import Document, FieldPath, dotted
from distillctl.types import JSON

_TYPES = {
    "string_type": "must be text", "int_type": "must be a whole number", "bool_type": "must be true or false",
    "float_type": "must be a number", "list_type": "must be a list", "dict_type": "must be a mapping",
    "model_type": "must be a mapping", "model_attributes_type": "must be a mapping",
    "int_from_float": "must be a whole number",
}
_LIMITS = {
    "greater_than": ("must be greater than", "gt"), "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"), "less_than_equal": ("must be at most", "le"),
}
_PATTERNS = {
    NAME: "must be lower-case letters, digits, - and _ (1 to 64, the first a letter or digit)",
    ENV_NAME: "must be the NAME of an environment variable (capital letters, digits and _), never a key",
}
_HINTS = {
    "string_type": "put quotes around it", "bool_type": "YAML 1.2 knows only true and false",
    "int_type": "write digits alone, such as 1000", "int_from_float": "write digits alone, such as 1000",
    "float_type": "write a number such as 0.5 or 1e-4",
}


@dataclass(frozen=True)
class _Found:
    """One of pydantic's errors. branch: the member of the innermost union around it, None outside unions."""

    error: ErrorDetails
    path: FieldPath
    branch: str | None
    union: FieldPath  # path of that union's field

    @property
    def wrong_type(self) -> bool:
        return self.error["type"] in _TYPES and self.path == self.union


def problems_of(error: ValidationError, document: Document, model: type[BaseModel] | None,
                prefix: FieldPath = ()) -> list[Problem]:
    """Every error of validating the value at `prefix` against `model`.

    model None: valid names are then not known, and none is suggested. Errors at, in or around a field
    that the YAML reader already complained about are left out.
    """
    data = _at(document.data, prefix)
    found = _one_branch([_locate(e, data) for e in error.errors(include_url=False)], data)
    problems = []
    for group in found:
        path = (*prefix, *group[0].path)
        if not any(path[:len(bad)] == bad[:len(path)] and bad for bad in document.spoiled):
            problems.append(_problem(group, document, model, prefix))
    return problems


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name that was most likely meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(names), 1, 0.6)), None)


def _locate(error: ErrorDetails, data: JSON) -> _Found:
    """Follow pydantic's `loc` through the data: parts that are not there name members of unions."""
    path: list[str | int] = []
    branch, union = None, 0
    for number, part in enumerate(error["loc"]):
        inside = (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        elif error["type"] == "missing" and number == len(error["loc"]) - 1:
            path.append(part)
        elif part != "[key]":
            branch, union = str(part), len(path)
    if error["type"].startswith("union_tag"):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return _Found(error, tuple(path), branch, tuple(path[:union]))


def _one_branch(found: Sequence[_Found], data: JSON) -> list[list[_Found]]:
    """Errors to tell, each alone, or several together where one value fits no member of a union.

    pydantic reports every member of a union; only the one that the user plainly meant is of use.
    """
    told: list[list[_Found]] = []
    seen: set[FieldPath] = set()
    for item in found:
        if item.branch is None:
            told.append([item])
            continue
        if item.union in seen:
            continue
        seen.add(item.union)
        rivals = [f for f in found if f.branch is not None and f.union == item.union]
        meant = [f for f in rivals if not f.wrong_type]
        if meant:
            branches = {f.branch: sum(g.branch == f.branch for g in meant) for f in meant}
            best = min(branches, key=lambda name: branches[name])
            told += [[f] for f in meant if f.branch == best]
        else:
            told.append(rivals)
    return told


def _problem(group: Sequence[_Found], document: Document, model: type[BaseModel] | None,
             prefix: FieldPath) -> Problem:
    error, path = group[0].error, (*prefix, *group[0].path)
    kind = error["type"]
    around = _models_at(model, error["loc"] if kind.startswith("union_tag") else error["loc"][:-1])
    more: dict[str, Any] = {}
    if kind == "missing":
        what, hint = "is missing", _description(around, path[-1])
    elif kind == "extra_forbidden":
        what, hint = "there is no such field here", _field_hint(str(path[-1]), around)
    elif kind == "union_tag_not_found":
        what, hint = "is missing", f"one of: {', '.join(_tags(around, path[-1]))}"
    elif kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", error["ctx"].get("expected_tags") or error["ctx"]["expected"])
        value = error["ctx"].get("tag", error["input"])
        what, hint = f"must be one of {', '.join(allowed)}", _meant(str(value), allowed)
        more = _shown(value, path)
    else:
        what, hint, more = _unfit(group, path)
        hint = hint or _description_at(model, group[0].path)
    return Problem(what, document.where(path), dotted(path) or None, hint=hint, **more)


def _unfit(group: Sequence[_Found], path: FieldPath) -> tuple[str, str | None, dict[str, Any]]:
    """What a value must be, the advice and the value, where its type or its size is wrong."""
    kind, value = group[0].error["type"], group[0].error["input"]
    words = " or ".join(dict.fromkeys(_words(item.error) for item in group)).replace(" or must be", " or")
    what, _, hint = words.partition("; ")
    if value is None:
        return f"{what}, and is empty", "give it a value, or delete the line", {}
    if kind in _TYPES and isinstance(value, dict | list):
        return f"{what}, not a {'mapping' if isinstance(value, dict) else 'list'}", None, {}
    return what, hint or (_HINTS.get(kind) if len(group) == 1 else None), _shown(value, path)


def _shown(value: JSON, path: FieldPath) -> dict[str, Any]:
    """The value for the message: plain ones only, and none that may be a secret."""
    if isinstance(value, dict | list) or any(names_secret(part) for part in path):
        return {}
    return {"value": value}


def _words(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"{words} {context[name]:g}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
    if kind == "string_too_short":
        return "must not be empty" if context["min_length"] == 1 else (
            f"must have at least {context['min_length']} characters")
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    if kind == "too_short":
        return f"must have at least {context['min_length']} entries"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "value_error":
        return str(context["error"])
    return error["msg"][:1].lower() + error["msg"][1:]


# --- what would have been valid -----------------------------------------------------------------------


def _models_at(model: type[BaseModel] | None, loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that a value at `loc` may have; `loc` also names members of unions, as pydantic's does."""
    current = [model] if model else []
    for part in loc:
        fields = [m.model_fields[part] for m in current if part in m.model_fields]
        inner = [m for field in fields for m in _models_in(field.annotation)]
        named = [m for m in current if part == m.__name__ or part in _literals(m)]
        current = inner or named or current
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


def _literals(model: type[BaseModel]) -> list[str]:
    """The tags under which a model may stand in a discriminated union."""
    return [tag for field in model.model_fields.values() if get_origin(field.annotation) is Literal
            and field.is_required() for tag in get_args(field.annotation)]


def _tags(models: Sequence[type[BaseModel]], name: str | int) -> list[str]:
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    return [tag for field in fields for tag in get_args(field.annotation)]


def _description(models: Sequence[type[BaseModel]], name: str | int) -> str | None:
    for model in models:
        if field := model.model_fields.get(str(name)):
            inner = _models_in(field.annotation)
            text = field.description or (inner[0].__doc__ if len(inner) == 1 else None)
            return " ".join(text.split()) if text else None
    return None


def _description_at(model: type[BaseModel] | None, path: FieldPath) -> str | None:
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return _description(_models_at(model, path[:-1]), path[-1]) if path else None


def _meant(given: str, allowed: Iterable[str]) -> str | None:
    found = nearest(given, allowed)
    return f"did you mean `{found}`?" if found else None


def _field_hint(given: str, around: Sequence[type[BaseModel]]) -> str | None:
    names = dict.fromkeys(name for model in around for name in model.model_fields)
    if names_secret(given) and "api_key_env" in names:
        return "a recipe holds no key: name the environment variable that does, `api_key_env: MY_API_KEY`"
    if not names:
        return None
    if meant := _meant(given, names):
        return meant
    if elsewhere := [path for path in _all_fields(Recipe) if path[-1] == given]:
        return f"did you mean `{dotted(elsewhere[0])}`? It belongs there"
    return f"valid here: {', '.join(names)}"


def _all_fields(model: type[BaseModel], prefix: FieldPath = ()) -> list[FieldPath]:
    paths: list[FieldPath] = []
    for name, field in model.model_fields.items():
        paths.append((*prefix, name))
        for inner in _models_in(field.annotation):
            paths += _all_fields(inner, (*prefix, name))
    return paths


def _at(data: JSON, path: FieldPath) -> JSON:
    for part in path:
        data = data[part] if isinstance(data, Mapping) and part in data else None
    return data
