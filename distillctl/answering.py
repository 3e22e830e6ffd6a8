"""Let an entrant (teacher, base, student, baseline) answer whole splits, and time it.

Latency is timed the same way for all that could be put into production: one request at a time, the same
items, after a warm-up. For what answers over a network these are the first requests of the collection, so
nothing is paid for twice; a model on this machine is asked again, which is free; a recording brings its own
figures or none. The untrained student is not timed: it is there to show what training did, and left to ramble
it would take longer than all others together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from distillctl import servers
from distillctl.backend import JobEvent, StudentRef
from distillctl.batches import BatchOptions, Left, collect_batches, known_batches
from distillctl.collect import Collected, CollectOptions, Progress, collect
from distillctl.context import Context, Detached, LearnerRole, machine
from distillctl.errors import Problem, UsageError
from distillctl.job_answers import Answered, time_here
from distillctl.predictors import LiveTeacher, open_batches, open_judge, open_teacher
from distillctl.predictors.batch import BatchService
from distillctl.progress import seconds_text
from distillctl.recipe.models import JudgeSpec, RecordedTeacher
from distillctl.recipe.models import Stability as StabilitySpec
from distillctl.select import predictions_of, requests_of
from distillctl.stability import Stability, measure
from distillctl.store.files import write_json, write_jsonl
from distillctl.types import JSON, Answer, Predictor, Request, Split

T = TypeVar("T")

@dataclass(frozen=True)
class Answerer:
    """An opened predictor and how it may be asked. role names its files and its line in the books."""

    role: str
    predictor: Predictor
    options: CollectOptions
    paid: bool
    batches: BatchService | None = None  # answers through these, where the recipe wants that


@contextmanager
def teacher(ctx: Context) -> Iterator[Answerer]:
    """The recipe's teacher. Raises MissingExtra, UsageError (no key), DataError (a bad recording)."""
    spec = ctx.recipe.teacher
    predictor = open_teacher(spec, ctx.loaded.resolve, ctx.task.json_schema)
    if isinstance(spec, RecordedTeacher):
        yield Answerer("teacher", predictor, CollectOptions(), paid=False)
        return
    _check_offline(ctx, spec, "teacher", "use a recorded teacher")
    yield Answerer("teacher", predictor, CollectOptions.for_teacher(spec, predictor.max_cost), paid=True,
                   batches=_batches(ctx, spec, predictor) if spec.batch else None)


def batches(ctx: Context) -> BatchService:
    """The batch API of the recipe's live teacher, for what an earlier run submitted. Raises as `teacher`."""
    spec = ctx.recipe.teacher
    if isinstance(spec, RecordedTeacher):
        raise UsageError(Problem("a recording has no batches", field="teacher.provider", value=spec.provider))
    return _batches(ctx, spec, open_teacher(spec, ctx.loaded.resolve, ctx.task.json_schema))


def batch_folder(ctx: Context) -> Path:
    """Where batches' requests and results lie until they are settled."""
    return ctx.workspace.private / "batches"


def _batches(ctx: Context, spec: LiveTeacher, predictor: Predictor) -> BatchService:
    return open_batches(spec, predictor, batch_folder(ctx), lambda: known_batches(ctx.ledger))


@contextmanager
def judge(ctx: Context) -> Iterator[Answerer]:
    """The recipe's judge. Raises MissingExtra, UsageError (no key)."""
    spec = ctx.recipe.evaluate.judge
    _check_offline(ctx, spec, "evaluate.judge", "leave it out")
    predictor = open_judge(spec)
    yield Answerer("judge", predictor, CollectOptions.for_teacher(spec, predictor.max_cost), paid=True)


def _check_offline(ctx: Context, spec: LiveTeacher | JudgeSpec, block: str, instead: str) -> None:
    if ctx.options.offline and not on_this_machine(spec.base_url):
        raise UsageError(Problem("--offline: this model is asked over the network", field=f"{block}.provider",
                                 value=spec.provider, hint=f"{instead}, or run without --offline"))


