"""The `linear` backend: TF-IDF and logistic regression, on this machine, in seconds.

The cheapest thing to try before a language model. A job is a folder `<workspace>/<token>/` that appears
whole, by rename, and holds its data; its outcome file, written last, ends it. `submit` trains at once; a
job whose process was killed is finished by the next `poll`, with the same result.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from distillctl import registry
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
from distillctl.errors import BackendError, MissingExtra, Problem, StorageError, StudentError
from distillctl.recipe.models import ClassificationSpec, EvaluateSpec, Strict
from distillctl.store.files import (
    SAFE_NAME,
    digest_file,
    digest_tree,
    exclusive_lock,
    read_json,
    read_jsonl,
    safe_join,
    write_json,
    write_jsonl,
)
from distillctl.task import ClassificationTask, Task, build_task
from distillctl.testing.crash import crashpoint
from distillctl.types import Predictor

JOB = "job.json"
ROWS = "train.jsonl"
OUTCOME = "outcome.json"  # written last: {"state", "message", "events"}
STUDENT = "student"


class LinearSettings(Strict):
    """Settings of the `linear` backend."""

    c: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Inverse strength of the L2 penalty, scikit-learn's `C`: higher fits the training rows closer."""


class LinearBackend:
    """Trains a linear classifier on the words of the prompts; `model` says what it looks at."""

    name: ClassVar[str] = "linear"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification"}), label_probabilities=True, data_leaves_machine=False,
        student_is_local=True)
    Settings: ClassVar[type[LinearSettings]] = LinearSettings

    def __init__(self, settings: LinearSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        problems = list(registry.needs(self.name, "sklearn", "scipy", "safetensors"))
        if not isinstance(job.task, ClassificationTask):
            problems.append(Problem("the linear backend answers with one of a few labels only",
                                    field="task.kind", value=job.task.kind,
                                    hint="use another backend for this task"))
        elif job.train_file.is_file():
            problems.extend(_row_problems(job))
        return Preflight(
            problems=tuple(problems), cost_usd=(0.0, 0.0), duration_s=(0.5, 5.0 + job.rows / 200),
            notes=("TF-IDF of words and characters with logistic regression; `train` and `student.model` do "
                   "not apply",))

    def stage(self, job: TrainJob) -> Staged:
        """Nothing moves: `submit` takes the rows into the job's folder."""
        return Staged({"digest": job.digest})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        folder = self._folder(token)
        if folder is None:
            raise Rejected(f"not a usable token: {token!r}")
        if problems := self.preflight(job).problems:
            raise Rejected("\n".join(map(str, problems)))
        if not folder.exists():
            self._create(job, folder)
        self._finish(folder)
        return self._handle(folder)

    def find(self, token: str) -> list[JobHandle]:
        folder = self._folder(token)
        return [self._handle(folder)] if folder is not None and folder.is_dir() else []

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        folder = self._folder(handle.job_id)
        if folder is None or not folder.is_dir():
            return Snapshot("lost", "gone", f"there is no folder {handle.job_id} in {self._env.workspace}")
        outcome = self._finish(folder)
        if outcome is None:
            return Snapshot("running", "training", "another process trains it")
        return Snapshot(outcome["state"], outcome["state"], outcome["message"],
                        tuple(JobEvent(**event) for event in outcome["events"]))

    def cancel(self, handle: JobHandle) -> None:
        """Ends a job that a killed process left unfinished; one that is being trained runs out."""
        folder = self._folder(handle.job_id)
        if folder is not None and folder.is_dir() and not (folder / OUTCOME).exists():
            with _try_lock(folder) as mine:
                if mine and not (folder / OUTCOME).exists():
                    self._end(folder, "cancelled", "", "cancelled before it was trained")

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        folder = self._folder(handle.job_id)
        outcome = self._finish(folder) if folder is not None and folder.is_dir() else None
        if folder is None or outcome is None or outcome["state"] != "succeeded":
            raise BackendError(Problem("there is no trained student", where=str(self._env.workspace),
                                       value=handle.job_id))
        shutil.copytree(folder / STUDENT, into, dirs_exist_ok=True)
        files = digest_tree(folder / STUDENT)
        return StudentRef(self.name, "model", "tf-idf + logistic regression", path=".", files=files)

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Predictor]:
        if missing := registry.needs(self.name, "sklearn", "scipy", "safetensors"):
            raise MissingExtra.of(missing)
        from distillctl_linear.predictor import LinearPredictor

        root = safe_join(folder, student.path or ".")
        for name, digest in student.files.items():
            path = safe_join(root, name)
            if not path.is_file() or digest_file(path) != digest:
                raise StudentError(Problem("is missing or was changed since it was collected",
                                           where=str(path), hint="collect it again: run the recipe"))
        yield LinearPredictor(root, task)

    # --- a job's folder ---

    def _folder(self, token: str) -> Path | None:
        """Where the job of a token is, or None for a name that is no folder's."""
        return self._env.workspace / token if SAFE_NAME.fullmatch(token) else None

    def _create(self, job: TrainJob, folder: Path) -> None:
        """Make the job's folder appear whole; the first of two processes wins."""
        draft = folder.parent / f".tmp-{folder.name}-{secrets.token_hex(6)}"
        draft.mkdir(parents=True)
        write_jsonl(draft / ROWS, read_jsonl(job.train_file))
        write_json(draft / JOB, {
            "name": job.name, "task": job.task.spec.model_dump(mode="json"),
            "settings": self._settings.model_dump(), "digest": job.digest,
            "created_at": self._env.clock()})
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft)
            if not folder.is_dir():
                raise

    def _handle(self, folder: Path) -> JobHandle:
        created = read_json(folder / JOB)["created_at"]
        return JobHandle(self.name, folder.name, folder.name, created_at=created)

    def _finish(self, folder: Path) -> dict | None:
        """The job's outcome, trained now if it has none; None while another process trains it."""
        if not (folder / OUTCOME).exists():
            with _try_lock(folder) as mine:
                if not mine:
                    return None
                if not (folder / OUTCOME).exists():
                    self._train(folder)
        return read_json(folder / OUTCOME)

    def _train(self, folder: Path) -> None:
        from distillctl_linear.model import fit

        job = read_json(folder / JOB)
        task = build_task(ClassificationSpec.model_validate(job["task"]))
        rows = list(read_jsonl(folder / ROWS))
        answers = [task.parse(row["completion"]).value for row in rows]
        started = self._env.clock()
        crashpoint("linear-training")
        try:
            model = fit([row["messages"] for row in rows], answers, job["settings"]["c"])
        except ValueError as error:
            self._end(folder, "failed", str(error), "the training failed")
        else:
            model.save(folder / STUDENT)
            crashpoint("linear-trained")
            self._end(folder, "succeeded", "",
                      f"trained on {len(rows)} rows in {self._env.clock() - started:.1f} s")

    def _end(self, folder: Path, state: str, message: str, event: str) -> None:
        write_json(folder / OUTCOME, {
            "state": state, "message": message,
            "events": [{"key": "end", "time": self._env.clock(), "message": event}]})


@contextmanager
def _try_lock(folder: Path) -> Iterator[bool]:
    """True where this process now has the job to itself."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / "lock"))
        except StorageError:
            yield False
        else:
            yield True


def _row_problems(job: TrainJob) -> list[Problem]:
    """Rows that no linear classifier can learn from: unknown labels, or one label alone."""
    problems = []
    seen = set()
    for row in read_jsonl(job.train_file):
        label = job.task.parse(row["completion"]).value
        if label is None:
            problems.append(Problem("the answer is not one of the labels", where=row.get("source"),
                                    value=row["completion"]))
        seen.add(label)
    if not problems and len(seen) < 2:
        problems.append(Problem(
            "all training rows have one label, there is nothing to tell apart", where=str(job.train_file),
            value=next(iter(seen), None), hint="add examples of the other labels, or drop the baseline"))
    return problems[:20]
