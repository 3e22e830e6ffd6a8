"""`endpoints`: servers at providers that were started to answer, and are billed by time."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distillctl.cli.output import json_option, plain_workspace_option, say, say_json

if TYPE_CHECKING:
    from distillctl.servers import Note


@click.group()
def endpoints() -> None:
    """Servers at providers that this folder's runs have started, and that cost by the minute."""


@endpoints.command("list")
@plain_workspace_option
@json_option
def list_endpoints(workspace: Path, as_json: bool) -> None:
    """List the servers that run, or may run, and whether a command uses them. Sends nothing."""
    from distillctl.servers import all_notes
    from distillctl.store.workspace import Workspace

    found = all_notes(Workspace(workspace.resolve()))
    if as_json:
        say_json([asdict(note.server) | {"in_use": note.in_use} for note in found])
        return
    for note in found:
        say(_line(note))
    if not found:
        say("none: every server that was started here has been stopped")


@endpoints.command("stop")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="Also those that a running command uses.")
@plain_workspace_option
def stop_endpoints(names: tuple[str, ...], everything: bool, workspace: Path) -> None:
    """Stop and delete servers: those named, else those that no running command uses."""
    from distillctl.backend import Unreachable
    from distillctl.errors import BackendError, DistillctlError, Problem, UsageError
    from distillctl.servers import all_notes, stop
    from distillctl.store.workspace import Workspace

    place = Workspace(workspace.resolve())
    known = {note.server.name: note for note in all_notes(place)}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(Problem("no such server", value=unknown[0],
                                 hint=f"known: {', '.join(known) or 'none'}"))
    chosen = [known[name] for name in names] or [
        note for note in known.values() if everything or not note.in_use]
    problems: list[Problem | str] = []
    for note in chosen:
        try:
            if stop(note, place, say):
                say(f"{note.server.name} is gone")
            else:
                say(f"{note.server.name} is not there (yet): try again in a few minutes")
        except DistillctlError as error:
            problems += error.problems
        except Unreachable as error:
            problems.append(Problem(f"could not be stopped: {error}", value=note.server.name,
                                    hint="it may still run, and cost; try again, or stop it at the provider"))
    if problems:
        raise BackendError.of(problems)
    if not chosen:
        say("nothing to stop")


def _line(note: Note) -> str:
    from distillctl.progress import seconds_text

    server = note.server
    use = "in use" if note.in_use else "stopped" if server.stopped else "left behind"
    age = seconds_text(max(0.0, time.time() - (server.created or server.announced)))
    usd = server.usd(server.stopped or time.time())
    cost = "cost unknown" if usd is None else f"up to ${usd + server.usd_elsewhere:.2f}"
    return f"{server.name}  {server.backend}  {server.run or '-'}  {use}  since {age}  {cost}"
