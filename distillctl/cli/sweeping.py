"""What `plan`, `run` and `check` do where a recipe's lists stand for several students."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillctl.cli.output import clear, say, say_json, show

if TYPE_CHECKING:
    from distillctl.context import Context
    from distillctl.sweep import Cell, Sweep


def is_sweep(cells: Sequence[Context]) -> bool:
    """Whether the contexts are of a recipe with lists."""
    return cells[0].loaded.cell is not None


def plan(cells: Sequence[Context], as_json: bool) -> None:
    """Show what the cells would do and cost in all."""
    from distillctl.sweep import plan_sweep

    made = plan_sweep(cells)
    if as_json:
        say_json(made.as_json())
    else:
        from distillctl.report.terminal import sweep_plan_table

        show(sweep_plan_table(made))
    made.total.check()


def run(cells: Sequence[Context], until: str | None, yes: bool, as_json: bool) -> None:
    """Run all cells and compare them; exit 1 where one failed."""
    from distillctl.offline import guarded
    from distillctl.sweep import plan_sweep, run_sweep

    first = cells[0]
    with guarded(first.options.offline):
        clear(plan_sweep(cells, until).total, first.reporter, yes)
        try:
            done = run_sweep(cells, until)
        except KeyboardInterrupt:
            say("interrupted; what was done is kept. The same command goes on with it", err=True)
            raise
    _tell(done, as_json)
    if done.failed:
        sys.exit(1)


def _tell(done: Sweep, as_json: bool) -> None:
    if as_json:
        say_json(done.as_json())
    else:
        from distillctl.report.terminal import runs_table

        if done.comparison:
            show(runs_table(done.comparison))
            say(f"page    {done.page}")
        else:
            for cell in done.cells:
                say(f"run     {cell.run}  {cell.state}")
    for cell in done.cells:
        if line := _left(cell):
            say(line, err=True)


def _left(cell: Cell) -> str:
    """What is still to be done about a cell."""
    from distillctl.evaluate.wording import settings_text

    name = f"{cell.run} ({settings_text(cell.settings)})"
    if cell.state == "failed":
        return f"error: {name}: {cell.problems[0] if cell.problems else 'failed'}"
    return {"training": f"{name}: training goes on; the same command comes back to it",
            "not started": f"error: {name}: not started, because the teacher that all share failed"}.get(
                cell.state, "")
