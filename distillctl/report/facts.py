"""The comparison as rows of words, shared by the terminal, the page and the Markdown form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distillctl.evaluate.comparison_results import ComparedRun
from distillctl.evaluate.results import (
    Cascade,
    Cell,
    Comparison,
    Confusion,
    Economics,
    Evaluation,
    Interval,
    Metrics,
)
from distillctl.report import words


@dataclass(frozen=True)
class Fact:
    """One figure of one entrant: the value, and beside it its interval or where it comes from."""

    value: str
    detail: str = ""


Column = tuple[str, Callable[[Evaluation], Fact]]
"""A figure: its name, and what it is of an entrant."""


@dataclass(frozen=True)
class Row:
    """One figure for all entrants, in their order."""

    name: str
    facts: tuple[Fact, ...]


UNKNOWN = Fact(words.UNKNOWN)
NOT_APPLICABLE = Fact(words.NOT_APPLICABLE)


def entrants(metrics: Metrics) -> list[Evaluation]:
    """Who was compared, teacher first and the student of the verdict last."""
    order = {"teacher": 0, "base": 1, "baseline": 2, "student": 3}
    return sorted(metrics.evaluations,
                  key=lambda e: (order[e.role], e.name == metrics.verdict.student))


def student_of(metrics: Metrics) -> Evaluation:
    """The evaluation that the verdict is about."""
    return next(e for e in metrics.evaluations if e.name == metrics.verdict.student)


def teacher_of(metrics: Metrics) -> Evaluation | None:
    return next((e for e in metrics.evaluations if e.role == "teacher"), None)


def comparison_of(metrics: Metrics, name: str) -> Comparison | None:
    """The item-by-item comparison of the entrant `name` with the teacher."""
    return next((c for c in metrics.comparisons if c.student == name), None)


def tiles(metrics: Metrics) -> list[tuple[str, Fact]]:
    """The few figures that stand under the verdict."""
    rows = {row.name: dict(zip((e.name for e in entrants(metrics)), row.facts, strict=True))
            for row in comparison_rows(metrics)}
    student, teacher = metrics.verdict.student, teacher_of(metrics)
    what = next(iter(rows))
    found = [(f"Student: {what.lower()}", rows[what][student])]
    if teacher and metrics.gold:
        found.append(("Teacher: accuracy", rows[what][teacher.name]))
    return found + [(name, rows[name][student])
                    for name in ("Drop against the teacher", "Speed-up", "Cost of 1,000 requests")]


def comparison_rows(metrics: Metrics) -> list[Row]:
    """Every figure of the comparison, in the order of `entrants`. Rows that no task of this kind has, and
    rows that do not apply to anybody here, are left out; a figure that is not known is "unknown"."""
    shown = entrants(metrics)
    about: list[Column] = [
        ("Accuracy" if metrics.gold else "Agreement with the teacher", accuracy),
        ("Drop against the teacher", lambda e: _drop(metrics, e)),
    ]
    if any(e.macro_f1 for e in shown):
        about.append(("Macro-F1", lambda e: _score(e.macro_f1)))
    about += _by_kind(shown)
    about += [
        ("No valid answer", lambda e: Fact(f"{e.invalid.k:,} of {e.invalid.n:,}")),
        ("Latency, median", median),
        ("Latency, 95th percentile", _p95),
        ("Speed-up", lambda e: _speedup(metrics, e)),
        ("Throughput", _throughput),
        ("Cost of 1,000 requests", cost),
    ]
    if any(e.size_bytes is not None for e in shown):
        about.append(("To deploy beside the base", lambda e: (
            NOT_APPLICABLE if e.role in ("teacher", "base") else Fact(words.size(e.size_bytes)))))
    about.append(("Model", lambda e: Fact(e.model or words.UNKNOWN)))
    return [Row(name, tuple(of(e) for e in shown)) for name, of in about]


def _by_kind(shown: Sequence[Evaluation]) -> list[Column]:
    """The rows of structured and of text tasks."""
    found: list[Column] = []
    if any(e.structured for e in shown):
        found += [
            ("Fits the schema", lambda e: _percent(e.structured and e.structured.schema_valid.share)),
            ("Whole object equal", lambda e: _percent(e.structured and e.structured.exact_object.share)),
            ("Field-F1", lambda e: _score(e.structured and e.structured.field_f1))]
    if any(e.text for e in shown):
        found += [("Equal to the expected text", lambda e: _percent(e.text and e.text.exact.share)),
                  ("ROUGE-L", lambda e: _score(e.text and e.text.rouge_l))]
    if any(e.text and e.text.chrf for e in shown):
        found.append(("chrF", lambda e: _score(e.text and e.text.chrf)))
    if any(e.text and e.text.embedding for e in shown):
        found.append(("Cosine of embeddings", lambda e: _score(e.text and e.text.embedding)))
    return found


def _percent(share: Interval | None) -> Fact:
    return Fact(words.percent(share.value), words.percent_range(share)) if share else UNKNOWN


def _score(value: Interval | None) -> Fact:
    return Fact(words.score(value.value), words.score_range(value)) if value else UNKNOWN


def secondary_table(metrics: Metrics) -> tuple[list[str], list[list[str]]]:
    """The metrics beside the accuracy: teacher, student and what is lost."""
    comparison = comparison_of(metrics, metrics.verdict.student)
    rows = {row.name: dict(zip((e.name for e in entrants(metrics)), row.facts, strict=True))
            for row in comparison_rows(metrics)}
    teacher = teacher_of(metrics)
    return ["Beside the accuracy", "Teacher", "Student", "Drop"], [
        [name, rows[name][teacher.name].value, rows[name][metrics.verdict.student].value, _difference(drop)]
        for name, drop in (comparison.other_drops.items() if comparison and teacher else ()) if name in rows]


def part_table(metrics: Metrics) -> tuple[list[str], list[list[str]]]:
    """The mean score of each field or check, entrant by entrant, in the student's order, and what the student
    loses."""
    shown = [e for e in entrants(metrics) if e.parts]
    comparison = comparison_of(metrics, metrics.verdict.student)
    drops = comparison.part_drops if comparison else {}
    columns = ["Field or check", *(words.title_of(e) for e in shown), *(["Drop"] if drops else [])]
    return columns, [[_part_name(metrics, name), *(
        _share(e.parts[name]) if name in e.parts else words.UNKNOWN for e in shown),
        *([_difference(drops[name])] if name in drops else [])] for name in student_of(metrics).parts]


def part_cell_table(metrics: Metrics) -> tuple[list[str], list[list[str]]]:
    """For every field or check that is wrong somewhere, on how many items in which cell."""
    comparison = comparison_of(metrics, metrics.verdict.student)
    counts: dict[str, Counter[Cell]] = {}
    for item in comparison.items if comparison else ():
        for name, where in item.part_cells.items():
            counts.setdefault(name, Counter())[where] += 1
    return ["Field or check", *(title.partition(":")[0] for title, _ in words.CELLS.values())], [
        [name, *(f"{found[where]:,}" for where in words.CELLS)] for name, found in counts.items()]


def _part_name(metrics: Metrics, name: str) -> str:
    how = metrics.how_scored.get(name)
    return f"{name} ({how})" if how else name


def slice_table(metrics: Metrics) -> tuple[list[str], list[list[str]]]:
    """The slices as columns and rows of words; a slice that falls behind says so."""
    measure = "accuracy" if metrics.gold else "agreement"
    columns = ["Slice", "Items", f"Teacher's {measure}", f"Student's {measure}", "Drop", ""]
    return columns, [[
        f"{one.field} = {one.value}", f"{one.student.n:,}", _share(one.teacher.share),
        _share(one.student.share), _difference(one.drop),
        words.slice_state(one)] for one in metrics.slices]


def scenario_table(found: Economics) -> tuple[list[str], list[list[str]]]:
    """The costs of 1,000 requests and the break-even, as measured and in what-ifs."""
    return ["1,000 requests", "Teacher", "Instead", "Paid back after"], [[
        one.name, words.money(one.teacher_usd_per_1000), words.money(one.student_usd_per_1000),
        words.paid_back(one, found.training_usd)] for one in found.scenarios]


def paid_back(run: ComparedRun) -> str:
    """When the student pays back what it cost to get, as measured."""
    found = run.economics
    return words.paid_back(found.scenarios[0], found.training_usd) if found else words.UNKNOWN


def cascade_pairs(metrics: Metrics) -> list[tuple[str, str]]:
    """The cascade's figures by name; empty without one."""
    found = metrics.cascade
    if found is None:
        return []
    return [
        ("Threshold", f"{found.threshold:g}, {words.chosen_on(found)}"),
        ("Answered by the student", _share(found.answered.share)),
        ("Right on what it answers", words.NOT_APPLICABLE if found.alone is None else
         f"{_share(found.alone.share)}, at least {words.percent(found.alone_at_least)} (one-sided 97.5 %)"),
        ("Right as a whole", _share(found.accuracy.share)),
        ("Drop of the whole against the teacher", _difference(found.drop)),
        ("Cost of 1,000 requests", words.money(found.usd_per_1000)),
        ("Mean latency", words.seconds(found.latency_s))]


