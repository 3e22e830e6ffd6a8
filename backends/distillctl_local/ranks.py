"""The processes of one training, its ranks: which of them this is, and all that they tell each other.

With `devices: N` accelerate's launcher starts the trainer N times. Every rank reads all rows and sees every
batch, computes its share of it, and the gradients are added up; optimiser, schedule and clipping each rank
does alike by itself, so that all stay equal. DistributedDataParallel is not used: it adds up in hooks of one
backward pass through the whole model, and a step here is many passes through parts of it, whose gradients are
to be added up once, at its end. So transformers and accelerate are told of one process, and every exchange
stands here. Nothing imports torch before it is needed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl_local import process

if TYPE_CHECKING:
    import torch

_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
         "ROLE_RANK", "ROLE_WORLD_SIZE")  # by the launcher; libraries that see it start groups of their own
_BUCKET = 2**24  # numbers that are added up at once: 64 MiB beside the gradients
_PATIENCE = timedelta(hours=2)  # for a rank that computes; one that is gone is noticed at once
_LOOKS_S = 0.2  # how often a rank looks whether its launcher lives


@dataclass(frozen=True)
class Ranks:
    """Rank `number` of `count`. The first one alone writes: events, checkpoints, the result.

    All ranks must call the same methods in the same order; with one rank they do nothing.
    """

    number: int = 0
    count: int = 1
    _told: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> bool:
        return self.number == 0

    def take_gpu(self) -> None:
        """See one of the GPUs alone, before torch looks: everything here computes on "cuda"."""
        if self.count > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[self.number] if self.number < len(visible) else ""

    def meet(self, device: str) -> None:
        """Wait for the others. Gradients on an NVIDIA GPU go through nccl, all else through gloo."""
        if self.count == 1:
            return
        from torch import distributed

        os.environ.update(self._told)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                                       timeout=_PATIENCE)
        for name in self._told:
            del os.environ[name]

    def part(self) -> None:
        """The last exchange has been."""
        if self.count > 1:
            from torch import distributed

            distributed.destroy_process_group()

    def add(self, *numbers: float) -> list[float]:
        """Each number added up over the ranks; the same floats on all of them."""
        if self.count == 1:
            return list(numbers)
        import torch

        total = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.add(0)

    def as_first(self, value: Any) -> Any:
        """What the first rank has."""
        if self.count == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every rank the sum of the gradients; one that had no rows has none to add."""
        if self.count == 1:
            return
        import torch

        for some in _buckets(parameters):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
            torch.distributed.all_reduce(flat)
            for parameter, grad in zip(some, flat.split([p.numel() for p in some]), strict=True):
                parameter.grad = grad.view_as(parameter)

    def same_weights(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every rank the first one's. Equal seeds make them equal already, on equal devices."""
        if self.count == 1:
            return
        from torch import distributed

        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)

    def report(self, error: BaseException) -> None:
        """Tell the launcher what this rank fails of: it knows which rank was the first to."""
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def join(folder: Path) -> Ranks:
    """The ranks of the training that this process belongs to, and a life as long as its launcher's.

    Ends the process where another training has the job's folder already.
    """
    if process.LAUNCHER not in os.environ:
        return Ranks()
    told = {name: os.environ.pop(name) for name in _TOLD if name in os.environ}
    if not process.share_lock(folder) or _orphaned():
        os._exit(1)
    threading.Thread(target=_watch_launcher, daemon=True).start()
    return Ranks(int(told["RANK"]), int(told["WORLD_SIZE"]), told)


def _watch_launcher() -> None:
    """A launcher that was killed ends no ranks, and they would wait for each other or train on."""
    while not _orphaned():
        time.sleep(_LOOKS_S)
    os._exit(1)


def _orphaned() -> bool:
    return os.getppid() != int(os.environ[process.LAUNCHER])


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[Sequence[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > _BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
