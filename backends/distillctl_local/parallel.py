"""Batches side by side on a processor's cores, each on a share of the threads.

Threads that share one batch wait for each other after every operation of it, thousands of times a pass, and
all for the slowest. With a batch each they need not. A GPU computes one batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

Batch = TypeVar("Batch")
Found = TypeVar("Found")


def side_by_side(model: PreTrainedModel) -> int:
    """How many batches `model` computes side by side: as many as it has threads, one on a GPU."""
    return torch.get_num_threads() if model.device.type == "cpu" else 1


def each(model: PreTrainedModel, compute: Callable[[Batch], Found], batches: Sequence[Batch]) -> list[Found]:
    """What `compute` finds for each batch, in their order. What belongs to the model, and not to a thread,
    must stay as it is meanwhile."""
    threads = torch.get_num_threads()
    workers = min(side_by_side(model), len(batches))
    if workers < 2:
        return [compute(batch) for batch in batches]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads,
                                initargs=(threads // workers,)) as pool:
            return list(pool.map(compute, batches))
    finally:
        torch.set_num_threads(threads)  # also for threads that start later: they take the number set last
