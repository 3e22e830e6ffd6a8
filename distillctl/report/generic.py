"""Any JSON artifact as blocks that a template can show, whatever fields it has or lacks.

A mapping of plain values becomes pairs, a list or mapping of like mappings a table, the rest is nested
under its name. Long lists are cut, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillctl.report import words
from distillctl.report.sanitize import cut
from distillctl.types import JSON

MOST_ROWS = 50
MOST_KEYS = 100
MOST_TEXT = 500
MOST_DEPTH = 6


@dataclass(frozen=True)
class Pairs:
    pairs: Sequence[tuple[str, str]]
    left_off: int = 0
    kind: str = "pairs"


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]  # by column
    left_off: int = 0
    kind: str = "table"


@dataclass(frozen=True)
class Group:
    title: str
    blocks: Sequence[Block]
    kind: str = "group"


Block = Pairs | Table | Group


def blocks(value: JSON, depth: int = 0) -> list[Block]:
    """`value` as blocks; an empty list where there is nothing to show."""
    if isinstance(value, Mapping):
        if depth == 0:  # the version of the artifact's format says nothing to a reader
            value = {key: item for key, item in value.items() if key != "format"}
        return _of_mapping(value, depth)
    if _is_list(value):
        return _of_list(value)
    return [] if value is None else [Pairs([("", _text(value))])]


def title(key: object) -> str:
    """A key for people: "near_duplicates" -> "Near duplicates"."""
    text = cut(str(key), 80).replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _of_mapping(value: Mapping[str, JSON], depth: int) -> list[Block]:
    if len(value) > 1 and all(isinstance(row, Mapping) and row for row in value.values()):
        return _of_list([{"": key, **row} for key, row in value.items()])
    shown = dict(list(value.items())[:MOST_KEYS])
    plain = [(title(key), _text(item)) for key, item in shown.items() if _is_plain(item)]
    found: list[Block] = []
    if plain:
        found.append(Pairs(plain, max(0, len(value) - MOST_KEYS)))
    if depth < MOST_DEPTH:
        for key, item in shown.items():
            if not _is_plain(item) and (inner := blocks(item, depth + 1)):
                found.append(Group(title(key), inner))
    return found


def _of_list(value: Sequence[JSON]) -> list[Block]:
    shown = value[:MOST_ROWS]
    left_off = len(value) - len(shown)
    if not shown:
        return []
    if all(isinstance(row, Mapping) for row in shown):
        columns = list(dict.fromkeys(key for row in shown for key in row))[:12]
        rows = [[_text(row[c]) if c in row else "" for c in columns] for row in shown]
        numeric = [all(isinstance(row.get(c), int | float | None) for row in shown) for c in columns]
        return [Table([title(c) for c in columns], rows, numeric, left_off)]
    return [Table([""], [[_text(row)] for row in shown], [False], left_off)]


def _is_list(value: JSON) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_plain(value: JSON) -> bool:
    """Whether `value` fits on a line of its own."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if _is_list(value):
        return len(value) <= 12 and all(not isinstance(v, Mapping) and not _is_list(v) and len(str(v)) <= 30
                                        for v in value)
    return True


def _text(value: JSON) -> str:
    if isinstance(value, Mapping):
        return cut(", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none", MOST_TEXT)
    if _is_list(value):
        return cut(", ".join(_text(item) for item in value[:MOST_ROWS]) or "none", MOST_TEXT)
    return cut(words.number(value), MOST_TEXT)
