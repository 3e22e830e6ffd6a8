"""`DISTILLCTL_BACKEND_<NAME>`, `--set path.to.field=value`, `--backend NAME`, applied to what the file says.

The variable holds settings of one backend in YAML, `{base_url: "http://127.0.0.1:8000"}`, which go over the
recipe's `backends.<name>` block: what belongs to a machine or a rehearsal, not to the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillctl.errors import Problem
from distillctl.recipe import yaml12
from distillctl.recipe.yaml12 import Document, FieldPath, dotted
from distillctl.types import JSON

VARIABLE = "DISTILLCTL_BACKEND_"


def apply_overrides(document: Document, overrides: Sequence[str], backend: str | None,
                    variables: Mapping[str, str]) -> None:
    """Put the values into `document.data`: those of the environment, then `overrides` in order, `backend`
    last; problems join the document's.

    Mappings on the way to a field are made where they are missing. Whether a field exists is for the
    models to say, as for what the file says; places then name the variable or the option instead of a line.
    A baseline that is `backend` itself is left out: it would be trained twice.
    """
    for name in sorted(variables):
        if name.startswith(VARIABLE):
            _apply_variable(document, name, variables[name])
    for text in overrides:
        _apply(document, text)
    if backend is not None:
        _put(document, ("backend",), backend, "--backend")
        if document.data.get("baseline") == backend:
            _put(document, ("baseline",), None, "--backend")


def _apply_variable(document: Document, name: str, text: str) -> None:
    read = yaml12.parse(text, name, lambda line: name)
    document.problems += read.problems
    if read.problems:
        return
    if not isinstance(read.data, dict):
        document.problems.append(Problem("must hold settings of a backend in YAML", name,
                                         hint=f"for example {name}='{{timeout: 30}}'; or unset it"))
        return
    backend = name.removeprefix(VARIABLE).lower().replace("_", "-")
    for field, value in read.data.items():
        _put(document, ("backends", backend, str(field)), value, name)


def _apply(document: Document, text: str) -> None:
    left, equals, right = text.partition("=")
    path = tuple(part.strip() for part in left.split("."))
    option = f"--set {left.strip()}"
    if not equals or not all(path):
        document.problems.append(Problem("an override is written path.to.field=value", option,
                                         hint="for example --set train.epochs=2"))
        return
    read = yaml12.parse(right, option, lambda line: option)
    if read.problems:
        document.problems += read.problems
        document.spoiled.add(path)
        return
    _put(document, path, read.data, option)


def _put(document: Document, path: FieldPath, value: JSON, option: str) -> None:
    target = document.data
    for depth, part in enumerate(path[:-1], 1):
        if target.get(part) is None:
            target[part] = {}
            document.places.setdefault(path[:depth], option)
        target = target[part]
        if not isinstance(target, dict):
            document.problems.append(Problem(
                f"`{dotted(path[:depth])}` is not a mapping, so nothing in it can be set", option,
                hint=f"replace it whole: --set '{dotted(path[:depth])}={{{path[depth]}: ...}}'"))
            document.spoiled.add(path[:depth])
            return
    target[path[-1]] = value
    for places in (document.places, document.text_lines):
        for old in [p for p in places if p[:len(path)] == path]:
            del places[old]
    document.places[path] = option
