"""Read a recipe: from a file and overrides to checked models, or to every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pydantic import BaseModel, TypeAdapter, ValidationError

from distillctl.errors import Problem, RecipeError, StorageError
from distillctl.recipe import paths, yaml12
from distillctl.recipe.checks import Checks
from distillctl.recipe.grid import cells_of
from distillctl.recipe.models import Recipe
from distillctl.recipe.overrides import VARIABLE, apply_overrides
from distillctl.recipe.problems import problems_of
from distillctl.recipe.secrets import hide_keys, holds_key, lines_with_keys
from distillctl.recipe.yaml12 import Document
from distillctl.store.files import read_json
from distillctl.task import Task, build_task
from distillctl.types import JSON

_KEY = "something in the shape of a key stands here; it is not shown"
_KEY_HINT = ("take it out, revoke it if the file was shared, and name the environment variable that holds "
             "it: api_key_env: MY_API_KEY")
_BEGIN = "begin with `name: my-task`, or copy a recipe with `distillctl init`"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that may be used.

    recipe: the checked models, overrides applied and a structured task's JSON Schema inlined. task: its
    task, built. text: the file as it is, to be kept with the run. base_dir: the folder that its relative
    paths start from. document: what the file says, and where. cell: in a sweep, this student's values by
    dotted field.
    """

    recipe: Recipe
    task: Task
    path: Path
    text: str
    base_dir: Path
    document: Document = field(repr=False, compare=False)
    cell: Mapping[str, JSON] | None = None

    def resolve(self, relative: str) -> Path:
        """A path that the recipe names, from the recipe's folder.

        Raises RecipeError for what is no plain path, and for one outside of both the recipe's folder and
        the current one.
        """
        try:
            return paths.resolve(self.base_dir, relative)
        except ValueError as error:
            raise RecipeError(Problem(str(error), where=str(self.path), value=relative)) from None

    def where(self, field_path: str) -> str:
        """"file:line" of a dotted field, or of the nearest one around it; "--set field" for an override."""
        return self.document.where(tuple(field_path.split(".")))

    def resolved_json(self) -> dict[str, JSON]:
        """The recipe as it is used, defaults and nulls written out."""
        return self.recipe.model_dump(mode="json")


def load_recipe(path: Path, overrides: Sequence[str] = (), backend: str | None = None) -> LoadedRecipe:
    """Read, override and check a recipe. Nothing is written, and no address is contacted.

    overrides: "path.to.field=value", the value in YAML; backend: takes the place of the recipe's. Before
    them go the settings that the environment has for a backend, see `overrides.py`.
    Only the chosen backend can check its `backends` block; see `settings_problems`.
    Raises RecipeError with all problems, each with its place; and for a sweep (see `load_cells`).
    """
    first, *_ = load_cells(path, overrides, backend)
    if first.cell is not None:
        what = "is a list, which makes the recipe a sweep; here one student is needed"
        raise RecipeError(*(Problem(what, first.where(name), name, hint=f"choose one: --set {name}={value}")
                            for name, value in first.cell.items()))
    return first


def load_cells(path: Path, overrides: Sequence[str] = (), backend: str | None = None) -> list[LoadedRecipe]:
    """As `load_recipe`: the one recipe, or, where lists in it stand for a sweep, one for each student, in the
    order of the lists."""
    path = Path(path)
    text = _read(path)
    keys = _keys(path, text, overrides)
    document = yaml12.parse(text, str(path))
    if not isinstance(document.data, dict):
        if document.complete:
            what = "the file is empty" if document.data is None else "a recipe must be a mapping at the top"
            document.problems.append(Problem(what, document.where(()), hint=_BEGIN))
        _stop_at(path, [*keys, *document.problems])
    apply_overrides(document, overrides, backend, os.environ)
    problems, loaded = [], []
    for cell, own in cells_of(document) or [(None, document)]:
        recipe, errors = _validate(own)
        blocks = recipe or _valid_blocks(own.data)
        checks = Checks(own, path.parent, blocks.task, blocks.data, blocks.teacher, blocks.student,
                        blocks.evaluate)
        problems += [*errors, *checks.run()]
        if recipe is not None and checks.built is not None:  # else there were problems
            recipe = recipe.model_copy(update={"task": checks.task})
            loaded.append(LoadedRecipe(recipe, checks.built, path, text, path.parent, own, cell))
    _stop_at(path, [*keys, *document.problems, *problems])
    return loaded


