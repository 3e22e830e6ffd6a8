"""Which lever to pull: what the same student reaches on gold answers, on fewer rows, with other seeds.

Pure functions of predictions. Controls and curve advise what to change next, so they are judged on the dev
split: the test split is never used to choose anything. Seeds say how far the reported figure depends on
chance, so they are repeats of it on test.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from distillctl.evaluate import intervals, metrics
from distillctl.evaluate.results import Count, Interval, Result
from distillctl.evaluate.verdict import quality_word
from distillctl.evaluate.wording import percent, plural, points
from distillctl.recipe.models import VerdictSpec
from distillctl.task import Task
from distillctl.types import JSON, Example, Prediction

Kind = Literal["gold", "curve", "seed"]


class Lever(Result):
    """A variant of the student. difference: its accuracy less the student's, on the same items."""

    name: str
    kind: Kind
    rows: int  # that it was trained on
    accuracy: Count
    difference: Interval


class Spread(Result):
    """Accuracies on test of the student and its repeats with other seeds. sd: of a sample (n - 1). drops: of
    each against the teacher, the student's first."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    drops: Sequence[float] = ()


class Levers(Result):
    """Everything that the variants say. student and teacher: on dev. conclusions: one line each."""

    format: Literal[1] = 1
    student: Count
    teacher: Count
    rows: int
    levers: list[Lever]
    spread: Spread | None = None
    conclusions: list[str]


@dataclass(frozen=True)
class VariantAnswers:
    """A variant's answers: on dev for "gold" and "curve", on test for "seed"."""

    name: str
    kind: Kind
    rows: int
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class Judged:
    """A split with the answers of teacher and student; `expected` is the measure of each item."""

    examples: Sequence[Example]
    teacher: Sequence[Prediction]
    student: Sequence[Prediction]
    groups: Sequence[Hashable] | None = None

    def right(self, task: Task, predictions: Sequence[Prediction]) -> Sequence[bool]:
        """Whether each item is answered right; a missing answer is not."""
        by_id = {one.id: one for one in predictions if one.sample == 0}
        return metrics.score(task, [by_id.get(e.id) for e in self.examples], self._expected).right

    @property
    def _expected(self) -> list[JSON]:
        said = {one.id: one.value for one in self.teacher if one.sample == 0}
        return [e.expected if e.expected is not None else said.get(e.id) for e in self.examples]


def weigh(task: Task, dev: Judged, test: Judged, rows: int, variants: Sequence[VariantAnswers],
          verdict: VerdictSpec) -> Levers:
    """Compare the variants with the student, and say in a line each what follows.

    rows: that the student was trained on. verdict: the recipe's, for what a seed changes. Raises ValueError
    for a split without items.
    """
    levers = [_lever(task, test if one.kind == "seed" else dev, one) for one in variants]
    student = intervals.count(dev.right(task, dev.student), dev.groups)
    teacher = intervals.count(dev.right(task, dev.teacher), dev.groups)
    spread = _spread(task, test, levers)
    found = Levers(student=student, teacher=teacher, rows=rows, levers=levers, spread=spread, conclusions=[])
    return found.model_copy(update={"conclusions": _conclusions(found, _behind(task, dev), verdict)})


def _lever(task: Task, split: Judged, one: VariantAnswers) -> Lever:
    right, student = split.right(task, one.predictions), split.right(task, split.student)
    return Lever(name=one.name, kind=one.kind, rows=one.rows, accuracy=intervals.count(right, split.groups),
                 difference=intervals.difference(right, student, split.groups))


def _behind(task: Task, dev: Judged) -> Interval:
    """The teacher's accuracy less the student's, on dev."""
    return intervals.difference(dev.right(task, dev.teacher), dev.right(task, dev.student), dev.groups)


def _spread(task: Task, test: Judged, levers: Sequence[Lever]) -> Spread | None:
    repeats = [one.accuracy.k for one in levers if one.kind == "seed"]
    if not repeats:
        return None
    n, asked = len(test.examples), sum(test.right(task, test.teacher))
    right = [sum(test.right(task, test.student)), *repeats]
    values = [k / n for k in right]
    return Spread(n=len(values), mean=statistics.mean(values), sd=statistics.stdev(values),
                  low=min(values), high=max(values), drops=[(asked - k) / n for k in right])


# --- in words ---------------------------------------------------------------------------------------------


def _conclusions(found: Levers, behind: Interval, verdict: VerdictSpec) -> list[str]:
    gold = next((one for one in found.levers if one.kind == "gold"), None)
    curve = sorted((one for one in found.levers if one.kind == "curve"), key=lambda one: one.rows)
    said = []
    if gold:
        said.append(_about_gold(gold, found.student))
    if curve:
        said.append(_about_rows(curve[-1], found))
    if gold and curve and _no_gain(gold.difference) and _no_gain(_step(curve[-1])) and behind.low > 0:
        said.append(f"A larger student: neither better answers nor more rows clearly help, and it is "
                    f"{points(behind.value)} points behind its teacher (95 % interval "
                    f"{points(behind.low)} to {points(behind.high)}). If a larger one is as far behind, this "
                    "is not a bounded task.")
    if found.spread:
        said.append(f"Chance: over {plural(found.spread.n, 'seed')} the test accuracy is "
                    f"{percent(found.spread.mean)} on average, {percent(found.spread.low)} to "
                    f"{percent(found.spread.high)} (standard deviation {points(found.spread.sd)} points). "
                    f"{_about_seeds(found.spread.drops, verdict)}")
    return said


def _about_seeds(drops: Sequence[float], verdict: VerdictSpec) -> str:
    """What the verdict on quality would be with each seed."""
    words = [quality_word(verdict, drop) for drop in drops]
    text = (f"The drop against the teacher goes from {points(min(drops))} to {points(max(drops))} points: on "
            "quality alone ")
    if len(set(words)) == 1:
        return f"{text}{words[0]} with every seed."
    counts = ", ".join(f"{word} with {words.count(word)}" for word in dict.fromkeys(sorted(words)))
    return f"{text}{counts} of them, so that the verdict hangs on chance."


def _about_gold(gold: Lever, student: Count) -> str:
    value = gold.difference
    text = (f"trained on gold answers, the same student is right on {percent(gold.accuracy.share.value)} of "
            f"{plural(gold.accuracy.n, 'dev item')} instead of {percent(student.share.value)} (difference "
            f"{points(value.value)} points, 95 % interval {points(value.low)} to {points(value.high)})")
    if value.low > 0:
        return f"The teacher is the bottleneck: {text}. A better teacher or prompt is worth it."
    if value.high < 0:
        return f"Keep the teacher: {text}. Its answers are easier to learn from than the gold ones."
    return f"The teacher's answers are not clearly what holds the student back: {text}."


def _about_rows(part: Lever, found: Levers) -> str:
    step = _step(part)
    text = (f"from {part.rows:,} to {plural(found.rows, 'row')} the accuracy on dev went from "
            f"{percent(part.accuracy.share.value)} to {percent(found.student.share.value)} (difference "
            f"{points(step.value)} points, 95 % interval {points(step.low)} to {points(step.high)})")
    if step.low > 0:
        return f"More data would help: {text}, and the curve has not levelled off."
    return f"More data is not clearly worth it: {text}."


def _step(part: Lever) -> Interval:
    """The student's accuracy less that of the variant with fewer rows."""
    value = part.difference
    return Interval(value=-value.value, low=-value.high, high=-value.low, method=value.method)


def _no_gain(value: Interval) -> bool:
    return value.low <= 0
