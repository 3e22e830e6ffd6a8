"""A bench for the job loop against a sandbox: a real backend, its SDK, HTTP, and a clock that jumps.

Run as a program, it trains and collects in processes that a test can kill at a crash point:
`sandbox_bench.py BACKEND` loads the backend once, and forks for each line {folder, settings, crash_at} of its
input; see `Children`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Ended:
    """A process that has ended. returncode: as of subprocess."""

    returncode: int
    output: str


class Children:
    """Trains and collects in processes of their own, each with what one process has imported."""

    def __init__(self, backend: str) -> None:
        env = {name: value for name, value in os.environ.items() if name != "DISTILLCTL_CRASH_AT"}
        self._parent = subprocess.Popen([sys.executable, __file__, backend], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, folder: Path, settings: Mapping[str, Any], crash_at: str | None = None) -> Ended:
        """Train and collect in the workspace `folder`; the process kills itself at `crash_at`."""
        row = {"folder": str(folder), "settings": dict(settings), "crash_at": crash_at}
        self._parent.stdin.write(json.dumps(row) + "\n")
        self._parent.stdin.flush()
        code = int(self._parent.stdout.readline())
        log = folder.with_suffix(".log")
        output = log.read_text()
        log.unlink()
        return Ended(code, output)

    def close(self) -> None:
        self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()


def serve(backend: str) -> None:
    """Fork for each line of the input; tell how the fork ended."""
    registry.load(backend)
    for module in SDKS[backend]:
        importlib.import_module(module)
    if backend == "hf-jobs":
        importlib.import_module("distillctl_hf_jobs.bundle").wheel()
    for line in sys.stdin:
        row = json.loads(line)
        folder = Path(row["folder"])
        child = os.fork()
        if child == 0:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if row["crash_at"]:
                os.environ["DISTILLCTL_CRASH_AT"] = row["crash_at"]
            work(folder, backend, row["settings"])
            sys.stdout.flush()
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def work(folder: Path, backend: str, settings: Mapping[str, Any]) -> None:
    bench = SandboxBench(folder, backend, settings)
    bench.clock.now += sum(1000.0 for _ in bench.ledger.jobs())  # a later run is later
    write_json(bench.folder / "student.json", bench.collect(bench.train()).as_json())


if __name__ == "__main__":
    serve(sys.argv[1])
