"""Slices: the test items by the value of a field, and where the student falls behind its teacher."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist

from distillctl.errors import DataError, Problem
from distillctl.evaluate import intervals, stats
from distillctl.evaluate.results import Slice
from distillctl.evaluate.wording import gap_range, plural, points
from distillctl.types import JSON, Example

MIN_ITEMS = 30
MOST_VALUES = 20  # of one field; rarer ones are put together
REST = "(other values)"
ABSENT = "(none)"
ALPHA = 0.025  # one-sided, as the bound of a 95 % interval


def check_fields(examples: Sequence[Example], names: Sequence[str]) -> None:
    """Raises DataError for names that are a field of no example."""
    there = {name: None for example in examples for name in example.fields}
    problems = [Problem("no example has such a field", field=f"evaluate.slices[{i}]", value=name,
                        hint=f"the fields are: {', '.join(list(there)[:20])}")
                for i, name in enumerate(names) if name not in there]
    if problems:
        raise DataError(*problems)


def slices(examples: Sequence[Example], names: Sequence[str], teacher: Sequence[bool],
           student: Sequence[bool], max_drop: float, groups: Sequence[Hashable] | None = None) -> list[Slice]:
    """Every slice, by field and then by size; Holm over all that have 30 items. Raises DataError for an
    unknown field."""
    check_fields(examples, names)
    found, pairs = [], {}
    for name in names:
        for value, at in _parts(examples, name).items():
            made = _slice(name, value, at, teacher, student, groups)
            if len(at) >= MIN_ITEMS:
                made = _tested(made, at, teacher, student, max_drop, groups)
                pairs[len(found)] = (made.p_above, made.p_worse)
            found.append(made)
    adjusted = stats.holm([p for pair in pairs.values() for p in pair])
    for position, i in enumerate(pairs):
        p = min(adjusted[2 * position:2 * position + 2])
        found[i] = found[i].model_copy(update={
            "p_holm": p, "behind": p < ALPHA and found[i].drop.value > max_drop})
    return found


def warnings(found: Sequence[Slice], max_drop: float) -> list[str]:
    """A line for each slice that falls behind."""
    return [f"Slice {one.field} = {one.value}: on its {plural(one.student.n, 'item')} the student loses "
            f"{points(one.drop.value)} points against the teacher (95 % interval {gap_range(one.drop)}), "
            f"above the {points(max_drop)} that a viable student may lose (p = {one.p_holm:.2g} by Holm)."
            for one in found if one.behind]


def _parts(examples: Sequence[Example], name: str) -> Mapping[str, list[int]]:
    values = [_as_text(example.fields.get(name)) for example in examples]
    common = Counter(values).most_common()
    kept = [value for value, _ in common[:MOST_VALUES]]
    parts: dict[str, list[int]] = {value: [] for value in kept}
    for i, value in enumerate(values):
        parts.setdefault(value if value in parts and value != REST else REST, []).append(i)
    return {value: at for value, at in parts.items() if at}


def _as_text(value: JSON) -> str:
    if value is None or value == "":
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _slice(name: str, value: str, at: Sequence[int], teacher: Sequence[bool], student: Sequence[bool],
           groups: Sequence[Hashable] | None) -> Slice:
    own = [groups[i] for i in at] if groups else None
    t, s = [teacher[i] for i in at], [student[i] for i in at]
    return Slice(field=name, value=value, teacher=intervals.count(t, own), student=intervals.count(s, own),
                 drop=intervals.difference(t, s, own))


def _tested(made: Slice, at: Sequence[int], teacher: Sequence[bool], student: Sequence[bool],
            max_drop: float, groups: Sequence[Hashable] | None) -> Slice:
    inside = set(at)
    counts = _effective(at, teacher, student, groups)
    rest = [i for i in range(len(teacher)) if i not in inside]
    above = _tail(stats.tango_statistic(max_drop, *counts))
    worse = _tail(_further(counts, _effective(rest, teacher, student, groups))) if rest else 1.0
    return made.model_copy(update={"p_above": above, "p_worse": worse})


def _effective(at: Sequence[int], teacher: Sequence[bool], student: Sequence[bool],
               groups: Sequence[Hashable] | None) -> tuple[float, float, float]:
    """(teacher alone right, student alone right, items), groups allowed for."""
    t, s = [teacher[i] for i in at], [student[i] for i in at]
    n10, n01 = intervals.discordant(t, s)
    effect = stats.design_effect([a - b for a, b in zip(t, s, strict=True)], [groups[i] for i in at]
                                 ) if groups else 1.0
    return n10 / effect, n01 / effect, len(at) / effect


def _further(one: tuple[float, float, float], rest: tuple[float, float, float]) -> float:
    """z of the difference of two drops on different items, with Bonett and Price's variances (2012)."""
    (drop, var), (other, other_var) = _adjusted(*one), _adjusted(*rest)
    return (drop - other) / math.sqrt(var + other_var)


def _adjusted(n10: float, n01: float, n: float) -> tuple[float, float]:
    p10, p01 = (n10 + 1) / (n + 2), (n01 + 1) / (n + 2)
    return p10 - p01, (p10 + p01 - (p10 - p01) ** 2) / (n + 2)


def _tail(z: float) -> float:
    return 1 - NormalDist().cdf(z)
