"""The memory that passes free is kept for the next ones, and given back at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the `local` extra")

PROGRAM = """
import json, resource
from pathlib import Path
import torch
from distillctl_local.hardware import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults(blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2_500_000) for _ in range(blocks)]
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(1)
start = resident()
before = min(faults(20) for _ in range(5))
with freed_memory_kept():
    rounds = [faults(20) for _ in range(15)]
print(json.dumps({"before": before, "last": rounds[-1], "left": resident() - start}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    """Twenty blocks of 10 MB, again and again, in a process of its own: page faults of a round without it,
    of the last one with it, and bytes that are resident afterwards. In the first rounds a block may find no
    gap large enough. Without it every block is the system's own, which glibc would else decide by chance."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
                          env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"})
    return json.loads(done.stdout)


def test_what_was_freed_costs_no_page_fault_again(found: dict[str, int]) -> None:
    assert found["before"] > 40_000  # of 48,800 pages
    assert found["last"] < 100


def test_at_the_end_memory_is_given_back(found: dict[str, int]) -> None:
    assert found["left"] < 50_000_000
