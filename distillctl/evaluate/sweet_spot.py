"""Which of several students to take: the cheapest or fastest that is as good as the best, as far as dev can
tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillctl.evaluate.comparison_results import ComparedRun, SweetSpot
from distillctl.evaluate.results import Evaluation
from distillctl.evaluate.wording import money, percent, plural, settings_text


def sweet_spot(ranked: Sequence[ComparedRun]) -> SweetSpot:
    """The choice between runs that have all answered the same dev items, the best on dev first."""
    best = ranked[0].student
    within = [run for run in ranked if _close(best, run.student)]
    by, figure = "accuracy", None
    for name, of in (("cost", _cost), ("latency", _latency)):
        if all(of(run.student) is not None for run in within):
            by, figure = name, of
            break
    chosen = min(within, key=lambda run: figure(run.student)) if figure else ranked[0]
    names = [run.run for run in within]
    why = _why(by, len(names), best.dev.n)
    return SweetSpot(run=chosen.run, by=by, within=names,
                     sentence=f"Sweet spot: {_called(chosen)}, {why}. {_on_test(chosen)}")


def _called(run: ComparedRun) -> str:
    how = settings_text(run.settings)
    return f"{run.run} ({how})" if how else run.run


def _close(best: Evaluation, other: Evaluation) -> bool:
    """Whether the difference on dev is at most one standard error of it, item by item.

    The standard error is Bonett and Price's (2012): the plain one of a single discordant item is below that
    item.
    """
    wrong, other_wrong = set(best.dev_wrong or ()), set(other.dev_wrong or ())
    n = best.dev.n + 2
    lost, won = (len(other_wrong - wrong) + 1) / n, (len(wrong - other_wrong) + 1) / n
    return lost - won <= math.sqrt((lost + won - (lost - won) ** 2) / n)


def _cost(student: Evaluation) -> float | None:
    return student.cost.usd_per_1000 if student.cost else None


def _latency(student: Evaluation) -> float | None:
    return student.latency.p50.value if student.latency else None


def _why(by: str, within: int, n: int) -> str:
    if within == 1:
        return f"the best on {plural(n, 'dev item')}, and no other one is within one standard error of it"
    of = f"of the {within} students within one standard error of the best on {plural(n, 'dev item')}"
    return {"cost": f"the cheapest {of}", "latency": f"the fastest {of}",
            "accuracy": f"the best {of}; not all of them have a known cost or latency"}[by]


def _on_test(run: ComparedRun) -> str:
    student = run.student
    latency, cost = _latency(student), _cost(student)
    settled = "" if run.verdict.settled else ", not settled"
    return (f"On test it is right on {percent(student.accuracy.share.value)}, takes "
            f"{_seconds(latency)} and costs "
            f"{'an unknown amount' if cost is None else f'{money(cost)} for 1,000 requests'}; verdict: "
            f"{run.verdict.word}{settled}.")


def _seconds(latency: float | None) -> str:
    if latency is None:
        return "an unknown time"
    return f"{latency:.3g} s" if latency >= 1 else f"{1000 * latency:.3g} ms"
