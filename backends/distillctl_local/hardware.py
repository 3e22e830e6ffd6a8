"""What this machine computes with. Nothing here imports torch before it is asked to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl_local.settings import LocalSettings

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

WSL_CUDA = Path("/usr/lib/wsl/lib/libcuda.so.1")  # what Windows lends instead of /dev/nvidia*
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def choose(settings: LocalSettings) -> tuple[str, torch.dtype]:
    """Device and precision for the base model."""
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = settings.precision
    if precision == "auto":
        fast = (torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda"
                else cpu_computes_bf16())
        precision = "bf16" if fast else "fp32"
    return device, torch.bfloat16 if precision == "bf16" else torch.float32


def quantisation(settings: LocalSettings) -> BitsAndBytesConfig | None:
    """How the base is stored in 4 or 8 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), None where it
    is not."""
    if settings.bits not in (4, 8):
        return None
    from transformers import BitsAndBytesConfig

    if settings.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    _, dtype = choose(settings)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block this process keeps the memory that is freed in it, for what comes next; at its end the
    memory is given back. Where the C library is not glibc nothing changes.

    A pass frees what the next one needs. glibc gives it back page by page, and each page that comes again
    costs a fault, more than a hundred thousand in a step of the demo's training.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        libc.malloc_trim(0)


def has_gpu() -> bool:
    """Whether we see an NVIDIA GPU; torch may still lack what it needs for it."""
    return gpus() > 0


def gpus() -> int:
    """How many NVIDIA GPUs we see: those that are there and that CUDA_VISIBLE_DEVICES does not hide."""
    seen = _seen()
    return _gpus_there() if seen is None else min(_gpus_there(), len(seen))


def _seen() -> list[str] | None:
    """The indices or names in CUDA_VISIBLE_DEVICES; None: it hides nothing."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        return None
    return [name.strip() for name in seen.split(",") if name.strip() not in ("", "-1")]


def _gpus_there() -> int:
    here = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    return len(here) or int(WSL_CUDA.exists())


def cores() -> int:
    """How many processor cores we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_computes_bf16() -> bool:
    """Whether the processor multiplies bf16 natively; where it does not, bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def memory_available() -> int | None:
    """Bytes of memory that can be had now, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def gpu_memory_available(devices: int = 1) -> int | None:
    """Bytes that are free on the fullest of the first so many GPUs that we see, None where their driver does
    not say."""
    free = _smallest("memory.free", devices)
    return None if free is None else int(free * 2**20)


def gpu_computes_bf16(devices: int = 1) -> bool:
    """Whether the first so many GPUs that we see multiply bf16 natively: NVIDIA's do from compute capability
    8.0 on, others are much slower in it. Yes where their driver does not say."""
    capability = _smallest("compute_cap", devices)
    return capability is None or capability >= 8


def _smallest(what: str, devices: int) -> float | None:
    """The least that nvidia-smi says of the first so many GPUs that we see, None where it says nothing."""
    seen = _seen()
    which = [] if seen is None else [f"--id={','.join(seen[:devices])}"]
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", *which],
                              capture_output=True, text=True, timeout=10, check=True)
        return min(map(float, done.stdout.split()[:devices]))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
