"""Forward passes over many rows behind one shared prefix, without padding and without gradients.

The new tokens of all rows lie one behind the other in a single row, so that the linear layers see no
padding; attention alone looks at them row by row. The prefix's keys and values are not copied: one product
serves every row (as in Hydragen, arXiv 2402.05099). The results are the plain computation's up to the order
of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillctl_local.attention import attention_is
from distillctl_local.facts import facts_of
from distillctl_local.readout import last_mlp_where_read, read_at

NAME = "distillctl_stream"
SCORES = 2**25  # attention scores at once on a GPU, 128 MiB in fp32
SCORES_CPU = 2**18  # on a processor, 1 MiB: what its caches hold
GROWTH = 64  # tokens that a row's state grows by

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [kv heads, tokens, head dim]


@dataclass
class Prefix:
    """Tokens with their keys and values, a pair a layer."""

    ids: list[int]
    states: list[KeyValue]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens: what comes later does not change them."""
        return Prefix(self.ids[:length], [(keys[:, :length].contiguous(), values[:, :length].contiguous())
                                          for keys, values in self.states])

    def float(self) -> Prefix:
        """The same in fp32."""
        return Prefix(self.ids, [(keys.float(), values.float()) for keys, values in self.states])


NO_PREFIX = Prefix([], [])


@dataclass(frozen=True)
class Tail:
    """Tokens behind every row that branch: each sees the row and its own ancestors.

    depths: distance from the row's end, from 1. sees: [tokens, tokens], whether one sees the other.
    """

    ids: list[int]
    depths: list[int]
    sees: torch.Tensor


NO_TAIL = Tail([], [], torch.ones(0, 0, dtype=torch.bool))


@dataclass(frozen=True)
class _Group:
    """Rows `first` to `last`, at `start` to `stop` of the stream, each padded to `width` new tokens.

    pad: stream position of every place of [rows, width]; unpad: the place of every stream position; keys:
    how many of a row's keys are looked at; hidden: [rows, 1, width, keys], which of them a place must not
    see; query_at, key_at: positions in the text, [rows, 1, width, 1] and [rows, 1, 1, keys].
    """

    first: int
    last: int
    start: int
    stop: int
    width: int
    keys: int
    pad: torch.Tensor
    unpad: torch.Tensor
    hidden: torch.Tensor
    query_at: torch.Tensor
    key_at: torch.Tensor


@dataclass(frozen=True)
class _Layout:
    rows: Rows
    groups: list[_Group]
    places: torch.Tensor  # where each new token's keys and values go in [rows · capacity]
    end: int  # the first position that no row has reached


