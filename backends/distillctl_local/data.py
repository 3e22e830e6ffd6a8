"""Training rows as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import DataError, Problem
from distillctl.store.files import read_jsonl
from distillctl_local.encode import Encoder

SHOWN = 20  # over-long rows that one error names


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its answer. ids: both, end token included; completion: the answer's ids alone.

    prefix: how many of the first ids it shares with the other rows of its kind; the prompt's last token
    is never among them, because it predicts the answer's first.
    """

    ids: list[int]
    completion: list[int]
    source: str = ""
    prefix: int = 0

    @property
    def rest(self) -> int:
        """Tokens that are computed for this row alone: the last one predicts nothing."""
        return len(self.ids) - 1 - self.prefix


def encode_rows(path: Path, encoder: Encoder, limit: int) -> list[Row]:
    """The rows of a training file. Raises DataError naming the rows of more than `limit` tokens."""
    rows, long = [], []
    for row in read_jsonl(path):
        prompt, completion = encoder.prompt(row["messages"]), encoder.completion(row["completion"])
        rows.append(Row(prompt + completion, completion, row["source"]))
        if len(rows[-1].ids) > limit:
            long.append(Problem(f"prompt and answer have {len(rows[-1].ids)} tokens, the limit is {limit}",
                                where=row["source"] or None,
                                hint="shorten the row, or raise train.max_length; nothing is cut silently"))
    if long:
        more = [Problem(f"and {len(long) - SHOWN} more rows are too long")] if len(long) > SHOWN else []
        raise DataError(*long[:SHOWN], *more)
    return rows
