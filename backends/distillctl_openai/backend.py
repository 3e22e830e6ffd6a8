"""`backend: openai`: supervised fine-tuning at OpenAI, or at a server that speaks its API.

The API: https://developers.openai.com/api/reference/resources/fine_tuning. A job carries its token in its
metadata, where `find` looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from distillctl.backend import (
    API_VERSION,
    Ambiguous,
    BackendEnv,
    Capabilities,
    JobEvent,
    JobHandle,
    JobState,
    NotYet,
    Preflight,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
    Unreachable,
)
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.hosted import Failed, creating, unreachable
from distillctl.recipe.models import EvaluateSpec
from distillctl.sdk_calls import is_name
from distillctl.secrets import Secret
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Predictor
from distillctl.uploads import upload_rows
from distillctl_openai.client import Service, account, raise_for_account
from distillctl_openai.data import sources
from distillctl_openai.preflight import INSTEAD, answer_price, epochs, examine
from distillctl_openai.settings import OpenAISettings

TOKEN = "distillctl_token"
UPLOAD = "distillctl_upload"
_STATES: dict[str, JobState] = {
    "validating_files": "queued", "queued": "queued", "running": "running", "succeeded": "succeeded",
    "failed": "failed", "cancelled": "cancelled"}
_OWN_TOKEN = re.compile(r"[a-z0-9]{8,64}")
_NOT_YET = frozenset({"uploaded", "pending", "running"})
_SETTLING_S = 600.0  # how long a file's deprecated status word is believed


class OpenAIBackend:
    """Tunes at OpenAI; the student stays there and answers there."""

    name: ClassVar[str] = "openai"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), label_probabilities=True,
        data_leaves_machine=True, reports_cost=True, student_is_local=False, untrained_answers=True,
        settings_aside=frozenset({"api_key_env", "training_price", "price", "timeout"}))
    Settings: ClassVar[type[OpenAISettings]] = OpenAISettings

    def __init__(self, settings: OpenAISettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        return examine(job, self._model(job), self._settings, self._env)

    def stage(self, job: TrainJob) -> Staged:
        rows = list(upload_rows(job.train_file))
        data = "".join(row.line for row in rows).encode()
        upload = "distillctl-" + digest_json([row.line for row in rows]).removeprefix("sha256:")[:32]
        sources(self._env.workspace).keep(upload, [row.source for row in rows])
        with Service(self._settings, self._env) as service:
            file = self._uploaded(service, f"{upload}.jsonl", len(data)) or self._upload(
                service, f"{upload}.jsonl", data)
        if file.get("status") in _NOT_YET and self._env.clock() - _seconds(file) < _SETTLING_S:
            raise NotYet(f"file {file['id']} is still being processed", 2.0)
        return Staged({"file": file["id"], "upload": upload})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        with creating(self._refusal), Service(self._settings, self._env) as service:
            made = service.call(service.sdk.fine_tuning.jobs.with_raw_response.create,
                                **self._request(job, staged, token))
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no job")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        if not _OWN_TOKEN.fullmatch(token):
            return []
        with Service(self._settings, self._env) as service:
            listed = service.pages(service.sdk.fine_tuning.jobs.with_raw_response.list,
                                   metadata={TOKEN: token})
            # the filter is the server's, and a server may not know it
            found = [handle for job in listed if _metadata(job).get(TOKEN) == token
                     and (handle := self._handle(job, token))]
        return sorted(found, key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        with Service(self._settings, self._env) as service:
            job = self._job(service, handle)
            if job is None:
                ours = account(self._settings, self._env)
                return Snapshot("lost", "404", f"{self._settings.host} has no job {handle.job_id} for "
                                f"account {ours}; it was made with {handle.account}", cursor=cursor)
            events, cursor = self._events(service, handle, cursor)
        word = job.get("status")
        word = word if isinstance(word, str) and word else "none"
        state = _STATES.get(word, "unknown")
        return Snapshot(state, word, self._message(job, handle), events, cursor, self._cost(job))

    def cancel(self, handle: JobHandle) -> None:
        if not is_name(handle.job_id):
            return
        with Service(self._settings, self._env) as service:
            try:
                service.call(service.sdk.fine_tuning.jobs.with_raw_response.cancel, handle.job_id)
            except Failed as failed:
                raise_for_account(failed, self._settings)
                if failed.status not in (400, 404, 409, 422):  # those: it has ended, or is not there
                    raise unreachable(failed) from failed

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        with Service(self._settings, self._env) as service:
            job = self._job(service, handle) or {}
            model = job.get("fine_tuned_model")
            if job.get("status") != "succeeded" or not is_name(model):
                raise BackendError(Problem("there is no tuned model", where=self._settings.host,
                                           value=handle.job_id))
            checkpoints = [
                {"step": point.get("step_number"), "model": point.get("fine_tuned_model_checkpoint")}
                for point in service.pages(
                    service.sdk.fine_tuning.jobs.checkpoints.with_raw_response.list, handle.job_id)]
        return StudentRef(self.name, "hosted", model, data={
            "base_model": job.get("model"), "job_id": handle.job_id,
            "trained_tokens": _count(job.get("trained_tokens")), "checkpoints": checkpoints})

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Predictor]:
        from distillctl.predictors.openai_chat import OpenAIPredictor

        if student.kind != "hosted" or not is_name(student.model):
            raise StudentError(Problem("is no model at this service", where=self._settings.host,
                                       value=student.model))
        with Service(self._settings, self._env) as service:
            if service.read(service.sdk.models.with_raw_response.retrieve, student.model) is None:
                raise StudentError(Problem(
                    "is not there (any more) for this key", where=self._settings.host, value=student.model,
                    hint="models end with the model that they were tuned from; train again elsewhere"))
        key, base = self._settings.api_key_env, student.data.get("base_model")
        yield OpenAIPredictor(
            student.model, base_url=self._settings.base_url,
            api_key=Secret(key, self._env.secret(key) or "") if key else None,
            max_tokens=how.max_tokens, timeout=self._settings.timeout,
            price=answer_price(student.model if base else None, str(base or student.model), self._settings),
            json_schema=task.json_schema, labels=task.labels)

    # --- the upload ---

    def _uploaded(self, service: Service, name: str, size: int) -> dict[str, Any] | None:
        """The file of an earlier `stage`, if it can be used."""
        for file in service.pages(service.sdk.files.with_raw_response.list, purpose="fine-tune"):
            if (file.get("filename") == name and file.get("bytes") == size and is_name(file["id"])
                    and file.get("status") not in ("error", "deleted")):
                return file
        return None

    def _upload(self, service: Service, name: str, data: bytes) -> dict[str, Any]:
        try:
            file = service.call(service.sdk.files.with_raw_response.create, file=(name, data),
                                purpose="fine-tune")
        except Failed as failed:
            raise_for_account(failed, self._settings)
            if failed.refused and failed.status != 429:
                raise Rejected(str(failed)) from failed
            raise unreachable(failed) from failed
        if not is_name(file.get("id")):
            raise Unreachable("the reply to the upload names no file")
        if file.get("status") == "error":
            raise Rejected(f"the upload was refused: {file.get('status_details')}")
        return file

    # --- the job ---

    def _model(self, job: TrainJob) -> str:
        return self._settings.model or job.model

    def _request(self, job: TrainJob, staged: Staged, token: str) -> dict[str, Any]:
        chosen = {"n_epochs": epochs(job, self._settings), "batch_size": self._settings.batch_size,
                  "learning_rate_multiplier": self._settings.learning_rate_multiplier}
        request = {
            "model": self._model(job), "training_file": str(staged.data["file"]), "seed": job.train.seed,
            "metadata": {TOKEN: token, UPLOAD: str(staged.data["upload"])},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {
                name: "auto" if value is None else value for name, value in chosen.items()}}}}
        return request | ({"suffix": self._settings.suffix} if self._settings.suffix else {})

    def _refusal(self, failed: Failed) -> str:
        said = f"{self._settings.host} says: {failed}"
        if failed.status == 401:
            return f"{said}. The key in {self._settings.api_key_env} is not accepted"
        if failed.status == 403:
            return f"{said}. {INSTEAD}"
        return said

    def _job(self, service: Service, handle: JobHandle) -> dict[str, Any] | None:
        if not is_name(handle.job_id):
            return None
        return service.read(service.sdk.fine_tuning.jobs.with_raw_response.retrieve, handle.job_id)

    def _handle(self, job: dict[str, Any], token: str) -> JobHandle | None:
        job_id = job.get("id")
        if not is_name(job_id):
            return None
        url = f"https://platform.openai.com/finetune/{job_id}" if self._settings.is_openai else None
        return JobHandle(self.name, job_id, token, account(self._settings, self._env),
                         _seconds(job), url, {"upload": _metadata(job).get(UPLOAD)})

    def _events(self, service: Service, handle: JobHandle,
                cursor: str | None) -> tuple[tuple[JobEvent, ...], str | None]:
        """The events after the one that `cursor` names, oldest first, and the newest one's id."""
        new = []
        for event in service.pages(service.sdk.fine_tuning.jobs.with_raw_response.list_events,
                                   handle.job_id):
            if event["id"] == cursor:
                break
            new.append(event)
        told = tuple(self._event(event, handle) for event in reversed(new))
        return told, new[0]["id"] if new else cursor

    def _event(self, event: dict[str, Any], handle: JobHandle) -> JobEvent:
        message = self._translate(str(event.get("message", "")), handle)
        level = {"warn": "warning", "warning": "warning", "error": "error"}.get(event.get("level"), "info")
        data = event.get("data") if isinstance(event.get("data"), dict) else {}
        loss = data.get("full_valid_loss", data.get("valid_loss"))
        numbers = {"step": data.get("step"), "total_steps": data.get("total_steps"),
                   "loss": data.get("train_loss"), "eval_loss": loss}
        return JobEvent(event["id"], _seconds(event), message, level,
                        {name: value for name, value in numbers.items() if isinstance(value, int | float)})

    def _message(self, job: dict[str, Any], handle: JobHandle) -> str:
        error = job.get("error") if isinstance(job.get("error"), dict) else {}
        said = error.get("message")
        if not said:
            return ""
        code = f" ({error['code']})" if error.get("code") else ""
        return self._translate(f"{said}{code}", handle)

    def _translate(self, message: str, handle: JobHandle) -> str:
        return sources(self._env.workspace).translate(handle.data.get("upload"), message)

    def _cost(self, job: dict[str, Any]) -> float | None:
        """What was billed; None until the trained tokens are known."""
        tokens = _count(job.get("trained_tokens"))
        if tokens is None or self._settings.training_price is None:
            return None
        return tokens * self._settings.training_price / 1e6


def _metadata(job: dict[str, Any]) -> dict[str, JSON]:
    found = job.get("metadata")
    return found if isinstance(found, dict) else {}


def _seconds(thing: dict[str, Any]) -> float:
    at = thing.get("created_at")
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) else 0.0


def _count(value: JSON) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
