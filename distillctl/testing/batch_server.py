"""A loopback provider of batches in OpenAI's and Anthropic's wire formats, beside the chat that it also is.

Like the originals it keeps batches by account, checks each request by itself, ends a batch in which some
requests failed like any other, and gives results in another order than it got the requests. A batch goes
one state further each time that it is looked at. What each request gets is `ChatServer`'s script; what
befalls calls is set on the server.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from urllib.parse import parse_qs, urlsplit

from distillctl.testing.chat_server import ChatServer, Handler, Refusal, anthropic_body, openai_body, plain
from distillctl.testing.outage import Outages
from distillctl.types import JSON

_CREATE = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
_LINE = {"custom_id", "method", "url", "body"}
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error",
          403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}


@dataclass
class Batch:
    """One batch. requests: (custom_id, body) in the order of the request. results: provider's lines, those
    that succeeded and those that did not. version: Anthropic's, with which it was made."""

    id: str
    account: str
    anthropic: bool
    requests: list[tuple[str, dict[str, JSON]]]
    metadata: JSON = None
    version: str | None = None
    file: str = ""
    endpoint: str = ""
    created_at: float = field(default_factory=time.time)
    looks: int = 0
    word: str | None = None  # scripted
    cancelled: bool = False
    end: str | None = None
    errors: list[JSON] = field(default_factory=list)
    results: tuple[list[JSON], list[JSON]] = ((), ())
    failed: int = 0


class BatchServer(Outages, ChatServer):
    """The provider. `batches` are those that exist, `creates` counts the create requests that arrived.

    create_faults: of the next creates: "refused", "error_before", "error_after", "lost_reply", "garbled".
    finishes: how many requests of a batch are worked on before it expires; None: all. slow: looks that a
    batch takes. hidden: so many listings lack the newest batch. cut_downloads: so many downloads break off.
    repeats: results come twice, and among them one that nobody asked for.
    """

    def __init__(self, *args, slow: int = 2, **kwargs) -> None:
        self.batches: list[Batch] = []
        self.files: dict[str, bytes] = {}
        self.creates = 0
        self.create_faults: list[str] = []
        self.finishes: int | None = None
        self.slow = slow
        self.hidden = 0
        self.cut_downloads = 0
        self.downloads = 0
        self.repeats = False
        super().__init__(*args, **kwargs)

    @staticmethod
    def handler_type() -> type[Handler]:
        return _BatchHandler

    def batch(self, id: str) -> Batch:
        return next(batch for batch in self.batches if batch.id == id)


