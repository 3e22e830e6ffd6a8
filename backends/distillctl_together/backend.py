"""`backend: together`: fine-tuning at Together AI; the student answers from a dedicated deployment.

The API: https://docs.together.ai/docs/fine-tuning-quickstart. A job has no metadata: its token is its
suffix, where `find` looks for it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from distillctl.errors import BackendError, BudgetError, DistillctlError, Problem, StudentError
from distillctl.hosted import creating, unreachable
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec
from distillctl.secrets import Secret
from distillctl.servers import announced
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.testing.crash import crashpoint
from distillctl.types import JSON, Predictor
from distillctl.uploads import Sources, upload_rows
from distillctl_together.client import (
    Failed,
    Service,
    account,
    entries,
    is_id,
    is_model,
    raise_for_account,
)
from distillctl_together.data import size_of, sources
from distillctl_together.predictor import Meter, TogetherPredictor
from distillctl_together.preflight import Examination, cost_of
from distillctl_together.request import price_question, translate
from distillctl_together.serving import Serving, Target, serving_usd
from distillctl_together.settings import TogetherSettings
from distillctl_together.story import events_of, failure_of, seconds_of

UPLOAD_PATIENCE_S = 600.0  # a file that is not validated for so long is uploaded anew
_STATES: dict[str, JobState] = {
    "pending": "queued", "queued": "queued", "running": "running", "compressing": "running",
    "uploading": "running", "cancel_requested": "running", "completed": "succeeded", "error": "failed",
    "user_error": "failed", "cancelled": "cancelled"}
_OWN_TOKEN = re.compile(r"[a-z0-9]{8,40}")


class TogetherBackend:
    """Tunes at Together; the student stays there, and answers while a deployment runs."""

    name: ClassVar[str] = "together"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), label_probabilities=True,
        data_leaves_machine=True, reports_cost=True, student_is_local=False, untrained_answers=True,
        settings_aside=frozenset({
            "api_key_env", "training_price", "config", "price_per_hour", "inactive_timeout", "start_timeout",
            "timeout"}))
    Settings: ClassVar[type[TogetherSettings]] = TogetherSettings

    def __init__(self, settings: TogetherSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        return Examination(job, self._model(job), self._settings, self._env).run()

    def stage(self, job: TrainJob) -> Staged:
        rows = list(upload_rows(job.train_file))
        upload = "distillctl-" + digest_json([row.line for row in rows]).removeprefix("sha256:")[:32]
        with Service(self._settings, self._env) as service:
            data = "".join(row.line for row in rows).encode()
            file_id = self._file(service, f"{upload}.jsonl", data)
            self._sources.keep(file_id, [row.source for row in rows])
            self._check_file(service, file_id)
            limits = service.read(service.sdk.fine_tuning.with_raw_response.model_limits,
                                  model_name=self._model(job)) or {}
            found = translate(job, size_of(iter(rows)), limits)
            if found.problems:
                raise Rejected("; ".join(map(str, found.problems)))
            usd = self._price(service, job, file_id, found.arguments)
        most = cost_of(size_of(iter(rows)), int(found.arguments["n_epochs"]), self._settings)
        if usd is not None and most is not None and usd > most[1]:
            raise Rejected(f"Together estimates ${usd:.2f}, above the ${most[1]:.2f} that "
                           "backends.together.training_price allows")
        return Staged({"file": file_id, "request": found.arguments}, usd)

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        request = staged.data["request"]
        if not isinstance(request, dict):
            raise Rejected("what was staged cannot be read; run again")
        with (creating(lambda failed: f"{self._settings.host} says: {failed}"),
              Service(self._settings, self._env) as service):
            made = service.create(model=self._model(job), training_file=str(staged.data["file"]),
                                  suffix=token, **request)
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no job")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        if not _OWN_TOKEN.fullmatch(token):
            return []
        with Service(self._settings, self._env) as service:
            listing = service.read(service.sdk.fine_tuning.with_raw_response.list)
            found = {job["id"]: handle for job in entries(listing or {}) if _suffix(job) == token
                     and (handle := self._handle(job, token))}
        return sorted(found.values(), key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        with Service(self._settings, self._env) as service:
            job = self._job(service, handle)
            if job is None:
                ours = account(self._settings, self._env)
                return Snapshot("lost", "404", f"{self._settings.host} has no job {handle.job_id} for "
                                f"account {ours}; it was made with {handle.account}", cursor=cursor)
            word = job.get("status")
            word = word if isinstance(word, str) and word else "none"
            told = service.read(service.sdk.fine_tuning.with_raw_response.list_events, handle.job_id) or {}
            metrics, cursor = self._metrics(service, handle, cursor)
        state = _STATES.get(word, "unknown")
        events = events_of(told.get("data"), lambda text: self._sources.translate(
            job.get("training_file"), text))
        message = failure_of(events) if state == "failed" else ""
        return Snapshot(state, word, message, (*events, *metrics), cursor, _cost(job, state))

    def cancel(self, handle: JobHandle) -> None:
        if not is_id(handle.job_id):
            return
        with Service(self._settings, self._env) as service:
            try:
                service.call(service.sdk.fine_tuning.with_raw_response.cancel, handle.job_id)
            except Failed as failed:
                raise_for_account(failed, self._settings)
                if failed.status not in (400, 404, 409, 422):  # those: it has ended, or is not there
                    raise unreachable(failed) from failed

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        with Service(self._settings, self._env) as service:
            job = self._job(service, handle) or {}
        # whole weights (trained so, or merged) where it has them, else the adapter, deployed in its own right
        weights = job.get("model_object_id") or job.get("adapter_object_id")
        model = job.get("model_output_name")
        if job.get("status") != "completed" or not is_model(model) or not is_id(weights):
            raise BackendError(Problem("there is no tuned model", where=self._settings.host,
                                       value=handle.job_id))
        return StudentRef(self.name, "hosted", model, data={
            "base_model": job.get("model"), "job_id": handle.job_id, "object": weights})

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Predictor]:
        if student.kind != "hosted" or not is_model(student.model):
            raise StudentError(Problem("is no model at this service", where=self._settings.host,
                                       value=student.model))
        name = f"distillctl-{new_token()}"
        with Service(self._settings, self._env) as service:
            serving = Serving(service, self._settings)
            try:
                target = serving.of_student(student) if student.data.get(
                    "object") else serving.of_base(student.model)
            except Unreachable as error:
                raise self._not_now(error) from error
            if target is None:
                raise StudentError(Problem("no deployment of this model is offered", value=student.model,
                                           where=self._settings.host))
            self._check_budget(target)
            meter = Meter(target.usd_per_hour)
            with announced(self._env, self.name, name, self._settings.model_dump(mode="json")) as note:
                try:
                    self._env.tell(f"starting deployment {name} of {student.model} "
                                   f"({target.hardware or 'hardware unknown'}); this takes minutes")
                    endpoint = serving.start(name, target, lambda: note.change(
                        created=self._env.clock(), usd_per_hour=target.usd_per_hour))
                    crashpoint("after-deployment")
                    key = self._settings.api_key_env
                    yield TogetherPredictor(
                        student.model, endpoint, self._settings, Secret(key, self._env.secret(key) or ""),
                        task, how.max_tokens, meter)
                except Unreachable as error:
                    raise self._not_now(error) from error
                finally:
                    # what cannot be stopped now stays announced, and is stopped by the next command
                    with suppress(Unreachable, DistillctlError):
                        serving.stop(name)
                        note.change(stopped=self._env.clock(), usd_elsewhere=meter.usd)

    def stop_server(self, name: str) -> bool:
        """Stop what `open` started as `name`; whether there was anything."""
        with Service(self._settings, self._env) as service:
            return Serving(service, self._settings).stop(name)

    def _check_budget(self, target: Target) -> None:
        """That a deployment may run for as long as it would, idle, if this process died. Raises
        BudgetError."""
        least, left = serving_usd(target, self._settings), self._env.budget_left()
        if least > left:
            raise BudgetError(Problem(
                f"a deployment at ${target.usd_per_hour:.2f} an hour takes ${least:.2f} at least, and "
                f"${max(0.0, left):.2f} of the budget are left", where=self._settings.host,
                field="budget.max_usd", hint="none was started; raise it, or have fewer things answer there: "
                "--set evaluate.base=false"))

    # --- the upload ---

    def _file(self, service: Service, filename: str, data: bytes) -> str:
        """The id of the uploaded file, of an earlier `stage` where it can be used."""
        listing = service.read(service.sdk.files.with_raw_response.list)
        for file in entries(listing or {}):
            if file.get("filename") == filename and file.get("bytes") == len(data) and is_id(
                    file["id"]) and file.get("processing_status") != "FAILED":
                return file["id"]
        with tempfile.TemporaryDirectory(prefix="distillctl-upload-") as folder:
            path = Path(folder) / filename
            path.write_bytes(data)
            try:
                return service.upload(path)
            except Failed as failed:
                raise_for_account(failed, self._settings)
                if failed.refused and failed.status != 429:
                    raise Rejected(str(failed)) from failed
                raise unreachable(failed) from failed

    def _check_file(self, service: Service, file_id: str) -> None:
        """That the service has validated the file and found it good."""
        file = service.read(service.sdk.files.with_raw_response.retrieve, file_id) or {}
        status, report = file.get("processing_status"), file.get("validation_report")
        report = report if isinstance(report, dict) else {}
        if status == "INVALID_FORMAT" or report.get("valid") is False:
            said = self._sources.translate(file_id, str(report.get("error") or "no reason given"))
            raise Rejected(f"{self._settings.host} finds the training data wrong: {said}")
        if status == "FAILED":
            raise Rejected(f"{self._settings.host} could not process file {file_id}; run again to upload it "
                           "anew")
        if status in ("PENDING", "QUEUED", "RUNNING"):
            created = file.get("created_at")
            if isinstance(created, int | float) and self._env.clock() - created > UPLOAD_PATIENCE_S:
                service.read(service.sdk.files.with_raw_response.delete, file_id)
                raise Unreachable(f"file {file_id} was never validated ({status}): uploading it anew", 1.0)
            raise NotYet(f"file {file_id} is being validated ({status})", 1.0)

    def _price(self, service: Service, job: TrainJob, file_id: str,
               arguments: dict[str, JSON]) -> float | None:
        """The service's own estimate, US dollars; None where it makes none."""
        try:
            found = service.call(service.sdk.fine_tuning.with_raw_response.estimate_price,
                                 model=self._model(job), training_file=file_id, **price_question(arguments))
        except Failed as failed:
            raise_for_account(failed, self._settings)
            if failed.refused and failed.status != 429:
                raise Rejected(f"{self._settings.host} says: {failed}") from failed
            raise unreachable(failed) from failed
        if found.get("unavailable_reason") == "train_file_not_validated":
            raise NotYet(f"file {file_id} is not validated yet", 1.0)
        if found.get("unavailable_reason") == "train_file_invalid":
            raise Rejected(f"{self._settings.host} finds file {file_id} invalid")
        usd = found.get("estimated_total_price")
        usd = float(usd) if isinstance(usd, int | float) and not isinstance(usd, bool) else None
        if found.get("allowed_to_proceed") is False:
            cost = "an unknown amount" if usd is None else f"${usd:.2f}"
            limit = found.get("user_limit")
            of = f" (${limit:.2f})" if isinstance(limit, int | float) else ""
            raise Rejected(f"{self._settings.host} does not allow this job: it would cost {cost}, above the "
                           f"account's limit{of}; add credit there")
        return usd

    # --- the job ---

    @property
    def _sources(self) -> Sources:
        return sources(self._env.workspace)

    def _model(self, job: TrainJob) -> str:
        return self._settings.model or job.model

    def _job(self, service: Service, handle: JobHandle) -> dict[str, Any] | None:
        if not is_id(handle.job_id):
            return None
        return service.read(service.sdk.fine_tuning.with_raw_response.retrieve, handle.job_id)

    def _handle(self, job: dict[str, Any], token: str) -> JobHandle | None:
        job_id = job.get("id")
        if not is_id(job_id):
            return None
        url = f"https://api.together.ai/fine-tuning/{job_id}" if self._settings.is_together else None
        return JobHandle(self.name, job_id, token, account(self._settings, self._env),
                         seconds_of(job.get("created_at")), url)

    def _metrics(self, service: Service, handle: JobHandle,
                 cursor: str | None) -> tuple[list[JobEvent], str | None]:
        """What was measured after step `cursor`; nothing where it cannot be told: the state counts more."""
        after = int(cursor) if cursor and cursor.isdecimal() else 0
        try:
            found = service.read(service.sdk.fine_tuning.with_raw_response.list_metrics, handle.job_id,
                                 global_step_from=after + 1)
        except Unreachable:
            return [], cursor
        told = []
        for row in (found or {}).get("metrics") or ():
            numbers = {ours: row.get(f"train/{theirs}") for ours, theirs in (
                ("step", "global_step"), ("loss", "loss"), ("learning_rate", "learning_rate"))}
            step = numbers["step"]
            if isinstance(step, int | float) and step > after:
                data = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
                told.append(JobEvent(f"step-{step:g}", self._env.clock(), f"step {step:g}", data=data))
        return told, str(max([after, *(int(event.data["step"]) for event in told)]))

    def _not_now(self, error: Unreachable) -> StudentError:
        return StudentError(Problem(f"the student cannot be asked now: {error}", where=self._settings.host,
                                    hint="run again later; what was done is kept"))


def _suffix(job: dict[str, Any]) -> str | None:
    """The token in a listed job: its suffix, or where it has none, the same word in its model's name,
    <owner>/<base>-<suffix>-<hash>."""
    if isinstance(job.get("suffix"), str):
        return job["suffix"]
    parts = str(job.get("model_output_name") or "").split("-")
    return parts[-2] if len(parts) > 2 else None


def _cost(job: dict[str, Any], state: JobState) -> float | None:
    """What was billed: `total_price` counts billionths of a dollar. None before the end."""
    nano = job.get("total_price")
    known = isinstance(nano, int) and not isinstance(nano, bool)
    return nano / 1e9 if known and state in ("succeeded", "failed", "cancelled") else None
