"""`gate`: what is asked again after a student was trained."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distillctl.cli.output import json_option, say, say_json, workspace_option


@click.command()
@click.argument("run")
@click.option("--against", metavar="RUN", help="The deployed run, scored on the same test items.")
@workspace_option
@json_option
def gate(run: str, against: str | None, workspace: Path, as_json: bool) -> None:
    """Hold a run against its recipe's gates. Exit 0: all pass; 1: one fails; 2: none are configured."""
    from distillctl.gate import check_gates, gates_text
    from distillctl.store.workspace import Workspace

    found = check_gates(run, Workspace(workspace.resolve()), against)
    if as_json:
        say_json(found.as_json())
    else:
        say(gates_text(found))
    if not found.passed:
        sys.exit(1)
