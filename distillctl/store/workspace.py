"""The workspace: the folder where `distillctl` is run. `runs/` is for people, `.distillctl/` for us."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import Problem, UsageError
from distillctl.store.ledger import Ledger
from distillctl.store.rundir import MANIFEST, RunDir

RUN_FILE = "run.json"  # written first: what makes a folder a run


@dataclass(frozen=True)
class Workspace:
    """Knows where things lie under `root`; creates nothing until it is asked to."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def private(self) -> Path:
        return self.root / ".distillctl"

    def ledger(self) -> Ledger:
        """Open the workspace's ledger, creating it the first time."""
        ignore = self.private / ".gitignore"
        if not ignore.exists():
            self.private.mkdir(parents=True, exist_ok=True)
            ignore.write_text("*\n", encoding="utf-8")
        return Ledger(self.private / "ledger.db")

    def has_ledger(self) -> bool:
        return (self.private / "ledger.db").exists()

    def run_dir(self, recipe: str, run: str) -> RunDir:
        return RunDir(self.runs / recipe / run)

    def all_runs(self, recipe: str | None = None) -> list[RunDir]:
        """Every run, the one worked on last at the end."""
        found = [file.parent for file in self.runs.glob(f"{recipe or '*'}/*/{RUN_FILE}")]
        return [RunDir(path) for path in sorted(found, key=_last_touched)]

    def find_run(self, name: str) -> RunDir:
        """A run by its folder, `<recipe>/<run>`, the run's own name or the start of one.

        Raises UsageError when there is none or more than one.
        """
        folder = Path(name)
        if (folder / RUN_FILE).is_file():
            return RunDir(folder.resolve())
        runs = {run.name: run for run in self.all_runs()}
        matches = [run for full, run in runs.items() if name in (full, run.path.name)] or [
            run for full, run in runs.items() if full.startswith(name) or run.path.name.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            hint = "say which: " + ", ".join(run.name for run in matches)
            raise UsageError(Problem("several runs match", value=name, hint=hint))
        near = difflib.get_close_matches(name, runs, n=3, cutoff=0.3)
        known = ", ".join(near or list(runs)[-3:])
        raise UsageError(Problem(
            "no such run", where=str(self.runs), value=name,
            hint=f"known: {known}" if known else "nothing was run in this folder yet: distillctl run RECIPE"))


def _last_touched(run: Path) -> tuple[float, str]:
    manifest = run / MANIFEST
    marker = manifest if manifest.exists() else run / RUN_FILE
    return marker.stat().st_mtime, run.name


def slug(text: str) -> str:
    """A short name of lower-case letters, digits and dashes, for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.rsplit("/", 1)[-1].lower()).strip("-")[:32] or "model"
