"""Forward passes over many rows behind one shared prefix, without padding and without gradients.

What all prompts begin with is computed once; its keys and values serve every later pass. The rests of a
batch lie one behind the other in a single row, so that the linear layers see no padding; attention alone
looks at them row by row, in groups of similar length. Nothing copies the prefix per row: one product
serves all of them (as in Hydragen, arXiv 2402.05099). The results are the plain computation's up to the
order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "distillctl_stream"
GROUP = 16  # rows that attention pads to one length


@dataclass(frozen=True)
class Prefix:
    """Tokens with their keys and values, a pair a layer of [kv heads, tokens, head dim]."""

    tokens: list[int]
    states: list[tuple[torch.Tensor, torch.Tensor]]

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens: what comes later does not change them."""
        return Prefix(self.tokens[:length], [(k[:, :length], v[:, :length]) for k, v in self.states])


@dataclass(frozen=True)
class Tail:
    """Tokens after a row's end that branch: each sees the row and its own ancestors.

    depths: distance from the row's end, from 0. sees: [tokens, tokens], whether one sees the other.
    """

    tokens: list[int]
    depths: list[int]
    sees: torch.Tensor


NO_TAIL = Tail([], [], torch.ones(0, 0, dtype=torch.bool))


@dataclass(frozen=True)
class _Group:
    """Rows `start` to `stop` of the stream. pad: stream position of every place of [rows, width]; unpad:
    the place of every stream position; hidden: [rows, 1, width, width], what a place does not see."""

    start: int
    stop: int
    rows: int
    width: int
    pad: torch.Tensor
    unpad: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True)
class _Layout:
    prefix: Prefix | None
    groups: list[_Group]
    kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # filled with each layer's keys and values


@dataclass(frozen=True)
class Output:
    """logits: [kept positions, vocabulary], fp32. states: keys and values of the stream, where asked for."""

    logits: torch.Tensor
    states: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def compute_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """The prefix with its keys and values."""
    output = forward(model, None, [tokens], keep=[0], states=True)
    return Prefix(list(tokens), output.states)


def forward(model: PreTrainedModel, prefix: Prefix | None, rows: Sequence[Sequence[int]], *,
            keep: Sequence[int], tail: Tail = NO_TAIL, states: bool = False) -> Output:
    """One pass over `rows`, the parts of the prompts behind `prefix`, each followed by `tail`.

    keep: the stream's positions whose logits are wanted; row i starts at the summed lengths, tails
    included, of the rows before it.
    """
    device = model.device
    start = len(prefix.tokens) if prefix else 0
    ids, positions = [], []
    for row in rows:
        ids += [*row, *tail.tokens]
        positions += range(start, start + len(row))
        positions += [start + len(row) + depth for depth in tail.depths]
    layout = _Layout(prefix, list(_groups([len(row) for row in rows], tail, device)), [] if states else None)
    with torch.inference_mode(), _attention_is(model, NAME):
        logits = model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device), use_cache=False,
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device),  # ours stays ours
            logits_to_keep=torch.tensor(keep, device=device), stream=layout).logits
    return Output(logits[0].float(), layout.kept or [])


def _groups(lengths: Sequence[int], tail: Tail, device: torch.device) -> Iterator[_Group]:
    extra = len(tail.tokens)
    start = 0
    for first in range(0, len(lengths), GROUP):
        part = [length + extra for length in lengths[first:first + GROUP]]
        rows, width, size = len(part), max(part), sum(part)
        sizes = torch.tensor(part)[:, None]
        columns = torch.arange(width)[None]
        real = columns < sizes
        begins = torch.cumsum(sizes, 0) - sizes
        sees = torch.ones(width, width, dtype=torch.bool).tril().repeat(rows, 1, 1)
        for row, length in enumerate(part):
            sees[row, length - extra:length, length - extra:length] = tail.sees
        yield _Group(
            start, start + size, rows, width, torch.where(real, begins + columns, 0).flatten().to(device),
            real.flatten().nonzero()[:, 0].to(device), ~sees[:, None].to(device))
        start += size


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               mask: torch.Tensor | None, scaling: float | None = None, softcap: float | None = None,
               stream: _Layout | None = None, **_: Any) -> tuple[torch.Tensor, None]:
    """Every row of the stream attends to the prefix and to itself. query: [1, heads, stream, dim]."""
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[-1]
    scaling = dim**-0.5 if scaling is None else scaling
    if stream.kept is not None:
        stream.kept.append((key[0], value[0]))
    flat = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]
    outputs = []
    for group in stream.groups:
        rows, width = group.rows, group.width
        q, k, v = (part[group.start:group.stop].index_select(0, group.pad).view(rows, width, -1, dim)
                   for part in flat)
        q = (q * scaling).view(rows, width, kv_heads, -1, dim).permute(2, 0, 3, 1, 4)  # kv, row, repeat, place
        k, v = k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)
        out = attend(q, k, v, group.hidden, stream.prefix and stream.prefix.states[module.layer_idx], softcap)
        outputs.append(out.permute(1, 3, 0, 2, 4).reshape(rows * width, heads * dim)
                       .index_select(0, group.unpad))
    return torch.cat(outputs).view(1, -1, heads, dim), None


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor,
           prefix: tuple[torch.Tensor, torch.Tensor] | None, softcap: float | None) -> torch.Tensor:
    """Attention over the prefix and the rows' own keys.

    q: [kv heads, rows, repeat, queries, dim], scaled; k, v: [kv heads, rows, keys, dim]; hidden:
    [rows, 1, queries, keys]. Returns q's shape.
    """
    kv_heads, rows, repeat, queries, dim = q.shape
    keys = k.shape[2]
    own = torch.matmul(q.reshape(kv_heads, rows, -1, dim), k.transpose(2, 3))
    own = own.view(kv_heads, rows, repeat, queries, keys).float()
    past_width = 0
    if prefix is not None:
        past_width = prefix[0].shape[1]
        past = torch.matmul(q.reshape(kv_heads, -1, dim), prefix[0].transpose(1, 2)).float()
        scores = torch.cat([past.view(kv_heads, rows, repeat, queries, -1), own], -1)
    else:
        scores = own
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores[..., past_width:].masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, -1).to(v.dtype)
    out = torch.matmul(weights[..., past_width:].reshape(kv_heads, rows, -1, keys), v)
    if prefix is not None:
        out = out.view(kv_heads, -1, dim) + torch.matmul(
            weights[..., :past_width].reshape(kv_heads, -1, past_width), prefix[1])
    return out.view(q.shape)


@contextmanager
def _attention_is(model: PreTrainedModel, name: str) -> Iterator[None]:
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
