"""A finished run's student, opened to be used: by `predict` and by `serve`, which so answer alike."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from distillctl import answering, stages
from distillctl.api import Run, open_run
from distillctl.budget import Budget
from distillctl.collect import CollectOptions, collect
from distillctl.context import Context
from distillctl.data.pii import Guard
from distillctl.errors import Problem, UsageError
from distillctl.progress import Reporter
from distillctl.store.ledger import Ledger
from distillctl.store.rundir import RunDir
from distillctl.store.workspace import Workspace
from distillctl.task import Task
from distillctl.types import JSON, Answer, Predictor, Request


@dataclass(frozen=True)
class Reading:
    """An answer as the task reads it. probabilities: by label, likeliest first, None where the student
    states none. problem: why `value` is None."""

    value: JSON
    problem: str | None
    probabilities: dict[str, float] | None


class Student:
    """An opened student, or in a cascade the teacher behind it. One that is asked over the network costs
    money: its calls are retried, recorded in the workspace's ledger and held to the budget; one on this
    machine is just asked.

    temperature: fitted on the run's dev split, None where there was too little of it. ledger: None where
    nothing is paid. kind: whose calls they are, for the books. at_once: how many calls of `answer` keep it
    busy. guard: looks at what is sent over the network.
    """

    def __init__(self, run: str, task: Task, predictor: Predictor, temperature: float | None,
                 options: CollectOptions, ledger: Ledger | None = None, budget: Budget | None = None,
                 kind: str = "student", at_once: int = 1, guard: Guard | None = None) -> None:
        self.run = run
        self.task = task
        self.predictor = predictor
        self.temperature = temperature
        self.options = options
        self.at_once = at_once
        self.guard = guard
        self._ledger = ledger
        self._budget = budget
        self._kind = kind

    @property
    def paid(self) -> bool:
        """Whether it is asked over the network."""
        return self._ledger is not None

    async def answer(self, requests: list[Request]) -> list[Answer]:
        """One answer per request, in order; what cannot be answered has finish "failed" and an error.

        On this machine at most `predictor.max_batch` requests, else any number. Raises StudentError where
        nothing can be answered, BudgetError where the budget is used up.
        """
        if self._ledger is None:
            return await self.predictor.answer(requests)
        kept = await asyncio.to_thread(self._kept_back, requests)
        sent = [request for request, why in zip(requests, kept, strict=True) if why is None]
        collected = await collect(self.predictor, sent, ledger=self._ledger, run=self.run,
                                  kind=self._kind, paid=True, options=self.options, budget=self._budget)
        said = iter(collected.answers)
        return [next(said) if why is None else Answer(None, "failed", error=why) for why in kept]

    def _kept_back(self, requests: list[Request]) -> list[str | None]:
        """Why each request may not leave this machine; None where it may."""
        return [self.guard.why_kept(request.messages) if self.guard else None for request in requests]

    def read(self, answer: Answer) -> Reading:
        """The answer's value, and the label probabilities at the run's temperature."""
        parsed = self.task.parse(answer.output)
        return Reading(parsed.value, parsed.problem, probabilities(answer.label_logprobs, self.temperature))


def probabilities(logprobs: Mapping[str, float] | None, temperature: float | None) -> dict[str, float] | None:
    """Probability of each label, likeliest first. logprobs: natural logs, as in `Answer`."""
    if not logprobs:
        return None
    scaled = {label: log / (temperature or 1.0) for label, log in logprobs.items()}
    most = max(scaled.values())
    shares = {label: math.exp(log - most) for label, log in scaled.items()}
    total = sum(shares.values())
    return {label: shares[label] / total for label in sorted(shares, key=shares.get, reverse=True)}


def context_of(rundir: RunDir, workspace: Workspace, reporter: Reporter | None = None) -> Context:
    """A finished run. Raises UsageError for one that is not."""
    ctx = open_run(rundir, workspace, reporter=reporter)
    Run(rundir).metrics  # noqa: B018 - says what to do where there are none
    return ctx


def check_consent(ctx: Context, yes: bool) -> None:
    """Raises UsageError where the student is asked over the network and nobody has agreed to that."""
    if not yes and not ctx.backend("student").capabilities.student_is_local:
        raise UsageError(Problem(
            f"this student answers at {ctx.learner('student').backend}: what it is asked is sent there, and "
            f"billed up to {ctx.recipe.budget.max_usd:g} US dollars for the whole run",
            field="budget.max_usd", hint="agree with --yes"))


@contextmanager
def open_student(ctx: Context, budget: Budget | None = None) -> Iterator[Student]:
    """A finished run's student, for as long as the block runs.

    budget: what a paid student may spend; None: what the run has left. Raises UsageError for a run that is
    not finished, StudentError where the student cannot be opened.
    """
    ref = stages.student_ref(ctx, "student")
    with answering.learner(ctx, "student", ref, ctx.path("student")) as who:
        if who.paid:
            budget = budget or budget_of(ctx)
        yield Student(ctx.rundir.name, ctx.task, who.predictor, temperature_of(ctx), who.options,
                      ctx.ledger if who.paid else None, budget if who.paid else None,
                      guard=guard_of(ctx) if who.paid else None)


def temperature_of(ctx: Context) -> float | None:
    """What divides a student's log probabilities, fitted on dev; None where there was too little of it."""
    evaluations = Run(ctx.rundir).metrics.evaluations
    stated = next((e.calibration for e in evaluations if e.role == "student"), None)
    return stated.temperature if stated else None


def guard_of(ctx: Context) -> Guard | None:
    """What looks for personal data in prompts that leave this machine, as `data.pii` says. Raises
    MissingExtra."""
    wanted = ctx.recipe.data.pii
    own = f"{ctx.recipe.task.prompt}\n{ctx.recipe.task.system or ''}"
    return None if wanted == "off" else Guard(wanted == "refuse", own)


def budget_of(ctx: Context) -> Budget:
    """What the run has left to spend."""
    return Budget.of(ctx.ledger, ctx.rundir.name, ctx.recipe.budget.max_usd)
