"""What a run has got to: its stages, its jobs, what it has spent. Reads only, asks no provider."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from distillctl.progress import seconds_text
from distillctl.store.files import read_json
from distillctl.store.ledger import JobRow, Spent
from distillctl.store.rundir import RunDir
from distillctl.store.workspace import Workspace
from distillctl.types import JSON


@dataclass(frozen=True)
class RunStatus:
    """One run as it lies on disk and in the ledger."""

    run: str
    stages: dict[str, float]  # seconds each finished stage took
    jobs: list[JobRow]
    spent: Spent
    verdict: str | None

    def as_json(self) -> dict[str, JSON]:
        return {"run": self.run, "stages": self.stages, "verdict": self.verdict, "spent": asdict(self.spent),
                "jobs": [asdict(job) for job in self.jobs]}

    def text(self, detailed: bool) -> str:
        """One line, or several with stages and jobs."""
        at = self.verdict or (f"after {list(self.stages)[-1]}" if self.stages else "started")
        active = [job for job in self.jobs if job.state in ("intended", "queued", "running", "unknown")]
        if active:
            at += f"; {active[-1].backend} job {active[-1].state}"
        line = f"{self.run}  {at}  spent {spent_text(self.spent)}"
        if not detailed:
            return line
        lines = [line]
        lines += [f"  ✓ {name}  {seconds_text(seconds)}" for name, seconds in self.stages.items()]
        for job in self.jobs:
            ago = seconds_text(max(0.0, time.time() - job.updated))
            name = job.handle.job_id if job.handle else "not recorded yet"
            lines.append(f"  {job.backend} job {name}: {job.state} {job.message}".rstrip() + f"  ({ago} ago)")
        return "\n".join(lines)


def status_of(rundir: RunDir, workspace: Workspace) -> RunStatus:
    """The status of one run. Raises StorageError when its files or the ledger cannot be read."""
    jobs, spent = [], Spent(0.0, 0)
    if workspace.has_ledger():
        with workspace.ledger() as ledger:
            jobs, spent = ledger.jobs(run=rundir.name), ledger.spent(rundir.name)
    metrics = rundir.path / "metrics.json"
    verdict = read_json(metrics)["verdict"]["word"] if metrics.exists() else None
    stages = {name: record.seconds for name, record in rundir.records().items()}
    return RunStatus(rundir.name, stages, jobs, spent, verdict)


def spent_text(spent: Spent) -> str:
    """Money in words; what has no known price is said, not counted as nothing."""
    text = f"${spent.usd:.4f}".rstrip("0").rstrip(".") if spent.usd else "$0"
    if not spent.unknown:
        return text
    bound = f" (at most ${spent.at_most:.4g} more)" if spent.at_most else ""
    return f"{text} and {spent.unknown} items at an unknown price{bound}"
