"""The run directory: `runs/<recipe>/<run>/`, and the record of which stage made which file.

A stage is done when its outputs lie on disk whole and `stages.json` names their digests, written last.
A stage is reused when its key (a digest of all that determines it) is the recorded one and its outputs
still have their digests; else it runs again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import Problem, StorageError
from distillctl.store.files import digest_file, digest_tree, read_json, write_json
from distillctl.types import JSON

MANIFEST = "stages.json"


@dataclass(frozen=True)
class StageRecord:
    """A finished stage. outputs: digest by path relative to the run; a folder's files one by one."""

    key: str
    parts: Mapping[str, JSON]  # what the key was made of, to tell what changed
    outputs: Mapping[str, str]
    seconds: float
    finished: float  # Unix seconds


class RunDir:
    """One run on disk. The folder is made by `create`; reading never writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """`<recipe>/<run>`, as commands print and take it."""
        return f"{self.path.parent.name}/{self.path.name}"

    def records(self) -> dict[str, StageRecord]:
        """Finished stages by name, in the order they finished."""
        manifest = self.path / MANIFEST
        if not manifest.exists():
            return {}
        try:
            return {name: StageRecord(**record) for name, record in read_json(manifest)["stages"].items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise StorageError(Problem(f"not a stage record: {error}", where=str(manifest),
                                       hint="move it away and run again: stages are then remade")) from None

    def damage(self, record: StageRecord) -> list[Problem]:
        """What of a stage's outputs is missing or changed since it was done."""
        problems = []
        for name, digest in record.outputs.items():
            path = self.path / name
            if not path.is_file():
                problems.append(Problem("is missing", where=str(path)))
            elif digest_file(path) != digest:
                problems.append(Problem("was changed after its stage was done", where=str(path)))
        return problems

    def mark_done(self, stage: str, key: str, parts: Mapping[str, JSON], outputs: Iterable[str],
                  seconds: float) -> None:
        """Record a finished stage; its outputs (files or folders) must lie on disk by now."""
        digests: dict[str, str] = {}
        for name in outputs:
            path = self.path / name
            if path.is_dir():
                digests.update({f"{name}/{file}": digest for file, digest in digest_tree(path).items()})
            else:
                digests[name] = digest_file(path)
        records = self.records()
        records.pop(stage, None)
        records[stage] = StageRecord(key, parts, digests, seconds, time.time())
        write_json(self.path / MANIFEST, {"format": 1, "stages": {
            name: vars(record) for name, record in records.items()}})
