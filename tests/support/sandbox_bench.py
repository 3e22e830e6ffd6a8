"""A bench for the job loop against a sandbox: a real backend, its SDK, HTTP, and a clock that jumps.

Run as a program, it trains and collects once, so that a test can kill it at a crash point:
`sandbox_bench.py FOLDER BACKEND SETTINGS`, settings as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.jobs import KEY, Clock

from distillctl import jobs, registry
from distillctl.backend import BackendEnv, JobEvent, StudentRef
from distillctl.recipe.models import TrainSpec
from distillctl.store.files import write_json
from distillctl.store.ledger import JobRow, Ledger
from distillctl.testing.examples import example_job

SECRET = "canary-5d1c9a70b3e84f26"


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


def in_child(folder: Path, backend: str, settings: Mapping[str, Any],
             crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
    """Train and collect in a process of its own, which kills itself at `crash_at`."""
    env = {name: value for name, value in os.environ.items() if name != "DISTILLCTL_CRASH_AT"}
    if crash_at:
        env["DISTILLCTL_CRASH_AT"] = crash_at
    return subprocess.run([sys.executable, __file__, str(folder), backend, json.dumps(settings)], env=env,
                          capture_output=True, text=True, timeout=120)


if __name__ == "__main__":
    bench = SandboxBench(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
    bench.clock.now += sum(1000.0 for _ in bench.ledger.jobs())  # a later run is later
    write_json(bench.folder / "student.json", bench.collect(bench.train()).as_json())
