"""Ask a teacher through its provider's batch API: the answers come within a day, at half the price.

Prompts that the ledger cannot answer go into files within the provider's limits and the budget. Each file
is a paid job and made as one (`jobs.py`): intent, one request, record; found again after a crash or a lost
reply, never created twice. The most that it can cost is booked before the request, and stays so until its
answers are in the ledger and what they cost is known. Answers join by id, whatever their order; what
failed is asked again, alone. A kill at any point loses nothing: the next run goes on with every batch that
is not settled.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distillctl import jobs
from distillctl.backend import TERMINAL, JobHandle
from distillctl.budget import Budget, unknown_price
from distillctl.collect import (
    FATAL,
    MOST_BILLED,
    Collected,
    CollectOptions,
    cannot_be_asked,
    collected,
    too_many_unanswered,
)
from distillctl.desk import Desk, OnEvent
from distillctl.errors import BackendError, Problem, TeacherError
from distillctl.jobs import JOB_PATIENCE_S, new_token
from distillctl.predictors.batch import BOOKS, NAMES, REQUEST_TIMEOUT, BatchJob, BatchService
from distillctl.sdk_calls import Gone
from distillctl.store.files import digest_json, read_jsonl, write_jsonl
from distillctl.store.ledger import JobRow, Ledger, answer_key
from distillctl.testing.crash import crashpoint
from distillctl.types import JSON, Answer, CallFailed, Request

_AT_ONCE = 500  # answers in one commit
_WHOLE = ("completed", "ended")  # the provider's words for a batch with a result of every request
_LINE = re.compile(r"\bline (\d+)")


class Left(Exception):
    """Batches are under way, and nobody wants to wait for them."""


@dataclass(frozen=True)
class BatchOptions:
    """How to ask. folder: where the batches' requests and results lie until they are settled. budget: what
    may be spent now. detach: raise Left rather than wait. resubmit: ask anew what a lost batch held. The
    rest is of `CollectOptions`."""

    folder: Path
    budget: Callable[[], Budget]
    detach: bool = False
    resubmit: bool = False
    max_failures: float = CollectOptions.max_failures
    attempts: int = CollectOptions.attempts


@dataclass(frozen=True)
class BatchFile:
    """The requests of one batch by their answers' keys, as they lie on this disk."""

    name: str
    requests: dict[str, Request]

    @property
    def job(self) -> BatchJob:
        return BatchJob({id_of(key): request for key, request in self.requests.items()})

    def write(self, folder: Path) -> None:
        write_jsonl(self._path(folder, self.name), (
            {"key": key, "id": request.id, "sample": request.sample, "messages": list(request.messages)}
            for key, request in self.requests.items()))

    @classmethod
    def read(cls, folder: Path, name: str) -> BatchFile:
        """Raises StorageError where it is gone."""
        return cls(name, {row["key"]: Request(row["id"], row["messages"], row["sample"])
                          for row in read_jsonl(cls._path(folder, name))})

    def delete(self, folder: Path) -> None:
        self._path(folder, self.name).unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.requests.jsonl"


def id_of(key: str) -> str:
    """The id under which a request goes into a batch: of the answer's key, and within every limit."""
    return key.removeprefix("sha256:")[:40]


def collect_batches(service: BatchService, requests: Sequence[Request], *, ledger: Ledger, run: str,
                    options: BatchOptions, on_event: OnEvent = lambda event: None,
                    clock: Callable[[], float] = time.time,
                    sleep: Callable[[float], None] = time.sleep) -> Collected:
    """An answer for every request: from the ledger where it has one, else through batches.

    Raises Left (with `options.detach`), TeacherError, BudgetError, and BackendError where a batch was
    refused, failed, was cancelled or lost. What was answered until then is kept. KeyboardInterrupt leaves
    the batches running.
    """
    try:
        return _Collection(service, requests, ledger, run, options, on_event, clock, sleep).go()
    finally:
        service.close()


def under_way(ledger: Ledger, identity: Mapping[str, JSON]) -> list[JobRow]:
    """The batches of a predictor that are not settled, whichever run made them."""
    return [row for name in NAMES for row in ledger.unsettled(name, f"{_group(identity)}:")]


def known_batches(ledger: Ledger) -> dict[str, str]:
    """The tokens of all batches that the ledger knows, by the batches' ids."""
    return {row.handle.job_id: row.handle.token for row in ledger.jobs()
            if row.backend in NAMES and row.handle}


def file_of(row: JobRow, folder: Path) -> BatchFile:
    """The requests of a batch that is not settled. Raises StorageError where they are gone."""
    return BatchFile.read(folder, row.key.partition(":")[2])


def _group(identity: Mapping[str, JSON]) -> str:
    return digest_json(dict(identity)).removeprefix("sha256:")[:32]


