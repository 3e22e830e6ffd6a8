"""A short prefix beside the batches behind it.

A prefix of few tokens keeps one core busy, and the others would wait for its forward pass before the batches
and for its backward pass after them. But a batch needs the prefix's keys and values only when it gets to
their layer, and the prefix the gradients of these only when it comes back to it. So both run at once: the
prefix ahead of the batches in the forward pass, a layer at a time, and behind them in the backward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from distillctl.errors import Problem, UsageError
from distillctl_local import parallel
from distillctl_local.division import Batch
from distillctl_local.forwards import Forward, instead
from distillctl_local.known import KeyValue

Gradients = Sequence[torch.Tensor | None]
Leaves = Callable[[int], KeyValue]  # by the layer's number

_thread = threading.local()


class _Sum:
    """Gradients of the batches, added in the batches' order whoever is first."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.added = 0
        self._early: dict[int, torch.Tensor | None] = {}

    def add(self, number: int, gradient: torch.Tensor | None) -> None:
        """What batch `number` gives, None: nothing; not its first word: nothing new."""
        if number < self.added or number in self._early:
            return
        self._early[number] = gradient
        while self.added in self._early:
            part = self._early.pop(self.added)
            if part is not None:
                self.total = part if self.total is None else self.total + part
            self.added += 1


class _Relay:
    """Hands keys and values up to `batches` batches, and their gradients back."""

    def __init__(self, layers: range, batches: int) -> None:
        self._states: dict[int, Future[KeyValue]] = {number: Future() for number in layers}
        self._sums = {(number, side): _Sum() for number in layers for side in (0, 1)}
        self._batches = batches
        self._came = threading.Condition()

    def publish(self, number: int, states: KeyValue) -> None:
        """A layer's keys and values are computed."""
        self._states[number].set_result(states)

    def end(self, error: BaseException | None = None) -> None:
        """No more keys and values will come."""
        for states in self._states.values():
            if not states.done():
                states.set_exception(error or KeyError("this layer keeps no keys and values"))

    def leaves(self, batch: int) -> tuple[Leaves, list[torch.Tensor]]:
        """What gives `batch` the leaves of each layer as soon as they are there, and those given so far that
        have a gradient."""
        given: list[torch.Tensor] = []

        def of(number: int) -> KeyValue:
            pair = tuple(part.detach().requires_grad_(part.requires_grad)
                         for part in self._states[number].result())
            for side, leaf in enumerate(pair):
                if leaf.requires_grad:
                    leaf.register_hook(partial(self._add, batch, (number, side)))
                    given.append(leaf)
            return pair

        return of, given

    def _add(self, batch: int, key: tuple[int, int], gradient: torch.Tensor | None) -> None:
        with self._came:
            self._sums[key].add(batch, gradient)
            self._came.notify_all()

    def finish(self, batch: int) -> None:
        """A batch is through, or has failed: what it has not given will not come."""
        for key in self._sums:
            self._add(batch, key, None)

    def gradient(self, number: int, side: int) -> torch.Tensor | None:
        """The sum for a layer's keys (0) or values (1), once all batches have given theirs."""
        found = self._sums[number, side]
        with self._came:
            self._came.wait_for(lambda: found.added == self._batches)
        return found.total


class _Piece(NamedTuple):
    """A layer's part of the prefix's pass. below: what it got from the layers below; inner: the same, cut off
    from them; states: its keys and values; trained: those of its parameters that are."""

    number: int
    below: torch.Tensor
    inner: torch.Tensor
    states: KeyValue
    trained: list[torch.nn.Parameter]


class PrefixPass(NamedTuple):
    """The prefix's forward pass: `compute` takes it through `layers`, the lowest of them the model's number
    `first`, and fills `cache`."""

    compute: Callable[[], None]
    layers: Sequence[torch.nn.Module]
    first: int
    cache: DynamicCache


