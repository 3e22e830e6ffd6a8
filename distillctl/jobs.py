"""Paid jobs: submit, follow, reconcile, cancel, collect. The only loop, clock and retry owner for
backends, and for a teacher's batches.

A paid job is created once per intent. The intent (a fresh token) is on disk before the create request;
the request is sent once; its handle is recorded. After a crash, or when the reply was lost, the backend is
asked for the jobs that carry the token, and only when the request can no longer be travelling and two
listings show none is the same token sent again. Unreachable is not failed, an unknown word is not an end,
and a job that ended stays so.
"""

from __future__ import annotations

import math
import random
import secrets
import shutil
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillctl.backend import (
    TERMINAL,
    Ambiguous,
    Backend,
    JobHandle,
    JobService,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
)
from distillctl.desk import Desk, OnEvent, at
from distillctl.errors import BackendError, BudgetError, Problem
from distillctl.secrets import redact
from distillctl.store.files import sync_folder, sync_tree
from distillctl.store.ledger import JobRow, Ledger
from distillctl.students import check_student
from distillctl.testing.crash import crashpoint

IN_DOUBT_S = 60.0  # beyond the request's time-out, how long a create may still be on its way
LISTING_GAP_S = 10.0  # between listings for a job in doubt
CREATES = 2  # most create requests that one call of `train` sends for one intent
STAGE_PATIENCE_S = 15 * 60.0  # nothing is running yet: give up soon
JOB_PATIENCE_S = 24 * 3600.0  # a job is running and paid: wait a day for a state that can be read
CANCEL_PATIENCE_S = 120.0
_OVER = frozenset({*TERMINAL - {"lost"}, "duplicate", "rejected"})  # nothing is left to be asked


def train(backend: JobService, job: Any, *, ledger: Ledger, run: str, key: str,
          on_event: OnEvent = lambda event: None, detach: bool = False, resubmit: bool = False,
          at_most_usd: float | None = None, budget_left: Callable[[], float] = lambda: math.inf,
          clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
          request_timeout: float = 60.0) -> JobRow:
    """The succeeded job of a training key: one that is there already (of any run), else a new one.

    key: digest of everything that determines the student. detach: return once the job is created and
    recorded, in whatever state it is. resubmit: create a new job even where one succeeded or was lost;
    never beside a live one. at_most_usd: the estimate's upper end, booked until the bill is known.
    budget_left: US dollars that a new job may cost, as far as its cost is known. request_timeout: the
    backend's own limit for one request, seconds. Raises BackendError when the job is refused, fails, is
    cancelled or lost, BudgetError before one is created that may cost too much. KeyboardInterrupt leaves the
    job running.
    """
    desk = Desk(backend, ledger, on_event, clock, sleep, request_timeout)
    with _says_how_to_return(desk, run, key):
        with desk.only_submitter(key):
            row = _standing(desk, key, resubmit)
            if row is None or row.handle is None:
                row = _create(desk, job, row, run, key, at_most_usd, budget_left)
            elif row.run != run:
                desk.say(row.token, f"this job was made in run {row.run}; it serves this run too")
        if not detach:
            return succeeded(_follow(desk, row))
        return row if desk.hosted or row.state in _OVER else _poll(desk, row)


def follow(backend: JobService, row: JobRow, *, ledger: Ledger, on_event: OnEvent = lambda event: None,
           clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
           request_timeout: float = 60.0) -> JobRow:
    """Poll a job until it ends; its whole story goes to `on_event`, the new part as it happens.

    Returns the row in its final state, whichever that is. Raises BackendError when no job was created,
    or when no state could be read for a day. KeyboardInterrupt leaves the job running.
    """
    desk = Desk(backend, ledger, on_event, clock, sleep, request_timeout)
    with _says_how_to_return(desk, row.run, row.key):
        if row.handle is None and row.state == "intended":
            with desk.only_submitter(row.key):
                row = _settle(desk, row)
        return _follow(desk, row)


def look(backend: JobService, row: JobRow, *, ledger: Ledger, on_event: OnEvent = lambda event: None,
         clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep) -> JobRow:
    """Poll a created job once. Raises BackendError when no state could be read for a day."""
    desk = Desk(backend, ledger, on_event, clock, sleep)
    return row if row.state in _OVER else _poll(desk, row)