class Rows:
    """Rows behind one prefix that grow, within `streaming`: each pass adds tokens to some or all of them."""

    def __init__(self, model: PreTrainedModel, prefix: Prefix, rows: int) -> None:
        self.prefix = prefix
        self.capacity = 0
        self.states: dict[int, KeyValue] = {}  # by layer, each [kv heads, rows · capacity, head dim]
        self._model = model
        self._lengths = [0] * rows
        self._at = torch.zeros(rows, 0, dtype=torch.long, device=model.device)  # positions of the keys

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def extend(self, chunks: Sequence[Sequence[int]], *, keep: int = 1, tail: Tail = NO_TAIL) -> torch.Tensor:
        """Add a chunk to every row; an empty one leaves its row as it is.

        Returns the logits after the last `keep` tokens of each chunk that is not empty (the tail's tokens
        count): [chunks, keep, vocabulary], fp32.
        """
        chunks = [[*chunk, *tail.ids] if chunk else [] for chunk in chunks]
        sizes = [len(chunk) for chunk in chunks]
        self._reserve(max(length + size for length, size in zip(self._lengths, sizes, strict=True)))
        device = self._model.device
        ids, positions, places, kept = [], [], [], []
        for row, (chunk, length) in enumerate(zip(chunks, self._lengths, strict=True)):
            end = length + len(chunk) - len(tail.ids)
            ids += chunk
            places += range(row * self.capacity + length, row * self.capacity + length + len(chunk))
            if chunk:
                positions += range(len(self.prefix) + length, len(self.prefix) + end)
                positions += [len(self.prefix) + end - 1 + depth for depth in tail.depths]
                kept += range(len(ids) - keep, len(ids))
        at, into = torch.tensor(positions, device=device), torch.tensor(places, device=device)
        self._at.view(-1)[into] = at
        layout = _Layout(self, list(self._groups(sizes, tail, at)), into, max(positions) + 1)
        read_at(kept)
        logits = self._model(
            input_ids=torch.tensor([ids], device=device), use_cache=False, position_ids=at[None],
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=self._model.dtype, device=device),  # unused
            logits_to_keep=torch.tensor(kept, device=device), stream=layout).logits
        self._lengths = [length + size for length, size in zip(self._lengths, sizes, strict=True)]
        return logits[0].float().view(-1, keep, logits.shape[-1])

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        index = torch.tensor(rows, device=self._model.device)
        for layer, pair in self.states.items():
            self.states[layer] = tuple(
                part.view(part.shape[0], len(self), -1, part.shape[-1]).index_select(1, index).flatten(1, 2)
                for part in pair)
        self._lengths = [self._lengths[row] for row in rows]
        self._at = self._at[index]

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.capacity:
            return
        before, self.capacity = self.capacity, tokens + (GROWTH if self.capacity else 0)
        for layer, pair in self.states.items():
            grown = []
            for part in pair:
                new = part.new_zeros(part.shape[0], len(self), self.capacity, part.shape[-1])
                new[:, :, :before] = part.view(part.shape[0], len(self), before, -1)
                grown.append(new.flatten(1, 2))
            self.states[layer] = tuple(grown)
        self._at = torch.nn.functional.pad(self._at, (0, self.capacity - before))

    def _groups(self, sizes: Sequence[int], tail: Tail, at: torch.Tensor) -> Iterator[_Group]:
        """Rows side by side while they are padded alike and their scores fit. at: the stream's positions."""
        device = self._model.device
        ends = [length + size for length, size in zip(self._lengths, sizes, strict=True)]
        heads = self._model.config.get_text_config().num_attention_heads
        most = (SCORES_CPU if device.type == "cpu" else SCORES) // heads
        start = 0
        for first, last in _alike(sizes, [len(self.prefix) + end for end in ends], most):
            width, keys = max(sizes[first:last]), max(ends[first:last])
            size = torch.tensor(sizes[first:last])[:, None]
            length = torch.tensor(self._lengths[first:last])[:, None]
            column = torch.arange(width)[None]
            real = column < size
            offset = torch.cumsum(size, 0) - size
            hidden = torch.arange(keys)[None, None] > (length + column)[:, :, None]
            if tail.ids:
                for row, end in enumerate(ends[first:last]):
                    begin = end - len(tail.ids)
                    old = self._lengths[first + row]
                    hidden[row, begin - old:end - old, begin:end] = ~tail.sees
            stop = start + sum(sizes[first:last])
            if stop > start:
                pad = torch.where(real, offset + column, 0).flatten().to(device)
                yield _Group(
                    first, last, start, stop, width, keys, pad, real.flatten().nonzero()[:, 0].to(device),
                    hidden[:, None].to(device), at[start:stop][pad].view(-1, 1, width, 1),
                    self._at[first:last, None, None, :keys])
            start = stop


