"""What a judge said of two texts, and whether it is to be believed. Pure functions of its replies.

Each pair is shown in both orders. Only a winner in both is one; where the orders disagree, the judge went by
the place and not by the text, and the pair is a tie. Before that counts for anything, the judge itself is
measured: where only one of the two answers passes the checks against gold, how often does it prefer that one?
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from distillctl.evaluate import intervals
from distillctl.evaluate.results import Count, JudgeScores
from distillctl.evaluate.wording import gap, gap_range, money, percent, plural

Winner = Literal["teacher", "student", "tie"]
_REASONING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_PLACES = {"a": "first", "b": "second", "tie": "tie"}


@dataclass(frozen=True)
class Judged:
    """One pair. settled: who wins without asking (equal texts, a missing one). teacher_first,
    student_first: the judge's replies by whose answer stood first. passes: whether the teacher's and the
    student's answer pass the checks, None where there is no gold."""

    split: Literal["dev", "test"]
    settled: Winner | None = None
    teacher_first: str | None = None
    student_first: str | None = None
    passes: tuple[bool, bool] | None = None

    @property
    def verdicts(self) -> tuple[Winner | None, Winner | None]:
        """The winner in each order, None for a reply that cannot be read."""
        return (_winner(self.teacher_first, "teacher", "student"),
                _winner(self.student_first, "student", "teacher"))

    @property
    def winner(self) -> Winner | None:
        """Who wins; None where a reply is missing or cannot be read."""
        if self.settled:
            return self.settled
        one, other = self.verdicts
        if one is None or other is None:
            return None
        return one if one == other else "tie"

    @property
    def right_one(self) -> Winner | None:
        """Who should win: the only one of the two that passes the checks, where the judge was asked."""
        if self.settled or self.passes is None or self.passes[0] == self.passes[1]:
            return None
        return "teacher" if self.passes[0] else "student"


def _winner(reply: str | None, first: Winner, second: Winner) -> Winner | None:
    """Who wins by a reply whose last line is A, B or TIE, and nothing else."""
    lines = _REASONING.sub("", reply or "").strip().splitlines()
    said = lines[-1].strip(" *_`\"'.:!#").casefold().removeprefix("answer ") if lines else ""
    return {"first": first, "second": second, "tie": "tie"}.get(_PLACES.get(said, ""))


def judge_scores(judged: Sequence[Judged], model: str, min_agreement: float, usd: float | None,
                 groups: Sequence[Hashable] | None = None) -> JudgeScores:
    """The scores over the test items in `judged`; dev items only measure the judge. groups: of the test
    items, in their order. usd: what the replies cost. Raises ValueError without a test item."""
    test = [one for one in judged if one.split == "test"]
    winners = [one.winner for one in test]
    counts = {who: intervals.count([winner == who for winner in winners], groups)
              for who in ("student", "teacher", "tie")}
    preference = intervals.difference([winner == "teacher" for winner in winners],
                                      [winner == "student" for winner in winners], groups)
    asked = [one for one in judged if not one.settled]
    read = [one.verdicts for one in asked if None not in one.verdicts]
    measured = [one.winner == one.right_one for one in judged if one.right_one]
    agreement = intervals.count(measured) if measured else None
    believed = agreement is not None and agreement.share.low >= min_agreement
    shown = (f"The judge ({model}) prefers the student's answer on {counts['student'].k:,} of "
             f"{plural(len(test), 'test item')}, the teacher's on {counts['teacher'].k:,}, neither on "
             f"{counts['tie'].k:,}: the student is {gap(preference.value)} the teacher (95 % interval "
             f"{gap_range(preference)}).")
    return JudgeScores(
        model=model, student=counts["student"], teacher=counts["teacher"], tie=counts["tie"],
        unread=winners.count(None), drop=preference, settled=sum(bool(one.settled) for one in test),
        asked=len(asked), disagreed=intervals.count([a != b for a, b in read]) if read else None,
        agreement=agreement, min_agreement=min_agreement, believed=believed, usd=usd,
        sentence=f"{_standing(agreement, min_agreement, judged)} {shown} It has no part in the verdict."
                 + ("" if usd is None else f" It cost {money(usd)}."))


def _standing(agreement: Count | None, bar: float, judged: Sequence[Judged]) -> str:
    """Whether the judge is to be believed, and why."""
    if agreement is None:
        why = ("there are no gold answers" if all(one.passes is None for one in judged) else
               "on no item that it was asked does only one of the two answers pass the checks")
        return f"Not to be believed: how far the judge agrees with gold answers is unknown, because {why}."
    share = agreement.share
    found = (f"where only one of the two answers passes the checks, the judge preferred that one on "
             f"{agreement.k:,} of {plural(agreement.n, 'item')}, {percent(share.value)} (95 % interval "
             f"{percent(share.low)} to {percent(share.high)})")
    if share.low >= bar:
        return f"Measured first: {found}."
    return f"Not to be believed: {found}, and the lower end is below {percent(bar)}."
