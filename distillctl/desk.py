"""Asks a backend and tells what it says: one job's calls with patience, one submitter at a time.

What `jobs.py` decides with. Here are the clock, the pauses and the only retries of backend calls.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from distillctl.backend import Ambiguous, JobEvent, JobService, NotYet, Rejected, Unreachable
from distillctl.errors import BackendError, DistillctlError, Problem, StorageError
from distillctl.secrets import redact
from distillctl.store.files import digest_json, exclusive_lock
from distillctl.store.ledger import JobRow, Ledger

OnEvent = Callable[[JobEvent], None]

_ALLOWED: dict[str, tuple[type[Exception], ...]] = {
    "stage": (Rejected, Unreachable), "submit": (Rejected, Ambiguous)}  # any other method: Unreachable


@dataclass
class Desk:
    """A backend, the ledger and who is told. request_timeout: the backend's limit for one request, s."""

    backend: JobService
    ledger: Ledger
    on_event: OnEvent
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    request_timeout: float = 60.0
    _told: dict[str, int] = field(default_factory=dict)  # by token: number of the last event passed on

    @property
    def where(self) -> str:
        return f"backend {self.backend.name!r}"

    @property
    def hosted(self) -> bool:
        """Whether requests travel: replies can be lost, listings can lag, jobs are billed."""
        return self.backend.capabilities.data_leaves_machine

    @property
    def books(self) -> str:
        """The kind of spend that its jobs are."""
        return self.backend.capabilities.books

    def row(self, token: str) -> JobRow:
        return self.ledger.jobs(token=token)[0]

    def say(self, token: str | None, message: str, level: str = "info") -> None:
        """Tell the user, and keep it in the job's story where there is one yet."""
        event = JobEvent(f"distillctl:{secrets.token_hex(6)}", self.clock(), redact(message), level)
        if token is None:
            self.on_event(event)
        else:
            self.ledger.record_event(token, event)
            self.tell(token)

    def tell(self, token: str) -> None:
        """Pass on the events of a job that were not passed on yet."""
        for number, event in self.ledger.events(token, after=self._told.get(token, -1)):
            self._told[token] = number
            self.on_event(event)

    def ask(self, method: str, *args: Any) -> Any:
        """One call of the backend. What its contract does not allow becomes a BackendError."""
        try:
            return getattr(self.backend, method)(*args)
        except (DistillctlError, *_ALLOWED.get(method, (Unreachable,))):
            raise
        except Exception as error:
            raise BackendError(Problem(
                redact(f"`{method}` failed in a way that its contract does not allow: "
                       f"{type(error).__name__}: {error}"), where=self.where,
                hint="a job that was created goes on; run again to find it")) from error

    def insist(self, token: str | None, patience: float, method: str, *args: Any) -> Any:
        """Ask until the backend can be reached; BackendError after `patience` seconds without."""
        since: float | None = None
        tries, waiting, unreachable = 0, False, False
        while True:
            try:
                answer = self.ask(method, *args)
            except Unreachable as error:
                now = self.clock()
                since = now if since is None else since
                if isinstance(error, NotYet):
                    if not waiting:
                        self.say(token, f"waiting: {error}")
                    waiting = True
                elif not unreachable:
                    self.say(token, f"unreachable since {at(now)} ({error}): asking again, the job is not "
                                    f"touched", "warning")
                    unreachable = True
                if now - since > patience:
                    raise BackendError(Problem(
                        redact(f"unreachable since {at(since)}: {error}"), where=self.where,
                        hint="nothing was changed or cancelled; run again when it can be reached")) from error
                self.sleep(pause(tries, error.retry_after))
                tries += 1
            else:
                if unreachable:
                    self.say(token, f"reachable again after {self.clock() - since:.0f} s")
                return answer

    @contextmanager
    def only_submitter(self, key: str) -> Iterator[None]:
        """Let one process at a time decide whether a training key needs a new job; a kill frees it."""
        name = digest_json(key).removeprefix("sha256:")[:32]
        path = self.ledger.path.parent / "locks" / f"{name}.lock"
        waiting = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive_lock(path))
                    break
                except StorageError:
                    if not waiting:
                        self.say(None, "another process is submitting this job: waiting for it")
                    waiting = True
                    self.sleep(1.0)
            yield


def pause(tries: int, retry_after: float | None) -> float:
    """Seconds before another try: 1, 2, 4 … 60 less up to half by chance, or what was asked for, up to
    ten minutes."""
    own = min(2.0 ** min(tries, 6), 60.0) * random.uniform(0.5, 1.0)
    return min(max(own, retry_after or 0.0), 600.0)


def at(moment: float) -> str:
    """A moment in local time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