def _alike(widths: Sequence[int], keys: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """First and last of rows side by side, padded to the widest and the most keys of them, that have at most
    `most` scores together; a row that has more is alone."""
    first = width = key = 0
    for row, (own_width, own_keys) in enumerate(zip(widths, keys, strict=True)):
        width, key = max(width, own_width), max(key, own_keys)
        if row > first and (row + 1 - first) * width * key > most:
            yield first, row
            first, width, key = row, own_width, own_keys
    yield first, len(widths)


@contextmanager
def streaming(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` compute passes of `Rows`, of several threads too, and nothing else."""
    with attention_is(model, NAME), last_mlp_where_read(model):
        yield


@torch.inference_mode()
def suits(model: PreTrainedModel) -> bool:
    """Whether passes of `Rows` compute what the model computes, tried on a few tokens. A family may have
    layers that keep a state instead of keys and values, or keep its attention to itself."""
    if facts_of(model.config).linear_attention:
        return False
    ids = [token % model.config.get_text_config().vocab_size for token in range(2, 10)]
    try:
        prefix = compute_prefix(model, ids[:4])
        with streaming(model):
            found = Rows(model, prefix, 2).extend([ids[4:], ids[4:6]])[0, -1]
    except Exception:  # whatever a family's own code makes of what it does not expect
        return False
    own = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float()
    return bool((found - own).norm() <= 0.1 * own.norm())  # in bf16 it rounds


def compute_prefix(model: PreTrainedModel, ids: Sequence[int]) -> Prefix:
    """The prefix with its keys and values."""
    row = Rows(model, NO_PREFIX, 1)
    with streaming(model):
        row.extend([ids])
    return Prefix(list(ids), [row.states[layer] for layer in sorted(row.states)])


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               mask: torch.Tensor | None, scaling: float | None = None, softcap: float | None = None,
               sliding_window: int | None = None, stream: _Layout | None = None,
               **_: Any) -> tuple[torch.Tensor, None]:
    """Every row's new tokens attend to the prefix and to their row. query: [1, heads, stream, dim];
    sliding_window: how many positions a token looks back, itself included."""
    rows = stream.rows
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[-1]
    if module.layer_idx not in rows.states:
        size = (kv_heads, len(rows) * rows.capacity)
        rows.states[module.layer_idx] = (key.new_zeros(*size, dim), value.new_zeros(*size, value.shape[-1]))
    keys, values = (
        part.index_copy_(1, stream.places, new[0]).view(kv_heads, len(rows), rows.capacity, -1)
        for part, new in zip(rows.states[module.layer_idx], (key, value), strict=True))
    past = rows.prefix.states[module.layer_idx] if len(rows.prefix) else None
    queries = (query[0] * (dim**-0.5 if scaling is None else scaling)).transpose(0, 1)
    outputs = []
    for group in stream.groups:
        count = group.last - group.first
        q = queries[group.start:group.stop].index_select(0, group.pad)
        q = q.view(count, group.width, kv_heads, -1, dim).permute(2, 0, 3, 1, 4)
        k, v = (part[:, group.first:group.last, :group.keys] for part in (keys, values))
        hidden, hidden_past = group.hidden, None
        if sliding_window is not None and stream.end > sliding_window:
            hidden = hidden | (group.query_at - group.key_at >= sliding_window)
            before = torch.arange(len(rows.prefix), device=q.device)
            hidden_past = group.query_at - before >= sliding_window
        out = _attend(q, k, v, hidden, past, hidden_past, softcap)
        outputs.append(out.permute(1, 3, 0, 2, 4).reshape(count * group.width, heads, -1)
                       .index_select(0, group.unpad))
    return torch.cat(outputs)[None], None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, past: KeyValue | None,
            hidden_past: torch.Tensor | None, softcap: float | None) -> torch.Tensor:
    """q: [kv heads, rows, repeat, width, dim], scaled; k, v: [kv heads, rows, keys, dim]; hidden:
    [rows, 1, width, keys]; past: the prefix's keys and values, hidden_past: which of them are out of
    sight. Returns q's shape."""
    kv_heads, rows, repeat, width, dim = q.shape
    q = q.reshape(kv_heads, rows, repeat * width, dim)
    scores = torch.matmul(q, k.transpose(2, 3)).view(kv_heads, rows, repeat, width, -1)
    own = scores.shape[-1]
    if past is not None:
        before = torch.matmul(q.reshape(kv_heads, -1, dim), past[0].transpose(1, 2))
        scores = torch.cat([scores, before.view(kv_heads, rows, repeat, width, -1)], -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores[..., :own].masked_fill_(hidden, float("-inf"))
    if past is not None and hidden_past is not None:
        scores[..., own:].masked_fill_(hidden_past, float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype)
    out = torch.matmul(weights[..., :own].reshape(kv_heads, rows, repeat * width, own), v)
    if past is not None:
        out = out.view(kv_heads, -1, v.shape[-1]) + torch.matmul(
            weights[..., own:].reshape(kv_heads, rows * repeat * width, -1), past[1])
    return out.view(kv_heads, rows, repeat, width, -1)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
