"""The output head, and the last layer's feed-forward part only where its output is read.

Few tokens' last hidden states are read: those that predict a supervised token, or an answer's. At the others
the last feed-forward part changes nothing, and is a thirtieth of the time of a model of thirty layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from distillctl_local.forwards import Forward, instead

_read = threading.local()


def read_at(places: Sequence[int]) -> None:
    """Say at which places of the stream the last hidden state of this thread's next pass is read."""
    _read.places = places


@contextmanager
def last_mlp_where_read(model: PreTrainedModel) -> Iterator[None]:
    """Compute the last layer's feed-forward part only where `read_at` says, by each thread for its own pass;
    elsewhere it is zero. A family that names its layers otherwise computes all of it."""
    mlp = getattr(getattr(backbone(model), "layers", [None])[-1], "mlp", None)
    if mlp is None:
        yield
        return

    def where_read(plain: Forward, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        if not _read.places:
            return out
        index = torch.tensor(_read.places, device=x.device)
        return out.index_copy(1, index, plain(x.index_select(1, index)))

    with instead([mlp], lambda _, plain: partial(where_read, plain)):
        yield


def logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The output head's logits in fp32, scaled and capped as the family does it."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float()
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)  # Cohere, Granite
    logits = logits if scale == 1.0 else scale * logits
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output head."""
    return getattr(model, model.base_model_prefix)
