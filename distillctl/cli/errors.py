"""`errors`: where teacher and student of a run are wrong, and the dev split's as seeds of training rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from distillctl.cli.output import json_option, say, say_json, workspace_option

if TYPE_CHECKING:
    from distillctl.seeds import ErrorItem, Errors

_MOST_TEXT = 400  # characters shown of one field or answer


@click.command()
@click.argument("run")
@click.option("--split", type=click.Choice(["dev", "test"]), default="dev", show_default=True,
              help="Whose items. Those of the test split are only shown.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the dev split's errors as JSONL, to make new training rows from.")
@workspace_option
@json_option
def errors(run: str, split: str, output: Path | None, workspace: Path, as_json: bool) -> None:
    """Where teacher and student of a finished run are wrong, item by item. Calls no model."""
    from distillctl import api
    from distillctl.errors import UsageError
    from distillctl.seeds import find_errors, test_refusal, write_seeds
    from distillctl.store.workspace import Workspace

    if output and split == "test":
        raise UsageError(test_refusal())
    place = Workspace(workspace.resolve())
    found = find_errors(api.open_run(place.find_run(run), place), split)
    if output:
        write_seeds(found, output)
    if as_json:
        say_json(found.as_json())
        return
    if not output:
        for item in found.items:
            _show(item)
    _summary(found)
    if output:
        say(f"seeds   {output}: write rows like these, with right answers, into the training data")
    elif found.items and split == "dev":
        say("with -o FILE these are written as seeds of new training rows")


def _show(item: ErrorItem) -> None:
    from distillctl.report.words import CELLS

    say(f"── {item.id}  {CELLS[item.cell][0]}")
    for name, value in item.fields.items():
        say(f"   {name}: {_text(value)}")
    for who, value in (("expected", item.expected), ("teacher", item.teacher), ("student", item.student)):
        say(f"   {who}: {_text(value)}")
    if item.parts:
        wrong = ", ".join(f"{name} ({_word(where)})" for name, where in item.parts.items())
        say(f"   wrong: {wrong}")
    say()


def _summary(found: Errors) -> None:
    def counts(cells: dict) -> str:
        return ", ".join(f"{count:,} {_word(where)}" for where, count in cells.items())

    say(f"{found.split}     {len(found.items):,} of {found.n:,} items"
        + (f": {counts(found.cells())}" if found.items else ""))
    for name, cells in found.parts().items():
        say(f"        {name}: {counts(cells)}")
    if not found.gold:
        say("        there are no gold answers: what is expected is the teacher's answer")


def _word(where: str) -> str:
    return where.replace("_", " ")


def _text(value: object) -> str:
    from distillctl.report.ledger_view import as_text
    from distillctl.report.sanitize import cut

    return cut(as_text(value), _MOST_TEXT).replace("\n", "\n      ")
