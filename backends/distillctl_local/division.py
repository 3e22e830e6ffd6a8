"""Which rows of an optimiser step each device computes, and in which passes. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from distillctl_local.data import Row


class Batch(NamedTuple):
    """Rows that are computed at once. counts: whether they are part of the step, else their pass is made for
    the others' sake."""

    rows: list[Row]
    counts: bool = True


class Kind(NamedTuple):
    """Rows with the same prefix, in the batches in which they are computed; no prefix: whole rows."""

    prefix: list[int]
    batches: list[Batch]


def passes(rows: Sequence[Row], micro_tokens: int, side_by_side: int = 1) -> list[Kind]:
    """A device's rows kind by kind. side_by_side: how many batches are computed at once, which have at most
    `micro_tokens` tokens beside the prefix together."""
    return [Kind(prefix, list(map(Batch, _micro_batches(kind, micro_tokens, side_by_side))))
            for prefix, kind in _kinds(rows)]


def in_step(rows: Sequence[Row], devices: int, micro_tokens: int) -> list[list[Kind]]:
    """The passes of each device, equally many and in the same order, for devices that must compute each layer
    together. One that has fewer rows of a kind repeats a row that does not count."""
    plans: list[list[Kind]] = [[] for _ in range(devices)]
    for prefix, kind in _kinds(rows):
        parts = [_micro_batches(part, micro_tokens) if part else [] for part in divide(kind, devices)]
        most = max(map(len, parts))
        idle = Batch([min(kind, key=lambda row: row.rest)], counts=False)
        for plan, part in zip(plans, parts, strict=True):
            plan.append(Kind(prefix, [*map(Batch, part), *[idle] * (most - len(part))]))
    return plans


def _kinds(rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Row]]]:
    ordered = sorted(rows, key=lambda row: row.ids[:row.prefix])
    for prefix, kind in groupby(ordered, key=lambda row: row.ids[:row.prefix]):
        yield prefix, list(kind)


def _micro_batches(rows: Sequence[Row], micro_tokens: int, side_by_side: int = 1) -> list[list[Row]]:
    return [[rows[number] for number in batch]
            for batch in even([row.rest for row in rows], micro_tokens, side_by_side)]


def workers(threads: int, longest: int, most: int) -> int:
    """How many batches so many threads compute side by side, which together have at most `most` tokens in
    rows of up to `longest`."""
    return max(1, min(threads, most // longest))


def even(sizes: Sequence[int], most: int, side_by_side: int, rows: int | None = None) -> list[list[int]]:
    """The numbers of rows of these sizes, the longest first, in batches. Those that are computed side by side
    have at most `most` and `rows` rows together; a row that is larger than its share is a batch of its own.
    Where there is more than one worker they all have equally many batches, as equally large as can be."""
    rows = rows and max(1, rows // side_by_side)
    if side_by_side == 1 or not sizes:
        return _filled(sizes, most, rows)
    wanted = -(-len(_filled(sizes, most // side_by_side, rows)) // side_by_side) * side_by_side
    low, high = 1, most // side_by_side
    while low < high:  # the smallest limit that needs no more batches
        limit = (low + high) // 2
        low, high = (low, limit) if len(_filled(sizes, limit, rows)) <= wanted else (limit + 1, high)
    return _filled(sizes, low, rows)


def _filled(sizes: Sequence[int], most: int, rows: int | None) -> list[list[int]]:
    """Row after row, the longest first, in batches of at most `most` and `rows` rows."""
    batches: list[list[int]] = []
    size = 0
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if not batches or len(batches[-1]) == rows or size + sizes[number] > most:
            batches.append([])
            size = 0
        batches[-1].append(number)
        size += sizes[number]
    return batches


def divide(rows: Sequence[Row], devices: int) -> list[list[Row]]:
    """The rows in `devices` parts, some of them empty where there are too few, so that the part with the most
    tokens has as few as can be. Rows of one prefix lie together: every part computes each of its own once.
    """
    if devices == 1:
        return [list(rows)]
    ordered = sorted(rows, key=lambda row: (row.ids[:row.prefix], row.rest))
    low, high = 0, sum(row.prefix + row.rest for row in rows)
    while low < high:  # the smallest limit that needs no more parts than there are devices
        limit = (low + high) // 2
        parts = _cut(ordered, limit)
        low, high = (low, limit) if parts and len(parts) <= devices else (limit + 1, high)
    parts = _cut(ordered, low)
    return [*parts, *([] for _ in range(devices - len(parts)))]


def _cut(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    """Rows in their order, in parts of at most `limit` tokens; none where a row alone has more."""
    parts: list[list[Row]] = []
    size = limit
    for row in rows:
        same = parts and row.ids[:row.prefix] == parts[-1][-1].ids[:parts[-1][-1].prefix]
        more = row.rest if same else row.prefix + row.rest
        if not parts or size + more > limit:
            if row.prefix + row.rest > limit:
                return []
            parts.append([])
            size, more = 0, row.prefix + row.rest
        parts[-1].append(row)
        size += more
    return parts
