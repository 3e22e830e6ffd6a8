"""`import`, `drift` and `gate`: real logs in, and what is asked again after a student was trained."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from distillctl.cli.output import (
    agree,
    json_option,
    recipe_options,
    reporter,
    say,
    say_json,
    workspace_option,
)
from distillctl.cli.running import offline_option, yes_option

_FORMATS = ("openai-chat", "openai-stored", "langfuse", "langsmith", "litellm", "csv")
_SHOWN = 3  # skipped rows of each reason


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--from", "source", type=click.Choice(_FORMATS), required=True, help="What wrote the log.")
@click.option("-o", "--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for recipe.yaml and data/; made where it is missing.")
@click.option("--labels", metavar="A,B,...", help="The task's labels; without it they are inferred.")
@click.option("--kind", type=click.Choice(("classification", "text")),
              help="Without it: labels where there are few, short, repeated answers, else text.")
@click.option("--prompt-column", default="prompt", show_default=True, help="Of a CSV file.")
@click.option("--answer-column", default="answer", show_default=True, help="Of a CSV file.")
@click.option("--pii", "look_for_pii", type=click.Choice(("off", "warn", "refuse")),
              help="Look for personal data; refuse: write nothing where there is some. Goes into the recipe, "
                   "for what leaves this machine later.  [default: warn, with the extra `pii`]")
@json_option
def import_command(file: Path, source: str, folder: Path, labels: str | None, kind: str | None,
                   prompt_column: str, answer_column: str, look_for_pii: str | None,
                   as_json: bool) -> None:
    """Make a recipe, examples and a recording from a log of real calls. Sends nothing.

    Logs hold what people wrote: look at data/examples.jsonl before a hosted backend sees it.
    """
    from distillctl.data import pii
    from distillctl.errors import Problem, UsageError
    from distillctl.importing import import_log

    if kind == "text" and labels:
        raise UsageError(Problem("a text has no labels", field="--labels", value=labels,
                                 hint="give --labels or --kind text, not both"))
    given = [label.strip() for label in labels.split(",") if label.strip()] if labels else None
    done = import_log(file, source, folder, labels=given, kind=kind, prompt_column=prompt_column,
                      answer_column=answer_column,
                      look_for_pii=look_for_pii or ("warn" if pii.available() else "off"))
    if as_json:
        say_json(done.as_json())
        return
    what = f"labels {', '.join(done.labels)}" if done.labels else "free text"
    say(f"{done.examples} examples from {done.rows} rows, {what}")
    if done.repeats:
        say(f"  {done.repeats} calls repeated a prompt and were merged; {done.contradicting} prompts had "
            "contradicting answers, of which the most frequent is kept")
    by_reason: dict[str, list[str]] = {}
    for problem in done.skipped:
        by_reason.setdefault(problem.what, []).append(str(problem.where))
    for what, places in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        more = f", … {len(places):,} rows; --json lists them" if len(places) > _SHOWN else ""
        say(f"  skipped {', '.join(places[:_SHOWN])}{more}: {what}", err=True)
    if done.personal is None and look_for_pii is None:
        say("  not looked for personal data: pip install 'distillctl[pii]'", err=True)
    for line in pii.as_warnings(done.personal or []):
        say(f"  warning: {line}", err=True)
    say(f"next: distillctl check {folder}/recipe.yaml")


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
                agree(asking)
            found, spent = canary.ask(tolerance, alpha)
    if as_json:
        say_json({**found.as_json(), "spent": vars(spent) if spent else None})
    else:
        say(drift_text(found))
        if spent:
            say(f"spent {spent_text(spent)}")
        if found.drifted:
            given = [*(("--backend", backend) if backend else ()),
                     *(part for override in overrides for part in ("--set", override)),
                     "--set", _collected_anew(outputs)]
            say(f"next, a new student beside the old one: distillctl run {shlex.join([str(recipe), *given])}")
    if found.drifted:
        sys.exit(1)


def _collected_anew(outputs: Path | None) -> str:
    """The setting with which a run takes the teacher's new answers."""
    if outputs is not None:
        return f"teacher.outputs={outputs.resolve()}"
    return f"teacher.collection={datetime.now(UTC):%Y-%m-%d}"


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
