"""Google's part: tuning jobs, models and generateContent of Vertex AI, beside Cloud Storage.

Wire format: the v1beta1 discovery document of aiplatform.googleapis.com. What it does not say (words of
refusals, what a failed validation looks like) follows reports of its users.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import log
from typing import TYPE_CHECKING, Any, ClassVar

from distillctl import registry
from distillctl.errors import MissingExtra
from distillctl.sandbox.jobs import Job
from distillctl.sandbox.openai_data import next_tokens, tokens_of
from distillctl.sandbox.vertex_checks import bad, check_job, check_question
from distillctl.sandbox.vertex_data import Rows, conversation, examine
from distillctl.sandbox.vertex_storage import BUCKET, StorageRoutes
from distillctl.sandbox.wire import Call, ProviderPart, Refused, Route, fingerprint, route
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.sandbox.server import Sandbox

PROJECT, NUMBER = "sandbox-project", "100000000001"
FINAL = "postprocess/node-0/checkpoints/final"  # under an open model's output folder
_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
           408: "DEADLINE_EXCEEDED", 409: "ABORTED", 412: "FAILED_PRECONDITION", 429: "RESOURCE_EXHAUSTED",
           500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_AT = "/v1beta1/projects/{project}/locations/{location}"
_WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


class VertexPart(StorageRoutes, ProviderPart):
    """aiplatform.googleapis.com and storage.googleapis.com for one project with one bucket."""

    name: ClassVar[str] = "vertex"
    phases: ClassVar = (("JOB_STATE_PENDING", 5.0), ("JOB_STATE_RUNNING", 25.0))
    ends: ClassVar = {"succeeded": "JOB_STATE_SUCCEEDED", "failed": "JOB_STATE_FAILED",
                      "cancelled": "JOB_STATE_CANCELLED"}
    cancelling: ClassVar = "JOB_STATE_CANCELLING"
    refusal: ClassVar[str] = "Permission 'aiplatform.tuningJobs.create' denied"
    base_models: ClassVar = ("gemini-3.5-flash-lite", "gemini-3.5-flash", "gemini-3.1-flash-lite")
    open_models: ClassVar = ("meta/llama3_1@llama-3.1-8b-instruct", "google/gemma4@gemma-4-e2b-it")
    most_tokens: ClassVar[int] = 131_072  # of one row
    most_open_tokens: ClassVar[int] = 8_192

    def __init__(self, sandbox: Sandbox) -> None:
        if missing := registry.needs("vertex", "google_crc32c"):
            raise MissingExtra.of(missing)
        super().__init__(sandbox)

    @classmethod
    def routes(cls) -> list[Route]:
        return [found for owner in (VertexPart, StorageRoutes) for handler in vars(owner).values()
                for found in getattr(handler, "routes", ())]

    # --- tuning jobs ---

    @route("POST", _AT + "/tuningJobs", "jobs.create")
    def create_job(self, call: Call) -> JSON:
        self._project(call)
        asked = call.json()
        base = asked.get("baseModel")
        if base not in (*self.base_models, *self.open_models):
            raise bad(f"Base model {base} is not supported." if base else
                      "Required field is not set: source_model.")
        gemini = base in self.base_models
        spec, epochs = check_job(asked, gemini)
        if spec.get("tuningMode") == "TUNING_MODE_FULL":
            raise bad("Tuning mode FULL is not available in this rehearsal, which trains adapters.")
        rows = self._rows(call, spec, gemini)
        stats = {"kept": len(rows.kept), "tokens": rows.tokens, "dropped": rows.dropped}
        job = self.jobs.create(
            call, {**asked, "location": call.path["location"]}, rows.kept, epochs, rows.failure, stats=stats,
            model_id=str(secrets.randbelow(9 * 10**18) + 10**18))
        return self._public(job, self.jobs.word(job))

    @route("GET", _AT + "/tuningJobs", "jobs.list")
    def list_jobs(self, call: Call) -> JSON:
        self._project(call)
        if "filter" in call.query:
            raise bad("This rehearsal does not filter.")
        found = [job for job in self.jobs.listing(call) if job.request["location"] == call.path["location"]]
        size = call.number("pageSize", 100, 100)
        token = call.query.get("pageToken", "")
        if not re.fullmatch(r"(page-\d{1,9})?", token):
            raise bad("Invalid page token.")
        start = int(token.removeprefix("page-") or 0)
        more = {"nextPageToken": f"page-{start + size}"} if start + size < len(found) else {}
        page = [self._public(job, self.jobs.word(job)) for job in found[start:start + size]]
        return {**({"tuningJobs": page} if page else {}), **more}

    @route("POST", _AT + "/tuningJobs/{id}:cancel", "jobs.cancel")
    def cancel_job(self, call: Call) -> JSON:
        job = self._job(call)
        if not self.jobs.cancel(job):
            raise bad(f"Cannot cancel a job in the state {self.ends[job.end]}.", "FAILED_PRECONDITION")
        return {}

    @route("GET", _AT + "/tuningJobs/{id}", "jobs.get")
    def get_job(self, call: Call) -> JSON:
        job = self._job(call)
        return self._public(job, self.jobs.word(job, call))

    # --- models and answers ---

    @route("GET", "/v1beta1/publishers/google/models/{model}", "models.get")
    def get_publisher_model(self, call: Call) -> JSON:
        if call.path["model"] not in self.base_models:
            raise Refused(404, f"Publisher Model `publishers/google/models/{call.path['model']}` is not "
                               "found.")
        return {"name": f"publishers/google/models/{call.path['model']}", "versionId": "default",
                "openSourceCategory": "PROPRIETARY", "launchStage": "GA"}

    @route("GET", _AT + "/models/{id}", "models.get")
    def get_model(self, call: Call) -> JSON:
        job = self._tuned(call, call.path["id"].partition("@")[0])
        return {"name": self._made(job, "models").partition("@")[0], "versionId": "1",
                "displayName": job.request.get("tunedModelDisplayName") or "tuned model",
                "labels": {"google-vertex-llm-tuning-base-model-id": "sandbox"}}

    @route("POST", _AT + "/publishers/google/models/{model}:generateContent", "generate", slow=True)
    def generate(self, call: Call) -> JSON:
        self._project(call)
        base = call.path["model"]
        if base not in self.base_models:
            raise Refused(404, f"Publisher Model `projects/{PROJECT}/locations/{call.path['location']}/"
                               f"publishers/google/models/{base}` was not found or your project does not "
                               "have access to it.")
        return self._generate(call, base, None)

    @route("POST", _AT + "/endpoints/{id}:generateContent", "generate", slow=True)
    def generate_tuned(self, call: Call) -> JSON:
        job = self._tuned(call, call.path["id"])
        return self._generate(call, job.request["baseModel"], job)

    @route("POST", _AT + "/models/{id}:generateContent", "generate", slow=True)
    def generate_from_model(self, call: Call) -> JSON:
        raise bad("Request contains an invalid argument: malformed name; use the endpoint of a tuned model.")

    # --- the provider's account, words and errors ---

    def account(self, call: Call) -> str:
        key = call.bearer()
        if not key:
            raise Refused(401, "Request had invalid authentication credentials. Expected OAuth 2 access "
                               "token, login cookie or other valid authentication credential.")
        return fingerprint(key)

    def error_body(self, refused: Refused) -> JSON:
        word = refused.details.get("word") or _STATUS.get(refused.status, "UNKNOWN")
        shown = {name: value for name, value in refused.details.items() if name == "errors"}
        return {"error": {"code": refused.status, "message": refused.message, "status": word, **shown}}

    def new_job_id(self) -> str:
        return str(secrets.randbelow(9 * 10**18) + 10**18)

    def anonymous(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {**request, "labels": {"of": "somebody-else"}, "tunedModelDisplayName": "theirs"}

    def ended(self, job: Job) -> None:
        if job.end != "succeeded":
            return
        if job.request["baseModel"] in self.open_models and not self._publish(job):
            job.end, job.failure = "failed", {
                "code": 13, "message": "This rehearsal has no weights to give: start it with --student local"}
            self.jobs.save(job)
            return
        tokens = job.extra["stats"]["tokens"] * job.epochs
        self.store.charge(job.account, "training", job.id, tokens, "tokens")

    def key_variable(self) -> str:
        return "VERTEX_SANDBOX_TOKEN"

    def settings(self, url: str) -> dict[str, JSON]:
        return {"model": self.base_models[0], "project": PROJECT, "bucket": BUCKET, "base_url": url,
                "training_price": 0, "price": {"input": 0, "output": 0}}

    # --- what is looked up ---

    def _project(self, call: Call) -> None:
        if call.path["project"] not in (PROJECT, NUMBER):
            raise Refused(403, f"Permission denied on resource project {call.path['project']}.")

    def _job(self, call: Call) -> Job:
        """The job of a path. What is another account's is denied, as if it might not exist."""
        self._project(call)
        job = self.jobs.get(call.path["id"], None)
        where = (f"projects/{PROJECT}/locations/{call.path['location']}/tuningJobs/{call.path['id']}")
        if job is not None and job.account != call.account:
            raise Refused(403, f"Permission 'aiplatform.tuningJobs.get' denied on resource "
                               f"'//aiplatform.googleapis.com/{where}' (or it may not exist).")
        if job is None or job.request["location"] != call.path["location"]:
            raise Refused(404, f"The TuningJob `{where}` does not exist.")
        return job

    def _tuned(self, call: Call, model_id: str) -> Job:
        """The job that made a model and its endpoint."""
        self._project(call)
        for row in self.store.list("job", call.account):
            job = Job(**row)
            if (job.extra["model_id"] == model_id and job.request["location"] == call.path["location"]
                    and job.request["baseModel"] in self.base_models and self.jobs.student(job) is not None):
                return job
        raise Refused(404, f"Not found: {call.method} {model_id}")

    def _rows(self, call: Call, spec: Mapping[str, JSON], gemini: bool) -> Rows:
        """The checked rows of the training file; a validation file must be as good."""
        most = self.most_tokens if gemini else self.most_open_tokens
        found: dict[str, Rows] = {}
        for field in ("trainingDatasetUri", "validationDatasetUri"):
            if (uri := spec.get(field)) is None:
                continue
            data = self.read_object(call.account, str(uri))
            if data is None:
                raise bad(f"{uri} does not exist, or the service agent "
                          f"service-{NUMBER}@gcp-sa-aiplatform.iam.gserviceaccount.com cannot read it.")
            found[field] = examine(data, gemini, most)
        rows = found["trainingDatasetUri"]
        if rows.failure is None and "validationDatasetUri" in found:
            rows.failure = found["validationDatasetUri"].failure
        return rows

    def _made(self, job: Job, kind: str) -> str:
        """The resource name of what a job made: of "models", or of "endpoints"."""
        name = f"projects/{NUMBER}/locations/{job.request['location']}/{kind}/{job.extra['model_id']}"
        return f"{name}@1" if kind == "models" else name

    def _publish(self, job: Job) -> bool:
        """Put an open model's weights into the bucket; whether there are any."""
        folder = self.jobs.student(job) / "student"
        if not all((folder / name).is_file() for name in _WEIGHTS):
            return False
        prefix = str(job.request["outputUri"]).removeprefix(f"gs://{BUCKET}/").rstrip("/")
        for name in _WEIGHTS:
            self.put_object(job.account, f"{prefix}/{FINAL}/{name}", (folder / name).read_bytes())
        return True

    # --- what is shown ---

    def _public(self, job: Job, word: str) -> JSON:
        asked = {name: value for name, value in job.request.items() if name != "location"}
        spec = dict(asked["supervisedTuningSpec"])
        spec["hyperParameters"] = {**spec.get("hyperParameters", {}), "epochCount": str(job.epochs)}
        shown: dict[str, JSON] = {
            **asked, "supervisedTuningSpec": spec, "state": word,
            "name": f"projects/{NUMBER}/locations/{job.request['location']}/tuningJobs/{job.id}",
            "createTime": _time(job.created_at), "updateTime": _time(job.ended_at or job.created_at)}
        begun = word != self.phases[0][0]
        if begun:
            shown["startTime"] = _time(job.created_at)
            if job.failure is None:
                shown["tuningDataStats"] = {"supervisedTuningDataStats": _stats(job)}
        if job.end is None:
            shown["tuningJobState"] = self._part_of_life(job, begun)
        else:
            shown["endTime"] = _time(job.ended_at or 0)
        if job.end == "failed":
            shown["error"] = {"code": 13, **(job.failure or {})}
        if job.end == "succeeded" and asked["baseModel"] in self.base_models:
            shown["tunedModel"] = {"model": self._made(job, "models"),
                                   "endpoint": self._made(job, "endpoints")}
        return shown

    def _part_of_life(self, job: Job, begun: bool) -> str:
        if not begun:
            return "TUNING_JOB_STATE_WAITING_FOR_CAPACITY"
        if job.trained_at is not None:
            return "TUNING_JOB_STATE_POST_PROCESSING"
        return f"TUNING_JOB_STATE_{'TUNING' if self.jobs.progress(job) else 'PROCESSING_DATASET'}"

    def _generate(self, call: Call, base: str, job: Job | None) -> JSON:
        asked = call.json()
        config = check_question(asked, base)
        messages = conversation(asked.get("systemInstruction"), asked.get("contents"))
        if isinstance(messages, str):
            raise bad(messages)
        if messages[-1]["role"] != "user":
            raise bad("Please ensure that the multiturn requests end with a user role.")
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        answer = self.sandbox.answer(self.jobs.student(job) if job else None, messages, schema)
        tokens = tokens_of(answer.output or "")
        most = int(config.get("maxOutputTokens") or len(tokens))
        cut, tokens = len(tokens) > most, tokens[:most]
        content: dict[str, JSON] = {"role": "model"}
        if tokens:
            content["parts"] = [{"text": "".join(tokens)}]
        candidate = {"content": content, "finishReason": "MAX_TOKENS" if cut else "STOP"}
        if config.get("responseLogprobs") and answer.label_logprobs and tokens:
            candidate |= _logprobs(tokens, answer.label_logprobs, int(config.get("logprobs") or 0))
        prompt = sum(len(tokens_of(message["content"])) + 4 for message in messages)
        return {"candidates": [candidate], "modelVersion": base, "createTime": _time(None),
                "responseId": secrets.token_urlsafe(16), "usageMetadata": {
                    "promptTokenCount": prompt, "candidatesTokenCount": len(tokens),
                    "totalTokenCount": prompt + len(tokens), "trafficType": "ON_DEMAND"}}