def reconcile(backend: JobService, *, ledger: Ledger, key: str, on_event: OnEvent = lambda event: None,
              clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
              request_timeout: float = 60.0) -> JobRow | None:
    """What a training key stands on, asking the backend where the ledger cannot know; creates nothing.

    None when nothing was intended; a row without a handle when an intent came to nothing.
    """
    desk = Desk(backend, ledger, on_event, clock, sleep, request_timeout)
    with desk.only_submitter(key):
        row = newest(ledger, key, backend.name)
        return _settle(desk, row) if row is not None and row.state == "intended" else row


def cancel(backend: JobService, row: JobRow, *, ledger: Ledger, on_event: OnEvent = lambda event: None,
           clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep,
           request_timeout: float = 60.0) -> JobRow:
    """Ask for a job's end; `follow` sees how it ended. An intent is settled first. Idempotent.

    Takes a "duplicate" row too. Raises BackendError when the backend cannot be asked.
    """
    desk = Desk(backend, ledger, on_event, clock, sleep, request_timeout)
    if row.state == "intended":
        with desk.only_submitter(row.key):
            row = _settle(desk, row)
            if row.handle is None:
                ledger.record_state(row.token, "cancelled", "before it was created")
                ledger.record_spend(row.run, desk.books, row.token, 0.0)
                return desk.row(row.token)
    if row.handle is not None and row.state not in TERMINAL:
        desk.insist(row.token, CANCEL_PATIENCE_S, "cancel", row.handle)
        desk.say(row.token, f"asked for the end of job {row.handle.job_id}")
    return desk.row(row.token)


def cancel_run(ledger: Ledger, run: str, backend_named: Callable[[str], JobService],
               on_event: OnEvent = lambda event: None, clock: Callable[[], float] = time.time,
               sleep: Callable[[float], None] = time.sleep) -> str:
    """Ask for the end of every job that a run made and that may be live, duplicates too; says which."""
    asked = []
    for row in ledger.jobs(run=run):
        if row.state not in TERMINAL and row.state != "rejected":
            after = cancel(backend_named(row.backend), row, ledger=ledger, on_event=on_event, clock=clock,
                           sleep=sleep)
            asked.append(after.handle.job_id if after.handle else "a job before it was created")
    return f"asked for the end of {', '.join(asked)}" if asked else f"no job of {run} is running"


def collect(backend: Backend, row: JobRow, into: Path, *, ledger: Ledger,
            on_event: OnEvent = lambda event: None, clock: Callable[[], float] = time.time,
            sleep: Callable[[float], None] = time.sleep) -> StudentRef:
    """Bring a succeeded job's student into the folder `into`, whole or not at all; idempotent.

    It is collected beside `into`, checked against the digests in the reference, flushed and renamed. A
    download that was cut off is taken up by the backend where it can. Raises BackendError.
    """
    desk = Desk(backend, ledger, on_event, clock, sleep)
    partial = into.parent / f".{into.name}.{row.token}"
    for stale in into.parent.glob(f".{into.name}.*"):
        if stale != partial:
            shutil.rmtree(stale)
    partial.mkdir(parents=True, exist_ok=True)
    student = desk.insist(row.token, JOB_PATIENCE_S, "collect", row.handle, partial)
    check_student(student, partial, backend.name)
    crashpoint("before-publish")
    sync_tree(partial)
    if into.exists():
        shutil.rmtree(into)
    partial.replace(into)
    sync_folder(into.parent)
    crashpoint("after-collect")
    return student


def newest(ledger: Ledger, key: str, backend: str) -> JobRow | None:
    """The job that a training key stands on, as far as the ledger knows; rejected ones never were."""
    rows = [row for row in ledger.jobs(key=key)
            if row.backend == backend and row.state not in ("rejected", "duplicate")]
    return rows[-1] if rows else None


def poll_interval(elapsed: float, hosted: bool) -> float:
    """Seconds until the next poll of a job that is `elapsed` seconds old: a twentieth of its age, at
    least 0.5, at most 30 at a service and 1 on this machine, with 20 % jitter."""
    return min(max(elapsed / 20, 0.5), 30.0 if hosted else 1.0) * random.uniform(0.8, 1.2)


# --- create, or find what was created -------------------------------------------------------------------


