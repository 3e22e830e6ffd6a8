"""Sweeps: the students of a grid, each a run of its own in its own folder, then one comparison.

Each cell goes through the same pipeline as any recipe. The first one collects, the others find the teacher's
answers in the ledger; all share one budget. A cell that fails loses no other, and a sweep that was
interrupted goes on like a run: what is done is reused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl import api
from distillctl.context import Context, Options
from distillctl.errors import DistillctlError, Problem, RecipeError, TeacherError, UsageError
from distillctl.evaluate.wording import settings_text
from distillctl.pipeline import execute
from distillctl.plan import Plan, make_plan
from distillctl.progress import Reporter, Silent
from distillctl.recipe.load import load_cells
from distillctl.stages import Detached
from distillctl.store.files import digest_json
from distillctl.store.workspace import Workspace
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.evaluate.comparison_results import ComparisonTable


@dataclass(frozen=True)
class Cell:
    """What became of one student of the grid. state: "done", "training" (left with --detach), "failed" or
    "not started"."""

    settings: dict[str, JSON]
    run: str
    state: str
    problems: Sequence[Problem] = ()

    def as_json(self) -> dict[str, JSON]:
        return {"settings": self.settings, "run": self.run, "state": self.state,
                "problems": [problem.as_json() for problem in self.problems]}


@dataclass(frozen=True)
class Sweep:
    """A sweep as far as it has got. comparison, page: of the cells that are done; None where none is."""

    cells: list[Cell]
    comparison: ComparisonTable | None = None
    page: Path | None = None

    @property
    def failed(self) -> list[Cell]:
        """The cells that have no student because something went wrong."""
        return [cell for cell in self.cells if cell.state in ("failed", "not started")]

    def as_json(self) -> dict[str, JSON]:
        return {"cells": [cell.as_json() for cell in self.cells],
                "page": str(self.page) if self.page else None,
                "comparison": self.comparison.model_dump(mode="json") if self.comparison else None}


@dataclass
class SweepPlan:
    """The plans of all cells, and what they come to: `total` has no rows of its own."""

    total: Plan
    cells: list[tuple[dict[str, JSON], Plan]] = field(default_factory=list)

    @property
    def trainings(self) -> int:
        """How many jobs will be trained now."""
        return sum(trainings(plan) for _, plan in self.cells)

    def as_json(self) -> dict[str, JSON]:
        return {**self.total.as_json(), "trainings": self.trainings,
                "cells": [{"settings": settings, **plan.as_json()} for settings, plan in self.cells]}


def trainings(plan: Plan) -> int:
    """How many trainings a plan begins."""
    return sum(row.action == "run" and row.stage.startswith("train-") for row in plan.rows)


def open_cells(recipe: str | os.PathLike[str], *, backend: str | None = None, overrides: Sequence[str] = (),
               workspace: str | os.PathLike[str] = ".", options: Options = Options(),
               reporter: Reporter | None = None) -> list[Context]:
    """A context for each student that a recipe stands for: one for a plain recipe. Writes nothing. Raises
    RecipeError, also where two cells would be the same student."""
    place = Workspace(Path(workspace).resolve())
    cells = [Context(loaded, place, options, reporter or Silent())
             for loaded in load_cells(Path(recipe), overrides, backend)]
    if len(cells) > 1:
        check_distinct(cells)
    for ctx in cells:
        ctx.sharing = tuple(other.run_id for other in cells if other is not ctx)
    return cells


def check_distinct(cells: Sequence[Context]) -> None:
    """Raises RecipeError where lists stand for the same student twice: the backend does not look at them."""
    first: dict[str, Context] = {}
    problems: dict[str, Problem] = {}
    for ctx in cells:
        other = first.setdefault(ctx.run_name, ctx)
        backend = ctx.recipe.backend
        for name, value in settings_of(ctx).items():
            was = settings_of(other)[name]
            if repr(was) == repr(value):  # as in the grid: 32 and 32.0 are two values of a list
                continue
            own = name == "student.model" and "model" in ctx.recipe.backends.get(backend, {})
            what = (f"names a value twice, as {was!r} and {value!r}" if was == value else
                    f"changes nothing at backend {backend!r}, so its values are the same student")
            problems[name] = Problem(
                what, ctx.loaded.where(name), name,
                hint=f"the model is that of backends.{backend}.model, which may be a list too" if own
                else "name one value")
    if problems:
        raise RecipeError(*problems.values())


def settings_of(ctx: Context) -> dict[str, JSON]:
    """What makes a cell differ from the others, by dotted field."""
    return dict(ctx.loaded.cell or {})


def plan_sweep(cells: Sequence[Context], until: str | None = None) -> SweepPlan:
    """The plan of every cell, with what they share counted once. Raises what `make_plan` raises."""
    made = SweepPlan(Plan(f"{cells[0].recipe.name}, {len(cells)} students", [],
                          budget_usd=cells[0].recipe.budget.max_usd))
    total = made.total
    shared: set[str] = set()
    for ctx in cells:
        plan = make_plan(ctx, until, shared)
        made.cells.append((settings_of(ctx), plan))
        total.problems += [one for one in plan.problems if one not in total.problems]
        total.warnings += [one for one in plan.warnings if one not in total.warnings]
        total.sends_to += [one for one in plan.sends_to if one not in total.sends_to]
        total.usd = None if total.usd is None or plan.usd is None else (
            total.usd[0] + plan.usd[0], total.usd[1] + plan.usd[1])
    total.warn_of_budget()
    return made


def run_sweep(cells: Sequence[Context], until: str | None = None) -> Sweep:
    """Run every cell, one after the other, and compare those that are done.

    A TeacherError ends the sweep: the cells share the teacher, and would all fail alike. Any other error of a
    cell is kept with it. The page is written beside the runs.
    """
    found: list[Cell] = []
    ended = False
    for number, ctx in enumerate(cells, 1):
        cell = Cell(settings_of(ctx), ctx.rundir.name, "not started")
        if not ended:
            what = settings_text(cell.settings)
            ctx.reporter.note(f"student {number} of {len(cells)}: {what}  ({cell.run})")
            cell, ended = _run_cell(ctx, cell, until)
        found.append(cell)
    return compare_cells(cells, found)


def _run_cell(ctx: Context, cell: Cell, until: str | None) -> tuple[Cell, bool]:
    """The cell afterwards, and whether the sweep ends here."""
    try:
        with api.working_on(ctx):
            execute(ctx, until)
    except Detached as left:
        ctx.reporter.note(str(left))
        return replace(cell, state="training"), False
    except DistillctlError as error:
        for problem in error.problems:
            ctx.reporter.note(str(problem), "error")
        return replace(cell, state="failed", problems=error.problems), isinstance(error, TeacherError)
    return replace(cell, state="done"), False


def compare_cells(cells: Sequence[Context], found: list[Cell]) -> Sweep:
    """The sweep with the comparison of the cells that are done and scored, and its page."""
    from distillctl.report.compare import write_comparison

    runs = [api.Run(ctx.rundir) for ctx, cell in zip(cells, found, strict=True)
            if cell.state == "done" and (ctx.rundir.path / "metrics.json").exists()]
    if not runs:
        return Sweep(found)
    table = api.compare(runs)
    name = digest_json([ctx.run_name for ctx in cells]).removeprefix("sha256:")[:8]
    page = cells[0].rundir.path.parent / f"sweep-{name}.html"
    write_comparison(table, page)
    return Sweep(found, table, page)


def sweep(recipe: str | os.PathLike[str], *, backend: str | None = None, overrides: Sequence[str] = (),
          workspace: str | os.PathLike[str] = ".", options: Options = Options(), yes: bool = False,
          until: str | None = None, reporter: Reporter | None = None) -> Sweep:
    """Run every student that a recipe's lists stand for, going on where an earlier sweep ended.

    Arguments as those of `run`. Raises RecipeError, DataError, UsageError before anything is spent; what goes
    wrong later is in the cells.
    """
    cells = open_cells(recipe, backend=backend, overrides=overrides, workspace=workspace, options=options,
                       reporter=reporter)
    total = plan_sweep(cells, until).total
    total.check()
    if total.needs_consent and not yes:
        raise UsageError(Problem(total.consent_text, hint="agree with yes=True"))
    return run_sweep(cells, until)