def load_resolved(resolved: Path, text: Path, base_dir: Path) -> LoadedRecipe:
    """The recipe of an earlier run, from what the run kept: `resolved_json` in one file, `text` in another.

    base_dir: the folder that its relative paths start from. Files that it names are not looked for.
    Raises StorageError where what was kept cannot be read.
    """
    data = read_json(resolved)
    try:
        recipe = Recipe.model_validate(data)
        kept = text.read_text(encoding="utf-8")
        task = build_task(recipe.task)
    except (ValidationError, RecipeError, TypeError, OSError, ValueError) as error:
        raise StorageError(Problem(
            f"what this run kept of its recipe cannot be used ({type(error).__name__}): it is damaged, or of "
            "another version", str(resolved), hint="run the recipe itself again")) from error
    return LoadedRecipe(recipe, task, text, kept, base_dir, Document(str(resolved), data))


def settings_problems(error: ValidationError, loaded: LoadedRecipe, prefix: str,
                      model: type[BaseModel] | None = None) -> list[Problem]:
    """The problems of a backend's settings, with their places in the recipe.

    error: from validating `recipe.backends[name]` (or {} where there is no block); prefix:
    "backends.<name>"; model: the settings' class, so that the nearest valid names can be told.
    """
    return [hide_keys(p) for p in problems_of(error, loaded.document, model, tuple(prefix.split(".")))]


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            what = "this is a folder, not a recipe" if path.is_dir() else "there is no such recipe"
            raise RecipeError(Problem(what, str(path), hint="`distillctl init` makes one to start from"))
        with path.open("rb") as file:
            raw = file.read(yaml12.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecipeError(Problem(f"the recipe cannot be read: {why}", str(path))) from None
    return yaml12.decode(raw, str(path))


def _keys(path: Path, text: str, overrides: Sequence[str]) -> list[Problem]:
    places = [f"{path}:{line}" for line in lines_with_keys(text)]
    places += [f"--set {override.partition('=')[0]}" for override in overrides if holds_key(override)]
    places += [name for name, value in os.environ.items() if name.startswith(VARIABLE) and holds_key(value)]
    return [Problem(_KEY, place, hint=_KEY_HINT) for place in places]


def _validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(document.data), []
    except ValidationError as error:
        return None, problems_of(error, document, Recipe)


def _valid_blocks(data: dict[str, JSON]) -> SimpleNamespace:
    """The blocks that are valid by themselves, so that they are looked at although another is not."""
    blocks = SimpleNamespace(task=None, data=None, teacher=None, student=None, evaluate=None)
    for name in vars(blocks):
        if name not in data:
            continue
        annotation = Recipe.model_fields[name].rebuild_annotation()
        try:
            setattr(blocks, name, TypeAdapter(annotation).validate_python(data[name]))
        except ValidationError:
            continue
    return blocks


def _stop_at(path: Path, problems: Sequence[Problem]) -> None:
    """Raise RecipeError where there are problems, in the order of the file."""
    def line(problem: Problem) -> int:
        number = (problem.where or "").rpartition(":")[2]
        return int(number) if number.isdecimal() else 0

    if problems:
        told = sorted(dict.fromkeys(problems), key=line)
        rest = len(told) - yaml12.MAX_PROBLEMS
        more = [Problem(f"{rest} more problems", str(path), hint="mend these first")] if rest > 0 else []
        raise RecipeError(*(hide_keys(p) for p in told[:yaml12.MAX_PROBLEMS]), *more)
