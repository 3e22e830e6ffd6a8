"""`eval`, `compare`, `report` and `verify`: what runs left behind."""

from __future__ import annotations

from pathlib import Path

import click

from distillctl.cli.output import json_option, reporter, say, say_json, show, workspace_option


@click.command("eval")
@click.argument("run")
@click.option("--predictions", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Score this JSONL of {id, output} on the run's test items instead of its student.")
@click.option("--name", default="predictions", show_default=True, help="What to call them.")
@workspace_option
@json_option
def eval_command(run: str, predictions: Path | None, name: str, workspace: Path, as_json: bool) -> None:
    """Score a run again from its predictions, or predictions that were made elsewhere. Calls no model."""
    from distillctl import api
    from distillctl.deciding import rescore
    from distillctl.report.terminal import comparison_table, verdict_panel
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    ctx = api.open_run(place.find_run(run), place)
    metrics = rescore(ctx, predictions, name)
    if as_json:
        say_json(metrics.model_dump(mode="json"))
        return
    show(comparison_table(metrics))
    show(verdict_panel(metrics))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN... | RECIPE")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@workspace_option
@json_option
def compare(runs: tuple[str, ...], html: Path | None, markdown: bool, workspace: Path, as_json: bool) -> None:
    """Runs side by side, and which to take; for a recipe, its sweep or latest runs."""
    from distillctl import api

    table = api.compare([run for name in runs for run in _named(name, workspace)])
    if html:
        from distillctl.report.compare import write_comparison

        write_comparison(table, html)
    if as_json:
        say_json(table.model_dump(mode="json"))
    elif markdown:
        from distillctl.report.markdown import markdown_comparison

        say(markdown_comparison(table))
    else:
        from distillctl.report.terminal import runs_table

        show(runs_table(table))
        if html:
            say(f"page: {html}")


def _named(name: str, workspace: Path) -> list:
    from distillctl import api
    from distillctl.errors import Problem, UsageError
    from distillctl.store.workspace import Workspace

    if not name.endswith((".yaml", ".yml")):
        return [api.load_run(name, workspace=workspace)]
    from distillctl.cli.sweeping import is_sweep
    from distillctl.sweep import open_cells

    cells = open_cells(name, workspace=workspace)
    if is_sweep(cells):
        runs = [api.Run(ctx.rundir) for ctx in cells if (ctx.rundir.path / "metrics.json").exists()]
    else:
        runs = api.latest_runs(cells[0].recipe.name, Workspace(workspace.resolve()))
    if not runs:
        raise UsageError(Problem("no finished run of this recipe", value=name,
                                 hint=f"distillctl run {name}"))
    return runs


@click.command()
@click.argument("run")
@click.option("--markdown", is_flag=True, help="Print the report as Markdown, for a pull request.")
@workspace_option
def report(run: str, markdown: bool, workspace: Path) -> None:
    """Write a run's report again and print its path."""
    from distillctl import api
    from distillctl.deciding import levers_of, write_report
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    found = place.find_run(run)
    if markdown:
        from distillctl.report.markdown import markdown_report

        done = api.Run(found)
        metrics = done.metrics
        levers = levers_of(api.open_run(found, place))
        say(markdown_report(metrics, done.name, levers["conclusions"] if levers else ()))
        return
    api.Run(found).metrics  # noqa: B018 - says what to do when the run is not finished
    ctx = api.open_run(found, place, reporter=reporter())
    write_report(ctx)
    say(str(ctx.path("report.html")))


@click.command()
@click.argument("run")
@workspace_option
@json_option
def verify(run: str, workspace: Path, as_json: bool) -> None:
    """Check every file of a run against the digest that was recorded when it was made."""
    from distillctl.errors import StorageError
    from distillctl.store.workspace import Workspace

    rundir = Workspace(workspace.resolve()).find_run(run)
    records = rundir.records()
    damage = [problem for record in records.values() for problem in rundir.damage(record)]
    files = sum(len(record.outputs) for record in records.values())
    if as_json:
        say_json({"run": rundir.name, "stages": len(records), "files": files,
                  "problems": [problem.as_json() for problem in damage]})
    if damage:
        raise StorageError(*damage)
    if not as_json:
        say(f"{rundir.name}: {files} files of {len(records)} stages are as they were made")
