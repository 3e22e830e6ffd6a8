"""Scores of one entrant on the test items, by the kind of task. The denominator is the planned items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distillctl.evaluate import intervals
from distillctl.evaluate.results import (
    Confusion,
    Count,
    Interval,
    LabelScores,
    StructuredScores,
    TextScores,
)
from distillctl.evaluate.text_scores import chrf, normal, rouge_l
from distillctl.task import StructuredTask, Task, TextTask, same_json
from distillctl.types import JSON, Prediction

if TYPE_CHECKING:
    import numpy as np

NO_VALID_ANSWER = "(no valid answer)"


@dataclass(frozen=True)
class Scored:
    """One entrant's answers, one per test item in the items' order; None where one is missing.

    right: whether the answer is right. parts: its score per field or check.
    """

    answers: Sequence[Prediction | None]
    right: Sequence[bool]
    parts: Sequence[Mapping[str, float]] = field(default=())

    @property
    def values(self) -> list[JSON]:
        """The parsed values; None for no valid answer."""
        return [answer.value if answer else None for answer in self.answers]


def score(task: Task, answers: Sequence[Prediction | None], expected: Sequence[JSON]) -> Scored:
    """Score answers against what is expected of each item.

    Without a valid answer everything about an item is wrong, its parts too: an answer that was never given
    keeps every length limit. Where nothing is expected (the teacher, who is the measure, gave no valid
    answer) no answer is right.
    """
    right, parts = [], []
    for answer, wanted in zip(answers, expected, strict=True):
        value = answer.value if answer else None
        if wanted is None:
            right.append(False)
            parts.append({})
            continue
        right.append(value is not None and task.score(value, wanted).correct)
        parts.append(part_scores(task, answer, wanted))
    return Scored(answers, right, parts)


def part_scores(task: Task, answer: Prediction | None, expected: JSON) -> dict[str, float]:
    """An answer's score per field or check; 0 for all of them without a valid answer."""
    value = answer.value if answer else None
    parts = task.score(value, expected).parts
    return dict(parts) if value is not None else dict.fromkeys(parts, 0.0)


def same_answer(task: Task, first: Prediction | None, second: Prediction | None, expected: JSON) -> bool:
    """Whether two answers say the same, in the task's own terms.

    Labels: equal. Objects: each field that is scored is right against the other's. Texts: as alike as the
    recipe asks of a right answer, else the same words. Two answers that could not be read are the same
    when their texts are, blanks around them aside; a missing answer is the same as nothing.
    """
    if first is None or second is None:
        return False
    one, other = first.value, second.value
    if one is None and other is None:
        texts = [(answer.answer.output or "").strip() for answer in (first, second)]
        return bool(texts[0]) and texts[0] == texts[1]
    if one is None or other is None:
        return False
    if task.kind == "structured":
        scored = expected if isinstance(expected, Mapping) else other
        wanted = {name: other.get(name) for name in scored if name in one or name in other}
        return one == other or task.score(one, wanted).correct
    if task.kind == "text":
        alike = task.spec.min_similarity
        return normal(one) == normal(other) if alike is None else task.likeness(one, other) >= alike
    return one == other


def invalid(scored: Scored, groups: Sequence[Hashable] | None) -> Count:
    """Items without a valid answer."""
    return intervals.count([value is None for value in scored.values], groups)


def part_means(scored: Scored, groups: Sequence[Hashable] | None) -> dict[str, Interval]:
    """Mean score of each field or check over the items where it is expected, in the order first met."""
    names = dict.fromkeys(name for parts in scored.parts for name in parts)
    means = {}
    for name in names:
        at = [i for i, parts in enumerate(scored.parts) if name in parts]
        means[name] = intervals.mean([scored.parts[i][name] for i in at],
                                     [groups[i] for i in at] if groups else None)
    return means


# --- structured -------------------------------------------------------------------------------------------


def structured_scores(task: StructuredTask, scored: Scored, expected: Sequence[JSON],
                      groups: Sequence[Hashable] | None) -> StructuredScores:
    """Scores of JSON answers over the planned items, the unreadable and missing ones among them."""
    exact = [value is not None and wanted is not None and _same_object(task, value, wanted)
             for value, wanted in zip(scored.values, expected, strict=True)]
    return StructuredScores(
        schema_valid=intervals.count([value is not None for value in scored.values], groups),
        exact_object=intervals.count(exact, groups), field_f1=_field_f1(task, scored, expected, groups))


def _same_object(task: StructuredTask, value: Mapping[str, JSON], expected: JSON) -> bool:
    wanted = task.scored(expected)
    return bool(wanted) and all(name in value and same_json(value[name], one)
                                for name, one in wanted.items())


def _field_f1(task: StructuredTask, scored: Scored, expected: Sequence[JSON],
              groups: Sequence[Hashable] | None) -> Interval | None:
    """F1 over the scored fields of all items, null being no value; None where none has a value."""
    units = field_units(task, scored, expected)
    if not units.any():
        return None
    found = intervals.bootstrapped(units, f1_of_sums, groups)
    if found.low < found.high:
        return found
    # no spread to draw from (all right, all wrong): the bootstrap would claim certainty
    share = intervals.count(scored.right, groups).share
    return Interval(value=found.value, low=min(share.low, found.value), high=max(share.high, found.value),
                    method=f"{share.method} of the accuracy, nothing to bootstrap")


