"""A bench for the job loop: a real ledger, the loopback service, and a clock that jumps when slept on.

As a program, `jobs.py FOLDER URL` trains and collects once, and `jobs.py` in children (`support.children`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.children import serve
from support.loopback import LoopbackBackend, LoopbackSettings

from distillctl import jobs
from distillctl.backend import BackendEnv, JobEvent
from distillctl.recipe.models import TrainSpec
from distillctl.store.ledger import JobRow, Ledger
from distillctl.testing.examples import example_job

PROGRAM = __file__
KEY = "sha256:" + "7" * 64


@dataclass
class Clock:
    """Time that passes only in `sleep`. each: called after every sleep, to let the world change."""

    now: float = 1_800_000_000.0
    slept: list[float] = field(default_factory=list)
    each: object = None

    def __call__(self) -> float:
        self.now += 0.001  # so that no two moments are equal
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if self.each is not None:
            self.each(self.now)


class Bench:
    """One workspace in `folder`, working against the service at `url`."""

    def __init__(self, folder: Path, url: str, secret: str = "the-key") -> None:
        self.folder = folder
        self.clock = Clock()
        self.ledger = Ledger(folder / "ledger.db", self.clock)
        self.backend = LoopbackBackend(LoopbackSettings(url=url), BackendEnv(
            folder / "loopback", lambda name: secret, self.clock))
        self.job = example_job(folder, "classification", "any", TrainSpec())
        self.events: list[JobEvent] = []

    def _desk(self) -> dict:
        return {"ledger": self.ledger, "on_event": self.events.append, "clock": self.clock,
                "sleep": self.clock.sleep}

    def train(self, run: str = "recipe/run", key: str = KEY, **options) -> JobRow:
        return jobs.train(self.backend, self.job, run=run, key=key, **self._desk(), **options)

    def follow(self, row: JobRow) -> JobRow:
        return jobs.follow(self.backend, row, **self._desk())

    def cancel(self, row: JobRow) -> JobRow:
        return jobs.cancel(self.backend, row, **self._desk())

    def reconcile(self, key: str = KEY) -> JobRow | None:
        return jobs.reconcile(self.backend, key=key, **self._desk())

    def collect(self, row: JobRow) -> object:
        return jobs.collect(self.backend, row, self.folder / "student", **self._desk())

    def rows(self) -> list[JobRow]:
        return self.ledger.jobs()

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if event.level == "warning"]


def train_and_collect(folder: Path, url: str) -> None:
    bench = Bench(folder, url)
    bench.clock.now += sum(1000.0 for _ in bench.rows())  # a later run is later
    bench.collect(bench.train())


if __name__ == "__main__":
    if sys.argv[1:]:
        train_and_collect(Path(sys.argv[1]), sys.argv[2])
    else:
        serve(train_and_collect)
