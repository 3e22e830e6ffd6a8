"""`report.html`: one run on one self-contained page, for the person who decides.

No scripts, nothing loaded from anywhere, and a content security policy that would forbid both. Jinja2
escapes everything; the only markup that passes is the SVG that `plots` made. `_finalize` stands behind
every `{{ }}` of the templates: it writes None as "unknown", shows control characters as escapes and cuts
what is too long for a slot, so that no template can forget to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl.evaluate.results import Metrics
from distillctl.report import facts, generic, ledger_view, plots, words
from distillctl.report.sanitize import cut, visible
from distillctl.store.files import write_text
from distillctl.types import JSON

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_SLOT = 6000  # characters in one slot of a template
MOST_NAME = 120  # characters of a name in a table or heading
MOST_CONFUSIONS = 8


@dataclass(frozen=True)
class ReportInput:
    """Everything a report can show; what is None or empty is left out.

    recipe_text: the recipe verbatim. audit, selection, stability, levers, spend: the run's artifacts as they
    are.
    training: the numbers of the training events in their order (step, loss, eval_loss, eval_score, ...).
    stages: dicts of name, seconds and reused. provenance: versions, digests, machine, times, by name.
    """

    metrics: Metrics
    run_name: str
    recipe_text: str
    audit: Mapping[str, JSON] | None = None
    selection: Mapping[str, JSON] | None = None
    training: Sequence[Mapping[str, JSON]] = ()
    stability: Mapping[str, JSON] | None = None
    levers: Mapping[str, JSON] | None = None
    spend: Mapping[str, JSON] | None = None
    stages: Sequence[Mapping[str, JSON]] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)


def write_report(inputs: ReportInput, path: Path) -> None:
    """Write the page atomically. Raises StorageError."""
    write_text(path, report_page(inputs))


def report_page(inputs: ReportInput) -> str:
    """The page as text; equal inputs give equal pages."""
    metrics = inputs.metrics
    entrants = facts.entrants(metrics)
    student = facts.student_of(metrics)
    comparison = facts.comparison_of(metrics, metrics.verdict.student)
    frame = ledger_view.shared_text(comparison.items) if comparison else ("", "")
    groups = ledger_view.groups(comparison, frame, metrics.gold) if comparison else []
    loss, scores = _training_plots(inputs.training)
    return render(
        "report.html.j2",
        run=inputs, metrics=metrics, verdict=metrics.verdict, entrants=entrants, student=student,
        comparison=comparison, rows=facts.comparison_rows(metrics), tiles=facts.tiles(metrics),
        contrasts=metrics.contrasts, frame=frame, recipe_text=inputs.recipe_text,
        curve=_curve(inputs.training), provenance={"test items": metrics.test_digest, **inputs.provenance},
        groups=groups, filters=ledger_view.filters(groups),
        confusions=[e for e in reversed(entrants) if e.confusion],
        accuracy_plot=plots.accuracy_plot(entrants), latency_plot=plots.latency_plot(entrants),
        label_plot=plots.label_plot(student, [e for e in entrants if e is not student]),
        part_plot=plots.part_plot(entrants), part_table=facts.part_table(metrics),
        secondary_table=facts.secondary_table(metrics),
        part_cell_table=facts.part_cell_table(metrics),
        calibration_plot=student.calibration and plots.calibration_plot(student.calibration),
        cascade_plot=_cascade_plot(metrics), cascade_pairs=facts.cascade_pairs(metrics),
        cascade_curve=metrics.cascade and facts.cascade_curve(metrics.cascade),
        cascade_steps=metrics.cascade and facts.cascade_steps(metrics.cascade),
        judge_pairs=facts.judge_pairs(metrics), slice_table=facts.slice_table(metrics),
        volume_plot=metrics.economics and plots.volume_plot(metrics.economics),
        scenario_table=metrics.economics and facts.scenario_table(metrics.economics),
        suspects=ledger_view.suspects(metrics, frame), loss_plot=loss, score_plot=scores,
        most_labels=plots.MOST_LABELS)


def _cascade_plot(metrics: Metrics) -> object:
    teacher = facts.teacher_of(metrics)
    if metrics.cascade is None or teacher is None:
        return None
    return plots.cascade_plot(metrics.cascade, teacher.accuracy.share.value)


def render(template: str, **context: Any) -> str:
    """One of the templates beside this file, filled in."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(loader=PackageLoader("distillctl.report", ""), autoescape=True, finalize=_finalize,
                      undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(name=lambda text: cut(str(text), MOST_NAME), verbatim=_verbatim)
    env.globals.update(
        words=words, blocks=generic.blocks, title_of=words.title_of, top_confusions=facts.top_confusions,
        most_confusions=MOST_CONFUSIONS, unknown=words.UNKNOWN)
    return env


def _finalize(value: object) -> object:
    if value is None:
        return words.UNKNOWN
    if hasattr(value, "__html__") or not isinstance(value, str):
        return value
    return visible(cut(value, MOST_SLOT))


def _verbatim(text: str) -> object:
    """The whole of a text, however long; escaped like everything else."""
    from markupsafe import escape

    return escape(visible(text))


def _curve(training: Sequence[Mapping[str, JSON]]) -> list[dict[str, JSON]]:
    """The rows of the training curve that have a step, thinned out evenly where there are many."""
    rows = [{key: value for key, value in row.items() if _is_number(value) and key != "time"}
            for row in training if _is_number(row.get("step"))]
    step = max(1, -(-len(rows) // generic.MOST_ROWS))
    return rows[::step]


def _training_plots(training: Sequence[Mapping[str, JSON]]) -> tuple[object, object]:
    def series(key: str, name: str, color: str) -> plots.Series:
        drawn = [(row["step"], row[key]) for row in training
                 if _is_number(row.get("step")) and _is_number(row.get(key))]
        return plots.Series(name, color, [x for x, _ in drawn], [y for _, y in drawn])

    loss = [series("loss", "training loss", "var(--student)"),
            series("eval_loss", "loss on dev", "var(--baseline)")]
    return (plots.training_plot("loss", "Loss while training", loss),
            plots.training_plot("score", "Score on dev while training",
                                [series("eval_score", "score on dev", "var(--baseline)")]))


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
