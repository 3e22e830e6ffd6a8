"""Figures in words: the one place that decides how a share, a time or a sum of money is written.

Every function takes None for an unknown figure and says so; nothing unknown is written as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillctl.evaluate import wording
from distillctl.evaluate.results import (
    Cascade,
    Cell,
    Economics,
    Evaluation,
    Interval,
    Latency,
    Metrics,
    Scenario,
    Slice,
    Verdict,
)
from distillctl.evaluate.wording import plural as plural
from distillctl.evaluate.wording import settings_text as settings_text

UNKNOWN = "unknown"
NOT_APPLICABLE = "–"

CELLS: dict[Cell, tuple[str, str]] = {
    "compression": (
        "Compression: the teacher is right, the student wrong",
        "What the student lost. More or better training rows, more epochs or a larger student mend it."),
    "inherited": (
        "Inherited: both wrong, with the same answer",
        "The student learned the teacher's mistake. A better teacher or prompt, or better labels, mend it."),
    "both_wrong_differently": (
        "Both wrong, differently",
        "Hard or unclear items. Look at the labels and at whether the task is as bounded as it seems."),
    "corrected": (
        "Corrected: the teacher is wrong, the student right",
        "Where the student beats its teacher."),
}
"""The cells of the error ledger in the order they are shown: title, and what to make of it."""


def percent(share: float | None) -> str:
    """0.843 -> "84.3 %"; "100.0 %" only where it is exactly that."""
    return UNKNOWN if share is None else wording.percent(share)


def percent_range(interval: Interval) -> str:
    """The bounds of a share: "[79.4, 88.1]", in per cent."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(drop: float | None) -> str:
    """A difference of shares in points, with its sign: 0.13 -> "+13.0 points"."""
    if drop is None:
        return UNKNOWN
    text = wording.points(drop)
    return _minus(f"{'+' if float(text) > 0 else ''}{text} points")


def points_range(interval: Interval) -> str:
    """The bounds of a difference, in points: "[8.1, 17.9]"."""
    return _minus(f"[{wording.points(interval.low)}, {wording.points(interval.high)}]")


def score(value: float | None) -> str:
    """A score in [0, 1] with three digits."""
    return UNKNOWN if value is None else f"{value:.3f}"


