"""Which prefix every row shares, whether that is exact, and what it saves. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import TrainSpec
from distillctl_local.data import Row
from distillctl_local.encode import common_prefix
from distillctl_local.facts import ModelFacts, layers_below
from distillctl_local.settings import LocalSettings

MOST_KEPT = 4 * 2**30  # bytes of hidden states; beyond them the layers below compute at every step
WORTH_IT = 1.15  # expected ratio below which sharing is not worth its bookkeeping


def choose_prefixes(rows: list[Row], facts: ModelFacts, train: TrainSpec,
                    settings: LocalSettings) -> tuple[list[Row], str]:
    """The rows with their shared prefixes, or without where that is wrong or not wanted; and which.

    Raises UsageError where the settings ask for what is wrong.
    """
    if settings.shared_prefix == "off":
        return rows, "every row is computed whole: the shared prefix is switched off"
    batch_size = rows_of_a_device(train, settings, len(rows))
    shared = share_prefixes(rows, batch_size)
    frozen = settings.shared_prefix == "frozen"
    if why := why_not_shared(facts, shared, 0.0 if frozen else dropout_of(train)):
        if settings.shared_prefix != "auto":
            raise UsageError(Problem(f"a shared prefix is not possible: {why}", hint="use auto",
                                     field="backends.local.shared_prefix", value=settings.shared_prefix))
        return rows, f"every row is computed whole: {why}"
    ratio = expected_ratio(shared, batch_size, frozen)
    if settings.shared_prefix == "auto" and ratio < WORTH_IT:
        return rows, "every row is computed whole: the prompts begin alike for too few tokens"
    lengths = sorted({row.prefix for row in shared if row.prefix})
    by_whom = "which the base alone computes, once" if frozen else "computed once a step"
    return shared, (f"prompts begin alike for {' or '.join(map(str, lengths))} tokens, {by_whom}: "
                    f"{ratio:.1f}× fewer tokens")


def dropout_of(train: TrainSpec) -> float:
    """The share that is dropped while training: an adapter's, without one nothing is."""
    return train.lora.dropout if train.lora else 0.0


def rows_of_a_device(train: TrainSpec, settings: LocalSettings, rows: int) -> float:
    """Of an optimiser step's rows those that one device computes, on average; `rows` there are in all."""
    return max(1.0, min(train.batch_size, rows) / settings.devices)


def why_not_shared(facts: ModelFacts, rows: Sequence[Row], dropout: float) -> str | None:
    """Why sharing prefixes would be wrong for this model and data; None where it is exact."""
    longest = max(len(row.ids) for row in rows)
    if dropout > 0:
        return f"LoRA dropout is {dropout:g}: every row would get the prefix's one mask"
    if facts.linear_attention:
        return f"{facts.family} has layers that keep a state instead of keys and values"
    if facts.sliding_window is not None and facts.sliding_window < longest:
        return f"{facts.family} sees {facts.sliding_window} tokens back, the longest row has {longest}"
    if any(row.prefix > len(row.ids) - len(row.completion) - 1 for row in rows):
        return "tokens that are learnt lie in the prefix"
    if not any(row.prefix for row in rows):
        return "the prompts do not begin alike"
    return None


def expected_ratio(rows: Sequence[Row], batch_size: float, frozen: bool = False) -> float:
    """Tokens that a step computes without sharing, for each that it computes with it. frozen: as for
    `tokens_per_step`."""
    whole = batch_size * sum(len(row.ids) - 1 for row in rows) / len(rows)
    return whole / tokens_per_step(rows, batch_size, frozen)


def share_prefixes(rows: Sequence[Row], batch_size: float) -> list[Row]:
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


def tokens_per_step(rows: Sequence[Row], batch_size: float, frozen: bool = False) -> float:
    """Tokens that an average step of `batch_size` rows computes: every rest, and every prefix in it once, but
    for `frozen` ones."""
    kinds: dict[tuple[int, ...], int] = {}
    for row in rows:
        kind = tuple(row.ids[:row.prefix])
        kinds[kind] = kinds.get(kind, 0) + 1
    share = batch_size / len(rows)
    shared = 0 if frozen else sum(len(kind) * min(1.0, count * share) for kind, count in kinds.items())
    return shared + share * sum(row.rest for row in rows)


def prefixes_of(rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """The prefixes that the rows share, each once."""
    return sorted({tuple(row.ids[:row.prefix]) for row in rows if row.prefix})


def bytes_below(rows: Sequence[Row], facts: ModelFacts, settings: LocalSettings, width: int) -> int:
    """Bytes, of `width` a number, of what the layers below the adapter make of all rows and, once each, their
    prefixes; 0 where it is not kept: there are no such layers, it is too much, several devices divide the
    rows anew at every step, or the layers above need more of them. Raises UsageError where the model has too
    few layers."""
    if not layers_below(facts, settings.layers) or settings.devices > 1 or facts.shares_states:
        return 0
    tokens = sum(row.rest for row in rows) + sum(map(len, prefixes_of(rows)))
    size = tokens * facts.hidden_size * width
    return size if size <= MOST_KEPT else 0


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
