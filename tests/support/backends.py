"""Steps that the tests of every hosted backend take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from distillctl.backend import Backend, JobHandle, Preflight, Snapshot, TrainJob
from distillctl.store.files import digest_file, read_jsonl, write_jsonl
from distillctl.types import JSON


def rewritten(job: TrainJob, change: Callable[[int, JSON], JSON]) -> TrainJob:
    """The job with every row changed."""
    rows = [change(number, row) for number, row in enumerate(read_jsonl(job.train_file))]
    write_jsonl(job.train_file, rows)
    return replace(job, digest=digest_file(job.train_file))


def to_end(backend: Backend, handle: JobHandle) -> Snapshot:
    """The job once it has ended."""
    for _ in range(200):
        seen = backend.poll(handle, None)
        if seen.state in ("succeeded", "failed", "cancelled"):
            return seen
        time.sleep(0.02)
    raise AssertionError(seen)


def problems(found: Preflight) -> str:
    return "\n".join(map(str, found.problems))
