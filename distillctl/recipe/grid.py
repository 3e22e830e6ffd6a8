"""Sweeps: a list where the recipe wants one value, in `student.model` (or the model of the chosen backend's
block) or under `train`, stands for one student for each value; several lists for a grid."""

from __future__ import annotations

import copy
import itertools
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from distillctl.errors import Problem
from distillctl.recipe.models import StudentSpec, TrainSpec
from distillctl.recipe.yaml12 import Document, FieldPath, dotted
from distillctl.types import JSON

MOST_CELLS = 100


@dataclass(frozen=True)
class Axis:
    """A field that may be a list, and the model that it belongs to."""

    path: FieldPath
    model: type[BaseModel]


def axes() -> Iterator[Axis]:
    """Every field that can be swept: those of `train` that hold one value, and the student's model."""
    yield Axis(("student", "model"), StudentSpec)
    yield from _single_valued(("train",), TrainSpec)


def cells_of(document: Document) -> list[tuple[dict[str, JSON], Document]]:
    """The grid that a document stands for: each cell's values by dotted field, and the document with them in
    the place of the lists. Empty where it has none; what is wrong with them joins the document's problems."""
    backend = _at(document.data, ("backend",))
    paths = [*(axis.path for axis in axes()), ("backends", backend or "local", "model")]
    lists = {path: values for path in paths if isinstance(values := _at(document.data, path), list)}
    for path, values in lists.items():
        what = "is an empty list" if not values else (
            "names a value twice" if len({repr(value) for value in values}) < len(values) else "")
        if what:
            document.problems.append(Problem(what, document.where(path), dotted(path),
                                             hint="a list stands for one student for each of its values"))
            document.spoiled.add(path)
    swept = [path for path in lists if path not in document.spoiled]
    if not swept:
        return []
    count = math.prod(len(lists[path]) for path in swept)
    if count > MOST_CELLS:
        document.problems.append(Problem(
            f"the lists stand for {count:,} students, more than {MOST_CELLS}", document.where(swept[0]),
            hint="shorten a list, or sweep one field after the other"))
    places = itertools.islice(itertools.product(*(range(len(lists[path])) for path in swept)), MOST_CELLS)
    return [_cell(document, dict(zip(swept, chosen, strict=True))) for chosen in places]


def _cell(document: Document, chosen: Mapping[FieldPath, int]) -> tuple[dict[str, JSON], Document]:
    data, where, values = copy.deepcopy(document.data), dict(document.places), {}
    for path, index in chosen.items():
        value = _at(document.data, path)[index]
        _at(data, path[:-1])[path[-1]] = values[dotted(path)] = value
        chosen_at = (*path, index)
        where |= {path + place[len(chosen_at):]: line for place, line in document.places.items()
                  if place[:len(chosen_at)] == chosen_at}
    return values, replace(document, data=data, places=where)


def _at(data: JSON, path: FieldPath) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _single_valued(prefix: FieldPath, model: type[BaseModel]) -> Iterator[Axis]:
    for name, field in model.model_fields.items():
        kinds = _kinds(field.annotation)
        if nested := [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]:
            if types.NoneType in kinds:  # with and without it are two students
                yield Axis((*prefix, name), model)
            for one in nested:
                yield from _single_valued((*prefix, name), one)
        elif not any(get_origin(kind) in (list, tuple, dict) for kind in kinds):
            yield Axis((*prefix, name), model)


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for one in get_args(annotation) for kind in _kinds(one)]
    return [annotation]
