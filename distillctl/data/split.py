"""Which example is in train, dev or test.

By shares, equal and near-equal inputs and the rows of one group always go together, so such a split cannot
leak. What goes together is put in the order of a hash of seed and input, label by label, and cut at the
shares. Cutting keeps the counts of every label near the shares, which a few hundred rows need more than
perfect rest: a new row can move the rows that stand at the two cuts of its label, and no other. Neither
the order of the file, nor ids, nor other columns matter; a corrected label moves its own row at most.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from distillctl.data.near import Groups, near_links, normal_input
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec, SplitShares
from distillctl.task import Task
from distillctl.types import JSON, SPLITS, Example, Split

Splits = dict[Split, list[Example]]

_MOST_IDS = 20  # shown
_FAR = 0.05  # from a share that it is worth a warning


def split_by_shares(examples: Sequence[Example], spec: DataSpec, shares: SplitShares,
                    task: Task) -> tuple[Splits, list[str]]:
    """The examples by split, each in the order of the file, and warnings."""
    texts = inputs(examples, task)
    groups = [_group_of(example, spec) for example in examples]
    together = _together(texts, groups, spec.near_duplicate)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(examples)):
        members[together.find(number)].append(number)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for unit in members.values():
        strata[_stratum([examples[number] for number in unit], task)].append(unit)
    where: dict[int, Split] = {}
    for label, units in strata.items():
        ranked = [(min(_rank(shares.seed, groups[n] or ("input", texts[n])) for n in unit), unit)
                  for unit in units]
        where.update(_cut(ranked, shares, _rank(shares.seed, ("label", label))))
    splits: Splits = {split: [] for split in SPLITS}
    for number, example in enumerate(examples):
        splits[where[number]].append(example)
    return splits, _warnings(splits, shares, [len(unit) for unit in members.values()], spec)


def split_by_list(examples: Sequence[Example], path: Path) -> Splits:
    """The examples by a JSON file {"train": [ids], "dev": [ids], "test": [ids]}, each in file order.

    Raises DataError for a file of another shape, and with the ids that are listed twice, that no example
    has, and that no list has.
    """
    lists = _read_lists(path)
    listed = {identity: split for split in SPLITS for identity in lists[split]}
    times = Counter(identity for split in SPLITS for identity in lists[split])
    known = {example.id for example in examples}
    wrong = [([i for i in times if times[i] > 1], "listed more than once", "leave each in one list"),
             ([i for i in listed if i not in known], "listed that no example has", "remove them"),
             ([e.id for e in examples if e.id not in listed], "of examples in none of the lists",
              "put each into train, dev or test, or remove the rows")]
    problems = [Problem(f"ids {what} ({len(ids):,})", str(path), value=_shown(ids), hint=hint)
                for ids, what, hint in wrong if ids]
    if problems:
        raise DataError(*problems)
    splits: Splits = {split: [] for split in SPLITS}
    for example in examples:
        splits[listed[example.id]].append(example)
    return splits


def inputs(examples: Sequence[Example], task: Task) -> list[str]:
    """Normal form of what varies in each example's prompt."""
    names = sorted(task.variables)
    return [normal_input(example.fields, names) for example in examples]


# --- shares


def _together(texts: Sequence[str], groups: Sequence[Hashable], threshold: float) -> Groups:
    """Which rows must not be parted: equal inputs, near-equal ones, and those of one group."""
    together = Groups(len(texts))
    first: dict[str, int] = {}
    first_of_group: dict[Hashable, int] = {}
    for number, (text, group) in enumerate(zip(texts, groups, strict=True)):
        together.join(number, first.setdefault(text, number))
        if group:
            together.join(number, first_of_group.setdefault(group, number))
    distinct = list(first)
    for a, b, _ in near_links(distinct, threshold):
        together.join(first[distinct[a]], first[distinct[b]])
    return together


def _cut(ranked: list[tuple[bytes, list[int]]], shares: SplitShares, offset: bytes) -> dict[int, Split]:
    """Cut one label's units, test first, then dev, then train.

    offset: where the first row stands on the ruler, so that rounding favours no split over many labels.
    """
    total = sum(len(unit) for _, unit in ranked)
    start = int.from_bytes(offset[:7], "big") / 2**56  # in [0, 1)
    test = math.floor(shares.test * total + start + 1e-9)
    dev = math.floor((shares.test + shares.dev) * total + start + 1e-9)
    where: dict[int, Split] = {}
    placed = 0
    # What is too big for test or dev stands last, which is in train.
    for _, unit in sorted(ranked, key=lambda pair: (len(pair[1]) > max(1, shares.test * total / 2), pair[0])):
        middle = placed + len(unit) / 2
        where.update(dict.fromkeys(unit, "test" if middle < test else "dev" if middle < dev else "train"))
        placed += len(unit)
    return where


def _group_of(example: Example, spec: DataSpec) -> tuple[str, str] | None:
    value = example.fields.get(spec.group) if spec.group else None
    return None if value is None or value == "" else ("group", str(value))


def _stratum(unit: Sequence[Example], task: Task) -> str:
    """The label that most of a unit has; one stratum for all where there are no labels."""
    if task.kind != "classification":
        return ""
    counts = Counter(str(example.expected) for example in unit)
    return min(counts, key=lambda label: (-counts[label], label))


def _rank(seed: int, what: tuple[str, str]) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *what)).encode("utf-8", "surrogatepass")).digest()


def _warnings(splits: Splits, shares: SplitShares, units: Sequence[int], spec: DataSpec) -> list[str]:
    total = sum(units)
    tied = sum(size for size in units if size > 1)
    reason = "equal or near-equal inputs" + (f" and rows with one `{spec.group}`" if spec.group else "")
    found = []
    if tied:
        found.append(f"{tied:,} rows go with others, since {reason} stay in one split")
    far = [f"{split} {len(splits[split]) / total:.0%} instead of {share:.0%}" for split in SPLITS
           if abs(len(splits[split]) / total - (share := getattr(shares, split))) > _FAR]
    if far:
        found.append(f"the shares are not met ({', '.join(far)}): there are few rows, or large groups of "
                     f"{reason}; the largest has {max(units):,} of {total:,} rows")
    return found


# --- lists


def _read_lists(path: Path) -> Mapping[Split, list[str]]:
    shape = '{"train": [ids], "dev": [ids], "test": [ids]}'
    try:
        lists: JSON = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror or error}", str(path))) from None
    except (ValueError, RecursionError) as error:
        raise DataError(Problem(f"is not JSON: {error}"[:200], str(path), hint=f"write {shape}")) from None
    if not isinstance(lists, dict) or sorted(lists) != sorted(SPLITS) or not all(
            isinstance(ids, list) and all(isinstance(i, str | int) and not isinstance(i, bool) for i in ids)
            for ids in lists.values()):
        raise DataError(Problem(f"is not of the form {shape}", str(path)))
    return {split: [str(identity) for identity in lists[split]] for split in SPLITS}


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_IDS:,} more" if len(ids) > _MOST_IDS else ""
    return ", ".join(ids[:_MOST_IDS]) + more
