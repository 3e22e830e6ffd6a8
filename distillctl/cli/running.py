"""`plan`, `run`, `status`, `attach` and `cancel`: the life of a run."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distillctl.cli import sweeping
from distillctl.cli.output import (
    clear,
    json_option,
    recipe_options,
    reporter,
    say,
    say_json,
    show,
    workspace_option,
)

if TYPE_CHECKING:
    from distillctl.backend import JobEvent, JobService
    from distillctl.context import Context

offline_option = click.option("--offline", is_flag=True, help="Send nothing: only what is on this machine.")
yes_option = click.option("--yes", "-y", is_flag=True,
                          help="Agree to the cost and to where data goes, without being asked.")


@click.command()
@recipe_options
@offline_option
@workspace_option
@json_option
def plan(recipe: Path, backend: str | None, overrides: tuple[str, ...], offline: bool, workspace: Path,
         as_json: bool) -> None:
    """Show what `run` would do: what is reused and why, calls, cost, where data goes. Sends nothing paid."""
    from distillctl.context import Options
    from distillctl.plan import make_plan
    from distillctl.sweep import open_cells

    cells = open_cells(recipe, backend=backend, overrides=overrides, workspace=workspace,
                       options=Options(offline=offline))
    if sweeping.is_sweep(cells):
        sweeping.plan(cells, as_json)
        return
    made = make_plan(cells[0])
    if as_json:
        say_json(made.as_json())
    else:
        from distillctl.report.terminal import plan_table

        show(plan_table(made))
    made.check()


@click.command()
@recipe_options
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@yes_option
@click.option("--detach", is_flag=True,
              help="Leave once the teacher's batches, or training, are submitted; come back with attach.")
@click.option("--resubmit", is_flag=True, help="Make a new job where the backend lost the old one.")
@offline_option
@workspace_option
@json_option
def run(recipe: Path, backend: str | None, overrides: tuple[str, ...], until: str | None, yes: bool,
        detach: bool, resubmit: bool, offline: bool, workspace: Path, as_json: bool) -> None:
    """Run a recipe to its verdict, going on where an earlier run of it ended.

    Lists in student.model or train make a sweep: one run for each student, then a comparison.
    """
    from distillctl.context import Options
    from distillctl.sweep import open_cells

    cells = open_cells(
        recipe, backend=backend, overrides=overrides, workspace=workspace, reporter=reporter(),
        options=Options(offline=offline, detach=detach, resubmit=resubmit))
    if sweeping.is_sweep(cells):
        sweeping.run(cells, until, yes, as_json)
    else:
        _go(cells[0], until, yes, as_json)


@click.command()
@click.argument("run")
@yes_option
@click.option("--resubmit", is_flag=True, help="Make a new job where the backend lost the old one.")
@offline_option
@workspace_option
@json_option
def attach(run: str, yes: bool, resubmit: bool, offline: bool, workspace: Path, as_json: bool) -> None:
    """Go on with a run that was left, detached or interrupted."""
    from distillctl import api
    from distillctl.context import Options
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    ctx = api.open_run(place.find_run(run), place, reporter=reporter(),
                       options=Options(offline=offline, resubmit=resubmit))
    api.check_unchanged(ctx)
    _go(ctx, None, yes, as_json)


def _go(ctx: Context, until: str | None, yes: bool, as_json: bool) -> None:
    from distillctl import api
    from distillctl.context import Detached
    from distillctl.offline import guarded
    from distillctl.pipeline import execute
    from distillctl.plan import make_plan

    with guarded(ctx.options.offline), api.working_on(ctx):
        clear(make_plan(ctx, until), ctx.reporter, yes)
        try:
            execute(ctx, until)
        except Detached as left:
            say(str(left))
            return
        except KeyboardInterrupt:
            say(f"interrupted; what was done is kept. Go on with: distillctl attach {ctx.rundir.name}",
                err=True)
            raise
    _tell(api.Run(ctx.rundir), as_json)


def _tell(done, as_json: bool) -> None:
    if as_json:
        metrics = done.metrics.model_dump(mode="json") if (done.path / "metrics.json").exists() else None
        say_json({"run": done.name, "folder": str(done.path), "report": str(done.report), "metrics": metrics})
    elif (done.path / "metrics.json").exists():
        from distillctl.report.terminal import comparison_table, verdict_panel

        show(comparison_table(done.metrics))
        show(verdict_panel(done.metrics))
        say(f"run     {done.name}")
        say(f"report  {done.report}")
    else:
        say(f"run     {done.name}")


@click.command()
@click.argument("run", required=False)
@workspace_option
@json_option
def status(run: str | None, workspace: Path, as_json: bool) -> None:
    """List the runs of this folder with their jobs and spend, or show one."""
    from distillctl.status import status_of
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    chosen = [place.find_run(run)] if run else place.all_runs()
    found = [status_of(rundir, place) for rundir in chosen]
    if as_json:
        say_json([item.as_json() for item in found])
        return
    if not found:
        say("nothing was run in this folder yet: distillctl run RECIPE")
    for item in found:
        say(item.text(detailed=run is not None))


@click.command()
@click.argument("run")
@workspace_option
def cancel(run: str, workspace: Path) -> None:
    """Ask for the end of a run's training job and of its teacher's batches. What is done stays; the run can
    be started again."""
    from distillctl import answering, api, jobs
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    ctx = api.open_run(place.find_run(run), place)
    by_name = {ctx.learner(role).backend: role for role in ctx.roles()}
    began = time.time()

    def tell(event: JobEvent) -> None:
        if event.time >= began:  # not the job's whole story
            say(event.message, err=True)

    with ExitStack() as opened:
        def service(name: str) -> JobService:
            if name in by_name:
                return ctx.backend(by_name[name])
            return opened.enter_context(closing(answering.batches(ctx)))

        say(jobs.cancel_run(ctx.ledger, ctx.run_id, service, tell))
