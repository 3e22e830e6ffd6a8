"""Everything the command line prints goes through here: cleaned of terminal escapes, JSON where asked.

Results go to standard output, progress and problems to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distillctl.errors import DistillctlError

if TYPE_CHECKING:
    from rich.console import Console

    from distillctl.progress import Reporter

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def json_option(command: Callable) -> Callable:
    """The `--json` flag, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)


def workspace_option(command: Callable) -> Callable:
    """The `--workspace` option, passed as a Path. Before the command, what a killed one left running at a
    provider is stopped."""
    @wraps(command)
    def tidied(*args: Any, **kwargs: Any) -> Any:
        _stop_left_behind(kwargs["workspace"], kwargs.get("offline", False))
        return command(*args, **kwargs)

    return plain_workspace_option(tidied)


def plain_workspace_option(command: Callable) -> Callable:
    """The same option, and nothing else."""
    return click.option(
        "--workspace", type=click.Path(path_type=Path, file_okay=False), default=Path(),
        envvar="DISTILLCTL_WORKSPACE", show_default="this folder",
        help="Folder that holds runs/ and .distillctl/.")(command)


def _stop_left_behind(folder: Path, offline: bool) -> None:
    if not any(folder.glob(".distillctl/*/servers/*.json")):
        return  # nearly always, and at no cost
    from distillctl.servers import stop_left_behind
    from distillctl.store.workspace import Workspace

    stop_left_behind(Workspace(folder.resolve()), lambda text: say(f"warning: {text}", err=True), offline)


def recipe_options(command: Callable) -> Callable:
    """RECIPE, `--backend` and `--set`, passed as recipe, backend, overrides."""
    command = click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE",
                           help="Override one field, e.g. train.epochs=2. Repeatable.")(command)
    command = click.option("--backend", metavar="NAME", help="Train with this backend instead.")(command)
    return click.argument("recipe", type=click.Path(path_type=Path))(command)


@cache
def console(stderr: bool = False) -> Console:
    """The rich console of standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=False)


def say(text: str = "", *, err: bool = False) -> None:
    """Print one text, cleaned of terminal escapes and of every secret that was read."""
    from distillctl.report.sanitize import clean
    from distillctl.secrets import redact

    click.echo(redact(clean(text)), err=err)


def say_json(value: Any) -> None:
    """Print a JSON document on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def show(renderable: Any) -> None:
    """Print a rich renderable (built from cleaned text) on standard output."""
    console().print(renderable)


def fail(error: DistillctlError) -> None:
    """Print what is wrong, each problem with its place and what to do, on standard error."""
    for problem in error.problems:
        say(f"error: {problem}", err=True)


def agree(plan: Any) -> None:
    """Ask whether what a plan costs and sends is agreed to. Raises UsageError where nobody can answer."""
    from distillctl.errors import Problem, UsageError

    if not sys.stdin.isatty():
        raise UsageError(Problem(plan.consent_text, hint="agree with --yes"))
    say(plan.consent_text, err=True)
    click.confirm("go on?", abort=True, err=True)


def clear(plan: Any, told: Reporter, yes: bool) -> None:
    """Before a plan is carried out: raise its problems, tell its warnings, have its cost agreed to."""
    plan.check()
    for warning in plan.warnings:
        told.note(warning, "warning")
    if plan.needs_consent and not yes:
        agree(plan)


def reporter() -> Reporter:
    """Live on a terminal, plain lines elsewhere."""
    return Lines(live=sys.stderr.isatty())


class Lines:
    """Tells of stages and their progress on standard error.

    On a terminal the progress line is rewritten in place; elsewhere a line is printed every 15 seconds,
    so that logs stay short and silence stays rare.
    """

    def __init__(self, live: bool) -> None:
        self._live = live
        self._open = False  # a progress line stands on the terminal, unfinished
        self._last = 0.0

    def stage(self, name: str, why: str) -> None:
        self._line(f"▸ {name}  ({why})")
        self._last = time.monotonic()

    def reused(self, name: str) -> None:
        self._line(f"✓ {name}  reused")

    def done(self, name: str, seconds: float) -> None:
        from distillctl.progress import seconds_text

        self._line(f"✓ {name}  {seconds_text(seconds)}")

    def note(self, text: str, level: str = "info") -> None:
        self._line(f"  {text}" if level == "info" else f"  {level}: {text}")

    def progress(self, done: float, total: float | None, text: str) -> None:
        now = time.monotonic()
        if now - self._last < (0.1 if self._live else 15):
            return
        self._last = now
        share = f"{done / total:4.0%} " if total else ""
        if self._live:
            from distillctl.report.sanitize import clean

            width = console(stderr=True).width - 1
            click.echo("\r\x1b[2K" + clean(f"  {share}{text}")[:width], err=True, nl=False)
            self._open = True
        else:
            self._line(f"  {share}{text}")

    def _line(self, text: str) -> None:
        if self._open:
            click.echo("\r\x1b[2K", err=True, nl=False)
            self._open = False
        say(text, err=True)
