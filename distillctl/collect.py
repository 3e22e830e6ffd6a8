"""Ask a predictor for many answers: in parallel, within its limits and the budget, and never twice.

This is the one owner of retries, back-off and deadlines for calls. Every answer is in the ledger before
its place is given to the next request, so a killed process loses at most what was under way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from distillctl.budget import Budget, unknown_price
from distillctl.errors import BudgetError, DistillctlError, JudgeError, Problem, StudentError, TeacherError
from distillctl.predictors import LiveTeacher
from distillctl.prices import prompt_tokens_at_most
from distillctl.recipe.models import JudgeSpec
from distillctl.retry import Gate, Pace, Timing, back_off
from distillctl.store.ledger import Ledger, answer_key
from distillctl.store.recorder import Recorder
from distillctl.testing.crash import crashpoint
from distillctl.types import Answer, CallFailed, Predictor, Request

FATAL = {"auth": "refuses the key", "quota": "says that the account has no credit or quota left",
          "setup": "cannot be asked like this"}
MOST_BILLED = 3  # tries for one request that may each have been paid for
_HOPELESS = 10  # failures without one answer after which the rest is not tried
_PROGRESS_EVERY = 0.2  # seconds

Row = tuple[str, Request]  # answer key, request


@dataclass(frozen=True)
class CollectOptions:
    """How to ask.

    concurrency: most calls at once. deadline: seconds for one whole call, None for no bound.
    max_failures: share of the prompts that may stay unanswered. max_tokens: longest answer, which counts
    against `tokens_per_minute` until the true figure is known. max_cost: the most that one answer can
    cost, US dollars, None where that is unknown. attempts: tries for one request. grace: seconds that
    calls under way still get after Ctrl-C.
    """

    concurrency: int = 1
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    deadline: float | None = None
    max_failures: float = 0.05
    max_tokens: int = 0
    max_cost: Callable[[Request], float | None] = lambda request: None
    attempts: int = 6
    grace: float = 5.0

    @classmethod
    def for_teacher(cls, spec: LiveTeacher | JudgeSpec, max_cost: Callable[[Request], float | None],
                    ) -> CollectOptions:
        """The options that a recipe's live teacher or judge asks for; max_cost is its predictor's."""
        return cls(spec.concurrency, spec.requests_per_minute, spec.tokens_per_minute, spec.timeout,
                   spec.max_failures, spec.max_tokens, max_cost)


@dataclass(frozen=True)
class Progress:
    """Where a collection stands; counts are of distinct prompts.

    reused: answered by the ledger. usd: spent by this collection, None where a cost is unknown.
    note: why nothing moves just now ("waiting 12 s: HTTP 429 ...").
    """

    done: int
    total: int
    reused: int
    failed: int
    rate_per_s: float | None
    usd: float | None
    eta_s: float | None
    concurrency: int
    note: str = ""


@dataclass(frozen=True)
class Collected:
    """answers: one per request, in order. The counts are of distinct prompts; models: how many answers
    each model says it gave (more than one name: the provider switched)."""

    answers: list[Answer]
    reused: int
    asked: int
    failed: int
    models: Mapping[str, int] = field(default_factory=dict)


async def collect(predictor: Predictor, requests: Sequence[Request], *, ledger: Ledger, run: str, kind: str,
                  paid: bool, options: CollectOptions, budget: Budget | None = None,
                  on_progress: Callable[[Progress], None] | None = None,
                  timing: Timing | None = None) -> Collected:
    """An answer for every request: from the ledger where it has one, else asked and recorded there.

    kind: who answers ("teacher", "base", "student"), for the books and for messages. paid: whether a call
    can cost money; then `budget` caps it, or None leaves it uncapped. A recording is read without the
    ledger. A request that the provider rejects, or that stays unanswered after `options.attempts`, gives
    an answer with finish "failed"; the first kind is recorded, the second is owed again next time.

    Raises TeacherError (StudentError for any other kind) when no answer can be had or too many are
    missing, BudgetError before a call that could pass the cap or whose price is unknown. Both come after
    everything under way was recorded. Cancelled (Ctrl-C under `asyncio.run`), calls under way get
    `options.grace` seconds; a second Ctrl-C ends at once.
    """
    if predictor.replayed:
        return await _replay(predictor, requests, on_progress)
    keys = [answer_key(predictor.identity, request) for request in requests]
    known = ledger.answers(list(dict.fromkeys(keys)))
    reused = len(known)
    owed: dict[str, Request] = {}
    for key, request in zip(keys, requests, strict=True):
        if key not in known:
            owed.setdefault(key, request)
    work = _Collection(predictor, list(owed.items()), known, ledger, run, kind, paid, options, budget,
                       on_progress, timing or Timing())
    await work.run()
    return collected([work.answers[key] for key in keys], work.answers.values(), reused)


async def _replay(predictor: Predictor, requests: Sequence[Request],
                  on_progress: Callable[[Progress], None] | None) -> Collected:
    answers: list[Answer] = []
    for batch in _batches(iter(requests), predictor.max_batch):
        answers += await predictor.answer(batch)
        if on_progress:
            on_progress(Progress(len(answers), len(requests), 0, 0, None, 0.0, None, 1))
    return collected(answers, answers, 0)


def collected(answers: list[Answer], distinct: Collection[Answer], reused: int) -> Collected:
    return Collected(answers, reused, len(distinct) - reused, sum(a.finish == "failed" for a in distinct),
                     dict(Counter(a.model for a in distinct if a.model)))


class _Collection:
    """One collection under way; everything but the ledger's writes happens in one event loop."""

    def __init__(self, predictor: Predictor, owed: list[Row], known: dict[str, Answer], ledger: Ledger,
                 run: str, kind: str, paid: bool, options: CollectOptions, budget: Budget | None,
                 on_progress: Callable[[Progress], None] | None, timing: Timing) -> None:
        self.answers = known
        self._predictor, self._ledger, self._run, self._kind, self._paid = predictor, ledger, run, kind, paid
        self._options, self._budget, self._timing = options, budget if paid else None, timing
        self._owed = owed
        self._batches = _batches(iter(owed), predictor.max_batch)
        self._gate = Gate(options.concurrency, timing)
        self._requests_pace = Pace(options.requests_per_minute, timing)
        self._tokens_pace = Pace(options.tokens_per_minute, timing)
        self._recorder = Recorder(self._write)
        self._meter = _Meter(len(known) + len(owed), len(known), on_progress, timing, self._gate)
        self._meter.failed = sum(answer.finish == "failed" for answer in known.values())
        self._some_answered = len(known) > self._meter.failed
        self._rejected: list[tuple[str, Request, Answer]] = []  # not recorded yet, see `_give_up`
        self._reasons: Counter[str] = Counter()
        self._workers: list[asyncio.Task[None]] = []
        self._calling: set[asyncio.Task | None] = set()  # workers whose call is under way
        self._settled = asyncio.Event()
        self._stopping = False
        self._error: BaseException | None = None

    async def run(self) -> None:
        self._meter.show()
        if not self._owed:
            return
        workers = min(self._options.concurrency, -(-len(self._owed) // self._predictor.max_batch))
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]
        try:
            await asyncio.wait(self._workers)
        except asyncio.CancelledError:
            self._stop(None)
            await asyncio.wait(self._workers, timeout=self._options.grace)
            raise
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            await self._recorder.drained()
            self._meter.show()
        if self._error:
            raise self._with_advice(self._error)

    def _stop(self, error: BaseException | None) -> None:
        """Begin nothing new; calls under way finish and are recorded, workers that wait end now."""
        self._error = self._error or error
        self._stopping = True
        for worker in self._workers:
            if worker not in self._calling and worker is not asyncio.current_task():
                worker.cancel()

    async def _work(self) -> None:
        try:
            while not self._stopping and (batch := next(self._batches, None)):
                await self._answer(batch)
        except Exception as error:
            self._stop(error)

    async def _answer(self, batch: list[Row]) -> None:
        """Ask one batch until it is answered or given up."""
        tries: Counter[str] = Counter()
        maybe_billed = 0
        while True:
            try:
                return await self._try(batch)
            except CallFailed as failure:
                if failure.kind in FATAL:
                    raise self._error_of(cannot_be_asked(self._kind, failure)) from None
                if self._stopping:
                    return
                tries[failure.kind] += 1
                maybe_billed += failure.maybe_billed
                most = self._options.attempts * (2 if failure.kind == "rate_limited" else 1)
                if failure.kind == "rejected" or tries[failure.kind] >= most or (
                        self._paid and maybe_billed >= MOST_BILLED):
                    return await self._give_up(batch, failure)
                wait = back_off(tries.total(), failure.retry_after, self._timing.random())
                if failure.kind == "rate_limited" or failure.retry_after is not None:
                    self._gate.pause(wait)  # what the provider says of one call holds for all
                self._meter.show(f"waiting {wait:.0f} s: {failure}")
                await self._timing.sleep(wait)

    async def _try(self, batch: list[Row]) -> None:
        """One call, with its answers recorded. Raises CallFailed, BudgetError, StorageError."""
        ticket = await self._gate.enter()
        try:
            tokens = sum(prompt_tokens_at_most(r.messages) + self._options.max_tokens for _, r in batch)
            await self._requests_pace.take(len(batch))
            await self._tokens_pace.take(tokens)
            costs = await self._reserve(batch)
            worker = asyncio.current_task()
            self._calling.add(worker)
            spent: float | None = None  # nothing is known of the call yet
            try:
                answers = await self._call(batch)
                spent = sum((cost or 0.0) if answer.cost_usd is None else answer.cost_usd
                            for cost, answer in zip(costs, answers, strict=True))
                self._gate.answered()
                counts = [count for answer in answers for count in (answer.tokens_in, answer.tokens_out)]
                if None not in counts:
                    self._tokens_pace.give_back(tokens - sum(counts))
                await self._keep(batch, answers, costs)
            except CallFailed as failure:
                if failure.kind == "rate_limited":
                    self._gate.too_many(ticket)
                spent = self._book_lost(batch, costs) if failure.maybe_billed else 0.0
                raise
            finally:
                if spent is None:  # cancelled, or failed in a way that was not foreseen
                    spent = self._book_lost(batch, costs)
                self._calling.discard(worker)
                if self._budget:
                    self._budget.settle(_total(costs), spent)
                self._settled.set()
        finally:
            self._gate.leave()

    async def _call(self, batch: list[Row]) -> list[Answer]:
        deadline = self._options.deadline
        try:
            async with asyncio.timeout(deadline):
                return await self._predictor.answer([request for _, request in batch])
        except TimeoutError:
            within = f" within {deadline:g} s" if deadline else " in time"
            raise CallFailed("transient", f"no whole answer{within}", maybe_billed=True) from None

    async def _reserve(self, batch: list[Row]) -> list[float | None]:
        """The most that each answer can cost, set aside in the budget; waits for calls under way to free
        some of it where needed."""
        if not self._paid:
            return [0.0] * len(batch)
        costs = [self._options.max_cost(request) for _, request in batch]
        if self._budget is None:
            return costs
        if None in costs:
            raise unknown_price(self._kind)
        while not self._budget.reserve(_total(costs)):
            if not self._calling:
                raise self._budget.exhausted(_total(costs))
            self._settled.clear()
            await self._settled.wait()
        return costs

    async def _keep(self, batch: list[Row], answers: list[Answer], costs: list[float | None]) -> None:
        crashpoint("before-answer-commit")
        if not self._some_answered:
            self._some_answered = True
            await self._recorder.record([(*row, 0.0) for row in self._rejected])
        await self._recorder.record([
            (key, request, answer, cost)
            for (key, request), answer, cost in zip(batch, answers, costs, strict=True)])
        crashpoint("after-answer-commit")
        self.answers.update((key, answer) for (key, _), answer in zip(batch, answers, strict=True))
        self._meter.count(answers, self._paid)

    async def _give_up(self, batch: list[Row], failure: CallFailed) -> None:
        """Leave a batch unanswered. A rejection is recorded only once something was answered: where all
        is rejected, the fault is in the setting, and the next run must ask again."""
        answer = Answer(None, "failed", error=f"{failure.kind}: {failure}")
        self.answers.update((key, answer) for key, _ in batch)
        self._meter.count([answer] * len(batch), False)
        if failure.kind == "rejected":
            rows = [(key, request, answer) for key, request in batch]
            if self._some_answered:
                await self._recorder.record([(*row, 0.0) for row in rows])
            else:
                self._rejected += rows
        self._reasons[str(failure)] += len(batch)
        if problem := too_many_unanswered(self._kind, self._meter.failed, self._meter.total, self._reasons,
                                          self._options.max_failures, self._some_answered):
            raise self._error_of(problem)

    def _book_lost(self, batch: list[Row], costs: list[float | None]) -> float:
        """Write down that calls without an answer may have been billed; returns the most they cost."""
        for (key, _), cost in zip(batch, costs, strict=True):
            if cost != 0:
                self._ledger.record_spend(self._run, self._kind, f"{key}#{secrets.token_hex(6)}", None, cost)
        return _total(costs)

    def _write(self, rows: list[tuple[str, Request, Answer, float | None]]) -> None:
        self._ledger.record_answers(self._run, self._kind, [row[:3] for row in rows], self._paid,
                                    {key: cost for key, _, _, cost in rows if cost is not None})

    def _error_of(self, problem: Problem) -> DistillctlError:
        return {"teacher": TeacherError, "judge": JudgeError}.get(self._kind, StudentError)(problem)

    def _with_advice(self, error: BaseException) -> BaseException:
        """The error that ended the collection, with what was kept: known only now that all is recorded."""
        if not isinstance(error, TeacherError | JudgeError | StudentError | BudgetError):
            return error
        answered = self._meter.done - self._meter.failed
        kept = f"{answered} of {self._meter.total} prompts are answered and kept"
        first, *others = error.problems
        return type(error)(replace(first, hint=f"{kept}; {first.hint}" if first.hint else kept), *others)


def cannot_be_asked(kind: str, failure: CallFailed) -> Problem:
    """A failure that every other call would meet, too."""
    return Problem(f"the {kind} {FATAL[failure.kind]}: {failure}", hint="mend it and run again to go on")


def too_many_unanswered(kind: str, failed: int, total: int, reasons: Counter[str], max_failures: float,
                        some_answered: bool) -> Problem | None:
    """Why a collection that left `failed` of `total` prompts unanswered ends here; None: it goes on."""
    hopeless = failed >= _HOPELESS and not some_answered
    if failed <= max_failures * total and not hopeless:
        return None
    worst = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(3))
    allowed = "and not one was answered" if hopeless else (
        f"more than max_failures ({max_failures:.3g}) allows")
    return Problem(f"the {kind} left {failed} of {total} prompts unanswered, {allowed}: {worst}",
                   hint="run again to ask for the rest")


