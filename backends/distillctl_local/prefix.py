"""Training with a shared prefix: what all prompts begin with is computed once per optimiser step.

A bounded task has one long common beginning and short, varying rests. Two stages give the gradients of
the plain computation, up to the order of additions:

1. the prefix runs once; its keys and values are detached as leaves;
2. the rests run in micro-batches against these leaves, and each backward adds to the leaves' gradients;
   then one backward takes those through the prefix.

Only supervised positions go through the output head. In the second stage the rests of a micro-batch lie
one behind the other without padding; attention alone looks at them row by row, in groups of rows of
similar length. Prior art: DPO prefix sharing (arXiv 2410.20305), Prefix Grouper (2506.05433), tree
training (2511.00413).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillctl_local.data import Row
from distillctl_local.models import ModelFacts

NAME = "distillctl_shared_prefix"
GROUP = 4  # rows that attention pads to a common length; more wastes, fewer makes small products
WORTH_IT = 1.15  # expected ratio below which sharing is not worth its bookkeeping

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [1, kv heads, prefix, head dim]


def why_not_shared(facts: ModelFacts, prefix: int, longest: int, dropout: float) -> str | None:
    """Why sharing the prefix would be wrong for this model and data; None where it is exact."""
    if prefix < 1:
        return "the prompts do not begin alike"
    if dropout > 0:
        return f"LoRA dropout is {dropout:g}: every row would get the prefix's one mask"
    if facts.linear_attention:
        return f"{facts.family} has layers that keep a state instead of keys and values"
    if facts.sliding_window is not None and facts.sliding_window < longest:
        return f"{facts.family} sees {facts.sliding_window} tokens back, the longest row has {longest}"
    return None


def expected_ratio(prefix: int, rest: float, batch: int) -> float:
    """Tokens that the plain computation has for each token of the shared one."""
    return batch * (prefix + rest) / (prefix + batch * rest)


@dataclass(frozen=True)
class _Group:
    """Rows of similar length, `start` to `stop` in the stream, padded to [rows, width] by `pad`."""

    start: int
    stop: int
    rows: int
    width: int
    pad: torch.Tensor  # stream position of every padded place
    unpad: torch.Tensor  # padded place of every stream position
    unpad_inverse: torch.Tensor  # stream position of every padded place, one past the end for padding
    future: torch.Tensor  # [width, width], minus infinity above the diagonal


@dataclass(frozen=True)
class _Layout:
    leaves: Sequence[KeyValue]
    groups: Sequence[_Group]


class _Gather(torch.autograd.Function):
    """Rows of x by index; the backward gathers by the inverse index, which is faster than adding."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        padded = torch.cat([grad, grad.new_zeros(1, *grad.shape[1:])])
        return padded.index_select(0, inverse), None, None


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               mask: torch.Tensor | None, scaling: float | None = None, softcap: float | None = None,
               shared: _Layout | None = None, **_: Any) -> tuple[torch.Tensor, None]:
    """Every row of the stream attends to the prefix and to itself. query: [1, heads, stream, dim]."""
    prefix_key, prefix_value = shared.leaves[module.layer_idx]
    heads, kv_heads, dim, length = query.shape[1], key.shape[1], query.shape[-1], prefix_key.shape[2]
    repeat = heads // kv_heads
    scaling = dim**-0.5 if scaling is None else scaling
    split = (heads * dim, kv_heads * dim, kv_heads * dim)
    stream = torch.cat([part[0].transpose(0, 1).flatten(1) for part in (query, key, value)], 1)
    outputs = []
    for group in shared.groups:
        rows, width = group.rows, group.width
        padded = _Gather.apply(stream[group.start:group.stop], group.pad, group.unpad).view(rows, width, -1)
        q, k, v = padded.split(split, -1)
        q = q.view(rows, width, kv_heads, repeat, dim).permute(0, 2, 3, 1, 4).reshape(
            rows * kv_heads, repeat * width, dim)
        k, v = (part.view(rows, width, kv_heads, dim).transpose(1, 2) for part in (k, v))
        k = torch.cat([prefix_key.expand(rows, -1, -1, -1), k], 2).reshape(rows * kv_heads, -1, dim)
        v = torch.cat([prefix_value.expand(rows, -1, -1, -1), v], 2).reshape(rows * kv_heads, -1, dim)
        scores = torch.bmm(q * scaling, k.transpose(1, 2)).view(rows * kv_heads, repeat, width, -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        past, own = scores.split((length, width), -1)
        scores = torch.cat([past, own + group.future], -1)
        weights = torch.softmax(scores, -1).view(rows * kv_heads, repeat * width, -1)
        out = torch.bmm(weights, v).view(rows, kv_heads, repeat, width, dim)
        out = out.permute(0, 3, 1, 2, 4).reshape(rows * width, heads * dim)
        outputs.append(_Gather.apply(out, group.unpad, group.unpad_inverse))
    return torch.cat(outputs).view(1, -1, heads, dim), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def shared_step(model: PreTrainedModel, rows: Sequence[Row], prefix: int, micro_tokens: int) -> float:
    """Gradients of the mean loss over the supervised tokens of one optimiser step; returns that loss.

    prefix: tokens that all rows begin with, none of them supervised. micro_tokens: most tokens of rests
    in one micro-batch.
    """
    if any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ValueError("gradient checkpointing drops the prefix's keys and values: switch it off")
    total = sum(len(row.completion) for row in rows)
    ids = torch.tensor([rows[0].ids[:prefix]], device=model.device)
    cache = DynamicCache(config=model.config)
    with _attention_is(model, "eager"):
        _backbone(model)(input_ids=ids, past_key_values=cache, use_cache=True)
    states = [(layer.keys, layer.values) for layer in cache.layers]
    leaves = [tuple(part.detach().requires_grad_() for part in pair) for pair in states]
    loss = 0.0
    for batch in _micro_batches(rows, prefix, micro_tokens):
        part = _rest_loss(model, batch, prefix, leaves) / total
        part.backward()
        loss += part.item()
    torch.autograd.backward([part for pair in states for part in pair],
                            [part.grad for pair in leaves for part in pair])
    return loss


def plain_step(model: PreTrainedModel, rows: Sequence[Row], micro_tokens: int) -> float:
    """The same gradients and loss without sharing: whole rows, right-padded, in micro-batches."""
    total = sum(len(row.completion) for row in rows)
    loss = 0.0
    for batch in _micro_batches(rows, 0, micro_tokens):
        width = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        places: list[int] = []
        for number, row in enumerate(batch):
            ids[number, :len(row.ids)] = torch.tensor(row.ids)
            mask[number, :len(row.ids)] = 1
            end = number * width + len(row.ids) - 1
            places += range(end - len(row.completion), end)
        hidden = _backbone(model)(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                                  use_cache=False).last_hidden_state
        part = _loss(model, hidden.flatten(0, 1)[places], batch) / total
        part.backward()
        loss += part.item()
    return loss


def _rest_loss(model: PreTrainedModel, batch: Sequence[Row], prefix: int,
               leaves: Sequence[KeyValue]) -> torch.Tensor:
    rests = [row.ids[prefix:-1] for row in batch]  # the last token predicts nothing
    device = model.device
    ids = torch.tensor([[token for rest in rests for token in rest]], device=device)
    positions = torch.cat([torch.arange(prefix, prefix + len(rest)) for rest in rests])[None].to(device)
    layout = _Layout(leaves, list(_groups([len(rest) for rest in rests], model.dtype, device)))
    with _attention_is(model, NAME):
        hidden = _backbone(model)(
            input_ids=ids, position_ids=positions, use_cache=False, shared=layout,
            attention_mask=torch.zeros(1, 1, 1, 1, device=device)).last_hidden_state
    places: list[int] = []
    end = 0
    for row, rest in zip(batch, rests, strict=True):
        end += len(rest)
        places += range(end - len(row.completion), end)
    return _loss(model, hidden[0, places], batch)


def _loss(model: PreTrainedModel, hidden: torch.Tensor, batch: Sequence[Row]) -> torch.Tensor:
    """Summed cross-entropy of the supervised tokens; hidden: one row for each of them."""
    logits = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    labels = torch.tensor([token for row in batch for token in row.completion], device=logits.device)
    return cross_entropy(logits, labels, reduction="sum")


def _groups(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[_Group]:
    start = 0
    for first in range(0, len(lengths), GROUP):
        part = lengths[first:first + GROUP]
        rows, width, size = len(part), max(part), sum(part)
        pad = torch.zeros(rows, width, dtype=torch.long)
        unpad = torch.empty(size, dtype=torch.long)
        inverse = torch.full((rows * width,), size)
        at = 0
        for row, length in enumerate(part):
            places = torch.arange(at, at + length)
            pad[row, :length] = places
            unpad[at:at + length] = torch.arange(row * width, row * width + length)
            inverse[row * width:row * width + length] = places
            at += length
        future = torch.full((width, width), torch.finfo(dtype).min, dtype=dtype).triu(1)
        yield _Group(start, start + size, rows, width, pad.flatten().to(device), unpad.to(device),
                     inverse.to(device), future.to(device))
        start += size


def _micro_batches(rows: Sequence[Row], prefix: int, micro_tokens: int) -> Iterator[list[Row]]:
    """Rows by length, in batches of at most `micro_tokens` tokens beyond the prefix."""
    batch: list[Row] = []
    size = 0
    for row in sorted(rows, key=lambda row: len(row.ids)):
        length = len(row.ids) - prefix
        if batch and size + length > micro_tokens:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    yield batch


def _backbone(model: PreTrainedModel) -> torch.nn.Module:
    return getattr(model, model.base_model_prefix)


@contextmanager
def _attention_is(model: PreTrainedModel, name: str) -> Iterator[None]:
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
