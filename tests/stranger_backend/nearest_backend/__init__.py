"""A whole backend in one file: answers with what the most similar training row was answered with.

"Training" is keeping the rows, so a job has ended as soon as its folder is there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from distillctl.backend import (
    API_VERSION,
    BackendEnv,
    Capabilities,
    JobEvent,
    JobHandle,
    Preflight,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
)
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.recipe.models import EvaluateSpec, Strict
from distillctl.store.files import (
    SAFE_NAME,
    digest_file,
    digest_tree,
    read_json,
    read_jsonl,
    safe_join,
    write_json,
)
from distillctl.task import Task
from distillctl.types import Answer, Predictor, Request

ROWS = "rows.json"


class NearestSettings(Strict):
    min_similarity: float = 0.0
    """Share of common words below which there is no answer."""


class NearestBackend:
    name: ClassVar[str] = "nearest"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), data_leaves_machine=False,
        student_is_local=True)
    Settings: ClassVar[type[NearestSettings]] = NearestSettings

    def __init__(self, settings: NearestSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        return Preflight(cost_usd=(0.0, 0.0), duration_s=(0.0, 1.0))

    def stage(self, job: TrainJob) -> Staged:
        return Staged({"digest": job.digest})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        if not SAFE_NAME.fullmatch(token):
            raise Rejected(f"not a usable token: {token!r}")
        rows = [[row["messages"][-1]["content"], row["completion"]] for row in read_jsonl(job.train_file)]
        write_json(self._env.workspace / token / ROWS, {
            "created_at": self._env.clock(), "min_similarity": self._settings.min_similarity, "rows": rows})
        return self.find(token)[0]

    def find(self, token: str) -> list[JobHandle]:
        made = self._made(token)
        return [JobHandle(self.name, token, token, created_at=read_json(made)["created_at"])] if made else []

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        if self._made(handle.job_id) is None:
            return Snapshot("lost", "gone", "its folder is not there")
        return Snapshot("succeeded", "done", events=(JobEvent("kept", handle.created_at, "kept the rows"),))

    def cancel(self, handle: JobHandle) -> None:
        """It has always ended already."""

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        made = self._made(handle.job_id)
        if made is None:
            raise BackendError(Problem("no such job", value=handle.job_id))
        write_json(into / ROWS, read_json(made))
        return StudentRef(self.name, "model", "nearest", ".", digest_tree(into))

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Predictor]:
        path = safe_join(folder, student.path or ".") / ROWS
        if not path.is_file() or digest_file(path) != student.files.get(ROWS):
            raise StudentError(Problem("is missing or was changed", where=str(path)))
        yield NearestPredictor(read_json(path), student.files[ROWS])

    def _made(self, token: str) -> Path | None:
        path = self._env.workspace / token / ROWS if SAFE_NAME.fullmatch(token) else None
        return path if path is not None and path.is_file() else None


class NearestPredictor:
    max_batch = 64
    replayed = False

    def __init__(self, kept: dict, digest: str) -> None:
        self.identity = {"backend": "nearest", "rows": digest}
        self._least = kept["min_similarity"]
        self._rows = [(_words(prompt), completion) for prompt, completion in kept["rows"]]

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    async def aclose(self) -> None: ...

    def _answer(self, request: Request) -> Answer:
        started = time.perf_counter()
        asked = _words(request.messages[-1]["content"])
        shares = [len(asked & words) / max(len(asked | words), 1) for words, _ in self._rows]
        best = max(range(len(shares)), key=shares.__getitem__)
        if shares[best] < self._least:
            return Answer(None, "empty", error="no row is similar enough")
        return Answer(self._rows[best][1], latency_s=time.perf_counter() - started, model="nearest")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
