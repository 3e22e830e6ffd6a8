"""The error ledger as a person reads it: by cell, the surest mistakes first, only what varies of a prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from distillctl.evaluate.results import Cell, Comparison, LedgerItem, Metrics
from distillctl.report import words
from distillctl.report.sanitize import cut
from distillctl.types import JSON

MOST_ITEMS = 200  # shown per cell
MOST_FILTERS = 16
MOST_TRAIT = 80  # characters
MOST_TEXT = 4000  # characters shown of a prompt or an answer


@dataclass(frozen=True)
class Said:
    """What one side said to an item; right is None for what was expected."""

    who: str
    text: str
    right: bool | None


@dataclass(frozen=True)
class Item:
    id: str
    prompt: str
    said: tuple[Said, ...]
    confidence: float | None
    parts: tuple[tuple[str, float], ...]
    traits: tuple[str, ...] = ()  # by which a list of items can be filtered


@dataclass(frozen=True)
class Group:
    """One cell of the ledger. total: how many items it has; items: those that are shown."""

    cell: Cell
    title: str
    hint: str
    total: int
    items: tuple[Item, ...]

    @property
    def left_off(self) -> int:
        return self.total - len(self.items)


def groups(comparison: Comparison, frame: tuple[str, str], gold: bool) -> list[Group]:
    """The cells that have items. frame: what `shared_text` found around every prompt."""
    found = []
    for cell, (title, hint) in words.CELLS.items():
        items = [item for item in comparison.items if item.cell == cell]
        items.sort(key=lambda item: -(item.student_confidence or 0.0))  # stable: given order where unknown
        if items:
            found.append(Group(cell, title, hint, len(items),
                               tuple(_item(item, frame, gold) for item in items[:MOST_ITEMS])))
    return found


@dataclass(frozen=True)
class Filter:
    """What a reader can narrow the shown items down to. count: how many of them have the trait."""

    trait: str
    count: int


def filters(found: Sequence[Group]) -> list[Filter]:
    """The traits that tell the shown items apart, the commonest first; none where there is but one."""
    items = [item for group in found for item in group.items]
    counts = Counter(trait for item in items for trait in item.traits)
    telling = [Filter(trait, count) for trait, count in counts.most_common(MOST_FILTERS)
               if count < len(items)]
    return telling if len(telling) > 1 else []


def _traits(item: LedgerItem) -> tuple[str, ...]:
    """Its fields and checks that the student has wrong; of a label, what was expected and what was taken for
    it."""
    if item.part_cells:
        return tuple(f"{name} wrong" for name, where in item.part_cells.items() if where != "corrected")
    if not isinstance(item.expected, str):
        return ()
    taken = (f"{item.expected} taken for {item.student}",) if (
        isinstance(item.student, str) and item.student != item.expected) else ()
    return (f"expected {item.expected}", *taken)


def suspects(metrics: Metrics, frame: tuple[str, str]) -> list[Item]:
    """The items whose expected answer may be wrong, the surest first."""
    by_id = {item.id: item for one in metrics.comparisons for item in one.items}
    return [_item(by_id[id], frame, metrics.gold) for id in metrics.label_suspects[:MOST_ITEMS]
            if id in by_id]


def shared_text(items: Sequence[LedgerItem]) -> tuple[str, str]:
    """The lines that every prompt begins with, and those that every prompt ends with; often the whole
    instruction. Both are empty where there are fewer than three prompts to tell by."""
    prompts = sorted({item.prompt for item in items})
    if len(prompts) < 3:
        return "", ""
    lines = [prompt.split("\n") for prompt in prompts]
    before = _shared([prompt[:-1] for prompt in lines])
    after = _shared([prompt[before + 1:][::-1] for prompt in lines])  # one line at least is the input
    first = lines[0]
    return ("\n".join([*first[:before], ""]) if before else "",
            "\n".join(["", *first[len(first) - after:]]) if after else "")


def _shared(lists: Sequence[Sequence[str]]) -> int:
    """How many items all lists begin with alike."""
    return sum(1 for _ in takewhile(lambda group: len(set(group)) == 1, zip(*lists, strict=False)))


def as_text(value: JSON) -> str:
    """A parsed value or a raw output, readable: strings as they are, an object with a line per field."""
    if value is None:
        return "(no answer)"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {as_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _item(item: LedgerItem, frame: tuple[str, str], gold: bool) -> Item:
    before, after = frame
    prompt = item.prompt[len(before):len(item.prompt) - len(after)].strip("\n")
    said = [Said("teacher", cut(as_text(item.teacher), MOST_TEXT), item.cell == "compression"),
            Said("student", cut(as_text(item.student), MOST_TEXT), item.cell == "corrected")]
    if gold:
        said.insert(0, Said("expected", cut(as_text(item.expected), MOST_TEXT), None))
    return Item(item.id, cut(prompt, MOST_TEXT), tuple(said), item.student_confidence,
                tuple(item.parts.items()), tuple(cut(trait, MOST_TRAIT) for trait in _traits(item)))