def _standing(desk: Desk, key: str, resubmit: bool) -> JobRow | None:
    """The job to go on with; None, or a row without a handle, where one has to be created."""
    row = newest(desk.ledger, key, desk.backend.name)
    if row is not None and row.state == "intended":
        return _settle(desk, row)
    if row is None or row.handle is None:
        return None
    if row.state == "lost" and not resubmit:
        row = _poll(desk, row)  # another key may have hidden it
        if row.state == "lost":
            succeeded(row)
    if row.state in ("failed", "cancelled") or (resubmit and row.state in TERMINAL):
        desk.say(row.token, f"job {row.handle.job_id} ended as {row.state}"
                            f"{f' ({row.message})' if row.message else ''}: creating a new one", "warning")
        return None
    return row


def _create(desk: Desk, job: Any, row: JobRow | None, run: str, key: str, at_most_usd: float | None,
            budget_left: Callable[[], float]) -> JobRow:
    """Stage the data, write the intent and create the job; or, for an intent that came to nothing,
    create it with the same token: what that may cost is in the books already."""
    again = row is not None
    if not again:
        _check_budget(desk, at_most_usd, budget_left())
    try:
        staged: Staged = desk.insist(row and row.token, STAGE_PATIENCE_S, "stage", job)
    except Rejected as error:
        raise BackendError(_refused(desk, f"the data was refused: {error}")) from error
    at_most_usd = at_most_usd if staged.cost_usd is None else staged.cost_usd
    if row is not None:
        token = row.token
    else:
        _check_budget(desk, at_most_usd, budget_left())
        token = new_token()
        crashpoint("before-intent")
        desk.ledger.intend_job(token, key, run, desk.backend.name, staged.data)
    if desk.hosted:
        desk.ledger.record_spend(run, desk.books, token, None, at_most_usd)
    for _ in range(CREATES):
        if again:
            desk.ledger.renew_intent(token)
        crashpoint("after-intent")
        row = _create_once(desk, job, staged, token, again)
        if row.handle is not None:
            return row
        again = True
    raise BackendError(Problem(
        "no reply to the create request could be read, and no job is listed",
        where=desk.where,
        hint="run again later: it looks for the job before it creates one"))


def _check_budget(desk: Desk, usd: float | None, left: float) -> None:
    if usd is not None and usd > left:
        raise BudgetError(Problem(
            f"training may cost ${usd:.2f}, and ${max(0.0, left):.2f} of the budget are left",
            where=desk.where, field="budget.max_usd", hint="nothing was created; raise it, or train less"))


def _create_once(desk: Desk, job: Any, staged: Staged, token: str, again: bool) -> JobRow:
    """Send one create request. The row has no handle where its reply was lost and no job is found.

    again: a request with this token was sent before, so more than one job may carry it.
    """
    try:
        handle: JobHandle = desk.ask("submit", job, staged, token)
    except Rejected as error:
        if again and (found := desk.insist(token, JOB_PATIENCE_S, "find", token)):
            return _adopt(desk, token, found)
        desk.ledger.record_state(token, "rejected", redact(str(error)))
        desk.ledger.record_spend(desk.row(token).run, desk.books, token, 0.0)
        raise BackendError(_refused(desk, f"the job was refused: {error}")) from error
    except Ambiguous as error:
        desk.say(token, f"the reply to the create request was lost ({error}): looking for the job",
                 "warning")
        return _settle(desk, desk.row(token))
    crashpoint("after-submit")
    desk.ledger.record_handle(token, handle)
    crashpoint("after-record")
    if again:
        return _adopt(desk, token, [*desk.insist(token, JOB_PATIENCE_S, "find", token), handle])
    return desk.row(token)


def _settle(desk: Desk, row: JobRow) -> JobRow:
    """Find what became of an intent. The row has no handle when its create request can no longer be
    travelling and no job is listed: twice at a service, whose listings may lag; once on this machine."""
    over = row.intended + (desk.request_timeout + IN_DOUBT_S if desk.hosted else 0.0)
    listings = 2 if desk.hosted else 1
    while True:
        found = desk.insist(row.token, JOB_PATIENCE_S, "find", row.token)
        if found:
            return _adopt(desk, row.token, found)
        now = desk.clock()
        if now >= over:
            listings -= 1
            if listings == 0:
                return desk.row(row.token)
        desk.sleep(LISTING_GAP_S if now >= over else min(LISTING_GAP_S, over - now))


