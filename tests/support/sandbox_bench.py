"""A bench for the job loop against a sandbox: a real backend, its SDK, HTTP, and a clock that jumps.

As a program, `sandbox_bench.py BACKEND` trains and collects in children (`support.children`).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.children import serve
from support.jobs import KEY, Clock

from distillctl import jobs, registry
from distillctl.backend import BackendEnv, JobEvent, StudentRef
from distillctl.recipe.models import TrainSpec
from distillctl.store.files import write_json
from distillctl.store.ledger import JobRow, Ledger
from distillctl.testing.examples import example_job

PROGRAM = __file__
SECRET = "canary-5d1c9a70b3e84f26"
SDKS = {"openai": ["openai"], "together": ["together"], "vertex": ["google.genai", "google.cloud.storage"],
        "hf-jobs": ["huggingface_hub", "hatchling.builders.wheel", "distillctl_local.safety"]}


class SandboxBench:
    """One workspace in `folder`, working with `backend` and its settings."""

    def __init__(self, folder: Path, backend: str, settings: Mapping[str, Any], secret: str = SECRET,
                 kind: str = "classification") -> None:
        self.folder = folder
        self.clock = Clock(time.time())
        self.ledger = Ledger(folder / "ledger.db", self.clock)
        self.backend = registry.open_backend(backend, settings, BackendEnv(
            folder / backend, lambda name: secret, self.clock))
        self.job = example_job(folder, kind, "any", TrainSpec())
        self.events: list[JobEvent] = []

    def _desk(self) -> dict[str, Any]:
        return {"ledger": self.ledger, "on_event": self.events.append, "clock": self.clock,
                "sleep": self.clock.sleep}

    def train(self, run: str = "recipe/run", key: str = KEY, **options: Any) -> JobRow:
        return jobs.train(self.backend, self.job, run=run, key=key, **self._desk(), **options)

    def collect(self, row: JobRow) -> StudentRef:
        return jobs.collect(self.backend, row, self.folder / "student", **self._desk())

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if event.level == "warning"]


def load(backend: str) -> None:
    """Import what a run with a backend needs, and build what is built once for a process."""
    registry.load(backend)
    for module in SDKS[backend]:
        importlib.import_module(module)
    if backend == "hf-jobs":
        importlib.import_module("distillctl_hf_jobs.bundle").wheel()


def train_and_collect(folder: Path, given: list[Any]) -> None:
    """given: the backend and its settings."""
    bench = SandboxBench(folder, *given)
    bench.clock.now += sum(1000.0 for _ in bench.ledger.jobs())  # a later run is later
    write_json(bench.folder / "student.json", bench.collect(bench.train()).as_json())


if __name__ == "__main__":
    load(sys.argv[1])
    serve(train_and_collect)
