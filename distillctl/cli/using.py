"""`predict`, `serve` and `export`: a finished run's student at work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distillctl.cli.output import json_option, reporter, say, say_json, workspace_option

yes_option = click.option("--yes", "-y", is_flag=True,
                          help="Agree that a hosted student is asked over the network, and billed.")


@click.command()
@click.argument("run")
@click.option("--input", "-i", "source", required=True,
              type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="JSONL, CSV or Parquet with the fields of the recipe's prompt.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="JSONL to write; one that was interrupted is gone on with.")
@yes_option
@workspace_option
@json_option
def predict(run: str, source: Path, output: Path, yes: bool, workspace: Path, as_json: bool) -> None:
    """Let a run's student answer every row of a file, in order; the same command goes on after a stop."""
    from distillctl import predict as work
    from distillctl.errors import Problem, UsageError
    from distillctl.using import check_consent, open_student

    ctx = _context(run, workspace)
    if output.exists() and output.samefile(source):
        raise UsageError(Problem("is the input itself", "--output", value=str(output)))
    check_consent(ctx, yes)
    rows = work.refuse_hopeless(work.read_requests(source, ctx.task, ctx.recipe.data.id))
    try:
        with open_student(ctx) as student:
            found = work.predict(student, rows, output, ctx.reporter, total=work.count_rows(source))
    except KeyboardInterrupt:
        say(f"interrupted; what is answered is in {output}, and the same command goes on", err=True)
        raise
    if as_json:
        say_json(found.as_json())
    else:
        _tell_summary(found)
    if found.failed:
        for error in found.errors:
            say(f"error: {error}", err=True)
        if found.failed > len(found.errors):
            say(f"error: and {found.failed - len(found.errors)} more", err=True)
        sys.exit(1)


def _tell_summary(found) -> None:
    from distillctl.progress import seconds_text

    parts = [f"{found.rows} rows in {seconds_text(found.seconds)}"]
    for count, word in ((found.reused, "answered before"), (found.failed, "failed"),
                        (found.unreadable, "cannot be read")):
        if count:
            parts.append(f"{count} {word}")
    say(", ".join(parts))
    for value, count in found.values.most_common():
        say(f"  {value}  {count}")
    say(f"output  {found.output}")


def _context(run: str, workspace: Path):
    from distillctl import api
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    return api.open_run(place.find_run(run), place, reporter=reporter())
