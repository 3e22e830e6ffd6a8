"""What prompts begin with alike is computed once and kept from call to call.

A bounded task has one long common beginning and short, varying rests. The first prompts show where they
part; a later prompt that parts earlier shortens what is kept, which costs nothing. Prompts of another kind
get a prefix of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from distillctl_local.encode import common_prefix
from distillctl_local.stream import NO_PREFIX, Prefix, compute_prefix

KEPT = 4  # prefixes kept at once: kinds of prompts that alternate
SHORTEST = 8  # tokens; a shorter prefix is not worth its bookkeeping


@dataclass
class _Held:
    """A prefix. alone: seen in one prompt only, so that where it parts from others is not known yet."""

    prefix: Prefix
    alone: bool

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens that it shares with a prompt, whose last token is never among them: what follows it is
        asked for."""
        return min(common_prefix([self.prefix.ids, prompt]), len(prompt) - 1)

    def fits(self, prompt: Sequence[int]) -> bool:
        shared = self.shared(prompt)
        return shared >= SHORTEST and (self.alone or 2 * shared >= len(self.prefix))


class Prefixes:
    """The prefixes of one model, those used last first."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._held: list[_Held] = []

    def split(self, prompts: Sequence[list[int]]) -> list[tuple[Prefix, list[int]]]:
        """The prompts (token ids) by prefix: each with the numbers of the prompts that begin with it."""
        taken: dict[int, list[int]] = {}
        rest = []
        for number, prompt in enumerate(prompts):
            fitting = [(held.shared(prompt), -place) for place, held in enumerate(self._held)
                       if held.fits(prompt)]
            if fitting:
                taken.setdefault(-max(fitting)[1], []).append(number)
            else:
                rest.append(number)
        found = [(self._narrowed(place, [prompts[number] for number in numbers]), numbers)
                 for place, numbers in taken.items()]
        if rest:
            found.append((self._new([prompts[number] for number in rest]), rest))
        used = [held for held, _ in found if held.prefix.ids]
        self._held = [*used, *(held for held in self._held if held not in used)][:KEPT]
        return [(held.prefix, numbers) for held, numbers in found]

    def _narrowed(self, place: int, prompts: Sequence[list[int]]) -> _Held:
        held = self._held[place]
        length = min(map(held.shared, prompts))
        if length < len(held.prefix):
            held.prefix = held.prefix.cut(length)
        held.alone = False
        return held

    def _new(self, prompts: Sequence[list[int]]) -> _Held:
        length = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if length < SHORTEST:
            return _Held(NO_PREFIX, alone=False)
        return _Held(compute_prefix(self._model, prompts[0][:length]), alone=len(prompts) == 1)


def by_length(prompts: Sequence[Sequence[int]], numbers: Sequence[int], extra: int, rows: int,
              tokens: int) -> list[list[int]]:
    """`numbers` in batches of prompts of similar length: at most `rows` of them, and `tokens` tokens with
    `extra` (may be negative) for each."""
    batches: list[list[int]] = []
    size = 0
    for number in sorted(numbers, key=lambda number: len(prompts[number])):
        length = len(prompts[number]) + extra
        if not batches or len(batches[-1]) == rows or size + length > tokens:
            batches.append([])
            size = 0
        batches[-1].append(number)
        size += length
    return batches
