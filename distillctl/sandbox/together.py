"""Together's part: uploads with their validation, fine-tuning jobs, and (`together_serving`) deployments.

Wire format: the types of its SDK, version 3.1.1, and https://docs.together.ai/docs/fine-tuning. Where
neither says what happens (an unvalidated file in a create, a deployment that is deleted while it runs), this
refuses.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from distillctl.sandbox.jobs import Job
from distillctl.sandbox.openai_data import token_count
from distillctl.sandbox.together_checks import (
    BASES,
    CREDIT_USD,
    MOST_FILE_BYTES,
    USD_PER_TOKEN,
    bad,
    base_named,
    check_create,
    check_type,
    is_full,
    iso,
    only,
)
from distillctl.sandbox.together_data import examine
from distillctl.sandbox.together_serving import TogetherServing
from distillctl.sandbox.wire import Call, ProviderPart, Refused, Reply, Route, fingerprint, route
from distillctl.types import JSON

_PURPOSES = ("fine-tune", "calibration", "eval", "batch-api")
_VALIDATION = (("QUEUED", 1.0), ("RUNNING", 3.0))


class TogetherPart(TogetherServing, ProviderPart):
    """api.together.ai as it answers a project that may fine-tune and deploy."""

    name: ClassVar[str] = "together"
    phases: ClassVar = (("pending", 2.0), ("queued", 5.0), ("running", 20.0), ("compressing", 3.0),
                        ("uploading", 3.0))
    ends: ClassVar = {"succeeded": "completed", "failed": "error", "cancelled": "cancelled"}
    cancelling: ClassVar[str | None] = "cancel_requested"
    refusal: ClassVar[str] = "Your account has insufficient credits for this fine-tuning job"
    base_models: ClassVar = tuple(BASES)

    @classmethod
    def routes(cls) -> list[Route]:
        return [*super().routes(), *(found for handler in vars(TogetherServing).values()
                                     for found in getattr(handler, "routes", ()))]

    # --- uploads: a redirect to storage, the bytes, then preprocessing ---

    @route("POST", "/v1/files", "files.create")
    def create_file(self, call: Call) -> Reply:
        fields = {name: value.decode(errors="replace") for name, (_, value) in call.multipart().items()}
        only(fields, {"purpose", "file_name", "file_type", "checksum"})
        if fields.get("purpose") not in _PURPOSES:
            raise bad(f"purpose must be one of {', '.join(_PURPOSES)}", "purpose")
        if fields.get("file_type") not in ("jsonl", "parquet", "csv"):
            raise bad("file_type must be one of jsonl, parquet, csv", "file_type")
        if not fields.get("file_name", "").endswith(f".{fields['file_type']}"):
            raise bad("file_name does not end as file_type says", "file_name")
        for known in self.store.list("file", call.account):
            if known["uploaded"] and known["checksum"] == fields.get("checksum"):
                return Reply({"message": "File already exists", "file_id": known["id"]}, 409)
        file = {"id": f"file-{uuid.uuid4()}", "object": "file", "purpose": fields["purpose"],
                "filename": fields["file_name"], "FileType": fields["file_type"], "bytes": 0,
                "created_at": int(time.time()), "checksum": fields.get("checksum"), "uploaded": False,
                "secret": secrets.token_hex(8), "processed_at": None, "looks": 0, "report": None}
        self.store.put("file", file["id"], file, call.account)
        return Reply(b"", 302, {
            "Location": f"{call.base_url}/storage/{file['id']}?signature={file['secret']}",
            "X-Together-File-Id": file["id"]})

    @route("PUT", "/storage/{id}", "files.put")
    def put_file(self, call: Call) -> Reply:
        file = self.store.get("file", call.path["id"])
        if file is None or call.query.get("signature") != file["secret"]:
            return Reply(b"<Error><Code>SignatureDoesNotMatch</Code></Error>", 403,
                         {"Content-Type": "application/xml"})
        if hashlib.sha256(call.body).hexdigest() != file["checksum"] or len(call.body) > MOST_FILE_BYTES:
            return Reply(b"<Error><Code>BadDigest</Code></Error>", 400, {"Content-Type": "application/xml"})
        self.store.write_blob(file["id"], call.body)
        self.store.put("file", file["id"], {**file, "uploaded": True, "bytes": len(call.body)})
        return Reply(b"", headers={"Content-Type": "application/xml"})

    @route("POST", "/v1/files/{id}/preprocess", "files.preprocess")
    def preprocess_file(self, call: Call) -> JSON:
        file = self._file(call, call.path["id"])
        if not file["uploaded"]:
            raise bad("The file has not been uploaded yet.", "id")
        file |= {"processed_at": time.time(), "looks": 0}
        if file["FileType"] == "jsonl" and file["purpose"] == "fine-tune":
            file["report"] = examine(self.store.read_blob(file["id"])).report(file["id"])
        self.store.put("file", file["id"], file)
        return self._public_file(file)

    @route("GET", "/v1/files", "files.list")
    def list_files(self, call: Call) -> JSON:
        return {"data": [self._public_file(file) for file in self.store.list("file", call.account)]}

    @route("GET", "/v1/files/{id}", "files.get")
    def get_file(self, call: Call) -> JSON:
        file = self._file(call, call.path["id"])
        shown = self._public_file(file)
        self.store.put("file", file["id"], {**file, "looks": file["looks"] + 1})
        return shown

    @route("DELETE", "/v1/files/{id}", "files.delete")
    def delete_file(self, call: Call) -> JSON:
        file = self._file(call, call.path["id"])
        self.store.delete("file", file["id"])
        self.store.delete_blob(file["id"])
        return {"id": file["id"], "deleted": True}

    # --- fine-tuning jobs ---

    @route("GET", "/v1/fine-tunes/models/limits", "limits")
    def limits(self, call: Call) -> JSON:
        return base_named(call.query.get("model_name")).limits()

    @route("POST", "/v1/fine-tunes/estimate-price", "jobs.estimate")
    def estimate(self, call: Call) -> JSON:
        asked = call.json()
        only(asked, {"training_file", "from_checkpoint", "model", "n_epochs", "n_evals", "training_method",
                     "training_type", "validation_file"})
        check_type(asked.get("training_type"), base_named(asked.get("model")).limits())
        file = self._training_file(call, asked)
        status = self._status(file)
        if status != "COMPLETED":
            invalid = status in ("FAILED", "INVALID_FORMAT")
            return {"estimation_available": False,
                    "unavailable_reason": "train_file_invalid" if invalid else "train_file_not_validated"}
        tokens = sum(map(token_count, self._rows(file))) * int(asked.get("n_epochs") or 1)
        usd = tokens * USD_PER_TOKEN
        return {"estimation_available": True, "estimated_total_price": usd, "user_limit": CREDIT_USD,
                "estimated_train_token_count": tokens, "estimated_eval_token_count": 0,
                "allowed_to_proceed": usd <= CREDIT_USD}

    @route("POST", "/v1/fine-tunes", "jobs.create")
    def create_job(self, call: Call) -> JSON:
        asked = call.json()
        base = check_create(asked)
        file = self._training_file(call, asked)
        if self._status(file) != "COMPLETED":
            raise bad(f"The training file {file['id']} is not validated: {self._status(file)}",
                      "training_file")
        rows = self._rows(file)
        lora = asked.get("training_type") or {"type": "Lora", "lora_r": 64, "lora_alpha": 128}
        name = "-".join(part for part in (base.name.rpartition("/")[2], asked.get("suffix"),
                                          secrets.token_hex(4)) if part)
        job = self.jobs.create(
            call, {**asked, "training_type": lora}, rows, asked["n_epochs"],
            tokens=sum(map(token_count, rows)) * asked["n_epochs"],
            output=f"{self._slug(call.account)}/{name}",
            merged=f"ml_{secrets.token_hex(8)}", adapter=f"ml_{secrets.token_hex(8)}")
        return self._listed(job, self.jobs.word(job))

    @route("GET", "/v1/fine-tunes", "jobs.list")
    def list_jobs(self, call: Call) -> JSON:
        return {"data": [self._listed(job, self.jobs.word(job)) for job in self.jobs.listing(call)]}

    @route("GET", "/v1/fine-tunes/{id}", "jobs.get")
    def get_job(self, call: Call) -> JSON:
        job = self._job(call)
        return self._public(job, self.jobs.word(job, call))

    @route("DELETE", "/v1/fine-tunes/{id}", "jobs.delete")
    def delete_job(self, call: Call) -> JSON:
        job = self._job(call)
        self.jobs.delete(job.id)
        return {"message": f"Fine-tune job {job.id} deleted"}

    @route("POST", "/v1/fine-tunes/{id}/cancel", "jobs.cancel")
    def cancel_job(self, call: Call) -> JSON:
        job = self._job(call)
        if not self.jobs.cancel(job):
            raise bad(f"Fine-tune job {job.id} is already {self.jobs.word(job)} and cannot be cancelled.")
        return self._listed(job, self.jobs.word(job))

    @route("GET", "/v1/fine-tunes/{id}/events", "jobs.events")
    def job_events(self, call: Call) -> JSON:
        return {"data": self._events(self._job(call))}

    @route("GET", "/v1/fine-tunes/{id}/metrics", "jobs.metrics")
    def job_metrics(self, call: Call) -> JSON:
        since = call.number("global_step_from", 1, 10**9)
        return {"metrics": [
            {"train/global_step": row["step"], "train/loss": row["loss"]}
            for row in self.jobs.progress(self._job(call)) if "loss" in row and row.get("step", 0) >= since]}

    @route("GET", "/v1/fine-tunes/{id}/checkpoints", "jobs.checkpoints")
    def job_checkpoints(self, call: Call) -> JSON:
        job = self._job(call)
        made = self.jobs.student(job) is not None
        return {"data": [{"step": self._step(job), "created_at": iso(job.ended_at), "path": "",
                          "checkpoint_type": "Final"}] if made else []}

    # --- the provider's account, words and errors ---

    def account(self, call: Call) -> str:
        if call.url.startswith("/storage/"):
            return ""  # a signed address, no key
        if not call.bearer():
            raise Refused(401, "Missing API key. You can find it at api.together.ai/settings/api-keys.",
                          type="invalid_request_error", code="missing_api_key")
        return fingerprint(call.bearer())

    def error_body(self, refused: Refused) -> JSON:
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        return {"id": "sandbox", "error": {"message": refused.message, "type": kind, "param": None,
                                           "code": None, **refused.details}}

    def new_job_id(self) -> str:
        return f"ft-{uuid.uuid4()}"

    def anonymous(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {**request, "suffix": "somebody-else"}

    def ended(self, job: Job) -> None:
        if usd := self._price(job):
            self.store.charge(job.account, "training", job.id, usd, "USD")
        if job.end == "succeeded":
            for kind in ("merged",) if is_full(job.request) else ("merged", "adapter"):
                self.add_model(job, str(job.extra[kind]), kind)

    def key_variable(self) -> str:
        return "TOGETHER_API_KEY"

    def settings(self, url: str) -> dict[str, JSON]:
        return {"model": self.base_models[0], "base_url": url}

    # --- what is shown ---

    def _file(self, call: Call, file_id: str) -> dict[str, JSON]:
        file = self.store.get("file", file_id, call.account)
        if file is None:
            raise bad(f"File with id {file_id} not found", "id", 404)
        return file

    def _training_file(self, call: Call, asked: Mapping[str, JSON]) -> dict[str, JSON]:
        file = self.store.get("file", str(asked.get("training_file")), call.account)
        if file is None:
            raise bad(f"Training file {asked.get('training_file')} not found", "training_file")
        if file["purpose"] != "fine-tune" or file["FileType"] != "jsonl":
            raise bad("This rehearsal trains on JSONL files of purpose fine-tune.", "training_file")
        return file

    def _status(self, file: Mapping[str, Any]) -> str:
        if file["processed_at"] is None:
            return "PENDING"
        passed = self.jobs.passed(_VALIDATION, file["processed_at"], file["looks"])
        if passed < len(_VALIDATION):
            return _VALIDATION[passed][0]
        return "COMPLETED" if (file["report"] or {"valid": True})["valid"] else "INVALID_FORMAT"

    def _public_file(self, file: Mapping[str, Any]) -> dict[str, JSON]:
        status = self._status(file)
        shown = {name: file[name] for name in ("id", "object", "purpose", "filename", "FileType", "bytes",
                                               "created_at")}
        report = {"validation_report": file["report"]} if status in ("COMPLETED", "INVALID_FORMAT") else {}
        return {**shown, "processing_status": status, **report}

    def _rows(self, file: Mapping[str, Any]) -> list[dict[str, JSON]]:
        found = examine(self.store.read_blob(str(file["id"])))
        if found.format not in ("CONVERSATION", "INSTRUCTION"):
            raise bad("This rehearsal trains on conversations and on prompts with completions alone.",
                      "training_file")
        return found.rows

    def _job(self, call: Call) -> Job:
        job = self.jobs.get(call.path["id"], call.account)
        if job is None:
            raise bad(f"Fine-tune job {call.path['id']} not found", None, 404)
        return job

    def _step(self, job: Job) -> int:
        return max([int(row.get("step", 0)) for row in self.jobs.progress(job)], default=0)

    def _price(self, job: Job) -> float:
        """US dollars: all of it for a job that was trained, the completed steps of a cancelled one."""
        share = 1.0 if job.end == "succeeded" else 0.0
        if job.end == "cancelled" and (told := [row for row in self.jobs.progress(job)
                                               if row.get("step") and row.get("total_steps")]):
            share = told[-1]["step"] / told[-1]["total_steps"]
        return share * job.extra["tokens"] * USD_PER_TOKEN

    def _listed(self, job: Job, word: str) -> dict[str, JSON]:
        """A job in a listing, and as create and cancel answer."""
        asked = job.request
        names = ("model", "training_file", "validation_file", "n_epochs", "n_evals", "n_checkpoints",
                 "batch_size", "learning_rate", "lr_scheduler", "warmup_ratio", "max_grad_norm",
                 "weight_decay", "max_seq_length", "packing", "suffix", "random_seed", "training_method",
                 "training_type")
        return {"id": job.id, "status": word, "user_id": f"user-{job.account}",
                "created_at": iso(job.created_at), "updated_at": iso(job.ended_at or job.created_at),
                "events": [], "model_output_name": job.extra["output"], "token_count": job.extra["tokens"],
                "total_price": round(self._price(job) * 1e9) if job.end else None,
                **{name: asked.get(name) for name in names}}

    def _public(self, job: Job, word: str) -> dict[str, JSON]:
        """A job by its id: other fields than in a listing, and no suffix."""
        made = job.end == "succeeded"
        adapted = made and not is_full(job.request)
        shown = {name: value for name, value in self._listed(job, word).items()
                 if name not in ("suffix", "max_seq_length", "packing")}
        return {**shown, "job_id": job.id, "model_output_path": "", "events": self._events(job),
                "trainingfile_numlines": job.rows, "queue_depth": 0, "wandb_url": "",
                "model_object_id": job.extra["merged"] if made else None,
                "model_object_name": job.extra["output"] if made else None,
                "adapter_object_id": job.extra["adapter"] if adapted else None,
                "adapter_object_name": f"{job.extra['output']}-adapter" if adapted else None}

    def _events(self, job: Job) -> list[JSON]:
        """Oldest first. They are all that says why a job failed."""
        told: list[tuple[float | None, str, str, str, dict[str, JSON]]] = [
            (job.created_at, "info", "job_pending", "Fine tune request created", {})]
        if steps := [row for row in self.jobs.progress(job) if "step" in row]:
            told.append((steps[0]["time"], "info", "training_start", "Training started",
                         {"step": 0, "total_steps": steps[0].get("total_steps")}))
        if job.cancelled_at is not None:
            told.append((job.cancelled_at, "info", "cancel_requested", "Cancel requested", {}))
        if job.end == "failed":
            told.append((job.ended_at, "error", "job_error", str(job.failure["message"]), {}))
        elif job.end == "cancelled":
            told.append((job.ended_at, "info", "job_stopped", "Job stopped", {}))
            told.append((job.ended_at, "info", "refund", "Refunded the steps that were not trained", {}))
        elif job.end == "succeeded":
            told += [(job.ended_at, "info", kind, text, {}) for kind, text in (
                ("training_complete", "Training completed"),
                ("model_compressing", "Compressing the model"),
                ("model_upload_complete", f"Model uploaded: {job.extra['output']}"),
                ("job_complete", "Job finished"))]
        return [{"object": "fine-tune-event", "created_at": iso(at), "level": level, "message": message,
                 "type": kind, "checkpoint_path": "", "model_path": "", "token_count": 0, **more}
                for at, level, kind, message, more in told]

