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
from distillctl.recipe.load import load_cells
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
    cells = [Context(loaded, Workspace(Path())) for loaded in load_cells(path, overrides, backend)]
    ctx = cells[0]
    problems: list[Problem] = []
    looks = [lambda cell=cell, role=role: cell.backend(role) for cell in cells for role in cell.roles()]
    if len(cells) > 1:
        from distillctl.sweep import check_distinct

        looks.append(lambda: check_distinct(cells))
    for look in looks:
        try:
            look()
        except DistillctlError as error:
            problems += [problem for problem in error.problems if problem not in problems]
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
    models = dict.fromkeys(cell.learner("student").model for cell in cells)
    trained = f"{', '.join(models)} at {recipe.backend}"
    if ctx.loaded.cell is not None:
        trained = f"a sweep of {len(cells)}, {trained}"
    if recipe.baseline:
        trained += f", beside {recipe.baseline}"
    summary = f"{recipe.task.kind}, {counts}; teacher {recipe.teacher.provider}; student {trained}"
    return Checked(recipe.name, summary, rows, warnings)


