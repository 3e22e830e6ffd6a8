"""Training with a shared prefix: what all prompts begin with is computed once per optimiser step.

A bounded task has one long common beginning and short, varying rests. Two stages give the gradients of
the plain computation, up to the order of additions:

1. the prefix runs once; its keys and values are detached as leaves;
2. the rests run in micro-batches against these leaves, and each backward adds to the leaves' gradients;
   then one backward takes those through the prefix.

On a processor both stages of a short prefix run at once, a layer at a time (relay.py).

Only supervised positions go through the output head. In the second stage the rests of a micro-batch lie
one behind the other without padding; attention alone looks at them row by row, in groups of rows of
similar length. Rows of several kinds are taken one kind after the other. Prior art: DPO prefix sharing
(arXiv 2410.20305), Prefix Grouper (2506.05433), tree training (2511.00413).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillctl_local import known as once
from distillctl_local import parallel, relay
from distillctl_local.attention import attention_is
from distillctl_local.data import Row
from distillctl_local.division import Batch, Kind, passes
from distillctl_local.known import KeyValue, Known
from distillctl_local.losses import Loss
from distillctl_local.readout import backbone, last_mlp_where_read, logits_of, read_at
from distillctl_local.relay import Gradients, Leaves
from distillctl_local.stream import Prefix

NAME = "distillctl_shared_prefix"
GROUP = 4  # rows that attention pads to a common length; more wastes, fewer makes small products
MANY_SCORES = 2**24  # attention scores of a group from which they are not kept for the backward pass
NOTHING = Known()


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
    future: torch.Tensor  # see `_future`


@dataclass(frozen=True)
class _Layout:
    leaves: Leaves
    groups: Sequence[_Group]


def _shares_states(model: PreTrainedModel) -> bool:
    """Whether upper layers attend to keys and values of lower ones, as Gemma 3n's and 4's do."""
    return bool(getattr(model.config.get_text_config(), "num_kv_shared_layers", None))


def _giver(module: torch.nn.Module) -> int:
    """The layer whose keys and values an attention module takes: its own, or a lower one."""
    if not getattr(module, "is_kv_shared_layer", False):
        return module.layer_idx
    modes, kinds = module.config.kv_sharing_modes, module.config.layer_types
    return next(number for number, (mode, kind) in enumerate(zip(modes, kinds, strict=True))
                if mode == "store" and kind == kinds[module.layer_idx])


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
    """Every row of the stream attends to the prefix and to itself; with nothing shared, the prefix to itself.
    query: [1, heads, stream, dim]."""
    heads, kv_heads, length, dim = query.shape[1], key.shape[1], query.shape[2], query.shape[-1]
    repeat = heads // kv_heads
    scaling = dim**-0.5 if scaling is None else scaling
    if shared is None:
        future = _future(length, query.dtype, query.device)
        query = query.reshape(kv_heads, repeat * length, dim)
        out = _attend(query, key[0], value[0], future, scaling, softcap)
        return out.view(1, heads, length, dim).transpose(1, 2), None
    prefix_key, prefix_value = shared.leaves(_giver(module))
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
        out = _attend(q, k, v, group.future, scaling, softcap).view(rows, kv_heads, repeat, width, dim)
        out = out.permute(0, 3, 1, 2, 4).reshape(rows * width, heads * dim)
        outputs.append(_Gather.apply(out, group.unpad, group.unpad_inverse))
    return torch.cat(outputs).view(1, -1, heads, dim), None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, future: torch.Tensor, scaling: float,
            softcap: float | None) -> torch.Tensor:
    """Attention of rows to what lies before them and to themselves: in plain products, which a CPU computes
    fastest on short rows, or without keeping the scores. q: [n, repeat · width, dim]; k, v: [n, keys, dim],
    the last `width` of them the rows' own; future: [width, width]."""
    width, keys = len(future), k.shape[1]
    if softcap is None and (q.is_cuda or q[..., 0].numel() * keys > MANY_SCORES):
        mask = torch.cat([future.new_zeros(width, keys - width), future], 1)
        mask = mask.repeat(q.shape[1] // width, 1)
        # in four dimensions: with three torch takes the plain products, which keep the scores
        return scaled_dot_product_attention(q[None], k[None], v[None], mask, scale=scaling)[0]
    scores = torch.bmm(q * scaling, k.transpose(1, 2)).view(len(q), -1, width, keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    past, own = scores.split((keys - width, width), -1)
    weights = torch.softmax(torch.cat([past, own + future], -1), -1)
    return torch.bmm(weights.view(len(q), -1, keys), v)


def _future(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What `width` tokens add to their scores: [width, width], the lowest number above the diagonal."""
    return torch.full((width, width), torch.finfo(dtype).min, dtype=dtype).triu(1).to(device)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def accumulate(model: PreTrainedModel, rows: Sequence[Row], micro_tokens: int, loss: Loss,
               supervised: int | None = None, known: Known = NOTHING) -> float:
    """Add the gradients of one optimiser step to the parameters; returns its loss.

    That is the mean of `loss` over the step's supervised tokens. A row's `prefix` says what it shares; 0
    computes it whole. micro_tokens: most tokens computed at once beside a prefix. supervised: the step's
    supervised tokens where `rows` are a share of its rows; their part of the mean is added and returned.
    known: what need not be computed again.
    """
    total = supervised or sum(len(row.completion) for row in rows)
    workers = side_by_side(model, max(row.rest for row in rows), micro_tokens) if rows else 1
    return run(model, passes(rows, micro_tokens, workers), loss, total, workers, known)


def run(model: PreTrainedModel, kinds: Sequence[Kind], loss: Loss, supervised: int,
        workers: int = 1, known: Known = NOTHING) -> float:
    """As `accumulate`, with the passes already laid out, `workers` of them at a time."""
    def loss_of(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return loss(logits_of(model, hidden), batch.rows) * batch.counts / supervised

    found = 0.0
    with known.above(model):
        for kind in kinds:
            if kind.prefix:
                found += _behind_prefix(model, kind, loss_of, workers, known)
            else:
                found += _add(model, kind.batches,
                              lambda batch: loss_of(_whole(model, batch.rows, known), batch), workers)
    return found


@torch.no_grad()
def differs(model: PreTrainedModel, row: Row, known: Known = NOTHING) -> str | None:
    """How our logits of a row differ from those of the model's own forward; None where they do not. A family
    may do what is not known here: scale its logits, share states between layers, keep its attention apart."""
    own = model(input_ids=torch.tensor([row.ids[:-1]], device=model.device), use_cache=False).logits
    own = own[0, -len(row.completion):].float()
    try:
        with known.above(model):
            if row.prefix:
                with last_mlp_where_read(model), attention_is(model, NAME):
                    leaves = _prefix_states(model, row.ids[:row.prefix], known)
                    hidden = _rest(model, [row], leaves.__getitem__, known)
            else:
                hidden = _whole(model, [row], known)
        off = ((logits_of(model, hidden) - own).norm() / own.norm()).item()
    except Exception as error:  # whatever a family's own code makes of what it does not expect
        return f"{type(error).__name__}: {error}"
    rounds = model.dtype == torch.bfloat16 or getattr(model, "is_quantized", False)
    return None if off < (0.1 if rounds else 1e-3) else f"by {off:.1%}"


def compute_once(model: PreTrainedModel, rows: Sequence[Row], layers: int, micro_tokens: int,
                 frozen: Sequence[Prefix] = ()) -> Known:
    """What is the same at every step: what the first `layers` layers, in which nothing is trained, make of
    the rows and their prefixes, but for a family that names its layers otherwise or whose upper layers need
    more of them; and `frozen` prefixes. The same rows give the same bytes, whichever steps they are in."""
    nothing_below = Known(frozen={
        tuple(prefix.ids): {layer: (keys.clone()[None], values.clone()[None])  # no inference tensors
                            for layer, (keys, values) in enumerate(prefix.states)} for prefix in frozen})
    if not layers or layers >= len(getattr(backbone(model), "layers", ())) or _shares_states(model):
        return nothing_below
    known = Known(layers, frozen=nothing_below.frozen)
    workers = side_by_side(model, max(row.rest for row in rows), micro_tokens)
    with once.up_to(model, layers):
        for prefix, batches in passes(rows, micro_tokens, workers):
            leaves: Mapping[int, KeyValue] = {}
            if prefix:
                leaves = _prefix_states(model, prefix, nothing_below)
                if not frozen:
                    known.prefixes[tuple(prefix)] = once.seen()[0]

            def compute(batch: Batch, leaves: Mapping[int, KeyValue] = leaves) -> Sequence[torch.Tensor]:
                lengths = [row.rest for row in batch.rows]
                if leaves:
                    _rest(model, batch.rows, leaves.__getitem__, nothing_below)
                    return once.seen()[0].split(lengths)
                _whole(model, batch.rows, nothing_below)
                return [hidden[:length].clone() for hidden, length in zip(once.seen(), lengths, strict=True)]

            with attention_is(model, NAME) if prefix else nullcontext():
                found = parallel.each(compute, batches, workers)
            for batch, hidden in zip(batches, found, strict=True):
                known.rests.update(zip((tuple(row.ids) for row in batch.rows), hidden, strict=True))
    return known


def _behind_prefix(model: PreTrainedModel, kind: Kind, loss_of: Callable[[torch.Tensor, Batch], torch.Tensor],
                   workers: int, known: Known) -> float:
    """Both stages of rows with one prefix; returns the sum of their losses."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError("gradient checkpointing drops the prefix's keys and values: switch it off")
    workers = min(workers, len(kind.batches))
    layers = getattr(backbone(model), "layers", [])  # but for a family that names them otherwise
    with last_mlp_where_read(model), attention_is(model, NAME):
        if layers and workers > 1 and tuple(kind.prefix) not in known.frozen and (
                parallel.worth(len(kind.prefix)) < torch.get_num_threads()) and not _shares_states(model):
            return _beside_prefix(model, kind, loss_of, workers, known)
        states = _prefix_states(model, kind.prefix, known)
        leaves = {layer: tuple(part.detach().requires_grad_(part.requires_grad) for part in pair)
                  for layer, pair in states.items()}
        learnt = [(state, leaf) for layer, pair in states.items()
                  for state, leaf in zip(pair, leaves[layer], strict=True) if leaf.requires_grad]
        found = _add(model, kind.batches,
                     lambda batch: loss_of(_rest(model, batch.rows, leaves.__getitem__, known), batch),
                     workers, [leaf for _, leaf in learnt])
    if not learnt:
        return found
    if layers and hasattr(layers[-1], "unshard"):
        layers[-1].unshard()  # nothing goes back through its output, which would call for its weights
    with parallel.threads_for(len(kind.prefix)):
        torch.autograd.backward([state for state, _ in learnt], [leaf.grad for _, leaf in learnt])
    return found


def _beside_prefix(model: PreTrainedModel, kind: Kind, loss_of: Callable[[torch.Tensor, Batch], torch.Tensor],
                   workers: int, known: Known) -> float:
    """The same, the prefix being computed beside the batches (see relay.py)."""
    trained = _trained(model)
    cache = DynamicCache(config=model.config)
    ahead = relay.PrefixPass(lambda: _fill(model, kind.prefix, cache, known),
                             backbone(model).layers[known.layers:], known.layers, cache)
    parts = relay.beside(
        ahead, kind.batches, lambda batch, leaves: loss_of(_rest(model, batch.rows, leaves, known), batch),
        trained, workers)
    return _add_up(parts, trained)


def _prefix_states(model: PreTrainedModel, prefix: Sequence[int], known: Known) -> Mapping[int, KeyValue]:
    """The prefix's keys and values, by layer, of those layers that are computed."""
    if tuple(prefix) in known.frozen:
        return known.frozen[tuple(prefix)]
    cache = DynamicCache(config=model.config)
    with attention_is(model, NAME), parallel.threads_for(len(prefix)):
        _fill(model, prefix, cache, known)
    return {number: (layer.keys, layer.values) for number, layer in enumerate(cache.layers)
            if layer.keys is not None}


def _fill(model: PreTrainedModel, prefix: Sequence[int], cache: DynamicCache, known: Known) -> None:
    """Compute the prefix, whose keys and values go into `cache`."""
    known.give_prefix(prefix)
    read_at([])
    backbone(model)(
        input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True,
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device))  # unused


def _add(model: PreTrainedModel, batches: Sequence[Batch], compute: Callable[[Batch], torch.Tensor],
         workers: int, leaves: Sequence[torch.Tensor] = ()) -> float:
    """Add the gradients of all batches to the parameters and the leaves; returns the sum of the losses, which
    `compute` finds."""
    if workers == 1:
        found = 0.0
        for batch in batches:
            part = compute(batch)
            part.backward()
            found += part.item()
        return found
    wanted = [*leaves, *_trained(model)]

    def both(batch: Batch) -> tuple[float, tuple[torch.Tensor | None, ...]]:
        part = compute(batch)
        return part.item(), torch.autograd.grad(part, wanted, allow_unused=True)

    return _add_up(parallel.each(both, batches, workers), wanted)


def _add_up(parts: Iterable[tuple[float, Gradients]], wanted: Sequence[torch.Tensor]) -> float:
    """Add gradients to those of `wanted`, in the parts' order, so that the sum does not depend on who was
    first; returns the sum of the losses."""
    found = 0.0
    for part, gradients in parts:
        found += part
        for one, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                one.grad = gradient if one.grad is None else one.grad + gradient
    return found


def _trained(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def side_by_side(model: PreTrainedModel, longest: int, micro_tokens: int) -> int:
    """How many batches of rows of up to `longest` tokens are computed at once. One where the base is divided
    among devices; where every weight is trained, whose gradients are too large to hold for each batch; and
    with dropout, whose masks would depend on who was first."""
    if all(parameter.requires_grad for parameter in model.parameters()) or any(
            hasattr(module, "unshard") or (isinstance(module, torch.nn.Dropout) and module.p)
            for module in model.modules()):
        return 1
    return parallel.side_by_side(model, longest, micro_tokens)


def _whole(model: PreTrainedModel, rows: Sequence[Row], known: Known) -> torch.Tensor:
    """Hidden states that predict the supervised tokens of whole rows, right-padded."""
    width = max(row.rest for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[int] = []
    for number, row in enumerate(rows):
        ids[number, :row.rest] = torch.tensor(row.ids[:-1])
        mask[number, :row.rest] = 1
        end = number * width + row.rest
        places += range(end - len(row.completion), end)
    known.give_rests(rows, padded=True)
    hidden = backbone(model)(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                             use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[places]


def _rest(model: PreTrainedModel, batch: Sequence[Row], leaves: Leaves, known: Known) -> torch.Tensor:
    """Hidden states that predict the supervised tokens, from a pass over what follows the prefix."""
    prefix = batch[0].prefix
    rests = [row.ids[prefix:-1] for row in batch]
    device = model.device
    ids = torch.tensor([[token for rest in rests for token in rest]], device=device)
    positions = torch.cat([torch.arange(prefix, prefix + len(rest)) for rest in rests])[None].to(device)
    layout = _Layout(leaves, list(_groups([len(rest) for rest in rests], model.dtype, device)))
    places: list[int] = []
    end = 0
    for row, rest in zip(batch, rests, strict=True):
        end += len(rest)
        places += range(end - len(row.completion), end)
    read_at(places)
    known.give_rests(batch)
    hidden = backbone(model)(
        input_ids=ids, position_ids=positions, use_cache=False, shared=layout,
        attention_mask=torch.zeros(1, 1, 1, 1, device=device)).last_hidden_state  # unused
    return hidden[0, places]


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
        yield _Group(start, start + size, rows, width, pad.flatten().to(device), unpad.to(device),
                     inverse.to(device), _future(width, dtype, device))
        start += size
