"""Has the teacher changed since the student learnt from it? Statistics over a canary set; see `canary.py`.

Two things are tested, Holm-adjusted: whether more answers changed than the teacher's own noise explains
(exact binomial, one-sided), and, where gold answers exist, whether its accuracy moved (exact McNemar).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from distillctl.evaluate import intervals, stats
from distillctl.evaluate.metrics import same_answer
from distillctl.evaluate.results import Count, Interval
from distillctl.evaluate.wording import percent, plural, points
from distillctl.task import Task
from distillctl.types import JSON, Example, Prediction

TOLERANCE = 0.02
ALPHA = 0.05
_SHOWN = 10  # moves in the text; JSON has them all
_NO_VALUE = "(no valid answer)"


@dataclass(frozen=True)
class Noise:
    """The share of answers that may differ though nothing changed. source: where the figure is from."""

    share: float
    source: str


@dataclass(frozen=True)
class Move:
    """`count` items were answered `before` and are answered `now`."""

    before: str
    now: str
    count: int


@dataclass(frozen=True)
class AccuracyChange:
    """Against gold answers. change: now less before, Tango's interval; p: exact McNemar."""

    before: Count
    now: Count
    lost: int  # right before, wrong now
    gained: int
    change: Interval
    p: float


@dataclass(frozen=True)
class Drift:
    """What was found. p_changed, p_accuracy: adjusted for being two (Holm); accuracy is None without gold.

    detectable: the smallest true share of changed answers that this many items would have shown four times
    in five. moves: for labels, which became which; ids: the items that changed. left_out: items that could
    not be compared, by reason.
    """

    drifted: bool
    alpha: float
    changed: Count
    noise: Noise
    p_changed: float
    accuracy: AccuracyChange | None
    p_accuracy: float | None
    detectable: float | None
    moves: list[Move]
    ids: list[str]
    left_out: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, list[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, JSON]:
        said = asdict(self)
        said["changed"] = self.changed.model_dump()
        if self.accuracy:
            said["accuracy"] = {**asdict(self.accuracy), "before": self.accuracy.before.model_dump(),
                                "now": self.accuracy.now.model_dump(),
                                "change": self.accuracy.change.model_dump()}
        return {**said, "labels_stale": self.drifted}


def compare_answers(task: Task, examples: Sequence[Example], before: Sequence[Prediction],
                    now: Sequence[Prediction], noise: Noise, alpha: float = ALPHA,
                    left_out: Mapping[str, int] | None = None) -> Drift:
    """Compare two answers to each of `examples` (at least one), in the same order."""
    same = [same_answer(task, new, old, example.expected)
            for example, old, new in zip(examples, before, now, strict=True)]
    changed = intervals.count([not one for one in same])
    accuracy = _accuracy(task, examples, before, now)
    p_values = [binomial_tail(changed.k, changed.n, noise.share)] + ([accuracy.p] if accuracy else [])
    adjusted = stats.holm(p_values)
    moves: Counter[tuple[str, str]] = Counter()
    if task.kind == "classification":
        moves.update((_label(old), _label(new))
                     for old, new, alike in zip(before, now, same, strict=True) if not alike)
    return Drift(
        drifted=min(adjusted) < alpha, alpha=alpha, changed=changed, noise=noise, p_changed=adjusted[0],
        accuracy=accuracy, p_accuracy=adjusted[1] if accuracy else None,
        detectable=detectable(changed.n, noise.share, alpha / len(p_values)),
        moves=[Move(old, new, count) for (old, new), count in sorted(moves.items(), key=_most_first)],
        ids=[example.id for example, alike in zip(examples, same, strict=True) if not alike],
        left_out=left_out or {}, models={"before": _models(before), "now": _models(now)})


def binomial_tail(k: int, n: int, share: float) -> float:
    """Chance of k or more of n, each with this chance."""
    from scipy.special import betainc

    return 1.0 if k == 0 else float(betainc(k, n - k + 1, share))


