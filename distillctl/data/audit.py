"""What a user should know about the data before anything is paid: balance, duplicates, lengths, leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from distillctl.data.near import near_links, normal_input
from distillctl.data.split import Splits
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec
from distillctl.task import Task
from distillctl.types import JSON, SPLITS, Example

_SHOWN = 20
_FEW_TEST = (50, 200)


@dataclass(frozen=True)
class Audit:
    """The account for `audit.json` and the report.

    labels: rows by label and split. duplicates: rows whose input stands earlier in the same split.
    conflicts: equal inputs with different expected answers. words: of what varies in the prompts, by
    split, as min, median, p95 and max.
    """

    rows: dict[str, int]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    conflicts: list[dict[str, JSON]] = field(default_factory=list)
    words: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, JSON]:
        return {"format": 1, **asdict(self)}


def audit(splits: Splits, task: Task, spec: DataSpec) -> Audit:
    """Look at all examples, in time linear in their number.

    Raises DataError where a split is empty, or where equal or near-equal inputs stand in two splits: what
    was trained on must not be tested on.
    """
    texts = {split: [normal_input(e.fields, sorted(task.variables)) for e in splits[split]]
             for split in SPLITS}
    _check_not_empty(splits)
    check_leaks(splits, texts, spec.near_duplicate)
    rows = {split: len(splits[split]) for split in SPLITS}
    labels = _labels(splits, task)
    duplicates = {split: len(found) - len(set(found)) for split, found in texts.items()}
    conflicts = _conflicts(splits, texts)
    return Audit(rows, labels, duplicates, conflicts[:_SHOWN], {s: _words(t) for s, t in texts.items()},
                 _warnings(rows, labels, duplicates, len(conflicts)))


def check_leaks(splits: Splits, texts: dict[str, list[str]], threshold: float) -> None:
    """Raise DataError with the pairs of equal or near-equal inputs that stand in different splits."""
    owners: dict[str, tuple[str, Example]] = {}
    problems: list[Problem] = []
    total = 0

    def leak(a: tuple[str, Example], b: tuple[str, Example], alike: float) -> None:
        nonlocal total
        total += 1
        if len(problems) < _SHOWN:
            how = "equal inputs" if alike == 1 else f"inputs alike by {alike:.2f}"
            problems.append(Problem(f"{how} in {a[0]} and {b[0]}: {a[1].source} and {b[1].source}",
                                    where=b[1].source, value=_short(b[1])))

    for split in SPLITS:
        for example, text in zip(splits[split], texts[split], strict=True):
            earlier = owners.setdefault(text, (split, example))
            if earlier[0] != split:
                leak(earlier, (split, example), 1.0)
    distinct = list(owners)
    for a, b, alike in near_links(distinct, threshold):
        if owners[distinct[a]][0] != owners[distinct[b]][0]:
            leak(owners[distinct[a]], owners[distinct[b]], alike)
    if problems:
        more = [Problem(f"and {total - _SHOWN} more pairs")] if total > _SHOWN else []
        raise DataError(*problems, *more, Problem(
            "what is tested must not have been trained on",
            hint="remove one of each pair, or let `data.split` be shares: such rows then stay in one split"))


def _check_not_empty(splits: Splits) -> None:
    empty = [split for split in ("train", "test") if not splits[split]]
    if empty:
        counts = ", ".join(f"{split} {len(splits[split])}" for split in SPLITS)
        raise DataError(Problem(f"the {' and the '.join(empty)} split has no rows ({counts})",
                                field="data.split", hint="give more rows, or other shares"))


def _labels(splits: Splits, task: Task) -> dict[str, dict[str, int]]:
    if task.kind != "classification":
        return {}
    counts = {split: Counter(e.expected for e in splits[split]) for split in SPLITS}
    if all(set(count) <= {None} for count in counts.values()):
        return {}
    return {label: {split: counts[split][label] for split in SPLITS} for label in task.labels}


def _conflicts(splits: Splits, texts: dict[str, list[str]]) -> list[dict[str, JSON]]:
    """Equal inputs with different expected answers: nothing can learn both."""
    expected: dict[str, list[Example]] = defaultdict(list)
    for split in SPLITS:
        for example, text in zip(splits[split], texts[split], strict=True):
            if example.expected is not None:
                expected[text].append(example)
    return [{"places": [e.source for e in found], "expected": [e.expected for e in found]}
            for found in expected.values() if any(e.expected != found[0].expected for e in found)]


def _words(texts: Sequence[str]) -> dict[str, int]:
    counts = sorted(text.count(" ") + 1 for text in texts)
    if not counts:
        return {}
    return {"min": counts[0], "median": counts[len(counts) // 2],
            "p95": counts[min(len(counts) - 1, int(len(counts) * 0.95))], "max": counts[-1]}


def _warnings(rows: dict[str, int], labels: dict[str, dict[str, int]], duplicates: dict[str, int],
              conflicts: int) -> list[str]:
    found = []
    if rows["test"] < _FEW_TEST[0]:
        found.append(f"only {rows['test']} test rows: no verdict will be settled on so few")
    elif rows["test"] < _FEW_TEST[1]:
        found.append(f"{rows['test']} test rows: intervals will be wide (about ±5 points at 200)")
    if rows["dev"] == 0:
        found.append("no dev rows: probabilities cannot be calibrated and thresholds not chosen")
    found += [f"the label {label!r} has no {split} rows" for label, counts in labels.items()
              for split in ("train", "test") if not counts[split]]
    total = sum(counts["train"] for counts in labels.values())
    found += [f"{counts['train'] / total:.0%} of the train rows are {label!r}" for label, counts in
              labels.items() if total and counts["train"] / total > 0.8]
    found += [f"{count} rows of {split} repeat an earlier input" for split, count in duplicates.items()
              if count]
    if conflicts:
        found.append(f"{conflicts} inputs stand with different expected answers (see audit.json)")
    return found


def _short(example: Example) -> str:
    return " ".join(str(value) for value in example.fields.values() if isinstance(value, str))[:80]
