"""The page that puts several runs side by side: one student a row, measured on the same test items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import Problem, UsageError
from distillctl.evaluate.results import Comparison, Evaluation, Metrics, Verdict
from distillctl.report import facts, plots, words
from distillctl.report.html import render
from distillctl.store.files import write_text


@dataclass(frozen=True)
class Contender:
    """A student of one run. mark: its number in the plots."""

    mark: str
    run: str
    metrics: Metrics
    student: Evaluation
    comparison: Comparison | None

    @property
    def verdict(self) -> Verdict:
        return self.metrics.verdict


def write_comparison(rows: Sequence[tuple[str, Metrics]], path: Path) -> None:
    """Write the page for runs given as (name, metrics). Raises UsageError where `check_comparable` does,
    StorageError where the file cannot be written."""
    write_text(path, comparison_page(rows))


def check_comparable(rows: Sequence[tuple[str, Metrics]]) -> None:
    """Raise UsageError, naming the runs, unless all were measured on the same test items and one has a
    student to show."""
    digests = {metrics.test_digest for _, metrics in rows}
    if len(digests) > 1:
        raise UsageError(*(Problem(
            "this run has another test set than the first: figures on different items cannot be compared",
            where=name, value=metrics.test_digest,
            hint=f"compare runs with the test set of {rows[0][0]}, or run this one again on it")
            for name, metrics in rows if metrics.test_digest != rows[0][1].test_digest))
    if not contenders(rows):
        raise UsageError(Problem("none of these runs has an evaluated student"))


def contenders(rows: Sequence[tuple[str, Metrics]]) -> list[Contender]:
    """The student of each run, in the order given; runs without one are left out."""
    with_student = [(name, metrics, student) for name, metrics in rows
                    if (student := facts.student_of(metrics))]
    return [Contender(str(number), name, metrics, student, facts.comparison_of(metrics, student.name))
            for number, (name, metrics, student) in enumerate(with_student, 1)]


def comparison_page(rows: Sequence[tuple[str, Metrics]]) -> str:
    """The page as text."""
    check_comparable(rows)
    shown = contenders(rows)
    first = rows[0][1]
    teachers = list({(t.name, t.model): t for _, m in rows if (t := facts.teacher_of(m))}.values())
    return render(
        "comparison.html.j2", contenders=shown, headline=headline(shown), teachers=teachers,
        gold=first.gold, n=shown[0].student.n, task_kind=first.task_kind, digest=first.test_digest,
        stamp=next((stamp for _, m in rows if (stamp := words.replay_stamp(m))), None),
        latency_plot=_scatter(shown, teachers, "latency"), cost_plot=_scatter(shown, teachers, "cost"))


def headline(shown: Sequence[Contender]) -> str:
    """How many students can take over, and whether the test set is large enough to say so."""
    viable = [c for c in shown if c.verdict.word == "viable"]
    if not viable:
        return "No student is viable"
    open_ones = sum(not c.verdict.settled for c in viable)
    unsettled = "" if not open_ones else ", not settled" if open_ones == len(viable) else (
        f", {open_ones} of them not settled")
    return f"{len(viable)} of {words.plural(len(shown), 'student')} {'is' if len(viable) == 1 else 'are'} " \
           f"viable{unsettled}"


def _scatter(shown: Sequence[Contender], teachers: Sequence[Evaluation], figure: str) -> object:
    """Accuracy against median latency or cost of 1,000 requests; None where fewer than two are known."""
    drawn = [(mark, color, _figure(e, figure), e.accuracy.share)
             for mark, color, e in [(c.mark, "var(--student)", c.student) for c in shown]
             + [("T", "var(--teacher)", t) for t in teachers]]
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
