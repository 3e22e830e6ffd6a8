"""`backend: local`: trains a student on this machine, in a process of its own.

A job is a folder, `<workspace>/jobs/<token>/`, whole from the moment it has this name: the rename that
gives it is the create request of this backend.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from distillctl import registry
from distillctl.backend import (
    API_VERSION,
    Ambiguous,
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
from distillctl.errors import BackendError, Problem
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import digest_file, read_json, safe_join, sync_folder, sync_tree, write_json
from distillctl.task import Task
from distillctl.types import Predictor
from distillctl_local import engines, frozen, process, tracking
from distillctl_local.settings import LocalSettings

_TOKEN = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ROWS = "train.jsonl"
_LOG = "trainer.log"
_CANCELLED = "cancelled"
NEEDS = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "gguf")


class LocalBackend:
    """Trains with transformers, PEFT and TRL on a CPU or a GPU, or with Unsloth on a GPU."""

    name: ClassVar[str] = "local"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), label_probabilities=True,
        data_leaves_machine=False, reports_cost=False, student_is_local=True, untrained_answers=True,
        training_version=3)
    Settings: ClassVar[type[LocalSettings]] = LocalSettings

    def __init__(self, settings: LocalSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        missing = registry.needs(self.name, *NEEDS)
        if missing:
            return Preflight(problems=missing)
        from distillctl_local.preflight import examine

        return examine(job, self._model(job), self._settings, self._env)

    def stage(self, job: TrainJob) -> Staged:
        from distillctl_local.models import is_at_hand, model_folder

        # Fetched here, where the Hub's token is: the trainer gets none, and stays off the network.
        if not is_at_hand(self._model(job), job.revision):
            model_folder(self._model(job), job.revision)
        folder = self._env.workspace / "staged" / job.digest.removeprefix("sha256:")[:32]
        target = folder / _ROWS
        if not target.exists() or digest_file(target) != job.digest:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / "train.partial"
            shutil.copyfile(job.train_file, partial)
            partial.replace(target)
        return Staged({"folder": folder.name})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        if not _TOKEN.fullmatch(token):
            raise Rejected(f"{token!r} is no name for a local job")
        folder = self._jobs() / token
        partial = folder.parent / f".{token}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            rows = safe_join(self._env.workspace / "staged", str(staged.data["folder"]))
            shutil.copyfile(rows / _ROWS, partial / _ROWS)
            if self._settings.watches:
                shutil.copyfile(job.dev_file, partial / "dev.jsonl")
            write_json(partial / "job.json", {
                "name": job.name, "model": self._model(job), "revision": job.revision, "rows": job.rows,
                "digest": job.digest, "created": self._env.clock(),
                "train": job.train.model_dump(mode="json"),
                "task": job.task.spec.model_dump(mode="json"),
                "evaluate": job.how.model_dump(mode="json"),
                "settings": self._settings.model_dump(mode="json") | {"engine": self._engine(job)}})
            sync_tree(partial)
        except OSError as error:
            raise Rejected(f"the job's folder {folder} cannot be made: {error.strerror}") from None
        try:
            partial.rename(folder)  # the job is there, whole; a kill from here on is mended by `poll`
            sync_folder(folder.parent)
            self._start(folder)
        except OSError as error:
            raise Ambiguous(f"the trainer could not be started for certain: {error.strerror}") from error
        return self._handle(token)

    def find(self, token: str) -> list[JobHandle]:
        return [self._handle(token)] if self._folder(token) else []

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        folder = self._folder(handle.job_id)
        if folder is None:
            return Snapshot("lost", "no folder", f"there is no such job in {self._jobs()}", (), cursor)
        alive = process.is_alive(folder)  # before the outcome is read: it may end in between
        outcome = _outcome(folder)
        events, cursor = _events(folder, cursor)
        if outcome is not None:
            state = "succeeded" if outcome["ok"] else "failed"
            return Snapshot(state, "done", str(outcome.get("message", "")), events, cursor)
        if (folder / _CANCELLED).exists():
            process.end(folder)
            state = "running" if alive else "cancelled"
            return Snapshot(state, "ending" if alive else "cancelled", "", events, cursor)
        if alive:
            return Snapshot("running", "running", "", events, cursor)
        if process.restarts(folder) < self._settings.restarts:
            begun = (folder / _LOG).exists()  # else we were killed between the rename and the start
            self._start(folder, again=begun)
            return Snapshot("running", "restarted" if begun else "started", "", events, cursor)
        message = (f"the trainer died {process.restarts(folder) + 1} times; the end of its log: "
                   f"{_log_end(folder)}")
        return Snapshot("failed", "died", message, events, cursor)

    def cancel(self, handle: JobHandle) -> None:
        folder = self._folder(handle.job_id)
        if folder and _outcome(folder) is None:
            (folder / _CANCELLED).touch()
            process.end(folder)

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        from distillctl_local.result import kind_of

        folder = self._folder(handle.job_id)
        outcome = _outcome(folder) if folder else None
        if outcome is None or not outcome["ok"]:
            raise BackendError(Problem("this job has no student to collect", where=str(self._jobs()),
                                       value=handle.job_id))
        kind = kind_of(outcome["files"])
        if kind is None:
            raise BackendError(Problem("the trainer left other files than an adapter or a model",
                                       where=str(folder / "result"), value=sorted(outcome["files"])))
        for name, digest in outcome["files"].items():
            shutil.copyfile(folder / "result" / name, into / name)
            if digest_file(into / name) != digest:
                raise BackendError(Problem("was changed after training", where=str(folder / "result" / name),
                                           hint="run again with --resubmit to train anew"))
        job = read_json(folder / "job.json")
        data = {"revision": job["revision"], "rows": job["rows"], "seconds": outcome["seconds"]}
        if (folder / frozen.IN_JOB).exists():
            data[frozen.IN_STUDENT] = read_json(folder / frozen.IN_JOB)
        return StudentRef(self.name, kind, job["model"], ".", outcome["files"], data)

    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> AbstractContextManager[Predictor]:
        from distillctl_local.predictor import open_local

        return open_local(student, folder, task, how, device=self._settings.device,
                          precision=self._settings.precision, threads=self._settings.threads)

    def _engine(self, job: TrainJob) -> str:
        """Chosen here, and noted in the job: the trainer must know before it imports a library."""
        from distillctl_local.preflight import sharing_ratio

        return engines.choose_engine(self._settings, job.train,
                                     sharing_ratio(job, self._model(job), self._settings))[0]

    def _model(self, job: TrainJob) -> str:
        """The model's name; a folder's from the root, because the trainer works in a folder of its own."""
        from distillctl_local.models import ALIASES

        name = self._settings.model or job.model
        folder = Path(name).expanduser()
        return str(folder.resolve()) if name not in ALIASES and folder.is_dir() else name

    def _start(self, folder: Path, again: bool = False) -> None:
        settings = read_json(folder / "job.json")["settings"]  # the job's, not what the recipe says by now
        process.start(folder, again=again, devices=settings.get("devices", 1),
                      also=tracking.variables(self._settings.report_to))

    def _jobs(self) -> Path:
        return self._env.workspace / "jobs"

    def _folder(self, job_id: str) -> Path | None:
        """The folder of a job that is there."""
        folder = self._jobs() / job_id if _TOKEN.fullmatch(job_id) else None
        return folder if folder and folder.is_dir() else None

    def _handle(self, token: str) -> JobHandle:
        folder = self._jobs() / token
        return JobHandle(self.name, token, token, "this machine", read_json(folder / "job.json")["created"],
                         url=(folder / _LOG).absolute().as_uri())


def _outcome(folder: Path) -> dict | None:
    done = folder / "done.json"
    return read_json(done) if done.exists() else None


def _events(folder: Path, cursor: str | None) -> tuple[tuple[JobEvent, ...], str]:
    """Whole lines from byte `cursor` on; half a line, being written, is left for the next poll."""
    start = int(cursor or 0)
    path = folder / "events.jsonl"
    if not path.exists():
        return (), str(start)
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    whole = text[:text.rfind(b"\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    return tuple(JobEvent(row["key"], row["time"], row["message"], row["level"], row["data"])
                 for row in rows), str(start + len(whole))


def _log_end(folder: Path) -> str:
    path = folder / _LOG
    if not path.exists():
        return "(empty)"
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-3:])[-500:] or "(empty)"
