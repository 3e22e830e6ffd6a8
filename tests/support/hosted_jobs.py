"""What every hosted backend does in the job loop against its sandbox, however the service misbehaves.

A test file subclasses `HostedJobs`, names the backend and gives `sandbox` and `settings`; what is the
provider's own (which student a job left, what a bill is made of) it asserts itself.
"""

from __future__ import annotations

import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import Children
from support.sandbox_bench import PROGRAM, SECRET, SandboxBench

from distillctl.errors import BackendError
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox

POINTS = ["after-intent", "after-submit", "during-poll:2", "before-publish"]


def files_with_secret(folder: Path) -> list[Path]:
    """Files below `folder`, the provider's among them, that hold the key."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def left_alone(sandbox: Sandbox) -> bool:
    """Whether the job was created once and nobody asked for its end."""
    return (sandbox.creates(), sandbox.store.requests().get("jobs.cancel", 0)) == (1, 0)


class HostedJobs(ABC):
    """Kills, lost replies, outages and strange words make no second job."""

    backend: str
    unknown_word: str  # a state that the provider never told anybody about

    @abstractmethod
    def sandbox(self, tmp_path: Path) -> Any:
        """A fixture: the provider."""

    @abstractmethod
    def settings(self, sandbox: Sandbox) -> dict[str, Any]:
        """A fixture: the backend's settings, which point it at the sandbox."""

    @pytest.fixture
    def bench(self, tmp_path: Path, settings: dict[str, Any]) -> SandboxBench:
        return SandboxBench(tmp_path / "workspace", self.backend, settings)

    @abstractmethod
    def assert_is_the_student(self, workspace: Path, student: dict[str, Any], sandbox: Sandbox) -> None:
        """That `student` is what the only job left."""

    @abstractmethod
    def bill(self, charge: dict[str, Any]) -> Any:
        """US dollars, as the ledger must have them, of the provider's own charge."""

    @pytest.fixture(scope="class")
    @classmethod
    def children(cls) -> Iterator[Children]:
        children = Children(PROGRAM, cls.backend)
        yield children
        children.close()

    @pytest.mark.parametrize("point", POINTS)
    def test_a_killed_run_ends_with_one_job_one_charge_and_the_same_student(
            self, tmp_path, sandbox, settings, children, point):
        """And the key is in no file, the provider's among them, and in no output."""
        workspace = tmp_path / "workspace"
        killed = children.run(workspace, [self.backend, settings], crash_at=point)
        assert killed.returncode == -signal.SIGKILL, killed.output
        again = children.run(workspace, [self.backend, settings])
        assert again.returncode == 0, again.output
        assert (sandbox.creates(), sandbox.jobs(), len(sandbox.store.charges())) == (1, 1, 1)
        assert SECRET not in killed.output + again.output
        assert files_with_secret(tmp_path) == []
        student = json.loads((workspace / "student.json").read_text())
        self.assert_is_the_student(workspace, student, sandbox)

    @pytest.mark.parametrize("what", ["drop_after", "status_after", "garble", "truncate"])
    def test_a_lost_reply_is_one_create(self, bench, sandbox, what):
        sandbox.add_fault(Fault("jobs.create", what, "500"))
        assert bench.train().state == "succeeded"
        assert (sandbox.creates(), sandbox.jobs()) == (1, 1)

    def test_a_lost_reply_and_listings_that_lag_are_one_create(self, bench, sandbox):
        sandbox.add_fault(Fault("jobs.create", "drop_after"))
        sandbox.add_fault(Fault("jobs.list", "hide", "1", times=3))
        assert bench.train().state == "succeeded"
        assert (sandbox.creates(), sandbox.jobs()) == (1, 1)

    def test_a_listing_that_repeats_itself_is_no_duplicate(self, bench, sandbox):
        sandbox.add_fault(Fault("jobs.create", "drop_after"))
        sandbox.add_fault(Fault("jobs.list", "repeat", times=None))
        bench.train()
        assert not any("DUPLICATE" in text for text in bench.warnings())

    def test_half_an_hour_without_status_changes_nothing(self, bench, sandbox):
        start = bench.clock.now
        outage = Fault("jobs.get", "status", "503", times=None)
        sandbox.add_fault(outage)
        bench.clock.each = lambda now: sandbox.faults.remove(outage) if now - start > 1800 else None
        assert bench.train().state == "succeeded"
        assert left_alone(sandbox)
        assert any("unreachable" in text for text in bench.warnings())

    def test_a_word_that_nobody_knows_is_waited_out(self, bench, sandbox):
        sandbox.add_fault(Fault("jobs.get", "word", self.unknown_word, times=5))
        assert bench.train().state == "succeeded"
        assert left_alone(sandbox)
        assert any(f"'{self.unknown_word}'" in text for text in bench.warnings())

    def test_a_job_deleted_at_the_provider_is_not_made_again(self, bench, sandbox):
        row = bench.train(detach=True)
        sandbox.delete(row.handle.job_id)
        for _ in range(2):
            with pytest.raises(BackendError, match="not there any more"):
                bench.train()
        assert left_alone(sandbox)

    def test_the_bill_is_the_providers_own_charge(self, bench, sandbox):
        bench.train()
        (charge,) = sandbox.store.charges()
        assert bench.ledger.spent("recipe/run").usd == self.bill(charge)
