"""OpenAI's part: files, supervised fine-tuning jobs, models, chat completions (batches: `openai_batches.py`).

Wire format: https://developers.openai.com/api/reference (fine-tuning jobs, files, chat, models). What the
reference does not say (error codes of failed validation, order of events) follows reports of its users.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, ClassVar

from distillctl.sandbox.jobs import Job
from distillctl.sandbox.openai_batches import BatchRoutes
from distillctl.sandbox.openai_checks import (
    CHAT_ARGUMENTS,
    CREATE_ARGUMENTS,
    bad,
    check_chat,
    check_metadata,
    check_text,
    hyperparameters,
    only,
    page,
)
from distillctl.sandbox.openai_data import examine, next_tokens, token_count, tokens_of
from distillctl.sandbox.wire import Call, ProviderPart, Refused, Reply, Route, fingerprint, route
from distillctl.types import JSON

MOST_FILE_BYTES = 512 * 1024 * 1024
_DEFAULT_EPOCHS = 3


class OpenAIPart(BatchRoutes, ProviderPart):
    """api.openai.com as it answers an organization that may still fine-tune."""

    name: ClassVar[str] = "openai"
    phases: ClassVar = (("validating_files", 5.0), ("queued", 5.0), ("running", 20.0))
    refusal: ClassVar[str] = "Your organization is not allowed to create fine-tuning jobs"
    base_models: ClassVar = ("gpt-4.1-mini-2025-04-14", "gpt-4.1-2025-04-14", "gpt-4o-mini-2024-07-18",
                             "gpt-4o-2024-08-06")
    shutdown_date: ClassVar[str | None] = "2027-01-14"
    closing_date: ClassVar[str] = "2027-01-06"

    @classmethod
    def routes(cls) -> list[Route]:
        return [*super().routes(), *(found for handler in vars(BatchRoutes).values()
                                     for found in getattr(handler, "routes", ()))]

    # --- files ---

    @route("POST", "/v1/files", "files.create")
    def create_file(self, call: Call) -> JSON:
        fields = call.multipart()
        purpose = fields.get("purpose", (None, b""))[1].decode(errors="replace")
        if purpose not in ("fine-tune", "batch", "assistants", "vision", "user_data", "evals"):
            raise bad(f"'{purpose}' is not one of the allowed purposes - 'purpose'", "purpose")
        if "file" not in fields:
            raise bad("'file' is a required property", "file")
        name, data = fields["file"]
        if purpose == "fine-tune" and not (name or "").endswith(".jsonl"):
            raise bad("Invalid file format for Fine-Tuning API. Must be .jsonl", "file")
        if not data:
            raise bad("File is empty.", "file")
        if len(data) > MOST_FILE_BYTES:
            raise Refused(413, "The file exceeds the maximum size of 512 MB.", type="invalid_request_error")
        file = {"object": "file", "id": f"file-{secrets.token_hex(12)}", "purpose": purpose,
                "filename": name, "bytes": len(data), "created_at": int(time.time()), "expires_at": None,
                "status": "processed", "status_details": None}
        self.store.write_blob(file["id"], data)
        self.store.put("file", file["id"], file, call.account)
        return file

    @route("GET", "/v1/files", "files.list")
    def list_files(self, call: Call) -> JSON:
        rows = self.store.list("file", call.account)
        if "purpose" in call.query:
            rows = [row for row in rows if row["purpose"] == call.query["purpose"]]
        return page(call, rows, default=10_000, most=10_000)

    @route("GET", "/v1/files/{id}", "files.get")
    def get_file(self, call: Call) -> JSON:
        return self._file(call)

    @route("GET", "/v1/files/{id}/content", "files.content")
    def file_content(self, call: Call) -> Reply:
        return Reply(self.store.read_blob(self._file(call)["id"]),
                     headers={"Content-Type": "application/octet-stream"})

    @route("DELETE", "/v1/files/{id}", "files.delete")
    def delete_file(self, call: Call) -> JSON:
        file = self._file(call)
        self.store.delete("file", file["id"])
        self.store.delete_blob(file["id"])
        return {"object": "file", "id": file["id"], "deleted": True}

    # --- fine-tuning jobs ---

    @route("POST", "/v1/fine_tuning/jobs", "jobs.create")
    def create_job(self, call: Call) -> JSON:
        asked = call.json()
        only(asked, CREATE_ARGUMENTS)
        if not isinstance(asked.get("model"), str):
            raise bad("you must provide a model parameter", "model")
        if asked["model"] not in self.base_models:
            raise bad(f"Model {asked['model']} is not available for fine-tuning or does not exist.", "model",
                       "model_not_available")
        check_text(asked, "suffix", 64)
        check_metadata(asked.get("metadata"))
        seed = asked.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**31):
            raise bad("Invalid 'seed': integer out of range.", "seed")
        hyper = hyperparameters(asked)
        files = {name: self._training_file(call, asked, name) for name in ("training_file", "validation_file")
                 if asked.get(name) is not None or name == "training_file"}
        rows, failure = examine(self.store.read_blob(files["training_file"]), "training_file")
        if failure is None and "validation_file" in files:
            failure = examine(self.store.read_blob(files["validation_file"]), "validation_file", 1)[1]
        epochs = hyper["n_epochs"] if hyper["n_epochs"] != "auto" else _DEFAULT_EPOCHS
        job = self.jobs.create(
            call, {**asked, "hyperparameters": hyper, "seed": seed or secrets.randbelow(2**31)},
            rows, epochs, failure, tokens=epochs * sum(map(token_count, rows)),
            model_id=secrets.token_urlsafe(6).replace("_", "A").replace("-", "B"))
        return self._public(job, self.jobs.word(job))

    @route("GET", "/v1/fine_tuning/jobs", "jobs.list")
    def list_jobs(self, call: Call) -> JSON:
        wanted = _filter(call)
        found = [job for job in self.jobs.listing(call)
                 if wanted.items() <= (job.request.get("metadata") or {}).items()]
        return page(call, [self._public(job, self.jobs.word(job)) for job in found], default=20, most=100)

    @route("GET", "/v1/fine_tuning/jobs/{id}", "jobs.get")
    def get_job(self, call: Call) -> JSON:
        job = self._job(call)
        return self._public(job, self.jobs.word(job, call))

    @route("GET", "/v1/fine_tuning/jobs/{id}/events", "jobs.events")
    def job_events(self, call: Call) -> JSON:
        return page(call, list(reversed(self._events(self._job(call)))), default=20, most=100)

    @route("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", "jobs.checkpoints")
    def job_checkpoints(self, call: Call) -> JSON:
        job = self._job(call)
        if self.jobs.student(job) is None:
            return page(call, [], default=10, most=100)
        steps = [row for row in self.jobs.progress(job) if "loss" in row][-1:]
        return page(call, [
            {"object": "fine_tuning.job.checkpoint", "id": f"ftckpt_{job.extra['model_id']}",
             "created_at": int(job.ended_at or 0), "fine_tuned_model_checkpoint": self._model_name(job),
             "fine_tuning_job_id": job.id, "step_number": int(row.get("step", 0)),
             "metrics": {"step": row.get("step"), "train_loss": row.get("loss")}} for row in steps],
            default=10, most=100)

    @route("POST", "/v1/fine_tuning/jobs/{id}/cancel", "jobs.cancel")
    def cancel_job(self, call: Call) -> JSON:
        job = self._job(call)
        if not self.jobs.cancel(job):
            raise bad(f"Cannot cancel a job that is already {job.end}.", None)
        return self._public(job, self.jobs.word(job))

    # --- models and answers ---

    @route("GET", "/v1/models", "models.list")
    def list_models(self, call: Call) -> JSON:
        tuned = [self._model_name(job) for job in self.jobs.listing(call) if job.end == "succeeded"]
        return {"object": "list", "data": [self._model(name) for name in (*self.base_models, *tuned)]}

    @route("GET", "/v1/models/{id*}", "models.get")
    def get_model(self, call: Call) -> JSON:
        self._answering(call.account, call.path["id"])
        return self._model(call.path["id"])

    @route("POST", "/v1/chat/completions", "chat", slow=True)
    def chat(self, call: Call) -> JSON:
        return self.completion(call.account, call.json())

    def completion(self, account: str, asked: Mapping[str, Any]) -> JSON:
        """The reply to one chat request. Raises Refused."""
        only(asked, CHAT_ARGUMENTS)
        check_chat(asked)
        job = self._answering(account, asked["model"])
        schema = asked["response_format"]["json_schema"].get("schema") if (
            (asked.get("response_format") or {}).get("type") == "json_schema") else None
        student = self.jobs.student(job) if job else None
        answer = self.sandbox.answer(student, asked["messages"], schema)
        most = asked.get("max_completion_tokens") or asked.get("max_tokens")
        tokens = tokens_of(answer.output or "")
        cut = most is not None and len(tokens) > most
        tokens = tokens[:most] if cut else tokens
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion",
            "created": int(time.time()), "model": asked["model"], "service_tier": "default",
            "system_fingerprint": None,
            "choices": [{"index": 0, "finish_reason": "length" if cut else "stop",
                         "message": {"role": "assistant", "content": "".join(tokens), "refusal": None,
                                     "annotations": []},
                         "logprobs": _logprobs(asked, tokens, answer.label_logprobs)}],
            "usage": _usage(asked["messages"], tokens)}

    # --- the provider's account, words and errors ---

    def account(self, call: Call) -> str:
        key = call.bearer()
        if not key:
            raise Refused(401, "You didn't provide an API key. You need to provide your API key in an "
                               "Authorization header using Bearer auth.", type="invalid_request_error")
        return fingerprint(key)

    def error_body(self, refused: Refused) -> JSON:
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        return {"error": {"message": refused.message, "type": kind, "param": None, "code": None,
                          **refused.details}}

    def new_job_id(self) -> str:
        return f"ftjob-{secrets.token_hex(12)}"

    def anonymous(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {**request, "metadata": {"of": "somebody else"}}

    def ended(self, job: Job) -> None:
        if job.end == "succeeded":
            self.store.charge(job.account, "training", job.id, job.extra["tokens"], "tokens")

    def key_variable(self) -> str:
        return "OPENAI_API_KEY"

    def settings(self, url: str) -> dict[str, JSON]:
        return {"model": self.base_models[0], "base_url": f"{url}/v1", "training_price": 0,
                "price": {"input": 0, "output": 0}}

    # --- what is shown ---

    def _file(self, call: Call) -> dict[str, JSON]:
        file = self.store.get("file", call.path["id"], call.account)
        if file is None:
            raise Refused(404, f"No such File object: {call.path['id']}", param="id")
        return file

    def _training_file(self, call: Call, asked: Mapping[str, JSON], name: str) -> str:
        file = self.store.get("file", str(asked.get(name)), call.account)
        if file is None:
            raise bad(f"invalid {name}: {asked.get(name)}", name, "invalid_file")
        if file["purpose"] != "fine-tune":
            raise bad(f"File '{file['id']}' has purpose '{file['purpose']}', expected 'fine-tune'.", name,
                       "invalid_file")
        return file["id"]

    def _job(self, call: Call) -> Job:
        job = self.jobs.get(call.path["id"], call.account)
        if job is None:
            raise Refused(404, f"Could not find fine tune: {call.path['id']}", param="fine_tune_id",
                          code="fine_tune_not_found")
        return job

    def _model_name(self, job: Job) -> str:
        return f"ft:{job.request['model']}:sandbox:{job.request.get('suffix') or ''}:{job.extra['model_id']}"

    def _answering(self, account: str, model: str) -> Job | None:
        """The job whose student `model` is; None for a base model. Refused for any other."""
        if model in self.base_models:
            return None
        for row in self.store.list("job", account):
            job = Job(**row)
            if self._model_name(job) == model and self.jobs.student(job) is not None:
                return job
        raise Refused(404, f"The model `{model}` does not exist or you do not have access to it.",
                      code="model_not_found")

    def _model(self, name: str) -> JSON:
        return {"id": name, "object": "model", "created": 1_744_000_000, "owned_by": "system",
                "shutdown_date": self.shutdown_date}

    def _public(self, job: Job, word: str) -> JSON:
        asked, succeeded = job.request, job.end == "succeeded"
        failed = job.failure if job.end == "failed" else None
        hyper = asked["hyperparameters"]
        return {
            "object": "fine_tuning.job", "id": job.id, "model": asked["model"],
            "created_at": int(job.created_at), "finished_at": int(job.ended_at) if job.ended_at else None,
            "fine_tuned_model": self._model_name(job) if succeeded else None,
            "organization_id": "org-sandbox", "result_files": [], "status": word,
            "validation_file": asked.get("validation_file"), "training_file": asked["training_file"],
            "hyperparameters": hyper, "trained_tokens": job.extra["tokens"] if succeeded else None,
            "error": {"code": "server_error", "param": None, **failed} if failed else {},
            "seed": asked["seed"], "estimated_finish": None, "integrations": [],
            "metadata": asked.get("metadata"), "user_provided_suffix": asked.get("suffix"),
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}}}

    def _events(self, job: Job) -> list[JSON]:
        """Oldest first; an event keeps its id and its place."""
        told = [(job.created_at, "info", "message", f"Created fine-tuning job: {job.id}", None),
                (job.created_at, "info", "message",
                 f"Validating training file: {job.request['training_file']}", None)]
        for row in self.jobs.progress(job):
            if "loss" in row:
                text = f"Step {row.get('step')}/{row.get('total_steps')}: training loss={row['loss']:.2f}"
                told.append((row["time"], "info", "metrics", text,
                             {"step": row.get("step"), "total_steps": row.get("total_steps"),
                              "train_loss": row["loss"]}))
        if job.end == "succeeded":
            told.append((job.ended_at, "info", "message",
                         f"New fine-tuned model created: {self._model_name(job)}", None))
            told.append((job.ended_at, "info", "message", "The job has successfully completed", None))
        elif job.end == "failed":
            told.append((job.ended_at, "error", "message", job.failure["message"], None))
        elif job.end == "cancelled":
            told.append((job.ended_at, "info", "message", "The job was cancelled", None))
        return [{"object": "fine_tuning.job.event", "id": f"ftevent-{job.extra['model_id']}-{number:05}",
                 "created_at": int(at), "level": level, "message": message, "type": kind, "data": data}
                for number, (at, level, kind, message, data) in enumerate(told)]


# --- pages and answers ----------------------------------------------------------------------------------


def _filter(call: Call) -> dict[str, str]:
    """The metadata that a listing must have: `metadata[key]=value`."""
    return {found[1]: text for name, text in call.query.items()
            if (found := re.fullmatch(r"metadata\[(.*)\]", name))}


def _logprobs(asked: Mapping[str, JSON], tokens: Sequence[str],
              labels: Mapping[str, float] | None) -> JSON:
    """Log-probabilities of an answer's tokens, where the student gives any (for labels only)."""
    if not asked.get("logprobs") or not labels or not tokens:
        return None
    content, so_far = [], ""
    for token in tokens:
        shares = next_tokens(labels, so_far)
        content.append({**_token(token, shares.get(token, 0.0)), "top_logprobs": [
            _token(other, share) for other, share in
            sorted(shares.items(), key=lambda item: -item[1])[:asked.get("top_logprobs") or 0]]})
        so_far += token
    return {"content": content, "refusal": None}


def _token(token: str, share: float) -> dict[str, JSON]:
    return {"token": token, "logprob": log(share) if share > 0 else -9999.0,
            "bytes": list(token.encode())}


def _usage(messages: Sequence[Mapping[str, Any]], tokens: Sequence[str]) -> JSON:
    prompt = sum(len(tokens_of(message["content"])) + 4 for message in messages)
    return {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens),
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}}
