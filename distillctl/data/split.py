"""Which example is in train, dev or test.

Shares are cut per label, over the examples in the order of a hash of seed and content: what is where
depends on the rows alone, never on their order in the file, and the counts are exact; a new row moves at
most one row at each cut. Equal and near-equal inputs, and rows of one group, always go together, so that a
split by shares cannot leak.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

from distillctl.data.near import Groups, near_links, normal_input
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec, SplitShares
from distillctl.task import Task
from distillctl.types import SPLITS, Example, Split

Splits = dict[Split, list[Example]]


def split_by_shares(examples: Sequence[Example], spec: DataSpec, shares: SplitShares, task: Task) -> Splits:
    """The examples by split, each in file order."""
    together = _together(examples, spec, task)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(examples)):
        members[together.find(number)].append(number)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for group in members.values():
        strata[_stratum(examples[group[0]], task)].append(group)
    where: dict[int, Split] = {}
    for groups in strata.values():
        total = sum(map(len, groups))
        cuts = (shares.test * total, (shares.test + shares.dev) * total)
        placed = 0
        for group in sorted(groups, key=lambda group: min(_rank(examples[n], shares.seed) for n in group)):
            middle = placed + len(group) / 2
            place: Split = "test" if middle <= cuts[0] else "dev" if middle <= cuts[1] else "train"
            where.update(dict.fromkeys(group, place))
            placed += len(group)
    found: Splits = {split: [] for split in SPLITS}
    for number, example in enumerate(examples):
        found[where[number]].append(example)
    return found


def split_by_list(examples: Sequence[Example], path: Path) -> Splits:
    """The examples by a JSON file {"train": [ids], "dev": [ids], "test": [ids]}; ids in none of the lists
    are left out. Raises DataError for a file of another shape, ids twice, and ids that no example has."""
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(Problem(f"cannot be read: {error}", where=str(path))) from None
    if not isinstance(lists, dict) or sorted(lists) != sorted(SPLITS) or not all(
            isinstance(ids, list) and all(isinstance(one, str) for one in ids) for ids in lists.values()):
        raise DataError(Problem('must be {"train": [ids], "dev": [ids], "test": [ids]}', where=str(path)))
    by_id = {example.id: example for example in examples}
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for split in SPLITS:
        for one in lists[split]:
            if one not in by_id:
                problems.append(Problem("no example has this id", where=str(path), field=split, value=one))
            elif one in seen:
                problems.append(Problem(f"stands twice, in {seen[one]} too", where=str(path), field=split,
                                        value=one))
            seen[one] = split
    if problems:
        more = [Problem(f"and {len(problems) - 20} more")] if len(problems) > 20 else []
        raise DataError(*problems[:20], *more)
    return {split: [by_id[one] for one in lists[split]] for split in SPLITS}


def _together(examples: Sequence[Example], spec: DataSpec, task: Task) -> Groups:
    """Which examples must not be parted: equal inputs, near-equal ones, and those of one group."""
    groups = Groups(len(examples))
    texts = [normal_input(example.fields, sorted(task.variables)) for example in examples]
    first: dict[tuple[str, Hashable], int] = {}
    for number, example in enumerate(examples):
        groups.join(number, first.setdefault(("text", texts[number]), number))
        if spec.group and (name := example.fields.get(spec.group)) is not None:
            groups.join(number, first.setdefault(("group", str(name)), number))
    distinct = [number for (kind, _), number in first.items() if kind == "text"]
    for a, b, _ in near_links([texts[number] for number in distinct], spec.near_duplicate):
        groups.join(distinct[a], distinct[b])
    return groups


def _stratum(example: Example, task: Task) -> Hashable:
    return example.expected if task.kind == "classification" else None


def _rank(example: Example, seed: int) -> bytes:
    text = json.dumps(example.fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