def _adopt(desk: Desk, token: str, found: list[JobHandle]) -> JobRow:
    """Record the earliest of the jobs that carry `token`; any other is a duplicate, and said loudly."""
    first, *others = sorted({handle.job_id: handle for handle in found}.values(),
                            key=lambda handle: handle.created_at)
    desk.ledger.record_handle(token, first)
    desk.say(token, f"found job {first.job_id}, created {at(first.created_at)}")
    for other in others:
        desk.ledger.record_duplicate(token, other)
        desk.say(token, f"DUPLICATE: job {other.job_id}, created {at(other.created_at)}, is the same job "
                        f"and may be billed too; {first.job_id} is used. `distillctl cancel "
                        f"{desk.row(token).run}` ends both{f'; see {other.url}' if other.url else ''}",
                 "warning")
    return desk.row(token)


def new_token() -> str:
    """Twelve characters that every provider takes in a name or a label: a letter first, then lower-case
    letters and digits."""
    rest = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(11))
    return secrets.choice(string.ascii_lowercase) + "".join(rest)


def _refused(desk: Desk, what: str) -> Problem:
    return Problem(redact(what), where=desk.where,
                   hint="nothing was created and nothing is billed; mend this and run again")


# --- follow ---------------------------------------------------------------------------------------------


def _follow(desk: Desk, row: JobRow) -> JobRow:
    if row.handle is None and row.state == "intended":
        raise BackendError(Problem("the job was never created", where=f"backend {row.backend!r}",
                                   hint="run again to create it"))
    desk.tell(row.token)
    unknown_since: float | None = None
    started = row.handle.created_at if row.handle and row.handle.created_at else row.intended
    while row.handle is not None and row.state not in _OVER:
        row = _poll(desk, row)
        now = desk.clock()
        if row.state == "lost":
            break
        if row.state != "unknown":
            unknown_since = None
        elif unknown_since is None:
            unknown_since = now
            desk.say(row.token, f"the backend says {row.raw!r}, which this version does not know: waiting",
                     "warning")
        elif now - unknown_since > JOB_PATIENCE_S:
            raise BackendError(Problem(
                f"job {row.handle.job_id} has been {row.raw!r} since {at(unknown_since)}",
                where=row.handle.url or f"backend {row.backend!r}",
                hint="nothing was changed; look at the job there, and run again to follow it"))
        if row.state not in TERMINAL:
            desk.sleep(poll_interval(now - started, desk.hosted))
    return row


def _poll(desk: Desk, row: JobRow) -> JobRow:
    """One look at the job, kept in the ledger with its cost and events, then told."""
    seen: Snapshot = desk.insist(row.token, JOB_PATIENCE_S, "poll", row.handle, row.cursor)
    crashpoint("during-poll")
    if seen.cost_usd is not None:
        desk.ledger.record_spend(row.run, desk.books, row.token, seen.cost_usd)
    desk.ledger.record_snapshot(row.token, replace(
        seen, raw=redact(seen.raw), message=redact(seen.message),
        events=tuple(replace(event, message=redact(event.message)) for event in seen.events)))
    crashpoint("after-poll")
    desk.tell(row.token)
    now = desk.row(row.token)
    if now.state in TERMINAL and now.state != seen.state:
        desk.say(row.token, f"the backend now says {seen.raw!r}; the job had {now.state} and stays so",
                 "warning")
    return now


@contextmanager
def _says_how_to_return(desk: Desk, run: str, key: str) -> Iterator[None]:
    """At Ctrl-C, say what becomes of the job."""
    try:
        yield
    except KeyboardInterrupt:
        row = newest(desk.ledger, key, desk.backend.name)
        if row is not None and row.handle is not None and row.state not in _OVER:
            desk.say(None, f"left; job {row.handle.job_id} goes on at `{row.backend}`. `distillctl attach "
                           f"{run}` follows it, `distillctl cancel {run}` ends it", "warning")
        elif row is not None and row.state == "intended":
            desk.say(None, "left while the job was being created; the next run looks for it first",
                     "warning")
        raise


def succeeded(row: JobRow) -> JobRow:
    """The row, if its job succeeded. Raises BackendError in the provider's words."""
    if row.state == "succeeded":
        return row
    handle = row.handle
    where = (handle and handle.url) or f"backend {row.backend!r}"
    job = f"job {handle.job_id}" if handle else "the job"
    said = f": {row.message}" if row.message else f" ({row.raw})" if row.raw else ""
    if row.state == "lost":
        made_with = f" It was made with account {handle.account}." if handle and handle.account else ""
        raise BackendError(Problem(
            f"{job} is not there any more{said}.{made_with}", where=where,
            hint="with that account's key, run again to find it; only `--resubmit` creates (and pays) a "
                 "new one"))
    raise BackendError(Problem(f"{job} {row.state}{said}", where=where,
                               hint="run again to create a new one"))
