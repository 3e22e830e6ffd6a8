"""The cascade: the student answers where it is sure, the teacher elsewhere.

The threshold is chosen on dev (`threshold.py`) and measured on test. So the items whose accuracy is bounded
had no part in choosing them, and the bound (Clopper and Pearson 1934) needs no correction for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from distillctl.evaluate import intervals, stats
from distillctl.evaluate.results import Cascade, CascadePoint, CascadeStep, Count, Interval
from distillctl.evaluate.wording import gap, gap_range, percent, plural, points

MIN_SHARE = 0.2  # answered by the student, from which a second model is worth running
MOST_POINTS = 101


@dataclass(frozen=True)
class Sure:
    """One item: how sure the student is of its answer (None: it has no answer, or no probability), and who
    is right on it."""

    confidence: float | None
    student: bool
    teacher: bool

    def answered(self, threshold: float) -> bool:
        """Whether the student answers it."""
        return self.confidence is not None and self.confidence >= threshold

    def right(self, threshold: float) -> bool:
        """Whether the whole is right on it."""
        return self.student if self.answered(threshold) else self.teacher


@dataclass(frozen=True)
class Upkeep:
    """US dollars of 1,000 requests and mean seconds of one; None where unknown. teacher_usd: of the requests
    that are deferred, which may be longer ones than the mean."""

    student_usd: float | None = None
    teacher_usd: float | None = None
    student_s: float | None = None
    teacher_s: float | None = None

    def whole(self, deferred: float) -> tuple[float | None, float | None]:
        """(US dollars of 1,000 requests, seconds of one) when this share also goes to the teacher."""
        return (_added(self.student_usd, self.teacher_usd, deferred),
                _added(self.student_s, self.teacher_s, deferred))


def _added(student: float | None, teacher: float | None, deferred: float) -> float | None:
    return None if student is None or teacher is None else student + deferred * teacher


def measure(test: Sequence[Sure], threshold: float, max_drop: float, upkeep: Upkeep = Upkeep(),
            groups: Sequence[Hashable] | None = None) -> Cascade:
    """What `threshold`, as the recipe fixes it, does on test."""
    right = [one.right(threshold) for one in test]
    at = [i for i, one in enumerate(test) if one.answered(threshold)]
    answered = intervals.count([one.answered(threshold) for one in test], groups)
    drop = intervals.difference([one.teacher for one in test], right, groups)
    alone = at_least = None
    if at:
        among = [groups[i] for i in at] if groups else None
        flags = [test[i].student for i in at]
        alone, at_least = intervals.count(flags, among), bound(flags, among)
    usd, seconds = upkeep.whole(1 - answered.share.value)
    dearer = usd is not None and usd >= upkeep.teacher_usd
    worth = not dearer and answered.share.value >= MIN_SHARE and drop.value <= max_drop
    accuracy = intervals.count(right, groups)
    return Cascade(
        threshold=threshold, chosen_on="recipe", answered=answered, accuracy=accuracy,
        drop=drop, alone=alone, alone_at_least=at_least, usd_per_1000=usd, latency_s=seconds, worth_it=worth,
        sentence=_sentence(threshold, answered, accuracy, alone, at_least)
        + f", {gap(drop.value)} the teacher (95 % interval {gap_range(drop)}): {_so(drop, max_drop)}.",
        curve=curve(test, upkeep))


def chosen(measured: Cascade, level: float, dev_n: int, steps: Sequence[CascadeStep]) -> Cascade:
    """`measured`, whose threshold was chosen on dev in these steps."""
    return measured.model_copy(update={"chosen_on": "dev", "level": level, "dev_n": dev_n,
                                       "steps": list(steps)})


def _so(drop: Interval, max_drop: float) -> str:
    """Whether test shows that the whole keeps within `max_drop`."""
    most = f"the {points(max_drop)} that may be lost"
    if drop.value > max_drop:
        return f"more than {most}"
    return f"within {most}" if drop.high <= max_drop else f"within {most}, not settled"


def bound(flags: Sequence[bool], groups: Sequence[Hashable] | None = None) -> float:
    """The lower bound, one-sided at 97.5 %, of the accuracy behind these answers. In groups, of effective
    counts: then it is no longer exact."""
    effect = stats.design_effect(flags, groups) if groups else 1.0
    return stats.clopper_pearson(sum(flags) / effect, len(flags) / effect)[0]


def curve(test: Sequence[Sure], upkeep: Upkeep = Upkeep()) -> list[CascadePoint]:
    """What every threshold that test can tell apart would give, thinned out evenly where many."""
    known = sorted({one.confidence for one in test if one.confidence is not None}, reverse=True)
    step = max(1, math.ceil(len(known) / (MOST_POINTS - 1)))
    thresholds = dict.fromkeys([None, *known[step - 1::step], *known[-1:]])
    return [_point(test, at, upkeep) for at in thresholds]


def _point(test: Sequence[Sure], at: float | None, upkeep: Upkeep) -> CascadePoint:
    if at is None:  # nobody asks the student
        return CascadePoint(threshold=None, share=0.0, accuracy=sum(one.teacher for one in test) / len(test),
                            usd_per_1000=upkeep.teacher_usd, latency_s=upkeep.teacher_s)
    share = sum(one.answered(at) for one in test) / len(test)
    usd, seconds = upkeep.whole(1 - share)
    return CascadePoint(threshold=at, share=share, accuracy=sum(one.right(at) for one in test) / len(test),
                        usd_per_1000=usd, latency_s=seconds)


def _sentence(threshold: float, answered: Count, accuracy: Count, alone: Count | None,
              at_least: float | None) -> str:
    if alone is None:
        return (f"With a threshold of {threshold:g} the student answers none of the "
                f"{plural(answered.n, 'test item')} itself: the whole is the teacher, right on "
                f"{percent(accuracy.share.value)}")
    return (f"With a threshold of {threshold:g} the student answers {percent(answered.share.value)} of the "
            f"{plural(answered.n, 'test item')} itself, right on {percent(alone.share.value)} of them (at "
            f"least {percent(at_least)}), and the teacher the rest: together right on "
            f"{percent(accuracy.share.value)}")
