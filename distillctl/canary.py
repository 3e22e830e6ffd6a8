"""The canary set: train and dev prompts that the teacher has answered, answered again for `drift`.

Never test items, so that what is watched over time does not become what is tuned for. The sample follows
from a hash of the ids, so every check asks the same prompts. The second answers are kept in the ledger
under keys of their own (`drift` in the identity, with the check's name): the cache of the first answers
cannot serve them, and a check that was killed goes on without paying twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl import answering
from distillctl.budget import Budget
from distillctl.collect import collect
from distillctl.context import Context
from distillctl.data import load_splits, pii
from distillctl.drift import Drift, compare_answers, noise_of
from distillctl.errors import Problem, UsageError
from distillctl.predictors import teacher_price
from distillctl.predictors.recorded import RecordedPredictor
from distillctl.prices import estimate
from distillctl.recipe.models import RecordedTeacher
from distillctl.select import predictions_of, requests_of
from distillctl.store.files import digest_json, read_json, write_json
from distillctl.store.ledger import Spent, answer_key
from distillctl.types import JSON, Answer, Example, Predictor, Request

_GOES_ON = 24 * 3600  # seconds in which a check that was left is gone on with, not begun anew
Pair = tuple[Example, Request, Answer]  # with the earlier answer


class Again:
    """A predictor whose answers are kept apart from those it gave before."""

    def __init__(self, inner: Predictor, check: str) -> None:
        self._inner = inner
        self.identity: Mapping[str, JSON] = {**inner.identity, "drift": check}
        self.max_batch = inner.max_batch
        self.replayed = False

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return await self._inner.answer(requests)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(frozen=True)
class Asking:
    """What asking the teacher again takes. usd: at most, None where the price is unknown."""

    calls: int
    usd: float | None
    sends_to: str | None
    budget_usd: float

    @property
    def needs_consent(self) -> bool:
        """Whether money may be spent or data leave this machine."""
        return bool(self.calls) and (self.sends_to is not None or self.usd is None or self.usd > 0)

    @property
    def consent_text(self) -> str:
        cost = "an unknown amount" if self.usd is None else f"up to ${self.usd:.2f}"
        where = f" and sends data to {self.sends_to}" if self.sends_to else ""
        return f"this asks {self.calls} prompts again, spends {cost} (budget ${self.budget_usd:.2f}){where}"


class Canary:
    """The sample of one recipe, with the answers that its teacher gave earlier.

    Raises UsageError where there are none yet, and what reading the data raises.
    """

    def __init__(self, ctx: Context, items: int) -> None:
        self._ctx = ctx
        splits, _ = load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)
        found = _answered(ctx, [*splits["train"], *splits["dev"]])
        distinct = {digest_json(list(request.messages)): (example, request, answer)
                    for example, request, answer in sorted(found, key=lambda pair: pair[0].id, reverse=True)}
        self.pairs: list[Pair] = sorted(distinct.values(), key=lambda pair: _rank(pair[0].id))[:items]
        if not self.pairs:
            raise UsageError(Problem(
                "the teacher has not answered any train or dev prompt of this recipe yet, so there is "
                "nothing to compare with", hint=f"distillctl run {ctx.loaded.path}"))

    def against_file(self, path: Path, tolerance: float, alpha: float) -> Drift:
        """Compare with a newer recording. Raises DataError for a bad one, UsageError for one without any of
        these items."""
        again = RecordedPredictor(path)
        answers = asyncio.run(again.answer([request for _, request, _ in self.pairs]))
        return self._compare(answers, "not in the newer recording", tolerance, alpha, str(path))

    def asking(self) -> Asking:
        """What `ask` would cost and where it would send the prompts. Raises UsageError for a recording,
        which cannot be asked, where the budget cannot be kept because a price is unknown, and where the
        recipe refuses to send personal data."""
        spec = self._ctx.recipe.teacher
        if isinstance(spec, RecordedTeacher):
            raise UsageError(Problem(
                "a recording cannot be asked again", self._ctx.loaded.where("teacher"), "teacher.provider",
                spec.provider, "record the teacher's answers anew and give them with --outputs FILE"))
        with answering.teacher(self._ctx) as who:
            again = Again(who.predictor, self._check(who.predictor))
            keys = {answer_key(again.identity, request): request for _, request, _ in self.pairs}
        for key in self._ctx.ledger.answers(list(keys)):
            del keys[key]
        found = estimate(keys.values(), teacher_price(spec), spec.max_tokens)
        if found.calls and found.usd_at_most is None:
            raise UsageError(Problem(
                "the price of the teacher is unknown, so the budget cannot be kept",
                self._ctx.loaded.where("teacher"), "teacher.price",
                hint="give it in US dollars per million tokens: {input: 0.4, output: 1.6}"))
        here = answering.on_this_machine(spec.base_url)
        if found.calls and not here:
            self._look_for_pii()
        return Asking(found.calls, found.usd_at_most, None if here else
                      spec.base_url or f"the {spec.provider} API", self._ctx.recipe.budget.max_usd)

    def _look_for_pii(self) -> None:
        wanted = self._ctx.recipe.data.pii
        if wanted == "off":
            return
        texts = pii.sent_texts({"canary": [one for one, _, _ in self.pairs]}, self._ctx.task.variables)
        found = pii.find_pii(texts)
        if wanted == "refuse" and found:
            raise UsageError(*pii.as_problems(found))
        for warning in pii.as_warnings(found):
            self._ctx.reporter.note(warning, "warning")

    def ask(self, tolerance: float, alpha: float) -> tuple[Drift, Spent]:
        """Ask the teacher again, within the recipe's budget, and compare; with what this check spent.

        Raises TeacherError and BudgetError; what was answered until then is kept for the next try.
        """
        with answering.teacher(self._ctx) as who:
            check = self._check(who.predictor)
            write_json(self._pending, {"check": check, "of": self._of(who.predictor), "at": time.time()})
            answers, spent = asyncio.run(self._collect(who, check))
        found = self._compare(answers, "the teacher gave no answer now", tolerance, alpha, None)
        self._pending.unlink(missing_ok=True)
        return found, spent

    async def _collect(self, who: answering.Answerer, check: str) -> tuple[list[Answer], Spent]:
        ctx, run = self._ctx, f"{self._ctx.recipe.name}/drift-{check}"
        again = Again(who.predictor, check)
        try:
            collected = await collect(
                again, [request for _, request, _ in self.pairs], ledger=ctx.ledger, run=run, kind="teacher",
                paid=who.paid, options=who.options,
                budget=Budget.of(ctx.ledger, run, ctx.recipe.budget.max_usd),
                on_progress=lambda p: ctx.reporter.progress(p.done, p.total, answering.progress_text(p)))
        finally:
            await again.aclose()
        return collected.answers, ctx.ledger.spent(run)

    def _compare(self, answers: Sequence[Answer], missing: str, tolerance: float, alpha: float,
                 where: str | None) -> Drift:
        kept = [(*pair, answer) for pair, answer in zip(self.pairs, answers, strict=True)
                if answer.finish != "failed"]
        if not kept:
            raise UsageError(Problem("there is no newer answer to any prompt of the sample", where,
                                     hint="the recording's ids must be those of the recipe's examples"))
        examples, requests, before, now = (list(part) for part in zip(*kept, strict=True))
        task = self._ctx.task
        left_out = {missing: len(answers) - len(kept)} if len(kept) < len(answers) else {}
        return compare_answers(
            task, examples, predictions_of(task, requests, before), predictions_of(task, requests, now),
            noise_of(_stability(self._ctx), tolerance), alpha, left_out)

    # --- the check's own name, which keeps its answers apart ---

    @property
    def _pending(self) -> Path:
        return self._ctx.workspace.private / "drift" / f"{self._ctx.recipe.name}.json"

    def _of(self, predictor: Predictor) -> str:
        return digest_json({"predictor": dict(predictor.identity),
                            "prompts": [list(request.messages) for _, request, _ in self.pairs]})

    def _check(self, predictor: Predictor) -> str:
        """The name of the check that was left unfinished within a day, else a new one."""
        if self._pending.exists():
            left = read_json(self._pending)
            if left["of"] == self._of(predictor) and time.time() - left["at"] < _GOES_ON:
                return left["check"]
        return secrets.token_hex(6)


def _answered(ctx: Context, examples: Sequence[Example]) -> list[Pair]:
    """Examples with the teacher's earlier answers: the recording's, else those in the ledger."""
    requests = requests_of(ctx.task, examples)
    with answering.teacher(ctx) as who:
        if who.predictor.replayed:
            answers = asyncio.run(who.predictor.answer(requests))
            pairs = list(zip(examples, requests, answers, strict=True))
        else:
            known = {}
            keys = [answer_key(who.predictor.identity, request) for request in requests]
            if ctx.workspace.has_ledger():
                known = ctx.ledger.answers(list(dict.fromkeys(keys)))
            pairs = [(example, request, known[key]) for example, request, key in
                     zip(examples, requests, keys, strict=True) if key in known]
    return [pair for pair in pairs if pair[2].finish != "failed"]


def _stability(ctx: Context) -> Mapping[str, JSON] | None:
    """How far this teacher agreed with itself, as the latest run that measured it says."""
    wanted = ctx.teacher_parts()["teacher"]
    for run in reversed(ctx.workspace.all_runs(ctx.recipe.name)):
        record = run.records().get("teacher")
        file = run.path / "stability.json"
        if record and record.parts.get("teacher") == wanted and file.exists():
            found = read_json(file)
            if found.get("measured"):
                return found
    return None


def _rank(identity: str) -> str:
    return hashlib.sha256(f"canary:{identity}".encode()).hexdigest()
