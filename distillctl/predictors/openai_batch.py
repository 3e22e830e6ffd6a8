"""OpenAI's Batch API, and servers that speak it
(https://developers.openai.com/api/reference/resources/batches).

A batch is a file of requests, of which each may fail by itself; the answers come as a file of those that
succeeded and one of those that did not, in any order. A batch carries its token in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from distillctl.backend import (
    Ambiguous,
    JobHandle,
    JobState,
    Rejected,
    Snapshot,
    Staged,
    Unreachable,
)
from distillctl.hosted import Failed, creating, unreachable
from distillctl.predictors.batch import (
    MOST_RESULTS,
    Batches,
    BatchJob,
    Outcome,
    errored,
    numbers,
    snapshot,
)
from distillctl.predictors.http import Refused, refusal
from distillctl.predictors.openai_chat import OPENAI_URL
from distillctl.sdk_calls import is_name
from distillctl.store.files import atomic_write
from distillctl.types import JSON, CallFailed, Request

TOKEN = "distillctl_token"
_ENDPOINT = "/v1/chat/completions"
_STATES: dict[str, JobState] = {
    "validating": "queued", "in_progress": "running", "finalizing": "running", "completed": "succeeded",
    "expired": "succeeded", "failed": "failed", "cancelling": "running", "cancelled": "cancelled"}
_SHOWN = 5  # of the lines that were refused


class OpenAIBatches(Batches):
    """Batches of chat completions."""

    name: ClassVar[str] = "openai-batch"
    sdk_name: ClassVar[str] = "openai"
    after: ClassVar[str] = "after"
    most_requests: ClassVar[int] = 50_000
    most_bytes: ClassVar[int] = 200_000_000

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
                self._batches.with_raw_response.create, input_file_id=str(staged.data["file"]),
                endpoint=_ENDPOINT, completion_window="24h", metadata={TOKEN: token})
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no batch")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        listed = self._calls.pages(self._batches.with_raw_response.list)
        found = [handle for batch in listed if isinstance(batch.get("metadata"), dict)
                 and batch["metadata"].get(TOKEN) == token and (handle := self._handle(batch, token))]
        return sorted(found, key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        batch = self._batch(handle)
        if batch is None:
            return self._lost(handle)
        word = batch.get("status")
        word = word if isinstance(word, str) and word else "none"
        done, failed, total = numbers(batch.get("request_counts"), "completed", "failed", "total")
        return snapshot(_STATES.get(word, "unknown"), word, done, failed, total, _errors(batch))

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

    def _open(self) -> Any:
        import openai

        # OPENAI_ORG_ID and OPENAI_PROJECT_ID are for OpenAI alone
        omitted = None if self._url == OPENAI_URL else {
            "OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        return openai.OpenAI(**self._connection, default_headers=omitted)

    @property
    def _batches(self) -> Any:
        return self._sdk.batches

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