class _Meter:
    """Counts, and shows them at most five times a second."""

    def __init__(self, total: int, reused: int, show: Callable[[Progress], None] | None, timing: Timing,
                 gate: Gate) -> None:
        self.total, self.done, self.failed = total, reused, 0
        self._reused, self._show, self._timing, self._gate = reused, show, timing, gate
        self._usd: float | None = 0.0
        self._recent: deque[tuple[float, int]] = deque([(timing.now(), reused)], maxlen=100)
        self._shown_at = float("-inf")

    def count(self, answers: Sequence[Answer], paid: bool) -> None:
        self.done += len(answers)
        self.failed += sum(answer.finish == "failed" for answer in answers)
        if paid:
            for answer in answers:
                known = self._usd is not None and answer.cost_usd is not None
                self._usd = self._usd + answer.cost_usd if known else None
        self._recent.append((self._timing.now(), self.done))
        if self._timing.now() - self._shown_at >= _PROGRESS_EVERY:
            self.show()

    def show(self, note: str = "") -> None:
        if self._show is None:
            return
        now = self._timing.now()
        self._shown_at = now
        since, before = self._recent[0]
        rate = (self.done - before) / (now - since) if now > since and self.done > before else None
        self._show(Progress(self.done, self.total, self._reused, self.failed, rate, self._usd,
                            (self.total - self.done) / rate if rate else None, self._gate.limit, note))


def _total(costs: Sequence[float | None]) -> float:
    return sum(cost or 0.0 for cost in costs)


def _batches(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(islice(items, size)):
        yield batch
