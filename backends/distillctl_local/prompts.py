"""What prompts begin with alike, computed once: its keys and values are kept from call to call.

A bounded task has one long common beginning and short, varying rests. The first prompts show where they
part; a later prompt that parts earlier shortens what is kept, which costs nothing: keys and values of a
shorter prefix are the first of the longer one's. Prompts of another kind get a prefix of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from distillctl_local.encode import common_prefix
from distillctl_local.models import facts_of

KEPT = 4  # prefixes kept at once: kinds of prompts that alternate
SHORTEST = 8  # tokens; a shorter prefix is not worth its bookkeeping

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [1, kv heads, tokens, head dim]


@dataclass
class Prefix:
    """Tokens that prompts begin with and the model's state after them. alone: seen in one prompt only, so
    that where it parts from others is not known yet."""

    ids: list[int]
    states: list[KeyValue]
    alone: bool

    def __len__(self) -> int:
        return len(self.ids)

    def shorten(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.ids = self.ids[:length]
        self.states = [(keys[:, :, :length].contiguous(), values[:, :, :length].contiguous())
                       for keys, values in self.states]

    def cache(self, rows: int) -> DynamicCache:
        """The state for `rows` rows; the prefix itself is not copied."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


class Prefixes:
    """The prefixes of one model, the one used last first."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._held: list[Prefix] = []
        self._shareable = not facts_of(model.config).linear_attention

    def split(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Prefix, list[int]]]:
        """The prompts by prefix: each with the numbers of the prompts that begin with it. At least the
        last token of a prompt is never in its prefix."""
        if not self._shareable:
            return [(Prefix([], [], False), list(range(len(prompts))))]
        groups: dict[int, list[int]] = {}
        rest = []
        for number, prompt in enumerate(prompts):
            held = max(range(len(self._held)), key=lambda i: _shared(self._held[i], prompt), default=None)
            if held is not None and _fits(self._held[held], prompt):
                groups.setdefault(held, []).append(number)
            else:
                rest.append(number)
        found = []
        for held, numbers in groups.items():
            prefix = self._held[held]
            length = min(_shared(prefix, prompts[number]) for number in numbers)
            if length < len(prefix):
                prefix.shorten(length)
            prefix.alone = False
            found.append((prefix, numbers))
        if rest:
            found.append((self._new([prompts[number] for number in rest]), rest))
        used = [prefix for prefix, _ in found if len(prefix) >= SHORTEST]
        self._held = [*used, *(prefix for prefix in self._held if prefix not in used)][:KEPT]
        return found

    def _new(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        length = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if length < SHORTEST:
            return Prefix([], [], False)
        ids = list(prompts[0][:length])
        cache = DynamicCache()
        self._model(input_ids=torch.tensor([ids], device=self._model.device), past_key_values=cache,
                    use_cache=True, logits_to_keep=1)
        states = [(layer.keys, layer.values) for layer in cache.layers]
        return Prefix(ids, states, alone=len(prompts) == 1)


@dataclass(frozen=True)
class Rests:
    """What follows the prefix, left-padded: rows end together. ids, real, positions: [rows, width]; real
    is False where there is padding."""

    ids: torch.Tensor
    real: torch.Tensor
    positions: torch.Tensor


def pad_rests(prompts: Sequence[Sequence[int]], prefix: int, device: torch.device) -> Rests:
    """The prompts without their first `prefix` tokens."""
    rests = [prompt[prefix:] for prompt in prompts]
    width = max(map(len, rests))
    pads = torch.tensor([width - len(rest) for rest in rests])[:, None]
    ids = torch.tensor([[0] * (width - len(rest)) + list(rest) for rest in rests])
    columns = torch.arange(width)[None]
    return Rests(ids.to(device), (columns >= pads).to(device),
                 (prefix + (columns - pads).clamp(min=0)).to(device))


def by_length(prompts: Sequence[Sequence[int]], numbers: Sequence[int], prefix: int, rows: int,
              tokens: int) -> list[list[int]]:
    """`numbers` in batches of similar length: at most `rows` prompts and `tokens` padded tokens each."""
    batches: list[list[int]] = []
    for number in sorted(numbers, key=lambda number: len(prompts[number])):
        width = len(prompts[number]) - prefix
        if not batches or len(batches[-1]) == rows or (len(batches[-1]) + 1) * width > tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


def _shared(prefix: Prefix, prompt: Sequence[int]) -> int:
    return min(common_prefix([prefix.ids, prompt]), len(prompt) - 1)


def _fits(prefix: Prefix, prompt: Sequence[int]) -> bool:
    shared = _shared(prefix, prompt)
    return shared >= SHORTEST and (prefix.alone or 2 * shared >= len(prefix))
