"""What the contract suite works on: a backend in an empty folder with a job for it, and what it did there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl.backend import Backend, JobHandle, Snapshot, Staged, StudentRef, TrainJob, Unreachable
from distillctl.jobs import new_token
from distillctl.store.files import digest_tree
from distillctl.types import JSON, Answer, Predictor, Request

CANARY = "canary-3f9b1d7ae2c84650"  # the value of every secret; must be found nowhere


@dataclass
class Lab:
    """A backend in an empty folder, with a job for it. provider: only of a hosted backend."""

    folder: Path
    backend: Backend
    job: TrainJob
    provider: Any

    def stage(self) -> Staged:
        """Stage the job, waiting as the core does while a service still looks at the upload."""
        for _ in range(50):
            with suppress(Unreachable):
                return self.backend.stage(self.job)
            time.sleep(0.05)
        return self.backend.stage(self.job)

    def submit(self) -> JobHandle:
        return self.backend.submit(self.job, self.stage(), new_token())


@dataclass
class Trained:
    """A job that has ended, and its student collected into `into`."""

    lab: Lab
    handle: JobHandle
    snapshots: list[Snapshot]
    into: Path
    student: StudentRef


async def ask(predictor: Predictor, requests: Sequence[Request]) -> tuple[list[Answer], list[Answer]]:
    """The answers to `requests` in the largest batches, and one at a time."""
    together: list[Answer] = []
    for start in range(0, len(requests), predictor.max_batch):
        together += await predictor.answer(requests[start:start + predictor.max_batch])
    alone = [(await predictor.answer([request]))[0] for request in requests]
    await predictor.aclose()
    assert len(together) == len(requests)
    return together, alone


def ours(lab: Lab) -> dict[str, str]:
    """The lab's files by digest, without what its provider keeps."""
    return {path: digest for path, digest in digest_tree(lab.folder).items()
            if not path.startswith("provider/")}


def through_json(value: JSON) -> JSON:
    return json.loads(json.dumps(value, allow_nan=False))


def children() -> set[int]:
    """Ids of this process's children, Python's own resource tracker aside (Linux)."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"resource_tracker" not in (stat.parent / "cmdline").read_bytes():
                found.add(int(stat.parent.name))
    return found
