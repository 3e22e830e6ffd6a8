"""OpenAI's Batch API, and servers that speak it
(https://developers.openai.com/api/reference/resources/batches).

A batch is a file of requests, of which each may fail by itself; the answers come as a file of those that
succeeded and one of those that did not, in any order. A batch carries its token in its metadata.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from distillctl.backend import (
    Ambiguous,
    Capabilities,
    JobEvent,
    JobHandle,
    JobState,
    Rejected,
    Snapshot,
    Staged,
    Unreachable,
)
from distillctl.errors import Problem
from distillctl.hosted import Failed, creating, fingerprint, unreachable
from distillctl.predictors.batch import (
    CAPABILITIES,
    MOST_RESULTS,
    REQUEST_TIMEOUT,
    BatchJob,
    Outcome,
    counts_text,
    errored,
    numbers,
)
from distillctl.predictors.http import Refused, header_value, refusal
from distillctl.predictors.openai_chat import OPENAI_URL, OpenAIPredictor
from distillctl.prices import PricePoint
from distillctl.sdk_calls import Calls, is_name
from distillctl.secrets import Secret
from distillctl.store.files import atomic_write
from distillctl.types import JSON, CallFailed, Request

TOKEN = "distillctl_token"
_ENDPOINT = "/v1/chat/completions"
_STATES: dict[str, JobState] = {
    "validating": "queued", "in_progress": "running", "finalizing": "running", "completed": "succeeded",
    "expired": "succeeded", "failed": "failed", "cancelling": "running", "cancelled": "cancelled"}
_SHOWN = 5  # of the lines that were refused


class OpenAIBatches:
    """Batches of chat completions. predictor: says what is asked and reads the answers; price: of a request
    in a batch."""

    name: ClassVar[str] = "openai-batch"
    capabilities: ClassVar[Capabilities] = CAPABILITIES
    most_requests: ClassVar[int] = 50_000
    most_bytes: ClassVar[int] = 200_000_000

    def __init__(self, predictor: OpenAIPredictor, key: Secret | None, price: PricePoint | None) -> None:
        self.identity = predictor.identity
        self.price = price
        self.max_tokens = predictor.max_tokens
        self._predictor, self._key = predictor, key
        self._url = str(self.identity["base_url"])
        self._client: Any = None

    # --- the requests ---

    def size(self, id: str, request: Request) -> int:
        return len(self._line(id, request))

    def stage(self, job: BatchJob) -> Staged:
        data = b"".join(self._line(id, request) for id, request in job.requests.items())
        try:
            file = self._calls.call(self._sdk.files.with_raw_response.create,
                                    file=("distillctl.jsonl", data), purpose="batch")
        except Failed as failed:
            self._calls.raise_for_account(failed)
            if failed.refused and failed.status != 429:
                raise Rejected(str(failed)) from failed
            raise unreachable(failed) from failed
        if not is_name(file.get("id")):
            raise Rejected("the reply to the upload names no file")
        return Staged({"file": file["id"]})

    def _line(self, id: str, request: Request) -> bytes:
        line = {"custom_id": id, "method": "POST", "url": _ENDPOINT, "body": self._predictor.body(request)}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    # --- the batch ---

    def submit(self, job: BatchJob, staged: Staged, token: str) -> JobHandle:
        with creating(lambda failed: f"{self._host} says: {failed}"):
            made = self._calls.call(
                self._sdk.batches.with_raw_response.create, input_file_id=str(staged.data["file"]),
                endpoint=_ENDPOINT, completion_window="24h", metadata={TOKEN: token})
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no batch")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        listed = self._calls.pages(self._sdk.batches.with_raw_response.list)
        found = [handle for batch in listed if isinstance(batch.get("metadata"), dict)
                 and batch["metadata"].get(TOKEN) == token and (handle := self._handle(batch, token))]
        return sorted(found, key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        batch = self._batch(handle)
        if batch is None:
            return Snapshot("lost", "404", f"{self._host} has no batch {handle.job_id} for account "
                            f"{self._account}; it was made with {handle.account}")
        word = batch.get("status")
        word = word if isinstance(word, str) and word else "none"
        done, failed, total = numbers(batch.get("request_counts"), "completed", "failed", "total")
        message = _errors(batch) or counts_text(done, failed, total)
        event = JobEvent(f"{word} {done} {failed}", time.time(), f"{word}: {message}" if message else word,
                         data={"done": done + failed, "total": total})
        return Snapshot(_STATES.get(word, "unknown"), word, message, (event,))

    def cancel(self, handle: JobHandle) -> None:
        if not is_name(handle.job_id):
            return
        try:
            self._calls.call(self._sdk.batches.with_raw_response.cancel, handle.job_id)
        except Failed as failed:
            self._calls.raise_for_account(failed)
            if failed.status not in (400, 404, 409, 422):  # those: it has ended, or is not there
                raise unreachable(failed) from failed

    # --- the answers ---

    def download(self, handle: JobHandle, into: Path) -> None:
        batch = self._batch(handle) or {}
        if numbers(batch.get("request_counts"), "completed") != [0] and not batch.get("output_file_id"):
            raise Unreachable("the batch's output file is not there yet")
        with atomic_write(into, "wb") as file:
            for name in ("output_file_id", "error_file_id"):
                if is_name(batch.get(name)):
                    self._calls.download(file, MOST_RESULTS,
                                         self._sdk.files.with_streaming_response.content, batch[name])
                    file.write(b"\n")

    def outcome(self, row: Mapping[str, JSON], token: str) -> tuple[str, Outcome]:
        id, response, error = row.get("custom_id"), row.get("response"), row.get("error")
        if not isinstance(id, str) or not (isinstance(response, dict) or isinstance(error, dict)):
            raise ValueError
        if not isinstance(response, dict):
            return id, CallFailed("transient", f"{error.get('code')}: {error.get('message')}"[:300])
        status, body = response.get("status_code"), response.get("body")
        if status != 200:
            return id, errored(status if isinstance(status, int) else 500, body,
                               self._key and self._key.name)
        try:
            return id, self._predictor.read(body if isinstance(body, dict) else {}, None, self.price)
        except Refused as refused:
            return id, refusal(refused, None)
        except CallFailed as failed:
            return id, failed

    # --- the service ---

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def _sdk(self) -> Any:
        if self._client is None:
            import httpx2
            import openai

            # OPENAI_ORG_ID and OPENAI_PROJECT_ID are for OpenAI alone
            omitted = None if self._url == OPENAI_URL else {
                "OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
            self._client = openai.OpenAI(
                # an explicit address: OPENAI_BASE_URL must not send the data elsewhere than `plan` says
                api_key=header_value(self._key), base_url=self._url, max_retries=0, timeout=REQUEST_TIMEOUT,
                default_headers=omitted,
                http_client=httpx2.Client(follow_redirects=False, timeout=REQUEST_TIMEOUT))
        return self._client

    @property
    def _calls(self) -> Calls:
        import openai

        return Calls(openai, lambda failed: Problem(
            f"{self._host} refuses the key: {failed}", field="teacher.api_key_env",
            value=self._key and self._key.name, hint="check the key, its project and its rights"))

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc

    @property
    def _account(self) -> str:
        return fingerprint(self._host, self._key.reveal() if self._key else "")

    def _batch(self, handle: JobHandle) -> dict[str, Any] | None:
        if not is_name(handle.job_id):
            return None
        return self._calls.read(self._sdk.batches.with_raw_response.retrieve, handle.job_id)

    def _handle(self, batch: dict[str, Any], token: str) -> JobHandle | None:
        id, at = batch.get("id"), batch.get("created_at")
        if not is_name(id):
            return None
        url = f"https://platform.openai.com/batches/{id}" if self._url == OPENAI_URL else None
        return JobHandle(self.name, id, token, self._account,
                         float(at) if isinstance(at, int | float) else 0.0, url)


def _errors(batch: dict[str, Any]) -> str:
    """Why a batch was refused as a whole: what is wrong with which line."""
    errors = batch.get("errors") if isinstance(batch.get("errors"), dict) else {}
    rows = [row for row in errors.get("data") or () if isinstance(row, dict)]
    told = [(f"line {row['line']}: " if row.get("line") else "") + str(row.get("message"))[:300]
            for row in rows[:_SHOWN]]
    more = [f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "; ".join(told + more)