def detectable(n: int, noise: float, alpha: float, power: float = 0.8) -> float | None:
    """The smallest true share of changed answers, in steps of a tenth of a point, that `n` items show with
    this chance; None where no share is found."""
    critical = next((k for k in range(n + 1) if binomial_tail(k, n, noise) < alpha), None)
    if critical is None:
        return None
    return next((step / 1000 for step in range(1, 1001)
                 if binomial_tail(critical, n, step / 1000) >= power), None)


def noise_of(stability: Mapping[str, JSON] | None, tolerance: float) -> Noise:
    """How often the teacher's answers differ by themselves: as measured, and never below `tolerance`.

    stability: what a run wrote of it (`stability.json`), None where there is none.
    """
    measured = (stability or {}).get("agreement")
    if measured is None:
        return Noise(tolerance, "tolerance; the teacher's own disagreement was not measured")
    share = max(1 - float(measured), tolerance)
    source = f"its own disagreement, measured on {(stability or {}).get('items')} prompts"
    return Noise(share, source if share > tolerance else f"tolerance; {source}, is {percent(1 - measured)}")


def _accuracy(task: Task, examples: Sequence[Example], before: Sequence[Prediction],
              now: Sequence[Prediction]) -> AccuracyChange | None:
    if any(example.expected is None for example in examples):
        return None
    was, is_now = ([task.score(one.value, example.expected).correct
                    for example, one in zip(examples, answers, strict=True)] for answers in (before, now))
    lost, gained = intervals.discordant(was, is_now)
    return AccuracyChange(intervals.count(was), intervals.count(is_now), lost, gained,
                          intervals.difference(is_now, was), stats.mcnemar_exact(lost, gained))


def _label(answer: Prediction) -> str:
    return _NO_VALUE if answer.value is None else str(answer.value)


def _models(answers: Sequence[Prediction]) -> list[str]:
    return sorted({one.answer.model for one in answers if one.answer.model})


def _most_first(item: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    return -item[1], item[0]


# --- words ----------------------------------------------------------------------------------------------


def drift_text(found: Drift) -> str:
    """What was found, for a person: the answer first."""
    changed = found.changed
    lines = [
        "DRIFT: the teacher no longer answers as it did" if found.drifted else "no drift was found",
        f"  answers changed  {changed.k} of {changed.n}, {percent(changed.share.value)} (95 % interval "
        f"{percent(changed.share.low)} to {percent(changed.share.high)}); {percent(found.noise.share)} is "
        f"put down to noise ({found.noise.source}); p = {found.p_changed:.2g}"]
    if found.accuracy:
        lines.append(_accuracy_text(found.accuracy, found.p_accuracy))
    lines += [f"  moved            {move.before} -> {move.now}: {move.count}"
              for move in found.moves[:_SHOWN]]
    if len(found.moves) > _SHOWN:
        lines.append(f"  and {len(found.moves) - _SHOWN} more kinds of moves")
    if found.models["before"] and found.models["now"] and found.models["before"] != found.models["now"]:
        lines.append(f"  model            {', '.join(found.models['before'])} before, "
                     f"{', '.join(found.models['now'])} now")
    lines += [f"  left out         {plural(count, 'item')}: {reason}"
              for reason, count in found.left_out.items()]
    if not found.drifted and found.detectable is not None:
        lines.append(f"  these {changed.n} items would show a change of {percent(found.detectable)} or more "
                     "four times in five; a smaller one needs more items (--items)")
    lines.append(
        f"The student's labels are stale: it learnt answers that the teacher would not give now "
        f"({percent(changed.share.value)} of the sample)."
        if found.drifted else "The student's labels are as good as when they were collected, as far as this "
        "sample tells.")
    return "\n".join(lines)


def _accuracy_text(found: AccuracyChange, p: float | None) -> str:
    change = found.change
    return (f"  accuracy         {percent(found.before.share.value)} before, "
            f"{percent(found.now.share.value)} now: {points(change.value)} points "
            f"(95 % interval {points(change.low)} to {points(change.high)}); {found.lost} lost, "
            f"{found.gained} gained; p = {p:.2g}")
