"""What an evaluation says, gathered for the verdict and its advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillctl.evaluate.results import Cascade, Comparison, Contrast, Evaluation, Role
from distillctl.evaluate.stats import hits_above_chance
from distillctl.evaluate.wording import percent
from distillctl.recipe.models import VerdictSpec

MIN_ITEMS = 30  # fewer say little
CLEAR = 3.0  # standard errors; by chance once in 700, and any student that is of use has far more


@dataclass(frozen=True)
class Findings:
    """The student, its teacher and the others on the same test items.

    versus: student against teacher. versus_base, versus_baseline: student (first) against the others.
    drops: everybody's drop against the teacher. commonest: the label that is expected most often. behind: a
    line for each slice on which the student falls behind.
    """

    spec: VerdictSpec
    gold: bool
    teacher: Evaluation
    student: Evaluation
    evaluations: Sequence[Evaluation]
    versus: Comparison
    versus_base: Sequence[Contrast]
    versus_baseline: Sequence[Contrast]
    drops: Mapping[str, float]
    commonest: str | None
    commonest_share: float
    cascade: Cascade | None = None
    behind: Sequence[str] = ()

    @classmethod
    def gather(cls, spec: VerdictSpec, gold: bool, evaluations: Sequence[Evaluation],
               comparisons: Sequence[Comparison], contrasts: Sequence[Contrast],
               cascade: Cascade | None = None, behind: Sequence[str] = ()) -> Findings:
        """Sort out who is who. Raises ValueError unless there are one teacher and one student."""
        names: dict[Role, list[str]] = {"teacher": [], "student": [], "base": [], "baseline": []}
        for one in evaluations:
            names[one.role].append(one.name)
        if len(names["teacher"]) != 1 or len(names["student"]) != 1:
            raise ValueError(f"one teacher and one student are needed, not {names['teacher']} and "
                             f"{names['student']}")
        by_name = {one.name: one for one in evaluations}
        student = by_name[names["student"][0]]
        commonest, share = _commonest(student)
        return cls(
            spec, gold, by_name[names["teacher"][0]], student, evaluations,
            versus=next(one for one in comparisons if one.student == student.name),
            versus_base=[one for one in contrasts if one.second in names["base"]],
            versus_baseline=[one for one in contrasts if one.second in names["baseline"]],
            drops={one.student: one.drop.value for one in comparisons},
            commonest=commonest, commonest_share=share, cascade=cascade, behind=behind)

    @property
    def wrong(self) -> int:
        """Items on which the student is wrong."""
        return self.student.accuracy.n - self.student.accuracy.k

    @property
    def measure(self) -> str:
        """What answers are held against."""
        return "the expected answers" if self.gold else "the teacher's"

    @property
    def timed_by_recording(self) -> bool:
        """Whether a speed-up rests on latencies that were not measured here."""
        return any(one.latency is not None and one.latency.source == "recorded"
                   for one in (self.teacher, self.student))

    def could_take_over(self, name: str) -> bool:
        """Whether somebody else loses no more than a viable student may."""
        return self.drops.get(name, 1.0) <= self.spec.max_drop

    @property
    def constant_does_as_well(self) -> bool:
        """Whether the student is not clearly better than always giving the commonest label."""
        return self.commonest is not None and self.student.accuracy.share.low <= self.commonest_share

    @property
    def as_good(self) -> list[Contrast]:
        """Baselines that the student does not clearly beat."""
        return [one for one in self.versus_baseline if one.difference.low <= 0]

    def compared(self, one: Contrast) -> str:
        """How a baseline that is not clearly beaten stands, in words."""
        return f"{'does' if one.difference.value <= 0 else 'may do'} as well"

    def clearer_parts(self, name: str) -> str:
        """Fields or checks on which the student's interval lies wholly above another's, with both shares."""
        other = self._named(name).parts
        return ", ".join(f"{part} {percent(mine.value)} ({percent(other[part].value)})"
                         for part, mine in self.student.parts.items()
                         if part in other and mine.low > other[part].high)

    def called(self, name: str) -> str:
        """An entrant's name in quotes, or its model's where the name only says its role."""
        one = self._named(name)
        return repr(one.model if one.name == one.role else one.name)

    def share_of(self, name: str) -> float:
        """An entrant's accuracy."""
        return self._named(name).accuracy.share.value

    def _named(self, name: str) -> Evaluation:
        return next(one for one in self.evaluations if one.name == name)


def unconnected(who: Evaluation) -> bool:
    """Whether somebody's labels have no clear connection with the expected ones: no more of them are right
    than by chance. False where there are too few items to tell."""
    if who.confusion is None or who.n < MIN_ITEMS:
        return False
    above = hits_above_chance(who.confusion.counts)
    return above is not None and above < CLEAR


def _commonest(student: Evaluation) -> tuple[str | None, float]:
    table = student.confusion
    if table is None:
        return None, 0.0
    most, label = max((sum(row), label) for row, label in zip(table.counts, table.labels, strict=True))
    return label, most / student.n