@contextmanager
def learner(ctx: Context, role: str, student: StudentRef, folder: Path,
            trained_as: LearnerRole = "student") -> Iterator[Answerer]:
    """A trained (or, as "base", untrained) model, opened by its backend for as long as the block runs."""
    backend = ctx.backend(trained_as)
    # a hosted backend may also send weights home
    paid = student.kind == "hosted" and not backend.capabilities.student_is_local
    try:
        with backend.open(student, folder, ctx.task, ctx.recipe.evaluate) as predictor:
            options = CollectOptions(max_failures=1.0)  # a missing answer is a wrong answer, and is shown
            if paid:
                options = replace(options, concurrency=8, deadline=120.0,
                                  max_cost=getattr(predictor, "max_cost", options.max_cost))
            yield Answerer(role, predictor, options, paid)
    finally:
        servers.stop_left_behind(ctx.workspace, lambda text: ctx.reporter.note(text, "warning"))


def collect_splits(ctx: Context, who: Answerer, splits: Sequence[Split]) -> None:
    """Answers to whole splits as predictions/<role>.<split>.jsonl, timings as timings/<role>.json. Raises
    Detached where the options say so and batches are under way."""
    requests = {split: requests_of(ctx.task, ctx.examples(split)) for split in splits}
    if who.batches is None:
        answers, timing = asyncio.run(_closing(who, _answer_all(ctx, who, requests)))
    else:
        answers, timing = _answer_in_batches(ctx, who, who.batches, requests)
    for split in splits:
        predictions = predictions_of(ctx.task, requests[split],
                                     [answers[request.id] for request in requests[split]])
        write_jsonl(ctx.path(f"predictions/{who.role}.{split}.jsonl"), (p.as_json() for p in predictions))
    write_json(ctx.path(f"timings/{who.role}.json"), timing)


def write_answered(ctx: Context, role: str, found: Answered, splits: Sequence[Split]) -> None:
    """What was answered in a training job, as the files that `collect_splits` leaves. A missing answer is a
    wrong one."""
    for split in splits:
        requests = requests_of(ctx.task, ctx.examples(split))
        answers = [found.answers.get(request.id) or Answer(
            None, "failed", error="the job gave no answer to it") for request in requests]
        write_jsonl(ctx.path(f"predictions/{role}.{split}.jsonl"),
                    (p.as_json() for p in predictions_of(ctx.task, requests, answers)))
    write_json(ctx.path(f"timings/{role}.json"), {
        **found.timing, "replayed": False, "machine": found.machine, "in_job": True})


def stability(ctx: Context, who: Answerer, wanted: StabilitySpec) -> Stability:
    """How far the teacher agrees with itself on some training prompts."""
    requests = requests_of(ctx.task, ctx.examples("train"))
    return asyncio.run(_closing(who, measure(
        who.predictor, ctx.task, requests, items=wanted.items, samples=wanted.samples,
        min_agreement=wanted.min_agreement, options=who.options, **collecting(ctx, who))))


def ask_all(ctx: Context, who: Answerer, requests: Sequence[Request]) -> Collected:
    """Answers to all of `requests`; who answers is closed after."""
    return asyncio.run(_closing(who, ask(ctx, who, requests)))


async def ask(ctx: Context, who: Answerer, requests: Sequence[Request],
              options: CollectOptions | None = None) -> Collected:
    """Answers from the ledger or from the predictor, with progress, within the run's budget."""
    return await collect(who.predictor, requests, options=options or who.options, **collecting(ctx, who))


def collecting(ctx: Context, who: Answerer) -> dict[str, Any]:
    """The arguments of `collect` that are the same for every asking of this run."""
    return {"ledger": ctx.ledger, "run": ctx.run_id, "kind": who.role, "paid": who.paid,
            "budget": ctx.budget() if who.paid else None,
            "on_progress": lambda p: ctx.reporter.progress(p.done, p.total, progress_text(p))}