def field_units(task: StructuredTask, scored: Scored, expected: Sequence[JSON]) -> np.ndarray:
    """(items, 3): how many of an item's scored fields are right, are given and are expected."""
    import numpy as np

    units = np.zeros((len(expected), 3))
    for unit, value, wanted, parts in zip(units, scored.values, expected, scored.parts, strict=True):
        for name, one in task.scored(wanted).items():
            said = value is not None and value.get(name) is not None
            unit += (said and one is not None and parts[name] == 1.0, said, one is not None)
    return units


def f1_of_sums(sums: np.ndarray) -> np.ndarray:
    import numpy as np

    hits, either = sums[:, 0], sums[:, 1] + sums[:, 2]
    return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0.5)


# --- text -------------------------------------------------------------------------------------------------


def text_scores(task: TextTask, scored: Scored, expected: Sequence[JSON],
                groups: Sequence[Hashable] | None) -> TextScores | None:
    """Likeness to the expected texts, over the items that have one; None where no item has.

    Without a valid answer the likeness is 0.
    """
    at = [i for i, wanted in enumerate(expected) if wanted and wanted.get("text") is not None]
    if not at:
        return None
    pairs = [(scored.values[i] or "", expected[i]["text"]) for i in at]
    groups = [groups[i] for i in at] if groups else None
    embedded = intervals.mean([task.likeness(*pair) for pair in pairs], groups) if (
        task.spec.similarity == "embedding") else None
    mean_chrf = intervals.mean([chrf(*pair) for pair in pairs], groups) if (
        task.spec.similarity == "chrf") else None
    return TextScores(
        n=len(at), exact=intervals.count([bool(said) and normal(said) == normal(wanted)
                                          for said, wanted in pairs], groups),
        rouge_l=intervals.mean([rouge_l(*pair) for pair in pairs], groups), chrf=mean_chrf,
        embedding=embedded)


# --- classification ---------------------------------------------------------------------------------------


def confusion(labels: Sequence[str], expected: Sequence[str | None], answered: Sequence[str | None],
              ) -> Confusion:
    """Items by what was expected and what was answered; items of which nothing is expected are left out."""
    columns = [*labels, NO_VALID_ANSWER]
    row = {label: i for i, label in enumerate(labels)}
    counts = [[0] * len(columns) for _ in labels]
    for wanted, said in zip(expected, answered, strict=True):
        if wanted is not None:
            counts[row[wanted]][row.get(said, len(labels))] += 1
    return Confusion(labels=list(labels), columns=columns, counts=counts)


def label_scores(table: Confusion) -> list[LabelScores]:
    """Precision, recall and F1 of each label; None where they are not defined."""
    found = []
    for i, label in enumerate(table.labels):
        hits = table.counts[i][i]
        said, support = sum(row[i] for row in table.counts), sum(table.counts[i])
        found.append(LabelScores(
            label=label, support=support,
            precision=hits / said if said else None, recall=hits / support if support else None,
            f1=2 * hits / (said + support) if said + support else None))
    return found


def macro_f1(labels: Sequence[str], expected: Sequence[str | None], answered: Sequence[str | None],
             groups: Sequence[Hashable] | None, accuracy: Interval) -> Interval | None:
    """Mean F1 over the labels that are expected or answered somewhere, with a bootstrap interval.

    A draw without any item of a label leaves that label out. Where the draws have no spread (all right, all
    wrong) the bootstrap would claim certainty; the interval of the accuracy stands in, and `method` says
    so. None where nothing is expected.
    """
    units = label_units(labels, expected, answered)
    if not units.any():
        return None
    found = intervals.bootstrapped(units.reshape(len(units), -1), macro_f1_of_sums, groups)
    if found.low < found.high:
        return found
    return Interval(value=found.value, low=min(accuracy.low, found.value),
                    high=max(accuracy.high, found.value),
                    method=f"{accuracy.method} of the accuracy, nothing to bootstrap")


def label_units(labels: Sequence[str], expected: Sequence[str | None], answered: Sequence[str | None],
                ) -> np.ndarray:
    """(items, 3, labels): whether an item is a hit of the label, is answered so, and is expected so."""
    import numpy as np

    position = {label: i for i, label in enumerate(labels)}
    units = np.zeros((len(expected), 3, len(labels)))
    for unit, wanted, said in zip(units, expected, answered, strict=True):
        if wanted is None:
            continue
        unit[2, position[wanted]] = 1
        if said in position:
            unit[1, position[said]] = 1
            unit[0, position[said]] = said == wanted
    return units


def macro_f1_of_sums(sums: np.ndarray) -> np.ndarray:
    import numpy as np

    hits, said, support = np.moveaxis(sums.reshape(len(sums), 3, -1), 1, 0)
    there = said + support > 0.5  # whole numbers, but for rounding
    f1 = np.divide(2 * hits, said + support, out=np.zeros_like(hits), where=there)
    return f1.sum(1) / np.maximum(there.sum(1), 1)
