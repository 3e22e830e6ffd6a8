"""Training rows as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import DataError, Problem
from distillctl.store.files import read_jsonl
from distillctl_local.encode import Encoder, common_prefix


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its answer. ids: both, end token included; completion: the answer's ids alone."""

    ids: list[int]
    completion: list[int]
    source: str


def encode_rows(path: Path, encoder: Encoder, limit: int) -> list[Row]:
    """The rows of a training file. Raises DataError naming every row of more than `limit` tokens."""
    rows, long = [], []
    for row in read_jsonl(path):
        prompt, completion = encoder.prompt(row["messages"]), encoder.completion(row["completion"])
        rows.append(Row(prompt + completion, completion, row["source"]))
        if len(rows[-1].ids) > limit:
            long.append(Problem(f"prompt and answer have {len(rows[-1].ids)} tokens, the limit is {limit}",
                                where=row["source"] or None,
                                hint="shorten the row, or raise train.max_length; nothing is cut silently"))
    if long:
        more = [Problem(f"and {len(long) - 20} more rows are too long")] if len(long) > 20 else []
        raise DataError(*long[:20], *more)
    return rows


def shared_prefix(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with, one fewer than the shortest prompt at most: the prompt's last
    token predicts the answer's first, so it must not lie in the prefix."""
    shortest = min(len(row.ids) - len(row.completion) for row in rows)
    return min(common_prefix([row.ids for row in rows]), shortest - 1)
