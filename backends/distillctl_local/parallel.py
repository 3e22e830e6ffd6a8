"""Batches side by side on a processor's cores, each on a share of the threads.

Threads that share one batch wait for each other after every operation of it, thousands of times a pass, and
all for the slowest. With a batch each they need not. A GPU computes one batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from distillctl_local import division

Batch = TypeVar("Batch")
Found = TypeVar("Found")
WORTH = 64  # tokens of a batch for each thread; with fewer they wait longer than they save


def side_by_side(model: PreTrainedModel, longest: int, most: int) -> int:
    """How many batches `model` computes side by side: one on a GPU, else as many as it has threads, but with
    rows of up to `longest` tokens no more than `most` tokens together. One where rotary positions are scaled
    by the length of what is computed: the model keeps that scale."""
    if model.device.type != "cpu" or any(
            scaled in str(getattr(module, "rope_type", None))  # a name, or one for each kind of layer
            for module in model.modules() for scaled in ("dynamic", "longrope")):
        return 1
    return division.workers(torch.get_num_threads(), longest, most)


def each(compute: Callable[[Batch], Found], batches: Sequence[Batch], workers: int) -> list[Found]:
    """What `compute` finds for each batch, in their order, by so many at a time. What belongs to the model,
    and not to a thread, must stay as it is meanwhile."""
    workers = min(workers, len(batches))
    if workers < 2:
        return [compute(batch) for batch in batches]
    with pool(workers) as threads:
        return list(threads.map(compute, batches))


@contextmanager
def pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads for what is computed side by side, each with its share of torch's threads. What they
    are given they take up in order."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads,
                                initargs=(max(1, threads // workers),)) as executor:
            yield executor
    finally:
        torch.set_num_threads(threads)  # also for threads that start later: they take the number set last


def worth(tokens: int) -> int:
    """How many threads `tokens` tokens that are computed at once are worth, of those there are."""
    return max(1, min(torch.get_num_threads(), tokens // WORTH))


@contextmanager
def threads_for(tokens: int) -> Iterator[None]:
    """No more threads than `tokens` tokens that are computed at once are worth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(worth(tokens))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
