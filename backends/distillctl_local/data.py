"""Training rows as tokens, and what they begin with alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from distillctl.errors import DataError, Problem
from distillctl.store.files import read_jsonl
from distillctl_local.encode import Encoder, common_prefix

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


def share_prefixes(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """The same rows, each with the length of the prefix that it shares.

    Rows of several kinds (with and without a conversation, from several templates) get a prefix per kind
    where that leaves fewer tokens to compute in a step of `batch_size` rows than one prefix for all.
    """
    order = sorted(range(len(rows)), key=lambda number: rows[number].ids)
    prefixes = [0] * len(rows)
    for numbers, prefix in _kinds(rows, order, batch_size / len(rows)):
        for number in numbers:
            prefixes[number] = prefix
    return [replace(row, prefix=prefix) for row, prefix in zip(rows, prefixes, strict=True)]


def tokens_per_step(rows: Sequence[Row], batch_size: int) -> float:
    """Tokens that an average step of `batch_size` rows computes: every prefix in it once, every rest."""
    kinds: dict[tuple[int, ...], int] = {}
    for row in rows:
        kind = tuple(row.ids[:row.prefix])
        kinds[kind] = kinds.get(kind, 0) + 1
    share = batch_size / len(rows)
    shared = sum(len(kind) * min(1.0, count * share) for kind, count in kinds.items())
    return shared + share * sum(row.rest for row in rows)


def _kinds(rows: Sequence[Row], order: Sequence[int], share: float) -> list[tuple[list[int], int]]:
    """Kinds of the rows numbered in `order` (sorted by their ids): each kind's numbers and prefix.

    share: the part of all rows that an average step takes.
    """
    shortest = min(len(rows[number].ids) - len(rows[number].completion) for number in order)
    length = min(common_prefix([rows[number].ids for number in order]), shortest - 1)
    common: list[int] = []
    kinds: list[tuple[list[int], int]] = []
    for _, group in groupby(order, key=lambda number: rows[number].ids[length]):
        kind = list(group)
        finer = []
        if len(kind) * share > 1 and len(kind) < len(order):
            finer = _kinds(rows, kind, share)
        saved = share * sum(len(numbers) * (prefix - length) for numbers, prefix in finer)
        if saved > sum(prefix for _, prefix in finer):  # what computing them anew in each step costs
            kinds += finer
        else:
            common += kind
    return [*kinds, (common, length)] if common else kinds