class _BatchHandler(Handler):
    provider: BatchServer
    wbufsize = -1  # head and body in one packet: two would wait for each other for 40 ms

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path in ("/v1/chat/completions", "/v1/messages") and not self.provider.down:
            super().do_POST()
        else:
            self._serve("POST")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        anthropic = url.path.startswith("/v1/messages")
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if self.provider.down:
                raise Refusal(503, "api_error", "The server is down for maintenance")
            self._check_key(anthropic)
            with self.provider.lock:
                self._route(method, url.path, query, raw, anthropic)
        except Refusal as refusal:
            self._send_error(refusal.status, str(refusal), refusal.code, refusal.kind, refusal.param,
                             anthropic)

    def _route(self, method: str, path: str, query: Mapping[str, str], raw: bytes, anthropic: bool) -> None:
        root = "/v1/messages/batches" if anthropic else "/v1/batches"
        if (method, path) == ("POST", root):
            self._create(raw, anthropic)
        elif (method, path) == ("GET", root):
            self._list(query, anthropic)
        elif (method, path) == ("POST", "/v1/files"):
            self._upload(raw)
        elif method == "GET" and (found := re.fullmatch(r"/v1/files/([^/]+)/content", path)):
            self._download(self._file(found[1]))
        elif found := re.fullmatch(rf"{root}/([^/]+)(/cancel|/results)?", path):
            self._one(method, self._batch(found[1], anthropic), found[2])
        else:
            raise Refusal(404, "invalid_request_error", f"Invalid URL ({method} {path})")

    # --- files ---

    def _upload(self, raw: bytes) -> None:
        boundary = re.search(r'boundary="?([^";]+)', self.headers.get("content-type", ""))
        fields = {}
        for piece in (b"\r\n" + raw).split(b"\r\n--" + boundary[1].encode())[1:-1] if boundary else ():
            head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            name = BytesHeaderParser().parsebytes(head).get_param("name", header="content-disposition")
            fields[str(name)] = content
        if fields.get("purpose") != b"batch" or not fields.get("file"):
            raise Refusal(400, "invalid_request_error", "a file with purpose 'batch' is required")
        id = f"file-{secrets.token_hex(8)}"
        self.provider.files[id] = fields["file"]
        self._answer({"id": id, "object": "file", "purpose": "batch", "filename": "distillctl.jsonl",
                      "bytes": len(fields["file"]), "created_at": int(time.time()), "status": "processed"})

    def _file(self, id: str) -> bytes:
        if id not in self.provider.files:
            raise Refusal(404, "invalid_request_error", f"No such File object: {id}", param="id")
        return self.provider.files[id]

    def _download(self, data: bytes) -> None:
        self.provider.downloads += 1
        if self.provider.cut_downloads:
            self.provider.cut_downloads -= 1
            self._send(200, data[:len(data) // 2], "application/octet-stream", length=len(data))
            self._drop()
        else:
            self._send(200, data, "application/octet-stream")

    # --- batches ---

    def _create(self, raw: bytes, anthropic: bool) -> None:
        provider = self.provider
        provider.creates += 1
        fault = provider.create_faults.pop(0) if provider.create_faults else ""
        batch = self._new(json.loads(raw), anthropic)
        if fault == "refused":
            raise Refusal(403, "permission_error", "This organization may not create batches")
        if fault == "error_before":
            raise Refusal(500, "api_error", "Internal server error")
        provider.batches.append(batch)
        if fault == "error_after":
            raise Refusal(500, "api_error", "Internal server error")
        if fault == "lost_reply":
            self._drop()
        elif fault == "garbled":
            self._send(200, b"<html>502 Bad Gateway", "text/html")
        else:
            self._answer(self._public(batch))

    def _new(self, asked: dict[str, JSON], anthropic: bool) -> Batch:
        if anthropic:
            if set(asked) != {"requests"} or not asked["requests"] or len(asked["requests"]) > 100_000:
                raise Refusal(400, "invalid_request_error", "requests: 1 to 100000 are required")
            for number, request in enumerate(asked["requests"]):
                if set(request) != {"custom_id", "params"} or not _CUSTOM_ID.fullmatch(request["custom_id"]):
                    raise Refusal(400, "invalid_request_error", f"requests.{number}.custom_id: String should "
                                                                "match pattern '^[a-zA-Z0-9_-]{1,64}$'")
            if len({request["custom_id"] for request in asked["requests"]}) < len(asked["requests"]):
                raise Refusal(400, "invalid_request_error", "requests: custom_id must be unique")
            return Batch(f"msgbatch_{secrets.token_hex(8)}", self._account(), True,
                         [(request["custom_id"], request["params"]) for request in asked["requests"]],
                         version=self.headers["anthropic-version"])
        if unknown := set(asked) - _CREATE:
            raise Refusal(400, "invalid_request_error", f"Unknown parameter: '{min(unknown)}'.")
        if asked.get("completion_window") != "24h" or asked.get("endpoint") != "/v1/chat/completions":
            raise Refusal(400, "invalid_request_error", "Invalid completion_window or endpoint")
        metadata = asked.get("metadata") or {}
        if len(metadata) > 16 or any(len(name) > 64 or not isinstance(text, str) or len(text) > 512
                                     for name, text in metadata.items()):
            raise Refusal(400, "invalid_request_error", "Invalid 'metadata'", param="metadata")
        self._file(str(asked.get("input_file_id")))
        return Batch(f"batch_{secrets.token_hex(8)}", self._account(), False, [], metadata,
                     file=asked["input_file_id"], endpoint=asked["endpoint"])

    def _list(self, query: Mapping[str, str], anthropic: bool) -> None:
        rows = [batch for batch in reversed(self.provider.batches)
                if batch.anthropic == anthropic and batch.account == self._account()]
        if self.provider.hidden:
            self.provider.hidden -= 1
            rows = rows[1:]
        after = query.get("after_id" if anthropic else "after")
        if after:
            rows = rows[[batch.id for batch in rows].index(after) + 1:]
        for batch in rows:
            self._go_on(batch)
        limit = int(query.get("limit", 20))
        if not 1 <= limit <= (1000 if anthropic else 100):
            raise Refusal(400, "invalid_request_error", "limit: out of range", param="limit")
        page = rows[:limit]
        ids = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
        self._answer({**({} if anthropic else {"object": "list"}), "data": list(map(self._public, page)),
                      "has_more": len(rows) > limit, **ids})

    def _batch(self, id: str, anthropic: bool) -> Batch:
        for batch in self.provider.batches:
            if (batch.id, batch.anthropic, batch.account) == (id, anthropic, self._account()):
                return batch
        raise Refusal(404, _KINDS[404 if anthropic else 400], f"No batch found: {id}")

    def _one(self, method: str, batch: Batch, what: str | None) -> None:
        if (method, what) == ("POST", "/cancel"):
            if batch.end is not None:
                raise Refusal(409 if not batch.anthropic else 400, "invalid_request_error",
                              f"Cannot cancel a batch that is {batch.end}")
            batch.cancelled = True
            self._answer(self._public(batch))
        elif (method, what) == ("GET", "/results") and batch.anthropic:
            if batch.end is None:
                raise Refusal(404, "not_found_error", "the batch has not ended")
            self._download(_lines(batch.results[0] + batch.results[1]))
        elif (method, what) == ("GET", None):
            self._go_on(batch)
            self._answer(self._public(batch))
        else:
            raise Refusal(405, "invalid_request_error", "Method not allowed")

    # --- the life of a batch ---

    def _go_on(self, batch: Batch) -> None:
        batch.looks += 1
        if batch.end is None and (batch.cancelled or batch.looks > self.provider.slow):
            if not batch.anthropic and not self._validated(batch):
                batch.end = "failed"
            else:
                self._work(batch)

    def _validated(self, batch: Batch) -> bool:
        seen: set[str] = set()
        for number, line in enumerate(self._file(batch.file).splitlines(), 1):
            try:
                row = json.loads(line)
                good = set(row) == _LINE and row["method"] == "POST" and row["url"] == batch.endpoint
            except ValueError:
                good = False
            wrong = "" if good else "This line is not a valid request."
            if good and row["custom_id"] in seen:
                wrong = f"The custom_id '{row['custom_id']}' is used for another request in this file."
            if wrong:
                batch.errors.append({"code": "invalid_request", "line": number, "message": wrong,
                                     "param": None})
                continue
            seen.add(row["custom_id"])
            batch.requests.append((row["custom_id"], row["body"]))
        if len({body.get("model") for _, body in batch.requests}) > 1:
            batch.errors.append({"code": "mismatched_model", "line": 1, "param": "body.model",
                                 "message": "All requests in a batch must have the same model."})
        return not batch.errors and len(batch.requests) <= 50_000

    def _work(self, batch: Batch) -> None:
        """Answer the requests, all or the first few, and write the results down in reversed order."""
        provider = self.provider
        finishes = 0 if batch.cancelled and provider.finishes is None else provider.finishes
        good, bad = [], []
        for number, (id, body) in enumerate(batch.requests):
            if finishes is not None and number >= finishes:
                bad.append(self._unfinished(batch, id))
                continue
            status, reply = self._reply_to(batch, body)
            (good if status == 200 else bad).append(_result(batch, id, status, reply))
        cut = finishes is not None and finishes < len(batch.requests)
        batch.end = "cancelled" if batch.cancelled else "expired" if cut else "completed"
        batch.failed = len(bad)
        if provider.repeats and good:
            good = [*good, {**good[0]}, {**good[0], "custom_id": "somebody-elses"}]
        batch.results = (good[::-1], bad[::-1])

    def _reply_to(self, batch: Batch, body: dict[str, JSON]) -> tuple[int, JSON]:
        try:
            self._check_body(body, batch.anthropic, batch.version)
        except Refusal as refusal:
            return refusal.status, _error(batch, refusal.status, str(refusal), refusal.code)
        prompt = [plain(m["content"]) for m in body["messages"] if m["role"] == "user"][-1]
        asked = self.provider.received(self.path, prompt, body, {})
        reply = self.provider.script(asked)
        self.provider.finished(asked, reply.status == 200)
        if reply.status != 200:
            return reply.status, _error(batch, reply.status, reply.message, reply.code)
        if reply.body is not ...:
            return 200, reply.body
        return 200, (anthropic_body if batch.anthropic else openai_body)(reply, body)

    @staticmethod
    def _unfinished(batch: Batch, id: str) -> JSON:
        word = "cancelled" if batch.cancelled else "expired"
        if batch.anthropic:
            return {"custom_id": id, "result": {"type": "canceled" if batch.cancelled else "expired"}}
        return {"id": f"batch_req_{id}", "custom_id": id, "response": None, "error": {
            "code": f"batch_{word}", "message": "This request could not be executed before the batch ended."}}

    def _account(self) -> str:
        return self.headers.get("x-api-key") or self.headers.get("Authorization", "")

    def _answer(self, body: JSON) -> None:
        self._send(200, json.dumps(body).encode())

    def _public(self, batch: Batch) -> JSON:
        done, failed = len(batch.results[0]), batch.failed
        if batch.anthropic:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch.created_at))
            kinds = [row["result"]["type"] for row in batch.results[1]]
            counts = {kind: kinds.count(kind) for kind in ("errored", "canceled", "expired")}
            ended = batch.end is not None
            return {"id": batch.id, "type": "message_batch", "created_at": at, "expires_at": at,
                    "processing_status": batch.word or (
                        "ended" if ended else "canceling" if batch.cancelled else "in_progress"),
                    "cancel_initiated_at": at if batch.cancelled else None, "archived_at": None,
                    "ended_at": at if ended else None, "request_counts": {
                        **counts, "processing": 0 if ended else len(batch.requests),
                        "succeeded": len(batch.requests) - failed if ended else 0},
                    "results_url": f"{self.provider.anthropic_url}/v1/messages/batches/{batch.id}/results"
                    if ended else None}
        output = self._kept(batch, "output", batch.results[0])
        errors = self._kept(batch, "error", batch.results[1])
        word = batch.end or ("cancelling" if batch.cancelled else "in_progress" if batch.looks > 1 else
                             "validating")
        return {"id": batch.id, "object": "batch", "endpoint": batch.endpoint, "completion_window": "24h",
                "input_file_id": batch.file, "created_at": int(batch.created_at),
                "status": batch.word or word, "metadata": batch.metadata, "output_file_id": output,
                "error_file_id": errors,
                "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
                "request_counts": {"total": len(batch.requests), "completed": done, "failed": failed}}

    def _kept(self, batch: Batch, what: str, rows: list[JSON]) -> str | None:
        if not rows:
            return None
        self.provider.files.setdefault(f"file-{what}-{batch.id}", _lines(rows))
        return f"file-{what}-{batch.id}"


def _result(batch: Batch, id: str, status: int, body: JSON) -> JSON:
    if not batch.anthropic:
        return {"id": f"batch_req_{id}", "custom_id": id, "error": None, "response": {
            "status_code": status, "request_id": f"req_{id}", "body": body}}
    if status == 200:
        return {"custom_id": id, "result": {"type": "succeeded", "message": body}}
    return {"custom_id": id, "result": {"type": "errored", "error": body}}


def _error(batch: Batch, status: int, message: str, code: str | None) -> JSON:
    kind = _KINDS.get(status, "api_error")
    if batch.anthropic:
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _lines(rows: list[JSON]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
