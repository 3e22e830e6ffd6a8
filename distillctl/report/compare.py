"""The page that puts several runs side by side, measured on the same test items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillctl.evaluate.results import ComparedRun, ComparisonTable, Evaluation, Metrics
from distillctl.report import plots, words
from distillctl.report.html import render
from distillctl.store.files import write_text


def write_comparison(rows: Sequence[tuple[str, Metrics]], path: Path) -> None:
    """Write the page for runs given as (name, metrics). Raises what `compare_runs` does where the runs
    cannot be compared, StorageError where the file cannot be written."""
    from distillctl.evaluate.compare import compare_runs

    write_text(path, comparison_page(compare_runs(rows)))


def comparison_page(table: ComparisonTable) -> str:
    """The page as text; equal tables give equal pages."""
    marked = [(str(number), one.student, "student") for number, one in enumerate(table.runs, 1)]
    marked += [(_letter(number), e, e.role) for number, e in enumerate(table.references)]
    return render(
        "comparison.html.j2", table=table, headline=headline(table.runs), letter=_letter,
        stamp=words.replay_stamp(table.references),
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


def _scatter(marked: Sequence[tuple[str, Evaluation, str]], figure: str) -> object:
    """Accuracy against median latency or cost of 1,000 requests; None where fewer than two are known."""
    drawn = [(mark, f"var(--{role})", _figure(e, figure), e.accuracy.share) for mark, e, role in marked]
    drawn = [row for row in drawn if row[2]]
    if len(drawn) < 2:
        return None
    ticks = {tick: words.seconds(10.0 ** tick) if figure == "latency" else f"${10.0 ** tick:,g}"
             for tick in plots.decades([row[2] for row in drawn])}
    return plots.scatter_plot(f"by-{figure}", f"Accuracy against {figure}", drawn, ticks)


def _figure(e: Evaluation, figure: str) -> float | None:
    if figure == "latency":
        return e.latency.p50.value if e.latency else None
    return e.cost.usd_per_1000 if e.cost else None
