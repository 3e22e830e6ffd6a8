"""`drift` and `gate`: what is asked again after a student was trained."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distillctl.cli.output import json_option, recipe_options, reporter, say, say_json, workspace_option
from distillctl.cli.running import _ask, offline_option, yes_option


@click.command()
@recipe_options
@click.option("--items", type=click.IntRange(min=1), default=200, show_default=True,
              help="How many train and dev prompts are compared; the same ones every time.")
@click.option("--outputs", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Compare with this newer recording instead of asking the teacher.")
@click.option("--tolerance", type=click.FloatRange(0, 1, max_open=True), default=0.02, show_default=True,
              help="Share of answers that may differ without meaning anything.")
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05,
              show_default=True, help="Chance of an alarm though nothing changed.")
@yes_option
@offline_option
@workspace_option
@json_option
def drift(recipe: Path, backend: str | None, overrides: tuple[str, ...], items: int, outputs: Path | None,
          tolerance: float, alpha: float, yes: bool, offline: bool, workspace: Path, as_json: bool) -> None:
    """Ask the teacher again: does it still answer as it did? Exit 0: yes; 1: it drifted; 2: wrong usage."""
    from distillctl import api
    from distillctl.canary import Canary
    from distillctl.context import Options
    from distillctl.drift import drift_text
    from distillctl.offline import guarded
    from distillctl.status import spent_text

    ctx = api.open_recipe(recipe, backend=backend, overrides=overrides, workspace=workspace,
                          options=Options(offline=offline), reporter=reporter())
    spent = None
    with guarded(offline):
        canary = Canary(ctx, items)
        if outputs is not None:
            found = canary.against_file(outputs, tolerance, alpha)
        else:
            asking = canary.asking()
            if asking.needs_consent and not yes:
                _ask(asking)
            found, spent = canary.ask(tolerance, alpha)
    if as_json:
        say_json({**found.as_json(), "spent": vars(spent) if spent else None})
    else:
        say(drift_text(found))
        if spent:
            say(f"spent {spent_text(spent)}")
    if found.drifted:
        sys.exit(1)


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
