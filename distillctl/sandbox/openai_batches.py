"""OpenAI's batches: a file of chat completions, worked on while it is looked at, answered as two files.

Wire format: https://developers.openai.com/api/reference/resources/batches. Like there, a batch in which
requests failed is complete, what was finished before a cancel is kept and billed, and the answers come in
another order than the requests.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from distillctl.sandbox.openai_checks import bad, check_metadata, only, page
from distillctl.sandbox.wire import Call, Refused, route
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.sandbox.jobs import Jobs
    from distillctl.sandbox.store import Store

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
_ENDPOINT = "/v1/chat/completions"
_ARGUMENTS = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
_LINE = {"custom_id", "method", "url", "body"}
_VALIDATING = (("validating", 5.0),)
_AT_A_LOOK_S = 2.0  # how long one look at a batch works on it
_ENDS = frozenset({"completed", "failed", "cancelled"})


class BatchRoutes:
    """The routes of batches; a part of `OpenAIPart`, which answers single requests."""

    store: Store
    jobs: Jobs
    completion: Callable[[str, Mapping[str, Any]], JSON]
    """The reply to one chat request of an account. Raises Refused."""
    error_body: Callable[[Refused], JSON]
    _working = threading.Lock()

    @route("POST", "/v1/batches", "batches.create")
    def create_batch(self, call: Call) -> JSON:
        asked = call.json()
        only(asked, _ARGUMENTS)
        if asked.get("completion_window") != "24h":
            raise bad("Invalid value: only '24h' is supported.", "completion_window")
        if asked.get("endpoint") != _ENDPOINT:
            raise bad(f"Invalid value: this sandbox has batches of '{_ENDPOINT}' only.", "endpoint")
        check_metadata(asked.get("metadata"))
        file = self.store.get("file", str(asked.get("input_file_id")), call.account)
        if file is None or file["purpose"] != "batch":
            raise bad(f"invalid input_file_id: {asked.get('input_file_id')}", "input_file_id", "invalid_file")
        batch = {"id": f"batch_{secrets.token_hex(12)}", "object": "batch", "endpoint": _ENDPOINT,
                 "completion_window": "24h", "input_file_id": file["id"], "metadata": asked.get("metadata"),
                 "created_at": int(time.time()), "status": "validating", "errors": None,
                 "output_file_id": None, "error_file_id": None,
                 "request_counts": {"total": 0, "completed": 0, "failed": 0}}
        self.store.put("batch", batch["id"], batch, call.account)
        return batch

    @route("GET", "/v1/batches", "batches.list")
    def list_batches(self, call: Call) -> JSON:
        rows = self.store.list("batch", call.account)
        if call.fault and call.fault.what == "hide":
            rows = rows[call.fault.number:]
        if call.fault and call.fault.what == "repeat":
            rows = [row for row in rows for _ in range(2)]
        return page(call, rows, default=20, most=100)

    @route("GET", "/v1/batches/{id}", "batches.get", slow=True)
    def get_batch(self, call: Call) -> JSON:
        batch = self._batch(call)
        # an answer can take longer than the next look waits
        if batch["status"] not in _ENDS and self._working.acquire(blocking=False):
            try:
                batch = self._batch(call)
                self._go_on(batch, call.account)
            finally:
                self._working.release()
        if call.fault and call.fault.what == "word":
            batch = {**batch, "status": call.fault.value}
        return batch

    @route("POST", "/v1/batches/{id}/cancel", "batches.cancel")
    def cancel_batch(self, call: Call) -> JSON:
        batch = self._batch(call)
        if batch["status"] in _ENDS:
            raise Refused(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        self._now(batch, "cancelling")
        return batch

    # --- the life of a batch ---

    def _go_on(self, batch: dict[str, JSON], account: str) -> None:
        status = batch["status"]
        if status == "cancelling":
            self._publish(batch, account, "cancelled")
        elif status == "finalizing":
            self._publish(batch, account, "completed")
        elif status == "validating":
            if self.jobs.passed(_VALIDATING, batch["created_at"], 1):
                rows, errors = _examine(self.store.read_blob(batch["input_file_id"]))
                batch["request_counts"]["total"] = len(rows)
                batch["errors"] = {"object": "list", "data": errors} if errors else None
                self._now(batch, "failed" if errors else "in_progress")
        else:
            self._work(batch, account)

    def _work(self, batch: dict[str, JSON], account: str) -> None:
        """Answer requests until the time for one look is over, or all are answered."""
        rows, _ = _examine(self.store.read_blob(batch["input_file_id"]))
        done = self.store.get("batch results", batch["id"]) or []
        until = time.monotonic() + _AT_A_LOOK_S
        for row in rows[len(done):]:
            done.append(self._result(row, account))
            if time.monotonic() > until:
                break
        good = sum(row["response"]["status_code"] == 200 for row in done)
        batch["request_counts"] |= {"completed": good, "failed": len(done) - good}
        with self.store.transaction():
            self.store.put("batch results", batch["id"], done)
            if self.store.get("batch", batch["id"])["status"] == "cancelling":  # while it was worked on
                self._now(batch, "cancelling")
            else:
                self._now(batch, "finalizing" if len(done) == len(rows) else "in_progress")

    def _result(self, row: Mapping[str, Any], account: str) -> JSON:
        try:
            status, body = 200, self.completion(account, row["body"])
        except Refused as refused:
            status, body = refused.status, self.error_body(refused)
        return {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": row["custom_id"], "error": None,
                "response": {"status_code": status, "request_id": secrets.token_hex(8), "body": body}}

    def _publish(self, batch: dict[str, JSON], account: str, status: str) -> None:
        """End a batch: its results as files, in reversed order, and its bill."""
        done = self.store.get("batch results", batch["id"]) or []
        rows, _ = _examine(self.store.read_blob(batch["input_file_id"]))
        left = [{"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": row["custom_id"], "response": None,
                 "error": {"code": "batch_cancelled",
                           "message": "This request was not executed because the batch was cancelled."}}
                for row in rows[len(done):]]
        good = [row for row in done if row["response"]["status_code"] == 200]
        failed = [row for row in done if row["response"]["status_code"] != 200]
        with self.store.transaction():
            for name, results in (("output_file_id", good), ("error_file_id", [*failed, *left])):
                if results:
                    batch[name] = self._file_of(batch, results, account)
            self._now(batch, status)
            self.store.charge(account, "batch", batch["id"], len(good), "requests")

    def _file_of(self, batch: Mapping[str, JSON], results: list[JSON], account: str) -> str:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in reversed(results))
        file = {"object": "file", "id": f"file-{secrets.token_hex(12)}", "purpose": "batch_output",
                "filename": f"{batch['id']}.jsonl", "bytes": len(data), "created_at": int(time.time()),
                "expires_at": None, "status": "processed", "status_details": None}
        self.store.write_blob(file["id"], data)
        self.store.put("file", file["id"], file, account)
        return file["id"]

    def _now(self, batch: dict[str, JSON], status: str) -> None:
        batch["status"] = status
        batch[f"{status}_at"] = int(time.time())
        self.store.put("batch", batch["id"], batch)

    def _batch(self, call: Call) -> dict[str, Any]:
        batch = self.store.get("batch", call.path["id"], call.account)
        if batch is None:
            raise Refused(404, f"No batch found with id '{call.path['id']}'.")
        return batch


def _examine(data: bytes) -> tuple[list[dict[str, Any]], list[JSON]]:
    """The requests of an input file, and what is wrong with it line by line."""
    rows: list[dict[str, Any]] = []
    errors: list[JSON] = []
    seen: set[str] = set()

    def wrong(line: int | None, code: str, message: str, param: str | None = None) -> None:
        errors.append({"code": code, "line": line, "message": message, "param": param})

    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or set(row) != _LINE or not isinstance(row["body"], dict):
            wrong(number, "invalid_json_line", "This line is not parseable as a valid batch request.")
        elif row["method"] != "POST" or row["url"] != _ENDPOINT:
            wrong(number, "mismatched_endpoint",
                  f"The URL provided for this request does not match the endpoint '{_ENDPOINT}'.", "url")
        elif row["custom_id"] in seen:
            wrong(number, "duplicate_custom_id",
                  f"The custom_id '{row['custom_id']}' for this request is a duplicate.", "custom_id")
        else:
            seen.add(row["custom_id"])
            rows.append(row)
    if len({row["body"].get("model") for row in rows}) > 1:
        wrong(None, "mismatched_model", "All requests in a batch must be for the same model.", "body.model")
    if len(rows) > MOST_REQUESTS or len(data) > MOST_BYTES:
        wrong(None, "file_too_large", f"A batch has at most {MOST_REQUESTS} requests and 200 MB.")
    if not rows and not errors:
        wrong(None, "empty_file", "The input file is empty.")
    return rows, errors