def _stats(job: Job) -> dict[str, JSON]:
    """What Google counts in the rows; its 64-bit integers are strings."""
    stats: Mapping[str, Any] = job.extra["stats"]
    shown: dict[str, JSON] = {
        "tuningDatasetExampleCount": str(stats["kept"]), "totalBillableTokenCount": str(stats["tokens"]),
        "totalTuningCharacterCount": str(stats["tokens"] * 4), "tuningStepCount": str(
            job.epochs * -(-stats["kept"] // 8))}
    if stats["dropped"]:
        sample = stats["dropped"][:10]
        shown |= {"totalTruncatedExampleCount": str(len(stats["dropped"])),
                  "truncatedExampleIndices": [str(number) for number, _ in sample],
                  "droppedExampleReasons": [reason for _, reason in sample]}
    return shown


def _logprobs(tokens: Sequence[str], labels: Mapping[str, float], most: int) -> dict[str, JSON]:
    """Log-probabilities of an answer's tokens, where the student gives any (for labels only)."""
    top, chosen, so_far = [], [], ""
    for token in tokens:
        shares = next_tokens(labels, so_far)
        chosen.append(_token(token, shares.get(token, 0.0)))
        top.append({"candidates": [_token(other, share) for other, share in
                                   sorted(shares.items(), key=lambda item: -item[1])[:most]]})
        so_far += token
    average = sum(token["logProbability"] for token in chosen) / len(chosen)
    return {"avgLogprobs": average, "logprobsResult": {"topCandidates": top, "chosenCandidates": chosen}}


def _token(token: str, share: float) -> dict[str, Any]:
    return {"token": token, "tokenId": sum(token.encode()),
            "logProbability": log(share) if share > 0 else -99.0}


def _time(moment: float | None) -> str:
    """RFC 3339, as Google writes it; None: now."""
    at = datetime.now(UTC) if moment is None else datetime.fromtimestamp(moment, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
