"""`backend: vertex`: supervised tuning at Google Vertex AI, of Gemini and of open models.

The API: https://docs.cloud.google.com/gemini-enterprise-agent-platform/reference/models/tuning. A job carries
its token as a label, where `find` looks for it, and in the tuned model's display name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from distillctl import registry
from distillctl.backend import (
    API_VERSION,
    Ambiguous,
    BackendEnv,
    Capabilities,
    JobHandle,
    Preflight,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
)
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.hosted import creating, unreachable
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Predictor
from distillctl.uploads import Sources, upload_rows
from distillctl_vertex import catalogue, story, weights
from distillctl_vertex.client import Failed, Service, raise_for_account
from distillctl_vertex.data import line_of, sources
from distillctl_vertex.preflight import answer_price, epochs, examine, hub_model
from distillctl_vertex.settings import VertexSettings
from distillctl_vertex.storage import Objects

_OWN_TOKEN = re.compile(r"[a-z0-9]{8,63}")  # what a label's value may hold
_SIZES = {1: "ONE", 2: "TWO", 4: "FOUR", 8: "EIGHT", 16: "SIXTEEN", 32: "THIRTY_TWO"}
_MODES = {"adapter": "TUNING_MODE_PEFT_ADAPTER", "full": "TUNING_MODE_FULL"}


class VertexBackend:
    """Tunes at Google. A Gemini student stays and answers there; an open one's weights come here."""

    name: ClassVar[str] = "vertex"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification", "structured", "text"}), label_probabilities=True,
        data_leaves_machine=True, reports_cost=True, student_is_local=False, untrained_answers=True,
        settings_aside=frozenset({"access_token_env", "training_price", "price", "timeout"}))
    Settings: ClassVar[type[VertexSettings]] = VertexSettings

    def __init__(self, settings: VertexSettings, env: BackendEnv) -> None:
        self._settings = settings
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        return examine(job, self._model(job), self._settings, self._env)

    def stage(self, job: TrainJob) -> Staged:
        gemini = catalogue.is_gemini(self._model(job))
        rows = list(upload_rows(job.train_file))
        lines = [line_of(row, gemini) for row in rows]
        upload = "distillctl-" + digest_json(lines).removeprefix("sha256:")[:32]
        self._sources.keep(upload, [row.source for row in rows])
        name = f"{self._settings.prefix}/data/{upload}.jsonl"
        with Service(self._settings, self._env) as service:
            Objects(service, self._settings).put_once(name, "".join(lines).encode())
        return Staged({"uri": f"gs://{self._settings.bucket}/{name}"})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        if not _OWN_TOKEN.fullmatch(token):
            raise Rejected(f"{token!r} cannot stand in a label")
        with (creating(lambda failed: f"{self._settings.host} says: {failed}"),
              Service(self._settings, self._env) as service):
            made = service.call(service.sdk.tunings.tune, **self._request(job, staged, token))
            handle = self._handle(made, token, service)
        if handle is None:
            raise Ambiguous("the reply names no job")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        if not _OWN_TOKEN.fullmatch(token):
            return []
        with Service(self._settings, self._env) as service:
            found = [handle for job in service.tuning_jobs() if story.token_of(job) == token
                     and (handle := self._handle(job, token, service))]
        return sorted(found, key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        if not story.NUMBER.fullmatch(handle.job_id):
            return Snapshot("lost", "404", f"{handle.job_id!r} is no tuning job's number", cursor=cursor)
        with Service(self._settings, self._env) as service:
            try:
                job = service.call(service.sdk.tunings.get, name=self._name(handle))
            except Failed as failed:
                return self._unseen(failed, handle, cursor, service.account)
        state = story.STATES.get(story.word_of(job), "unknown")
        events, cursor = story.events(job, self._sources, cursor)
        return Snapshot(state, story.word_of(job), story.message_of(job, self._sources), events, cursor,
                        story.cost(job, self._settings.training_price))

    def cancel(self, handle: JobHandle) -> None:
        if not story.NUMBER.fullmatch(handle.job_id):
            return
        with Service(self._settings, self._env) as service:
            try:
                service.call(service.sdk.tunings.cancel, name=self._name(handle))
            except Failed as failed:
                raise_for_account(failed, self._settings)
                if failed.status not in (400, 404, 409):  # those: it has ended, or is not there
                    raise unreachable(failed) from failed

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        with Service(self._settings, self._env) as service:
            job = service.read(service.sdk.tunings.get, name=self._name(handle)) if (
                story.NUMBER.fullmatch(handle.job_id)) else None
            if job is None or story.STATES.get(story.word_of(job)) != "succeeded":
                raise BackendError(Problem("there is no tuned model", where=self._settings.host,
                                           value=handle.job_id))
            facts: dict[str, JSON] = {
                "job_id": handle.job_id, "tuned_from": job.get("base_model"),
                "billable_tokens": story.count(job, "total_billable_token_count"),
                "dropped": story.dropped(job, self._sources)}
            model = str(job.get("base_model") or "")
            if catalogue.is_gemini(model.rpartition("/")[2]):
                return self._hosted(job, model.rpartition("/")[2], facts)
            return self._fetched(service, handle, model, into, facts)

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Predictor]:
        if student.kind != "hosted":
            local = registry.open_backend("local", {}, self._env)
            inner = StudentRef("local", student.kind, student.model, student.path, student.files,
                               student.data)
            with local.open(inner, folder, task, how) as predictor:
                yield predictor
            return
        from distillctl_vertex.predictor import GeminiPredictor

        endpoint = story.ENDPOINT.fullmatch(student.model)
        base = str(student.data.get("base_model") or student.model)
        if not catalogue.is_gemini(base) or not (endpoint or student.model == base):
            raise StudentError(Problem("is no model at this service", where=self._settings.host,
                                       value=student.model))
        location = endpoint[1] if endpoint else self._settings.location
        with Service(self._settings, self._env, location) as service:
            there = str(student.data.get("tuned_model")) if endpoint else base
            if service.read(service.sdk.models.get, model=there) is None:
                raise StudentError(Problem(
                    "is not there (any more) for this project", where=self._settings.host, value=there,
                    hint="models end with the model that they were tuned from; train again"))
            known = service.credentials
        yield GeminiPredictor(
            student.model, base, self._settings, known, location=location, max_tokens=how.max_tokens,
            price=answer_price(base, self._settings), json_schema=task.json_schema, labels=task.labels)

    # --- a job ---

    @property
    def _sources(self) -> Sources:
        return sources(self._env.workspace)

    def _model(self, job: TrainJob) -> str:
        return self._settings.model or job.model

    def _name(self, handle: JobHandle) -> str:
        """The job's resource name."""
        return (f"projects/{self._settings.project}/locations/{self._settings.location}/tuningJobs/"
                f"{handle.job_id}")

    def _students(self, token: str) -> str:
        """The folder of an open model's weights in the bucket."""
        return f"{self._settings.prefix}/students/{token}/"

    def _request(self, job: TrainJob, staged: Staged, token: str) -> dict[str, Any]:
        from google.genai import types

        model, settings = self._model(job), self._settings
        config: dict[str, Any] = {
            "epoch_count": epochs(job, settings), "tuned_model_display_name": f"distillctl-{token}",
            "labels": {story.TOKEN: token}}
        mode = "adapter"
        if catalogue.is_gemini(model):
            config["export_last_checkpoint_only"] = True  # every other one would get an endpoint too
            if settings.learning_rate_multiplier is not None:
                config["learning_rate_multiplier"] = settings.learning_rate_multiplier
        else:
            mode = catalogue.mode_of(model, settings.tuning_mode, job.train.lora)
            config |= {"tuning_mode": _MODES[mode], "batch_size": job.train.batch_size,
                       "learning_rate": settings.learning_rate or job.train.learning_rate,
                       "output_uri": f"gs://{settings.bucket}/{self._students(token)}"}
        if mode == "adapter":
            size = catalogue.adapter_size(model, settings.adapter_size, job.train.lora)
            config["adapter_size"] = f"ADAPTER_SIZE_{_SIZES[size]}"
        return {"base_model": model, "training_dataset": types.TuningDataset(gcs_uri=staged.data["uri"]),
                "config": types.CreateTuningJobConfig(**config)}

    def _handle(self, job: dict[str, Any], token: str, service: Service) -> JobHandle | None:
        number = story.number_of(job)
        if number is None:
            return None
        settings = self._settings
        url = None if settings.base_url else (
            f"https://console.cloud.google.com/vertex-ai/generative/language/locations/{settings.location}/"
            f"tuning/tuningJob/{number}?project={settings.project}")
        return JobHandle(self.name, number, token, service.account, story.seconds(job, "create_time"), url,
                         {"project": settings.project, "location": settings.location})

    def _unseen(self, failed: Failed, handle: JobHandle, cursor: str | None, ours: str) -> Snapshot:
        """What it means that a job cannot be read. Google says 403 of what is not there for an account."""
        if failed.status == 404 or (failed.status == 403 and handle.account != ours):
            return Snapshot(
                "lost", str(failed.status), f"{self._settings.host} shows no job {self._name(handle)} to "
                f"account {ours}; it was made with {handle.account}", cursor=cursor)
        raise_for_account(failed, self._settings)
        raise unreachable(failed) from failed

    # --- its student ---

    def _hosted(self, job: dict[str, Any], base: str, facts: dict[str, JSON]) -> StudentRef:
        endpoint = story.tuned(job, "endpoint", story.ENDPOINT)
        model = story.tuned(job, "model", story.MODEL)
        if endpoint is None or model is None:
            raise BackendError(Problem("the job names no endpoint of its tuned model",
                                       where=self._settings.host, value=facts["job_id"]))
        return StudentRef(self.name, "hosted", endpoint,
                          data={**facts, "base_model": base, "tuned_model": model})

    def _fetched(self, service: Service, handle: JobHandle, model: str, into: Path,
                 facts: dict[str, JSON]) -> StudentRef:
        folder = self._students(handle.token)
        where = f"gs://{self._settings.bucket}/{folder}"
        try:
            kind, files = weights.bring(Objects(service, self._settings), where, folder, into)
        except Rejected as error:
            raise BackendError(Problem(f"the weights cannot be fetched: {error}", where=where)) from error
        hub = hub_model(model, self._settings)
        base = hub or (weights.base_named(into) if kind == "adapter" else None) or model
        return StudentRef(self.name, kind, base, ".", files, {**facts, "base_model": base})
