"""The other metrics, beside the accuracy on which the verdict rests: what the student loses in each against
its teacher, paired over the same items."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from distillctl.evaluate import intervals, metrics
from distillctl.evaluate.metrics import Scored
from distillctl.evaluate.results import Interval
from distillctl.evaluate.text_scores import rouge_l
from distillctl.evaluate.wording import gap_range, points
from distillctl.task import StructuredTask, Task, TextTask
from distillctl.types import JSON

OWN_LIKENESS = {"chrf": "chrF", "embedding": "Cosine of embeddings"}
"""The likeness of the recipe, where it is another than ROUGE-L, as reports call it."""


def secondary_drops(task: Task, expected: Sequence[JSON], teacher: Scored, student: Scored,
                    groups: Sequence[Hashable] | None = None) -> dict[str, Interval]:
    """The teacher's figure less the student's, by metric: F1 and likeness by a bootstrap of the items, both
    drawn together. Metrics that have no meaning here are left out."""
    import numpy as np

    found: dict[str, Interval] = {}
    if task.kind == "classification":
        units = [metrics.label_units(task.labels, expected, who.values) for who in (teacher, student)]
        if any(one.any() for one in units):
            found["Macro-F1"] = _apart(units, metrics.macro_f1_of_sums, groups)
    elif isinstance(task, StructuredTask):
        units = [metrics.field_units(task, who, expected) for who in (teacher, student)]
        if any(one.any() for one in units):
            found["Field-F1"] = _apart(units, metrics.f1_of_sums, groups)
    elif isinstance(task, TextTask):
        at = [i for i, wanted in enumerate(expected) if wanted and wanted.get("text") is not None]
        own = [groups[i] for i in at] if groups else None
        likeness = {"ROUGE-L": rouge_l, OWN_LIKENESS.get(task.spec.similarity, "ROUGE-L"): task.likeness}
        for name, alike in likeness.items() if at else ():
            units = [np.array([[alike(who.values[i] or "", expected[i]["text"]), 1.0] for i in at])
                     for who in (teacher, student)]
            found[name] = _apart(units, lambda sums: sums[:, 0] / sums[:, 1], own)
    # no spread to draw from (both answer alike): the bootstrap would claim certainty
    stand_in = intervals.difference(teacher.right, student.right, groups)
    return {name: one if one.low < one.high else Interval(
        value=one.value, low=min(stand_in.low, one.value), high=max(stand_in.high, one.value),
        method=f"{stand_in.method} of the accuracy, nothing to bootstrap") for name, one in found.items()}


def part_drops(teacher: Scored, student: Scored, groups: Sequence[Hashable] | None = None,
               ) -> dict[str, Interval]:
    """The same of each field and check, over the items where it is expected."""
    drops = {}
    for name in dict.fromkeys(name for parts in student.parts for name in parts):
        at = [i for i, parts in enumerate(student.parts) if name in parts]
        right = [[who.parts[i][name] == 1.0 for i in at] for who in (teacher, student)]
        drops[name] = intervals.difference(*right, [groups[i] for i in at] if groups else None)
    return drops


def warnings(drops: Mapping[str, Interval], max_drop: float) -> list[str]:
    """A line for each metric in which the student clearly loses more than may be lost in accuracy."""
    return [f"{name} falls by {points(drop.value)} points against the teacher (95 % interval "
            f"{gap_range(drop)}), though the accuracy keeps within the {points(max_drop)} that a viable "
            "student may lose." for name, drop in drops.items() if drop.low > max_drop]


def _apart(units: Sequence, statistic: Callable, groups: Sequence[Hashable] | None) -> Interval:
    """A statistic of the first one's sums less that of the second's."""
    import numpy as np

    first, second = (one.reshape(len(one), -1) for one in units)
    width = first.shape[1]
    return intervals.bootstrapped(
        np.column_stack([first, second]),
        lambda sums: statistic(sums[:, :width]) - statistic(sums[:, width:]), groups)