def score_range(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def seconds(value: float | None) -> str:
    """A duration with the unit that suits it: "0.52 ms", "38 ms", "1.24 s", "3 min 05 s"."""
    if value is None:
        return UNKNOWN
    if value < 0.9995:
        return f"{significant(1000 * value)} ms"
    if value < 99.5:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def seconds_range(interval: Interval) -> str:
    return f"[{seconds(interval.low)}, {seconds(interval.high)}]"


def money(usd: float | None) -> str:
    """US dollars with at least two significant digits: "$12.40", "$0.0031", "$0"."""
    return UNKNOWN if usd is None else wording.money(usd)


def times(interval: Interval | None) -> str:
    """A ratio: 8.24 -> "8.2×"."""
    return UNKNOWN if interval is None else f"{significant(interval.value)}×"


def times_range(interval: Interval) -> str:
    return f"[{significant(interval.low)}×, {significant(interval.high)}×]"


def size(count: int | None) -> str:
    """Bytes: 9437184 -> "9.4 MB"."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{significant(value) if unit != 'B' else int(value)} {unit}"
        value /= 1000
    return f"{significant(value)} TB"


def significant(value: float) -> str:
    """Two significant digits below 10, one digit after the point below 100, whole numbers above."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.95:
        return f"{value:.3g}"
    return f"{value:.2g}"


def p_value(p: float) -> str:
    """0.0312 -> "0.031"; below a ten-thousandth its digits say nothing more."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def number(value: object) -> str:
    """A value of unknown meaning as text: numbers grouped and shortened, booleans as yes and no."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def cascade_line(metrics: Metrics) -> str | None:
    """What the student is worth for a part of the traffic; None where it states no probabilities."""
    found = metrics.cascade
    if found is None and metrics.no_cascade is None:
        return None
    alone = f"Alone: {metrics.verdict.word}{'' if metrics.verdict.settled else ', not settled'}."
    if found is None:
        return f"{alone} {metrics.no_cascade}"
    worth = "" if found.worth_it or not found.answered.k else " As measured, that is not worth it."
    return f"{alone} {found.sentence}{worth}"


def chosen_on(cascade: Cascade) -> str:
    """Where a cascade's threshold comes from, and what was shown there."""
    if cascade.chosen_on == "recipe":
        return "fixed by the recipe"
    if cascade.level is None:  # a run of an earlier version
        return "chosen on the dev split, not on these items"
    kept = [step for step in cascade.steps if step.threshold >= cascade.threshold]
    return (f"chosen on {plural(cascade.dev_n, 'dev item')}, not on these: there the whole is at most "
            f"{wording.points(kept[-1].at_most)} points below the teacher ({100 * cascade.level:g} % "
            "confidence)")


def assumed_by_recipe(found: Economics) -> str | None:
    """What the economics rest on that nobody has measured; None where there is no such thing."""
    return f"Assumed by the recipe: {', '.join(found.from_recipe)}." if found.from_recipe else None


def paid_back(scenario: Scenario, training: float | None) -> str:
    """When a scenario pays back what the student cost to get."""
    if scenario.pays is None:
        if scenario.pays_above_per_day:
            return f"from {scenario.pays_above_per_day:,} requests a day on"
        return UNKNOWN
    if not scenario.pays:
        return "never"
    if scenario.break_even_requests is None:
        return UNKNOWN
    if training == 0:
        return "at once"
    days = scenario.break_even_days
    rest = "" if days is None else " (" + ("less than a day" if days < 1 else plural(
        math.ceil(days), "day")) + ")"
    return plural(scenario.break_even_requests, "request") + rest


def slice_state(one: Slice) -> str:
    """Whether the student falls behind in a slice."""
    return {None: "too few items to say", True: "falls behind", False: "no clear sign"}[one.behind]


def settled(verdict: Verdict, n: int) -> str:
    """Whether the test set is large enough for this verdict, and if not, how large it would have to be."""
    if verdict.settled:
        return "Settled: the 95 % intervals leave no other verdict open."
    if verdict.needed is None:
        return f"Not settled by this test set of {plural(n, 'item')}."
    return (f"Not settled: {wording.about(verdict.needed, 'test item')} in all would settle it, if what was "
            f"measured on these {n:,} holds.")


def replay_stamp(evaluations: Sequence[Evaluation]) -> str | None:
    """The line that every report with a replayed teacher carries, or None where it was asked live."""
    teacher = next((e for e in evaluations if e.role == "teacher" and e.replayed), None)
    if teacher is None:
        return None
    lacks = [name for name, there in (("latency", teacher.latency), ("cost", teacher.cost)) if there is None]
    stamp = "Replayed teacher: its answers come from a recording, it was not asked in this run."
    if lacks:
        stamp += f" Its {' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} unknown."
    return stamp


def latency_source(latency: Latency) -> str:
    if latency.machine:
        return f"in its training job, n = {latency.n}"
    return {"measured": f"measured, n = {latency.n}", "recorded": f"from the recording, n = {latency.n}"}[
        latency.source]


def name_and_role(entrant: Evaluation) -> tuple[str, str]:
    """How an entrant is called, and its role where the name does not say it."""
    role = {"base": "base model"}.get(entrant.role, entrant.role)
    name = {"base": "base model"}.get(entrant.name, entrant.name)
    return name, "" if name == role else role


def title_of(entrant: Evaluation) -> str:
    """An entrant on one line: "student", "linear (baseline)"."""
    name, role = name_and_role(entrant)
    return f"{name} ({role})" if role else name


def _minus(text: str) -> str:
    return text.replace("-", "−")
