"""The page that puts several runs side by side, measured on the same test items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from distillctl.evaluate.comparison_results import ComparedRun, ComparisonTable
from distillctl.evaluate.results import Evaluation
from distillctl.report import facts, plots, words
from distillctl.report.html import render
from distillctl.store.files import write_text


def write_comparison(table: ComparisonTable, path: Path) -> None:
    """Write the page. Raises StorageError where the file cannot be written."""
    write_text(path, comparison_page(table))


def comparison_page(table: ComparisonTable) -> str:
    """The page as text; equal tables give equal pages."""
    spot = table.sweet_spot.run if table.sweet_spot else None
    marked = [(str(number), one.student, one.run == spot) for number, one in enumerate(table.runs, 1)]
    marked += [(_letter(number), e, False) for number, e in enumerate(table.references)]
    return render(
        "comparison.html.j2", table=table, headline=headline(table.runs), letter=_letter,
        stamp=words.replay_stamp(table.references), back=facts.paid_back,
        latency_plot=_scatter(marked, "latency"), cost_plot=_scatter(marked, "cost"))


def headline(runs: Sequence[ComparedRun]) -> str:
    """How many students can take over, and whether the test set is large enough to say so."""
    viable = [one for one in runs if one.verdict.word == "viable"]
    if not viable:
        return "No student is viable"
    open_ones = sum(not one.verdict.settled for one in viable)
    unsettled = "" if not open_ones else ", not settled" if open_ones == len(viable) else (
        f", {open_ones} of them not settled")
    return (f"{len(viable)} of {words.plural(len(runs), 'student')} {'is' if len(viable) == 1 else 'are'} "
            f"viable{unsettled}")


def _letter(number: int) -> str:
    """A, B, ... for the references; students have numbers."""
    return chr(ord("A") + number % 26)


def _scatter(marked: Sequence[tuple[str, Evaluation, bool]], figure: str) -> object:
    """Accuracy against median latency or cost of 1,000 requests; None where fewer than two are known.

    Against latency, the dots are as large as the costs, where there are costs; a triangle's is unknown.
    """
    drawn = [(mark, e, ringed, value) for mark, e, ringed in marked if (value := _figure(e, figure))]
    if len(drawn) < 2:
        return None
    ticks = {tick: words.seconds(10.0 ** tick) if figure == "latency" else f"${10.0 ** tick:,g}"
             for tick in plots.decades([value for *_, value in drawn])}
    dearest = max((e.cost.usd_per_1000 for _, e, *_ in drawn if e.cost), default=0.0)
    sized = dearest > 0 and figure == "latency"
    rows = [plots.Mark(mark, f"var(--{e.role})", value, e.accuracy.share,
                       5 + (5 * math.sqrt(e.cost.usd_per_1000 / dearest) if sized and e.cost else 0),
                       "^" if sized and not e.cost else "o", ringed) for mark, e, ringed, value in drawn]
    title = "Accuracy against latency against cost" if sized else f"Accuracy against {figure}"
    return plots.scatter_plot(f"by-{figure}", title, rows, ticks)


def _figure(e: Evaluation, figure: str) -> float | None:
    if figure == "latency":
        return e.latency.p50.value if e.latency else None
    return e.cost.usd_per_1000 if e.cost else None
