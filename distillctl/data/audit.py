"""What a user should know about the data before anything is paid: balance, duplicates, lengths, leaks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

from distillctl.data.near import near_links
from distillctl.data.split import Splits, inputs
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec
from distillctl.task import Task
from distillctl.types import JSON, SPLITS, Example

_SHOWN = 20  # pairs, duplicates, conflicts
_FEW_TEST = 200  # rows
_MAJORITY = 0.7  # share of one label from which a constant answer looks good
_BATCH = 1000


class Tokenizer(Protocol):
    """What `tokenizers.Tokenizer` offers of itself here."""

    def encode_batch(self, texts: list[str]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Audit:
    """The account for `audit.json` and the report.

    splits: by split its rows, repeats (rows whose input stands earlier in the same split) and the lengths
    of what varies in the prompts (of the whole prompts for tokens), as median, 95th percentile and
    maximum. labels: rows by label. duplicates: inputs that stand more than once, where. conflicts:
    equal inputs with different expected answers. The lists show the first 20, the numbers count all.
    near_duplicate: the similarity from which on inputs never stand in different splits.
    """

    rows: int
    near_duplicate: float
    splits: list[dict[str, JSON]]
    labels: list[dict[str, JSON]]
    repeated_inputs: int
    conflicting_inputs: int
    duplicates: list[dict[str, JSON]]
    conflicts: list[dict[str, JSON]]
    warnings: list[str]

    def as_json(self) -> dict[str, JSON]:
        return {"format": 1, **asdict(self)}


def audit(splits: Splits, task: Task, spec: DataSpec, tokenizer: Tokenizer | None = None) -> Audit:
    """The account of the splits that `load_splits` gave, which has seen to leaks; linear in the rows.

    tokenizer: the student's, for lengths in tokens.
    """
    summaries = []
    copies: dict[str, list[Example]] = {}
    for split in SPLITS:
        texts = inputs(splits[split], task)
        first: dict[str, Example] = {}
        for example, text in zip(splits[split], texts, strict=True):
            if (earlier := first.setdefault(text, example)) is not example:
                copies.setdefault(text, [earlier]).append(example)
        summaries.append({"split": split, "rows": len(texts), "repeats": len(texts) - len(first),
                          **_lengths(splits[split], task, tokenizer)})
    conflicts = [found for found in copies.values() if any(e.expected != found[0].expected for e in found)]
    labels = _labels(splits, task)
    return Audit(
        rows=sum(map(len, splits.values())), near_duplicate=spec.near_duplicate,
        splits=summaries, labels=labels, repeated_inputs=len(copies),
        conflicting_inputs=len(conflicts),
        duplicates=[{"rows": len(found), "places": _places(found)} for found in _first(copies.values())],
        conflicts=[{"places": _places(found), "expected": [e.expected for e in _first(found)]}
                   for found in _first(conflicts)],
        warnings=_warnings(splits, summaries, labels, conflicts))


def check_leaks(splits: Splits, task: Task, threshold: float) -> None:
    """Raise DataError where equal or near-equal inputs stand in different splits, with the pairs.

    Enough pairs are named to see every group that is torn apart, not each pair in it.
    """
    owners: dict[str, tuple[str, Example]] = {}
    pairs: list[tuple[tuple[str, Example], tuple[str, Example], float]] = []
    for split in SPLITS:
        for example, text in zip(splits[split], inputs(splits[split], task), strict=True):
            if (earlier := owners.setdefault(text, (split, example)))[0] != split:
                pairs.append((earlier, (split, example), 1.0))
    distinct = list(owners)
    pairs += [(owners[distinct[a]], owners[distinct[b]], alike)
              for a, b, alike in near_links(distinct, threshold)
              if owners[distinct[a]][0] != owners[distinct[b]][0]]
    if not pairs:
        return
    pairs.sort(key=lambda pair: -pair[2])
    problems = [Problem(
        f"{'equal' if alike == 1 else f'near-equal ({alike:.2f} alike)'} inputs in {a_split} and {b_split}: "
        f"{a.source} and {b.source}", field="data", value=_excerpt(b, task))
        for (a_split, a), (b_split, b), alike in pairs[:_SHOWN]]
    if len(pairs) > _SHOWN:
        problems.append(Problem(f"and {len(pairs) - _SHOWN:,} more pairs"))
    problems.append(Problem(
        "what is tested must not be trained on", field="data",
        hint="remove one row of each pair, or let `data.split` be shares, which keeps such rows together; "
             f"`data.near_duplicate` (now {threshold:g}) says from where on inputs are near-equal"))
    raise DataError(*problems)


def check_not_empty(splits: Splits) -> None:
    """Raise DataError where train or test has no rows."""
    empty = [split for split in ("train", "test") if not splits[split]]
    if empty:
        counts = ", ".join(f"{split} {len(splits[split])}" for split in SPLITS)
        raise DataError(Problem(
            f"{' and '.join(empty)} would have no rows ({counts})", field="data.split",
            hint="give more rows, rows that differ more from each other, or other shares"))


# --- parts of the account


def _lengths(examples: Sequence[Example], task: Task, tokenizer: Tokenizer | None) -> dict[str, JSON]:
    names = sorted(task.variables)
    words, characters = Counter[int](), Counter[int]()
    for example in examples:
        values = [str(value) for name in names if (value := example.fields.get(name)) is not None]
        words[sum(len(value.split()) for value in values)] += 1
        characters[sum(map(len, values))] += 1
    found = {"words": _spread(words), "characters": _spread(characters)}
    if tokenizer is not None:
        found["tokens"] = _spread(_tokens(examples, task, tokenizer))
    return {f"{unit}_{name}": value for unit, spread in found.items() for name, value in spread.items()}


def _tokens(examples: Sequence[Example], task: Task, tokenizer: Tokenizer) -> Counter[int]:
    counts = Counter[int]()
    prompts = ("\n".join(m["content"] for m in task.render(example.fields)) for example in examples)
    while batch := list(islice(prompts, _BATCH)):
        counts.update(len(encoding) for encoding in tokenizer.encode_batch(batch))
    return counts


def _spread(counts: Counter[int]) -> dict[str, int | None]:
    """Median and 95th percentile, each the smallest value that so many do not exceed, and maximum."""
    names = {"median": 0.5, "p95": 0.95, "max": 1.0}
    total, seen = counts.total(), 0
    if not total:
        return dict.fromkeys(names)
    found: dict[str, int | None] = {}
    for value in sorted(counts):
        seen += counts[value]
        found |= {name: value for name, share in names.items()
                  if name not in found and seen >= share * total}
    return found


def _labels(splits: Splits, task: Task) -> list[dict[str, JSON]]:
    counts = {split: Counter(e.expected for e in splits[split]) if task.labels else Counter()
              for split in SPLITS}
    if not any(counts[split][label] for split in SPLITS for label in task.labels):
        return []  # no gold answers: their balance is unknown
    return [{"label": label, **{split: counts[split][label] for split in SPLITS}} for label in task.labels]


def _warnings(splits: Splits, summaries: list[dict[str, JSON]], labels: list[dict[str, JSON]],
              conflicts: Sequence[Sequence[Example]]) -> list[str]:
    found = []
    tests = len(splits["test"])
    if 0 < tests < _FEW_TEST:
        points = 100 * 1.96 * math.sqrt(0.8 * 0.2 / tests)
        found.append(f"{tests} test rows are few: an accuracy near 80 % is known to ±{points:.0f} points")
    if not splits["dev"]:
        found.append("there are no dev rows: nothing can be chosen or calibrated on them")
    found += [f"no {split} row has the label {row['label']!r}" for row in labels
              for split in ("train", "test") if splits[split] and not row[split]]
    found += [f"{row['test'] / tests:.0%} of the test rows have the label {row['label']!r}: always answering "
              "it would be right as often" for row in labels if tests and row["test"] / tests >= _MAJORITY]
    found += [f"{row['repeats']:,} {row['split']} rows repeat an earlier input" for row in summaries
              if row["repeats"]]
    if conflicts:
        places = ", ".join(_places(conflicts[0])[:3])
        found.append(f"{len(conflicts):,} inputs have several rows that expect different answers, "
                     f"first {places}")
    return found


def _places(examples: Iterable[Example]) -> list[str]:
    return [example.source for example in _first(examples)]


def _first(items: Iterable[Any]) -> list[Any]:
    return list(islice(items, _SHOWN))


def _excerpt(example: Example, task: Task) -> str:
    values = (example.fields.get(name) for name in sorted(task.variables))
    return " ".join(" ".join(str(value).split()) for value in values if value is not None)[-80:]
