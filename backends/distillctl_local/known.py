"""What does not change from step to step, and so is computed once.

Below an adapter on the uppermost layers nothing is trained and no gradient arrives, so what the lower layers
make of a row is the same at every step. And a prefix that the base alone computes (`shared_prefix: frozen`,
after activated LoRA, arXiv 2504.12397) has the same keys and values at every step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distillctl_local.data import Row
from distillctl_local.forwards import instead
from distillctl_local.readout import backbone

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [1, kv heads, prefix, head dim]

_thread = threading.local()


@dataclass(frozen=True)
class Known:
    """Hidden states [tokens, width] behind the first `layers` layers: of prefixes by their ids, and by a
    row's ids of what it has behind its prefix. With no layers none are known, and the methods do nothing.
    frozen: keys and values, by layer, of prefixes that are not trained, by their ids."""

    layers: int = 0
    prefixes: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    rests: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    frozen: dict[tuple[int, ...], dict[int, KeyValue]] = field(default_factory=dict)

    @contextmanager
    def above(self, model: PreTrainedModel) -> Iterator[None]:
        """Let `model` compute the layers above alone, from what this thread gave to its pass."""
        if not self.layers:
            yield
            return
        *lower, last = backbone(model).layers[:self.layers]
        with (instead(lower, lambda *_: _pass_on),
              instead([last], lambda *_: lambda *_, **__: _thread.hidden)):
            yield

    def give_prefix(self, prefix: Sequence[int]) -> None:
        """The next pass computes a prefix."""
        if self.layers:
            _thread.hidden = self.prefixes[tuple(prefix)][None]

    def give_rests(self, rows: Sequence[Row], *, padded: bool = False) -> None:
        """The next pass computes what these rows have behind their prefixes, one behind the other, or each in
        a line of its own, `padded` on the right."""
        if self.layers:
            states = [self.rests[tuple(row.ids)] for row in rows]
            _thread.hidden = pad_sequence(states, batch_first=True) if padded else torch.cat(states)[None]


@contextmanager
def up_to(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Let `model` compute its first `layers` layers alone; `seen` has what they made of a thread's pass."""
    first, *others = backbone(model).layers[layers:]

    def note(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        _thread.hidden = hidden
        return hidden

    with instead([first], lambda *_: note), instead(others, lambda *_: _pass_on):
        yield


def seen() -> torch.Tensor:
    """Hidden states [rows, tokens, width] of this thread's last pass within `up_to`."""
    return _thread.hidden


def _pass_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden
