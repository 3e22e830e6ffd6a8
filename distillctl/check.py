"""`distillctl check`: is this recipe sound, with its data? Quick, free, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distillctl.context import Context
from distillctl.data import load_splits, pii
from distillctl.errors import DistillctlError, Problem, UsageError
from distillctl.evaluate.slices import check_fields
from distillctl.plan import texts_of
from distillctl.predictors import model_warnings
from distillctl.recipe.load import load_recipe
from distillctl.store.workspace import Workspace
from distillctl.types import JSON, SPLITS


@dataclass(frozen=True)
class Checked:
    """A recipe that is sound, in one line, with what a user should still know."""

    recipe: str
    summary: str
    rows: dict[str, int]
    warnings: list[str]

    def as_json(self) -> dict[str, JSON]:
        return {"ok": True, **asdict(self)}


def check_recipe(path: Path, overrides: Sequence[str] = (), backend: str | None = None) -> Checked:
    """Check the recipe, its backends' settings and every row of its data, leakage included.

    Raises UsageError with every problem that was found.
    """
    ctx = Context(load_recipe(path, overrides, backend), Workspace(Path()))
    problems: list[Problem] = []
    for role in ctx.roles():
        try:
            ctx.backend(role)
        except DistillctlError as error:
            problems += error.problems
    splits, warnings = {}, []
    try:
        splits, warnings = load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)
        check_fields(splits["test"], ctx.recipe.evaluate.slices)
    except DistillctlError as error:
        problems += error.problems
    if problems:
        raise UsageError(*problems)
    rows = {split: len(splits[split]) for split in SPLITS}
    recipe = ctx.recipe
    warnings = [*warnings, *model_warnings(recipe, ctx.task.json_schema)]
    if recipe.data.pii != "off":
        warnings += pii.as_warnings(pii.find_pii(texts_of(ctx, splits)))
    counts = ", ".join(f"{count} {split}" for split, count in rows.items())
    trained = f"{ctx.learner('student').model} at {recipe.backend}"
    if recipe.baseline:
        trained += f", beside {recipe.baseline}"
    summary = f"{recipe.task.kind}, {counts}; teacher {recipe.teacher.provider}; student {trained}"
    return Checked(recipe.name, summary, rows, warnings)


