"""Servers that a backend starts and that are billed by time: none outlives its run.

A backend starts one inside `announced`: the note that says so is on disk before the server exists, under
`.distillctl/<backend>/servers/`, and a lock beside it is held for as long as the process lives. A note whose
lock is free was left by a process that died; `stop_left_behind` has the backend's `stop_server` end it, and
every command that works on the workspace calls that. What a server cost goes into the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl import registry, secrets
from distillctl.backend import BackendEnv, Unreachable
from distillctl.errors import DistillctlError, Problem, StorageError, UsageError
from distillctl.store.files import SAFE_NAME, exclusive_lock, read_json, write_json
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.store.workspace import Workspace

IN_DOUBT_S = 180.0  # how long a create request of a process that died may still be on its way


@dataclass(frozen=True)
class Server:
    """A note about a server. settings: the backend's own, without secrets, to stop it with. run: whom it
    serves, as the ledger names it. announced, created, stopped: Unix seconds; created is None where it may
    not exist. usd_elsewhere: the part of its cost that was booked with the answers."""

    backend: str
    name: str
    settings: Mapping[str, JSON]
    run: str
    announced: float
    created: float | None = None
    usd_per_hour: float | None = None
    stopped: float | None = None
    usd_elsewhere: float = 0.0

    def __str__(self) -> str:
        price = "" if self.usd_per_hour is None else f", ${self.usd_per_hour:.2f} an hour"
        return f"server {self.name} at `{self.backend}`{f' for {self.run}' if self.run else ''}{price}"

    def usd(self, until: float) -> float | None:
        """What it cost until then, without what is booked elsewhere; None where the price is not known."""
        if self.usd_per_hour is None or self.created is None:
            return None
        hours = max(0.0, until - self.created) / 3600
        return max(0.0, hours * self.usd_per_hour - self.usd_elsewhere)


@dataclass
class Note:
    """A server's note on disk, to be kept up by the backend inside `announced`."""

    server: Server
    _path: Path = field(repr=False)

    @property
    def in_use(self) -> bool:
        """Whether the process that announced the server is alive."""
        try:
            with exclusive_lock(self._path.with_suffix(".lock")):
                return False
        except StorageError:
            return True

    @property
    def workspace(self) -> Path:
        """The backend's folder."""
        return self._path.parent.parent

    def change(self, **changed: object) -> None:
        """Write down what is new: `created`, `usd_per_hour`, `stopped`, `usd_elsewhere`."""
        self.server = replace(self.server, **changed)
        write_json(self._path, asdict(self.server))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)


@contextmanager
def announced(env: BackendEnv, backend: str, name: str, settings: Mapping[str, JSON]) -> Iterator[Note]:
    """Announce the server `name` before it is created. The block creates it, and stops it on every exit; a
    note that it leaves without `stopped` is settled by the next command."""
    path = env.workspace / "servers" / f"{name}.json"
    with exclusive_lock(path.with_suffix(".lock")):
        note = Note(Server(backend, name, dict(settings), env.run, env.clock()), path)
        note.change()
        yield note


def all_notes(workspace: Workspace) -> list[Note]:
    """Every note of a workspace, oldest first."""
    found = []
    for path in workspace.private.glob("*/servers/*.json"):
        with suppress(StorageError, TypeError):  # gone meanwhile, or of another version
            note = Note(Server(**read_json(path)), path)
            if SAFE_NAME.fullmatch(note.server.name) and note.server.name == path.stem:
                found.append(note)
    return sorted(found, key=lambda note: note.server.announced)


def stop_left_behind(workspace: Workspace, tell: Callable[[str], None], offline: bool = False) -> None:
    """Stop the servers whose processes died, and book what they cost; never raises because one resists.

    tell: takes what a person should know. offline: say it, and send nothing.
    """
    for note in all_notes(workspace):
        if note.in_use:
            continue
        if offline and note.server.stopped is None:
            tell(f"{note.server} may still run, and cost: --offline, so it was not stopped")
            continue
        try:
            stop(note, workspace, tell)
        except (DistillctlError, Unreachable) as error:
            tell(f"{note.server} may still run, and cost, and could not be stopped: {error}")


def stop(note: Note, workspace: Workspace, tell: Callable[[str], None]) -> bool:
    """Have a server stopped by its backend, whoever uses it, and book what it cost. Whether it is gone for
    certain. Raises DistillctlError, Unreachable."""
    unstopped = note.server.stopped is None
    if unstopped and not _gone(note, tell):
        return False
    server = note.server
    if server.created is not None:
        with workspace.ledger() as ledger:
            if unstopped:  # when it stopped (it may have been idle for long) is not known, only that it has
                ledger.record_spend(server.run, "serving", server.name, None, server.usd(time.time()))
            else:
                ledger.record_spend(server.run, "serving", server.name, server.usd(server.stopped))
    note.remove()
    return True


def _gone(note: Note, tell: Callable[[str], None]) -> bool:
    """Stop the server; whether it is gone for certain."""
    server = note.server
    env = BackendEnv(note.workspace, secrets.value, time.time)
    backend = registry.open_backend(server.backend, server.settings, env)
    if not hasattr(backend, "stop_server"):
        raise UsageError(Problem("this backend cannot stop servers", field="backend", value=server.backend))
    if backend.stop_server(server.name):
        tell(f"stopped {server}, which had been left running")
        if server.created is None:
            note.change(created=server.announced)
        return True
    return server.created is not None or time.time() - server.announced > IN_DOUBT_S