class _Prefix:
    """The prefix's pass, forward and back, a layer at a time."""

    def __init__(self, ahead: PrefixPass, relay: _Relay) -> None:
        self._pass = ahead
        self._relay = relay
        self._pieces: list[_Piece] = []

    def forward(self) -> None:
        """Compute it in this thread; each layer's keys and values are published at once."""
        _thread.ahead = True
        try:
            self._pass.compute()
        except BaseException as error:
            self._relay.end(error)
            raise
        finally:
            _thread.ahead = False
        self._relay.end()

    def cut(self, place: int, plain: Forward) -> Forward:
        """A layer's forward function; in the prefix's pass its part is cut off from what lies below."""
        layer, number = self._pass.layers[place], self._pass.first + place
        cached = self._pass.cache.layers

        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not getattr(_thread, "ahead", False):  # a batch's pass
                return plain(hidden, *args, **kwargs)
            if _learnt([*args, *kwargs.values()]):
                raise UsageError(Problem(
                    "a prefix cannot be shared: layers get more than hidden states that is learnt",
                    field="backends.local.shared_prefix", hint="use off"))
            inner = hidden.detach().requires_grad_(hidden.requires_grad)
            out = plain(inner, *args, **kwargs)
            states = cached[number].keys, cached[number].values
            self._pieces.append(_Piece(number, hidden, inner, states, [
                parameter for parameter in layer.parameters() if parameter.requires_grad]))
            self._relay.publish(number, states)
            return out

        return forward

    def backward(self, trained: Sequence[torch.nn.Parameter]) -> Gradients:
        """Gradients of `trained`, from the last layer down, of each as soon as all batches are through it."""
        found: dict[torch.nn.Parameter, torch.Tensor] = {}
        above: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for piece in reversed(self._pieces):
            outputs = [*above, *((state, self._relay.gradient(piece.number, side))
                                 for side, state in enumerate(piece.states))]
            inner = _back(outputs, [piece.inner] if piece.inner.requires_grad else [], piece.trained, found)
            above = [(piece.below, inner)]
        _back(above, [], trained, found)  # what lies below the layers
        return [found.get(parameter) for parameter in trained]


def _learnt(given: Sequence[Any]) -> bool:
    """Whether gradients would go on through any of these, tensors, tuples of them or other things."""
    return any(part.requires_grad if isinstance(part, torch.Tensor)
               else isinstance(part, tuple) and _learnt(part) for part in given)


def _back(outputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]], inner: Sequence[torch.Tensor],
          trained: Sequence[torch.nn.Parameter],
          found: dict[torch.nn.Parameter, torch.Tensor]) -> torch.Tensor | None:
    """Takes outputs' gradients back: adds those of `trained` to `found`, returns that of `inner`, which is
    one or none."""
    known = [(output, gradient) for output, gradient in outputs
             if gradient is not None and output.requires_grad]
    if not known or not (inner or trained):
        return None
    gradients = torch.autograd.grad([output for output, _ in known], [*inner, *trained],
                                    [gradient for _, gradient in known], allow_unused=True)
    for parameter, gradient in zip(trained, gradients[len(inner):], strict=True):
        if gradient is not None:
            found[parameter] = found[parameter] + gradient if parameter in found else gradient
    return gradients[0] if inner else None


def beside(prefix: PrefixPass, batches: Sequence[Batch], compute: Callable[[Batch, Leaves], torch.Tensor],
           trained: Sequence[torch.nn.Parameter], workers: int) -> Iterator[tuple[float, Gradients]]:
    """The loss of every batch and the gradients of `trained`, in the batches' order; the prefix's come last.

    compute: the loss of a batch behind each layer's leaves. workers: how many threads.
    """
    relay = _Relay(range(prefix.first, prefix.first + len(prefix.layers)), len(batches))
    ours = _Prefix(prefix, relay)

    def one(number: int, batch: Batch) -> tuple[float, Gradients]:
        try:
            leaves, given = relay.leaves(number)
            loss = compute(batch, leaves)
            found = torch.autograd.grad(loss, [*given, *trained], allow_unused=True)
            return loss.item(), found[len(given):]
        finally:
            relay.finish(number)

    def back() -> Gradients:
        ahead.result()
        return ours.backward(trained)

    with instead(prefix.layers, ours.cut), parallel.pool(workers) as pool:
        ahead = pool.submit(ours.forward)
        parts = [pool.submit(one, number, batch) for number, batch in enumerate(batches)]
        behind = pool.submit(back)  # taken up last, so it never waits for a batch that is not begun
        for part in parts:
            yield part.result()
        yield 0.0, behind.result()
