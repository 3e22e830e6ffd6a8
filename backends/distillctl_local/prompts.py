"""What prompts begin with alike is computed once and kept from call to call.

A bounded task has one long common beginning and short, varying rests, or a few such beginnings: with and
without a conversation, say. They are found among the prompts of a call and the last ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from transformers import PreTrainedModel

from distillctl_local.division import even
from distillctl_local.encode import common_prefix
from distillctl_local.parallel import each, side_by_side
from distillctl_local.stream import NO_PREFIX, Prefix, compute_prefix, streaming

Found = TypeVar("Found")
HELD = 8  # prefixes kept at once
SEEN = 16  # earlier prompts that new ones are compared with
SHORTEST = 8  # tokens; sharing fewer is not worth the bookkeeping
TOKENS = 4096  # most of them at once
WORTH = 32  # tokens that a kind of its own must share beyond what all share


class Prefixes:
    """The prefixes of one model, those used last first. frozen: those that its base computed; then there are
    no others, because what is computed now would be the student's."""

    def __init__(self, model: PreTrainedModel, frozen: Sequence[Prefix] = ()) -> None:
        self._model = model
        self._frozen = sorted(frozen, key=len, reverse=True)
        self._held: list[Prefix] = []
        self._seen: list[list[int]] = []

    def split(self, prompts: Sequence[list[int]]) -> list[tuple[Prefix, list[int]]]:
        """The prompts (token ids) by prefix: each with the numbers of the prompts that begin with it."""
        kinds = [prefix.ids for prefix in self._frozen] or self._find_kinds(prompts)
        groups: dict[int | None, list[int]] = {}
        for number, prompt in enumerate(prompts):
            own = next((place for place, kind in enumerate(kinds)
                        if len(kind) < len(prompt) and prompt[:len(kind)] == kind), None)
            groups.setdefault(own, []).append(number)
        return [(NO_PREFIX if own is None else self._prefix(kinds[own]), numbers)
                for own, numbers in groups.items()]

    def _find_kinds(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """What some of the prompts and of those before them begin with alike, the longest first."""
        known = [prompt for prompt in self._seen if prompt not in prompts]  # a prompt is no kind of its own
        distinct = [list(prompt) for prompt, _ in groupby(sorted([*known, *prompts]))]
        self._seen = [*known, *prompts][-SEEN:]
        return sorted(_kinds(distinct), key=len, reverse=True)

    def each(self, compute: Callable[[Prefix, list[int]], Found], prompts: Sequence[list[int]], extra: int,
             rows: int) -> list[tuple[list[int], Found]]:
        """What `compute` finds for a prefix and the numbers of prompts of similar length behind it, for all
        prompts, with those numbers. As many are computed side by side as the device has a use for; together
        they have at most `rows` prompts, and TOKENS tokens behind the prefix with `extra` more for each."""
        workers = side_by_side(self._model, max(map(len, prompts), default=1), TOKENS)
        batches = [(prefix, [numbers[place] for place in batch])
                   for prefix, numbers in self.split(prompts)
                   for batch in even([len(prompts[number]) - len(prefix) + extra for number in numbers],
                                     TOKENS, workers, rows)]
        with streaming(self._model):
            found = each(lambda batch: compute(*batch), batches, workers)
        return [(numbers, one) for (_, numbers), one in zip(batches, found, strict=True)]

    def _prefix(self, ids: list[int]) -> Prefix:
        """A prefix of `ids`, all of them or nearly: one that is kept, cut from a longer one, or computed."""
        for prefix in self._frozen:
            if prefix.ids == ids:
                return prefix
        near = [held for held in self._held if len(held) > len(ids) - WORTH and ids[:len(held)] == held.ids]
        if near:
            found = max(near, key=len)
            self._held.remove(found)
        else:
            longer = next((held for held in self._held if held.ids[:len(ids)] == ids), None)
            found = longer.cut(len(ids)) if longer else compute_prefix(self._model, ids)
        self._held = [found, *self._held][:HELD]
        return found


def _kinds(prompts: list[list[int]], before: int = 0) -> list[list[int]]:
    """The beginnings that are worth keeping among sorted, distinct prompts that share `before` tokens
    already. A prompt's last token is never in one: what follows it is asked for."""
    if len(prompts) < 2:
        return []
    length = min(common_prefix(prompts), min(map(len, prompts)) - 1)
    gain = length - before
    found = []
    if gain >= (WORTH if before else SHORTEST) and gain * len(prompts) > length:
        found.append(prompts[0][:length])
        before = length
    for _, group in groupby(prompts, key=lambda prompt: prompt[length]):
        kind = list(group)
        if len(kind) < len(prompts):
            found += _kinds(kind, before)
    return found