async def _closing(who: Answerer, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    finally:
        await who.predictor.aclose()


async def _answer_all(ctx: Context, who: Answerer, requests: dict[Split, list[Request]],
                      ) -> tuple[dict[str, Answer], JSON]:
    warm, timed = timed_alone(ctx, requests)
    over_network = who.paid and not who.predictor.replayed
    if over_network:
        await _ask_alone(ctx, who, warm, timed)
    everything = [request for split in requests for request in requests[split]]
    answers = _by_id(ctx, who, everything, await ask(ctx, who, everything))
    if who.predictor.replayed or over_network:
        timing = _latencies("measured" if over_network else "recorded", answers,
                            timed if over_network else requests["test"])
    elif who.role == "base":
        timing = {"source": "measured", "latencies_s": []}
    else:
        warm = warm or timed[:ctx.recipe.evaluate.latency.warmup]
        timing = await time_here(who.predictor, warm, timed, lambda done: ctx.reporter.progress(
            done, len(timed), f"timing {done}/{len(timed)}, one at a time"))
    return answers, {**timing, **_of(who)}


def _answer_in_batches(ctx: Context, who: Answerer, service: BatchService,
                       requests: dict[Split, list[Request]]) -> tuple[dict[str, Answer], JSON]:
    """The items that time the teacher are asked by themselves, all others in batches."""
    warm, timed = timed_alone(ctx, requests)
    asyncio.run(_closing(who, _ask_alone(ctx, who, warm, timed)))
    everything = [request for split in requests for request in requests[split]]
    options = BatchOptions(batch_folder(ctx), ctx.budget, ctx.options.detach,
                           ctx.options.resubmit, who.options.max_failures, who.options.attempts)
    try:
        collected = collect_batches(service, everything, ledger=ctx.ledger, run=ctx.run_id, options=options,
                                    on_event=lambda event: _tell_batch(ctx, event))
    except Left as left:
        raise Detached(f"{left}; come back with: distillctl attach {ctx.rundir.name}") from None
    answers = _by_id(ctx, who, everything, collected)
    return answers, {**_latencies("measured", answers, timed), **_of(who)}


def _tell_batch(ctx: Context, event: JobEvent) -> None:
    if event.data.get("total"):
        ctx.reporter.progress(event.data["done"], event.data["total"], f"batch {event.message}")
    else:
        ctx.reporter.note(event.message, event.level)


def timed_alone(ctx: Context, requests: dict[Split, list[Request]]) -> tuple[list[Request], list[Request]]:
    """What warms up, and what is timed, one request at a time."""
    latency = ctx.recipe.evaluate.latency
    warm = [r for split in requests for r in requests[split] if split != "test"][:latency.warmup]
    return warm, requests["test"][:latency.items]


async def _ask_alone(ctx: Context, who: Answerer, warm: list[Request], timed: list[Request]) -> None:
    alone = replace(who.options, concurrency=1, max_failures=1.0)  # judged with the rest
    await ask(ctx, who, warm, alone)
    await ask(ctx, who, timed, alone)


def _by_id(ctx: Context, who: Answerer, requests: list[Request], collected: Collected) -> dict[str, Answer]:
    if len(collected.models) > 1:
        names = ", ".join(f"{name} ({count})" for name, count in collected.models.items())
        ctx.reporter.note(f"the {who.role} answered as several models: {names}", "warning")
    return {request.id: answer for request, answer in zip(requests, collected.answers, strict=True)}


def _latencies(source: str, answers: dict[str, Answer], timed: list[Request]) -> dict[str, JSON]:
    known = [answers[request.id].latency_s for request in timed]
    return {"source": source, "latencies_s": [seconds for seconds in known if seconds is not None]}


def _of(who: Answerer) -> dict[str, JSON]:
    """Who was timed, and where."""
    return {"replayed": who.predictor.replayed, "identity": dict(who.predictor.identity),
            "usd_per_hour": getattr(who.predictor, "usd_per_hour", None),
            "machine": None if who.predictor.replayed else machine()}


def progress_text(progress: Progress) -> str:
    """A collection's progress in one line."""
    parts = [f"{progress.done}/{progress.total} answers"]
    if progress.reused:
        parts.append(f"{progress.reused} from the ledger")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.rate_per_s:
        parts.append(f"{progress.rate_per_s:.1f}/s")
    if progress.usd:
        parts.append(f"${progress.usd:.4f}")
    if progress.eta_s:
        parts.append(f"{seconds_text(progress.eta_s)} left")
    return "  ".join([*parts, progress.note] if progress.note else parts)


def on_this_machine(base_url: str | None) -> bool:
    """Whether a teacher's address is this machine's own."""
    from urllib.parse import urlsplit

    return base_url is not None and urlsplit(base_url).hostname in ("127.0.0.1", "::1", "localhost")