MOST_ROWS = 12  # of the curve and of the steps, as numbers


def cascade_curve(found: Cascade) -> tuple[list[str], list[list[str]]]:
    """What other thresholds would have given on the test items."""
    return ["Threshold", "Student answers", "Right as a whole", "1,000 requests", "Mean latency"], _thinned([[
        "teacher alone" if one.threshold is None else f"{one.threshold:.3f}", words.percent(one.share),
        words.percent(one.accuracy), words.money(one.usd_per_1000), words.seconds(one.latency_s)]
        for one in found.curve])


def cascade_steps(found: Cascade) -> tuple[list[str], list[list[str]]]:
    """How the threshold was chosen on dev, to where the walk stopped."""
    return ["Threshold", "Student answers", "Drop of the whole", "Shown to be at most"], _thinned([[
        f"{one.threshold:.3f}", words.percent(one.share), words.points(one.drop), words.points(one.at_most)]
        for one in found.steps])


def _thinned(rows: list[list[str]]) -> list[list[str]]:
    """The last two rows, and of those before them some, evenly."""
    before = rows[:-2]
    return [*before[::max(1, -(-len(before) // (MOST_ROWS - 2)))], *rows[-2:]]


def judge_pairs(metrics: Metrics) -> list[tuple[str, str]]:
    """The judge's figures by name; empty without one."""
    found = metrics.judge
    if found is None:
        return []
    return [
        ("Prefers the student", f"{_share(found.student.share)}, {found.student.k} of {found.student.n}"),
        ("Prefers the teacher", f"{_share(found.teacher.share)}, {found.teacher.k} of {found.teacher.n}"),
        ("Neither", f"{_share(found.tie.share)}, {found.tie.k} of {found.tie.n}"),
        ("Without a readable reply", f"{found.unread}"),
        ("Decided without asking", f"{found.settled}, equal texts or a missing answer"),
        ("Agrees with the gold checks", words.UNKNOWN if found.agreement is None else
         f"{_share(found.agreement.share)}, {found.agreement.k} of {found.agreement.n}"),
        ("The two orders disagree", words.NOT_APPLICABLE if found.disagreed is None else
         f"{_share(found.disagreed.share)}, {found.disagreed.k} of {found.disagreed.n}"),
        ("Cost of the judge", words.money(found.usd))]


def _difference(drop: Interval) -> str:
    return f"{words.points(drop.value)} {words.points_range(drop)}"


def _share(share: Interval) -> str:
    return f"{words.percent(share.value)} {words.percent_range(share)}"


def top_confusions(confusion: Confusion, most: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: (expected, answered, how often), frequent first."""
    wrong = [(label, column, count)
             for label, row in zip(confusion.labels, confusion.counts, strict=True)
             for column, count in zip(confusion.columns, row, strict=True) if count and column != label]
    return sorted(wrong, key=lambda item: (-item[2], item[0], item[1]))[:most]


def accuracy(e: Evaluation) -> Fact:
    return _percent(e.accuracy.share)


def _drop(metrics: Metrics, e: Evaluation) -> Fact:
    if e.role == "teacher":
        return NOT_APPLICABLE
    found = comparison_of(metrics, e.name)
    return Fact(words.points(found.drop.value), words.points_range(found.drop)) if found else UNKNOWN


def median(e: Evaluation) -> Fact:
    if e.latency is None:
        return UNKNOWN
    return Fact(words.seconds(e.latency.p50.value), words.latency_source(e.latency))


def _p95(e: Evaluation) -> Fact:
    if e.latency is None:
        return UNKNOWN
    if e.latency.p95 is None:
        return Fact(words.UNKNOWN, f"{e.latency.n} requests are too few")
    return Fact(words.seconds(e.latency.p95.value), words.seconds_range(e.latency.p95))


def _speedup(metrics: Metrics, e: Evaluation) -> Fact:
    if e.role == "teacher":
        return NOT_APPLICABLE
    found = comparison_of(metrics, e.name)
    if found is None or found.speedup is None:
        return UNKNOWN
    return Fact(words.times(found.speedup), words.times_range(found.speedup))


def _throughput(e: Evaluation) -> Fact:
    if e.throughput is None:
        return UNKNOWN
    return Fact(f"{words.significant(e.throughput.per_second)} per s", f"{e.throughput.at_once} at once")


def cost(e: Evaluation) -> Fact:
    return Fact(words.money(e.cost.usd_per_1000), e.cost.source) if e.cost else UNKNOWN