class _Collection:
    def __init__(self, service: BatchService, requests: Sequence[Request], ledger: Ledger, run: str,
                 options: BatchOptions, on_event: OnEvent, clock: Callable[[], float],
                 sleep: Callable[[float], None]) -> None:
        self._service, self._ledger, self._run, self._options = service, ledger, run, options
        self._desk = Desk(service, ledger, on_event, clock, sleep, REQUEST_TIMEOUT)
        self._asking = {"ledger": ledger, "on_event": on_event, "clock": clock, "sleep": sleep}
        self._group = _group(service.identity)
        self._keys = [answer_key(service.identity, request) for request in requests]
        self._wanted = dict(zip(self._keys, requests, strict=True))
        self._given_up: dict[str, Answer] = {}
        self._tries: Counter[str] = Counter()
        self._billed: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def go(self) -> Collected:
        reused = len(self._known())
        while found := self._submit():
            left = 0
            for row, file in found:
                if self._options.detach:
                    row = jobs.look(self._service, row, **self._asking)
                    if row.state not in TERMINAL:
                        left += 1
                        continue
                self._finish(row, file)
            if left:
                raise Left(f"{left} batches of the teacher are under way" if left > 1 else
                           "a batch of the teacher is under way")
        answers = self._known() | self._given_up
        return collected([answers[key] for key in self._keys], answers.values(), reused)

    def _known(self) -> dict[str, Answer]:
        return self._ledger.answers(list(self._wanted))

    # --- into batches ---

    def _submit(self) -> list[tuple[JobRow, BatchFile]]:
        """The batches that hold wanted prompts; made for those that are in none and not answered."""
        with self._desk.only_submitter(self._group):
            found = []
            for row in under_way(self._ledger, self._service.identity):
                file = file_of(row, self._options.folder)
                if self._wanted.keys() & file.requests.keys():
                    found.append((row if row.handle else self._created(row.run, file), file))
                    if row.run != self._run:
                        self._desk.say(None, f"{_job(row.handle)} was made in run {row.run}; it serves this "
                                             "run too")
            asked = {key for _, file in found for key in file.requests}
            known = self._known()
            owed = {key: request for key, request in self._wanted.items()
                    if key not in known and key not in asked and key not in self._given_up}
            while owed:
                budget = self._options.budget()
                chosen, at_most = self._fitting(owed, budget)
                if not chosen:
                    if not found:
                        raise budget.exhausted(at_most)
                    break  # batches under way may cost less than is set aside for them
                file = BatchFile(new_token(), chosen)
                file.write(self._options.folder)
                found.append((self._created(self._run, file), file))
                owed = {key: request for key, request in owed.items() if key not in chosen}
            return found

    def _fitting(self, owed: dict[str, Request], budget: Budget) -> tuple[dict[str, Request], float]:
        """As many prompts as go into one batch and are within the budget, and the most that they cost; none,
        and the most that the next one costs, where it is the budget that does not allow it."""
        chosen: dict[str, Request] = {}
        size, usd = 0, 0.0
        for key, request in owed.items():
            cost = self._service.max_cost(request)
            if cost is None:
                raise unknown_price("teacher")
            size += self._service.size(id_of(key), request)
            if len(chosen) == self._service.most_requests or (chosen and size > self._service.most_bytes):
                break
            if not budget.reserve(cost):
                return chosen, usd if chosen else cost
            chosen[key] = request
            usd += cost
        return chosen, usd

    def _created(self, run: str, file: BatchFile) -> JobRow:
        """The batch of a file; found where it was created before."""
        key = f"{self._group}:{file.name}"
        try:
            return jobs.train(self._service, file.job, run=run, key=key, detach=True,
                              at_most_usd=self._at_most(file), request_timeout=REQUEST_TIMEOUT,
                              **self._asking)
        finally:
            if not self._ledger.unsettled(self._service.name, key):  # it was refused, or never begun
                file.delete(self._options.folder)

    def _at_most(self, file: BatchFile) -> float:
        return sum(self._service.max_cost(request) or 0.0 for request in file.requests.values())

    # --- and back ---

    def _finish(self, row: JobRow, file: BatchFile) -> None:
        """Follow a batch to its end and take its answers home. Raises what ended the collection."""
        row = jobs.follow(self._service, row, request_timeout=REQUEST_TIMEOUT, **self._asking)
        failures: dict[str, CallFailed] = {}
        usd = 0.0
        try:
            if row.state == "lost":
                jobs.succeeded(row)  # raises
            if row.state != "failed":
                failures, usd = self._take_in(row, file)
        except BackendError as error:
            if not self._options.resubmit or not (row.state == "lost" or isinstance(error, Gone)):
                raise
            self._ledger.record_spend(row.run, BOOKS, f"{row.token}#lost", None, self._at_most(file))
        self._ledger.record_spend(row.run, BOOKS, row.token, usd)  # settled
        crashpoint("after-batch-settled")
        file.delete(self._options.folder)
        for path in self._options.folder.glob(f"{row.token}.*"):
            path.unlink(missing_ok=True)
        if row.state in ("failed", "cancelled"):
            with _naming(file):
                jobs.succeeded(row)  # raises
        self._weigh(row, {key: failure for key, failure in failures.items() if key in self._wanted})

    def _take_in(self, row: JobRow, file: BatchFile) -> tuple[dict[str, CallFailed], float]:
        """Record a batch's answers; returns the failures of the others, and what is known to be billed."""
        path = self._options.folder / f"{row.token}.results.jsonl"
        self._desk.insist(row.token, JOB_PATIENCE_S, "download", row.handle, path)
        crashpoint("after-batch-download")
        by_id = {id_of(key): key for key in file.requests}
        missing = CallFailed("transient", "the batch came back without it",
                             maybe_billed=row.raw in _WHOLE)
        failures = dict.fromkeys(file.requests, missing)
        usd = 0.0
        strange: Counter[str] = Counter()
        seen: set[str] = set()
        answers: list[tuple[str, Request, Answer]] = []
        with path.open("rb") as lines:
            for line in filter(bytes.strip, lines):
                try:
                    id, outcome = self._service.outcome(json.loads(line), row.token)
                except (ValueError, RecursionError, AttributeError):
                    strange["not to be read"] += 1
                    continue
                if id not in by_id or id in seen:
                    strange["with an id that was given before: the first one counts" if id in seen else
                            "with an id that is not of this batch"] += 1
                    continue
                seen.add(id)
                key = by_id[id]
                if isinstance(outcome, CallFailed):
                    failures[key] = outcome
                    continue
                del failures[key]
                answers.append((key, file.requests[key], outcome))
                if len(answers) == _AT_ONCE:
                    usd += self._record(row, answers)
                    answers = []
        usd += self._record(row, answers)
        self._book_failures(row, file, failures, answered=len(failures) < len(file.requests))
        for what, count in strange.items():
            self._desk.say(row.token, f"{_job(row.handle)}: ignored {count} result{'s' * (count > 1)} {what}",
                           "warning")
        return failures, usd

    def _record(self, row: JobRow, answers: list[tuple[str, Request, Answer]]) -> float:
        """Returns what they cost, as far as it is known; the rest is booked with the most it can be."""
        self._ledger.record_answers(row.run, BOOKS, answers, paid=False)
        for key, request, answer in answers:
            if answer.cost_usd is None:
                self._book_unknown(row, key, request)
        crashpoint("after-batch-answers")
        return sum(answer.cost_usd or 0.0 for _, _, answer in answers)

    def _book_unknown(self, row: JobRow, key: str, request: Request) -> None:
        self._ledger.record_spend(row.run, BOOKS, f"{key}#{row.token}", None, self._service.max_cost(request))

    def _book_failures(self, row: JobRow, file: BatchFile, failures: dict[str, CallFailed],
                       answered: bool) -> None:
        """Write down what was paid for in vain; and what will never be answered, once something was: where
        all is rejected, the fault is in the setting, and the next run must ask again."""
        some = answered or any(answer.finish != "failed" for answer in self._known().values())
        for key, failure in failures.items():
            if failure.maybe_billed:
                self._book_unknown(row, key, file.requests[key])
        if some:
            self._ledger.record_answers(row.run, BOOKS, [
                (key, file.requests[key], _unanswered(failure)) for key, failure in failures.items()
                if failure.kind == "rejected"], paid=False)

    def _weigh(self, row: JobRow, failures: dict[str, CallFailed]) -> None:
        """Give up what was tried often enough. Raises TeacherError where too much of it is."""
        again: Counter[str] = Counter()
        for key, failure in failures.items():
            if failure.kind in FATAL:
                raise TeacherError(cannot_be_asked("teacher", failure))
            self._tries[key] += 1
            self._billed[key] += failure.maybe_billed
            if failure.kind == "rejected" or self._tries[key] >= self._options.attempts or (
                    self._billed[key] >= MOST_BILLED):
                self._given_up[key] = _unanswered(failure)
                self._reasons[str(failure)] += 1
            else:
                again[str(failure)] += 1
        if again:
            (worst, count), = again.most_common(1)
            self._desk.say(row.token, f"{_job(row.handle)}: {again.total()} requests were not answered and "
                                      f"are asked again ({count} × {worst})", "warning")
        known = self._known()
        failed = {key for key, answer in known.items() if answer.finish == "failed"} | self._given_up.keys()
        if self._given_up and (problem := too_many_unanswered(
                "teacher", len(failed), len(self._wanted), self._reasons, self._options.max_failures,
                some_answered=any(answer.finish != "failed" for answer in known.values()))):
            raise TeacherError(problem)


def _unanswered(failure: CallFailed) -> Answer:
    return Answer(None, "failed", error=f"{failure.kind}: {failure}")


def _job(handle: JobHandle | None) -> str:
    return f"batch {handle.job_id}" if handle else "the batch"


@contextmanager
def _naming(file: BatchFile) -> Iterator[None]:
    """Put our ids behind the line numbers in what a provider says of a file."""
    ids = [request.id for request in file.requests.values()]

    def named(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"{found[0]} ({ids[number - 1]})" if 1 <= number <= len(ids) else found[0]
    try:
        yield
    except BackendError as error:
        raise BackendError(*(Problem(_LINE.sub(named, problem.what), problem.where, problem.field,
                                     hint=problem.hint) for problem in error.problems)) from None
