"""Anthropic's Message Batches (https://platform.claude.com/docs/en/build-with-claude/batch-processing).

The requests are the create request's body and the results one JSONL, in any order. A batch has neither a
name nor metadata, so its token stands before every `custom_id`, and can be read only in the results, once
the batch has ended. After a lost reply `find` therefore looks at the batches that are newer than the one
that was the newest before the request was sent: one with as many requests whose results carry the token is
ours; while one with as many requests is still being worked on, nobody can tell, and nothing is created.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from distillctl.backend import (
    Ambiguous,
    JobHandle,
    JobState,
    Snapshot,
    Staged,
    Unreachable,
)
from distillctl.errors import BackendError, Problem
from distillctl.hosted import creating
from distillctl.predictors.anthropic_chat import AnthropicPredictor
from distillctl.predictors.batch import (
    MOST_RESULTS,
    Batches,
    BatchJob,
    Outcome,
    errored,
    numbers,
    snapshot,
)
from distillctl.prices import PricePoint
from distillctl.sdk_calls import Gone, is_name
from distillctl.secrets import Secret
from distillctl.store.files import SAFE_NAME, atomic_write, read_json, write_json
from distillctl.types import JSON, CallFailed, Request

_STATES: dict[str, JobState] = {"in_progress": "running", "canceling": "running", "ended": "succeeded"}
_COUNTS = ("succeeded", "errored", "canceled", "expired", "processing")
_STATUS = {"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402,
           "permission_error": 403, "not_found_error": 404, "request_too_large": 413,
           "rate_limit_error": 429, "api_error": 500, "timeout_error": 504, "overloaded_error": 529}
_LOOK_AGAIN_S = 60.0


class AnthropicBatches(Batches):
    """Batches of messages. folder: where it keeps what `find` needs. tokens: the tokens of the batches that
    the ledger knows, by their ids."""

    name: ClassVar[str] = "anthropic-batch"
    sdk_name: ClassVar[str] = "anthropic"
    after: ClassVar[str] = "after_id"
    most_requests: ClassVar[int] = 100_000
    most_bytes: ClassVar[int] = 256_000_000

    def __init__(self, predictor: AnthropicPredictor, key: Secret, price: PricePoint | None, folder: Path,
                 tokens: Callable[[], Mapping[str, str]]) -> None:
        super().__init__(predictor, key, price)
        self._folder, self._tokens = folder, tokens

    # --- the requests ---

    def size(self, id: str, request: Request) -> int:
        # the token and a dash will stand before the id, and a comma behind the whole
        return len(json.dumps(self._request(f"{'':13}{id}", request), ensure_ascii=False)
                   .encode()) + 2

    def stage(self, job: BatchJob) -> Staged:
        """Sends nothing; notes the newest batch that is not ours."""
        page = self._calls.read(self._batches.with_raw_response.list, limit=1)
        rows = page.get("data") if page else None
        if not isinstance(rows, list):
            raise Unreachable("the listing of batches cannot be read")
        return Staged({"newest": rows[0]["id"] if rows else None})

    def _request(self, id: str, request: Request) -> dict[str, JSON]:
        return {"custom_id": id, "params": self._predictor.body(request)}

    # --- the batch ---

    def submit(self, job: BatchJob, staged: Staged, token: str) -> JobHandle:
        sent = self._sent(token)
        if not sent.exists():  # else it was sent before, and the batch of that time is looked for
            write_json(sent, {"newest": staged.data["newest"], "requests": len(job.requests)})
        with creating(lambda failed: f"{self._host} says: {failed}"):
            made = self._calls.call(
                self._batches.with_raw_response.create,
                requests=[self._request(f"{token}-{id}", request) for id, request in job.requests.items()],
                extra_headers=self._predictor.extra_headers or None)
        handle = self._handle(made, token)
        if handle is None:
            raise Ambiguous("the reply names no batch")
        return handle

    def find(self, token: str) -> list[JobHandle]:
        if not SAFE_NAME.fullmatch(token) or not self._sent(token).exists():
            return []  # it was never sent
        sent, tokens = read_json(self._sent(token)), self._tokens()
        found, untold = [], []
        for batch in self._calls.pages(self._batches.with_raw_response.list):
            if batch["id"] == sent["newest"]:
                break  # newest first: what follows is older than the request
            handle, known = self._handle(batch, token), tokens.get(batch["id"])
            if handle is None or known not in (None, token) or (
                    sum(numbers(batch.get("request_counts"), *_COUNTS)) != sent["requests"]):
                continue
            if known is None and batch.get("processing_status") != "ended":
                untold.append(batch["id"])
            elif known == token or self._carries(batch, token):
                found.append(handle)
        if untold and not found:
            raise Unreachable(
                f"{' and '.join(untold)} may be this batch or somebody else's, which shows when it has "
                "ended; nothing is created until then", _LOOK_AGAIN_S)
        return sorted(found, key=lambda handle: (handle.created_at, handle.job_id))

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        batch = self._batch(handle)
        if batch is None:
            return self._lost(handle)
        word = batch.get("processing_status")
        word = word if isinstance(word, str) and word else "none"
        state = _STATES.get(word, "unknown")
        if state == "succeeded" and batch.get("cancel_initiated_at"):
            state = "cancelled"
        counts = numbers(batch.get("request_counts"), *_COUNTS)
        return snapshot(state, word, counts[0], sum(counts[1:4]), sum(counts))

    # --- the answers ---

    def download(self, handle: JobHandle, into: Path) -> None:
        self._check_results(self._batch(handle) or {})
        with atomic_write(into, "wb") as file:
            self._calls.download(file, MOST_RESULTS, self._results, handle.job_id)

    def outcome(self, row: Mapping[str, JSON], token: str) -> tuple[str, Outcome]:
        id, result = row.get("custom_id"), row.get("result")
        if not isinstance(id, str) or not isinstance(result, dict):
            raise ValueError
        id = id.removeprefix(f"{token}-")
        kind = result.get("type")
        if kind == "errored":
            error = result.get("error") if isinstance(result.get("error"), dict) else {}
            inner = error.get("error") if isinstance(error.get("error"), dict) else error
            return id, errored(_STATUS.get(str(inner.get("type")), 500), error, self._key.name)
        if kind != "succeeded":
            return id, CallFailed("transient", f"the batch left it {str(kind)[:50]}")
        message = result.get("message")
        try:
            return id, self._predictor.read(message if isinstance(message, dict) else {}, None, self.price)
        except CallFailed as failed:
            return id, failed

    # --- the service ---

    def _open(self) -> Any:
        import anthropic

        return anthropic.Anthropic(**self._connection)

    @property
    def _batches(self) -> Any:
        return self._sdk.messages.batches

    @property
    def _results(self) -> Callable[..., Any]:
        return self._batches.with_streaming_response.results

    def _sent(self, token: str) -> Path:
        """What was known when the batch of `token` was first sent; missing where it never was."""
        return self._folder / f"{token}.sent.json"

    def _handle(self, batch: dict[str, Any], token: str) -> JobHandle | None:
        if not is_name(batch.get("id")):
            return None
        return JobHandle(self.name, batch["id"], token, self._account, _seconds(batch.get("created_at")))

    def _check_results(self, batch: Mapping[str, JSON]) -> None:
        """The SDK goes, key in hand, wherever `results_url` points: only where the recipe sends data."""
        url = batch.get("results_url")
        if not url and batch.get("archived_at"):
            raise Gone(Problem("the results are archived", where=self._host, value=batch.get("id")))
        if not isinstance(url, str):
            raise Unreachable("the batch's results are not there yet")
        if urlsplit(url).netloc != self._host:
            raise BackendError(Problem(f"the results are not at {self._host}, where the key belongs",
                                       field="teacher.base_url", value=url[:200]))

    def _carries(self, batch: Mapping[str, JSON], token: str) -> bool:
        """Whether the results of a batch that has ended begin with our token."""
        if not batch.get("results_url"):
            return False  # archived: older than 29 days
        self._check_results(batch)
        head = _Head()
        with contextlib.suppress(_Enough):
            self._calls.download(head, MOST_RESULTS, self._results, batch["id"])
        try:
            return str(json.loads(head.line)["custom_id"]).startswith(f"{token}-")
        except (ValueError, KeyError, TypeError):
            return False


class _Enough(Exception):
    """The first line is there."""


class _Head(io.RawIOBase):
    """Takes what is written until its first line is whole."""

    line = b""

    def write(self, piece: Any) -> int:
        self.line += bytes(piece)
        if b"\n" in self.line:
            self.line = self.line.partition(b"\n")[0]
            raise _Enough
        return len(piece)


def _seconds(text: JSON) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
