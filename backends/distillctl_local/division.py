"""Which rows of an optimiser step each device computes. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from distillctl_local.data import Row


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
