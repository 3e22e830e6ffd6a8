"""`serve --cascade`: the student answers where it is sure, the teacher where it is not.

The rule is the evaluation's: the probability of the student's answer, at the temperature of dev, must reach
the threshold. Where the teacher then cannot be asked, the request fails: an unsure answer is never passed
off as the cascade's. What may not leave this machine (`data.pii: refuse`) is the student's to answer, and its
answer says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from distillctl import answering
from distillctl.api import Run
from distillctl.budget import Budget
from distillctl.context import Context
from distillctl.data.pii import NOT_SENT
from distillctl.errors import Problem, UsageError
from distillctl.prices import prompt_tokens_at_most
from distillctl.recipe.models import RecordedTeacher
from distillctl.retry import Pace, Timing
from distillctl.types import Answer, Request
from distillctl.using import Reading, Student, guard_of

ATTEMPTS = 2  # a client waits


@dataclass(frozen=True)
class Decided:
    """The answer that is sent. confidence: the student's, None where it states none. kept_back: the teacher
    would have been asked, but for the personal data in the prompt."""

    by: Literal["student", "teacher"]
    answer: Answer
    reading: Reading
    confidence: float | None
    kept_back: bool = False


class Cascade:
    """Decides who answers. teacher: a live one, asked within the recipe's rates."""

    def __init__(self, student: Student, teacher: Student, threshold: float) -> None:
        self.threshold = threshold
        self.teacher = teacher
        self._student = student
        options = teacher.options
        self._at_once = asyncio.Semaphore(options.concurrency)
        self._requests = Pace(options.requests_per_minute, Timing())
        self._tokens = Pace(options.tokens_per_minute, Timing())

    async def decide(self, request: Request, answer: Answer) -> Decided:
        """answer: the student's. Raises TeacherError, BudgetError."""
        reading = self._student.read(answer)
        sure = (reading.probabilities or {}).get(reading.value)
        if sure is not None and sure >= self.threshold:
            return Decided("student", answer, reading, sure)
        asked = replace(request, max_tokens=None)
        options = self.teacher.options
        async with self._at_once:
            await self._requests.take(1)
            await self._tokens.take(prompt_tokens_at_most(asked.messages) + options.max_tokens)
            (said,) = await _to_its_end(self.teacher.answer([asked]))
        if said.error is not None and said.error.startswith(NOT_SENT):
            return Decided("student", answer, reading, sure, kept_back=True)
        read = self.teacher.read(said)
        if read.value is not None:  # clients read the labels as the student writes them
            said = replace(said, output=self.teacher.task.target(read.value))
        return Decided("teacher", said, replace(read, probabilities=None), sure)


async def _to_its_end(call: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
    """What a call gives. Its client may hang up (we are cancelled): it is paid, and its answer is kept."""
    task = asyncio.create_task(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def threshold_of(ctx: Context, given: float | None) -> float:
    """The threshold to serve with: `given`, else the run's own.

    Raises UsageError where there is none, the student states no probabilities, or the teacher cannot be
    asked.
    """
    if isinstance(ctx.recipe.teacher, RecordedTeacher):
        raise UsageError(Problem("a recorded teacher knows its own questions alone and answers no new ones",
                                 field="teacher.provider", value="recorded",
                                 hint="serve without --cascade, or put a live teacher into the recipe"))
    metrics = Run(ctx.rundir).metrics
    student = next((e for e in metrics.evaluations if e.role == "student"), None)
    if student is None or student.calibration is None:
        raise UsageError(Problem("this student states no probabilities, so it never knows that it is unsure",
                                 "--cascade", hint="only a student that scores a label set does"))
    if given is not None:
        return given
    if metrics.cascade is None:
        raise UsageError(Problem("the evaluation found no threshold that keeps within `verdict.max_drop`",
                                 "--cascade", value=metrics.no_cascade, hint="give one: --cascade 0.9"))
    return metrics.cascade.threshold


@contextmanager
def open_cascade(ctx: Context, student: Student, threshold: float, budget: Budget) -> Iterator[Cascade]:
    """The recipe's teacher behind the student. Raises MissingExtra, UsageError (no key)."""
    with answering.teacher(ctx) as who:
        options = replace(who.options, attempts=ATTEMPTS)
        leaves = not answering.on_this_machine(getattr(ctx.recipe.teacher, "base_url", None))
        yield Cascade(student, Student(ctx.rundir.name, ctx.task, who.predictor, None, options, ctx.ledger,
                                       budget, "teacher", guard=guard_of(ctx) if leaves else None), threshold)


def check_consent(ctx: Context, yes: bool) -> None:
    """Raises UsageError where the teacher is asked over the network and nobody has agreed to that."""
    url = getattr(ctx.recipe.teacher, "base_url", None)
    if not yes and not answering.on_this_machine(url):
        raise UsageError(Problem(
            "what the student is not sure of is sent to the teacher, and billed up to "
            f"{ctx.recipe.budget.max_usd:g} US dollars for the whole run", field="budget.max_usd",
            hint="agree with --yes"))
