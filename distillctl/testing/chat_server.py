"""A loopback chat provider that speaks OpenAI's and Anthropic's wire formats, for tests and for trying out.

It is never kinder than the originals: it wants a key, refuses parameters and messages that they refuse,
and words its errors as they do. What it replies, and which fault befalls the reply, is scripted per
request. `python -m distillctl.testing.chat_server` runs it for a person.
"""

from __future__ import annotations

import argparse
import gzip
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args

from distillctl.testing.chat_checks import ANTHROPIC_VERSIONS, Refusal, check_body
from distillctl.types import JSON

Fault = Literal["none", "drop_before", "drop_after", "truncate", "drip", "html", "no_body", "not_json",
                "gzip", "huge"]
"""none; drop_before: the connection breaks with the request unread by the model; drop_after: it breaks
after the model answered (and billed); truncate: half a body; drip: a byte at a time, without end; html: a
proxy's page under 200; no_body; not_json; gzip: compressed although not asked for; huge: 64 MiB of blanks."""


@dataclass(frozen=True)
class Asked:
    """One request as the provider saw it. nth: the how manieth with this prompt, from 1; total: of all.
    prompt: the last user turn; header names are in lower case."""

    path: str
    prompt: str
    nth: int
    total: int
    body: Mapping[str, JSON]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What the provider does with one request.

    status other than 200: an error whose body holds `code`, `param` and `message`. delay: seconds before
    the reply. content: replaces the message's content as it is (a list of parts, None). usage, body:
    replace that part of the reply, or all of it. finish: OpenAI's finish_reason or Anthropic's stop_reason.
    """

    text: str = "ok"
    status: int = 200
    code: str | None = None
    param: str | None = None
    message: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    fault: Fault = "none"
    finish: str | None = None
    refusal: str | None = None
    content: JSON = ...
    usage: JSON = ...
    body: JSON = ...
    logprobs: JSON = None


class ChatServer:
    """The provider, as a context manager. script: what to do with each request.

    key: the only key it takes; None takes any, but wants one. models: those that exist; None: all.
    completion_tokens_only: refuses `max_tokens`, as OpenAI's newer models do. `base_url` is for
    OpenAI's SDK, `anthropic_url` for Anthropic's. `asked` is the log, `answered` counts by prompt what
    the model answered and billed.
    """

    def __init__(self, script: Callable[[Asked], Reply] = lambda asked: Reply(), *, key: str | None = None,
                 models: frozenset[str] | None = None, completion_tokens_only: bool = False,
                 port: int = 0) -> None:
        self.script, self.key, self.models = script, key, models
        self.completion_tokens_only = completion_tokens_only
        self.asked: list[Asked] = []
        self.answered: Counter[str] = Counter()
        self.most_at_once = 0
        self._under_way = 0
        self._prompts: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        handler = type("Handler", (self.handler_type(),), {"provider": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02},
                                        daemon=True)

    @staticmethod
    def handler_type() -> type[Handler]:
        """What answers; a subclass may know more routes."""
        return Handler

    @property
    def anthropic_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        return f"{self.anthropic_url}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self, path: str, prompt: str, body: Mapping[str, JSON], headers: Mapping[str, str]) -> Asked:
        with self.lock:
            self._prompts[prompt] += 1
            asked = Asked(path, prompt, self._prompts[prompt], len(self.asked) + 1, body, headers)
            self.asked.append(asked)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            return asked

    def finished(self, asked: Asked, answered: bool) -> None:
        with self.lock:
            self._under_way -= 1
            self.answered[asked.prompt] += answered


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what the tests are about; nothing is printed."""


class Handler(BaseHTTPRequestHandler):
    """Chat completions and messages."""

    provider: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, and would wait 40 ms for each other

    def log_message(self, format: str, *args: object) -> None: ...

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        anthropic = self.path == "/v1/messages"
        try:
            if not anthropic and self.path != "/v1/chat/completions":
                raise Refusal(404, "invalid_request_error", f"Invalid URL (POST {self.path})")
            body = self._checked(raw, anthropic)
        except Refusal as refusal:
            self._send_error(refusal.status, str(refusal), refusal.code, refusal.kind, refusal.param,
                             anthropic)
            return
        prompt = [plain(m["content"]) for m in body["messages"] if m["role"] == "user"][-1]
        asked = self.provider.received(self.path, prompt, body,
                                       {name.lower(): value for name, value in self.headers.items()})
        answered = False
        try:
            reply = self.provider.script(asked)
            self.provider.closing.wait(reply.delay)
            answered = reply.status == 200 and reply.fault != "drop_before"
            self._reply(reply, body, anthropic)
        finally:
            self.provider.finished(asked, answered)

    # --- what the originals refuse ---

    def _checked(self, raw: bytes, anthropic: bool) -> dict[str, JSON]:
        self._check_key(anthropic)
        try:
            body = json.loads(raw)
        except ValueError:
            raise Refusal(400, "invalid_request_error", "We could not parse the JSON body") from None
        self._check_body(body, anthropic, self.headers["anthropic-version"])
        return body

    def _check_body(self, body: dict[str, JSON], anthropic: bool, version: str | None) -> None:
        """Refuse what the original refuses in the body of one request."""
        check_body(body, anthropic, version, self.provider.models, self.provider.completion_tokens_only)

    def _check_key(self, anthropic: bool) -> None:
        bearer = self.headers.get("Authorization", "")
        given = bearer.removeprefix("Bearer ") if bearer.startswith("Bearer ") else None
        if anthropic:
            given = self.headers.get("x-api-key") or given
            if self.headers.get("anthropic-version") not in ANTHROPIC_VERSIONS:
                raise Refusal(400, "invalid_request_error", "anthropic-version: a known one is required")
        if not given or (self.provider.key is not None and given != self.provider.key):
            raise Refusal(401, "authentication_error" if anthropic else "invalid_request_error",
                           f"Incorrect API key provided: {given}", "invalid_api_key")

    # --- replies ---

    def _reply(self, reply: Reply, asked: Mapping[str, JSON], anthropic: bool) -> None:
        if reply.fault in ("drop_before", "drop_after"):
            self._drop()
            return
        if reply.status != 200:
            self._send_error(reply.status, reply.message, reply.code, reply.code or "scripted_error",
                             reply.param, anthropic, reply.headers)
            return
        if reply.body is not ...:
            body = reply.body
        else:
            body = anthropic_body(reply, asked) if anthropic else openai_body(reply, asked)
        data = json.dumps(body).encode()
        if reply.fault == "html":
            self._send(200, b"<!doctype html><title>502</title><h1>Bad gateway</h1>", "text/html")
        elif reply.fault == "no_body":
            self._send(200, b"")
        elif reply.fault == "not_json":
            self._send(200, data[:-2] + b"!")
        elif reply.fault == "truncate":
            self._send(200, data[:len(data) // 2], length=len(data))
            self._drop()
        elif reply.fault == "gzip":
            self._send(200, gzip.compress(data + b" " * (64 << 20), 1), encoding="gzip")
        elif reply.fault == "huge":
            self._send(200, data + b" " * (64 << 20))
        elif reply.fault == "drip":
            self._send(200, b"", length=len(data) + 100_000)
            while not self.provider.closing.wait(0.02):
                self.wfile.write(b" ")
                self.wfile.flush()
        else:
            self._send(200, data, headers=reply.headers)

    def _send(self, status: int, data: bytes, kind: str = "application/json", length: int | None = None,
              encoding: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _send_error(self, status: int, message: str, code: str | None, kind: str, param: str | None,
                    anthropic: bool, headers: Mapping[str, str] | None = None) -> None:
        if anthropic:
            body: JSON = {"type": "error", "error": {"type": kind, "message": message}}
        else:
            body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self._send(status, json.dumps(body).encode(), headers=headers)

    def _drop(self) -> None:
        """Break the connection with a reset, as a crash does, not with an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def openai_body(reply: Reply, asked: Mapping[str, JSON]) -> JSON:
    message = {"role": "assistant", "content": reply.text if reply.content is ... else reply.content,
               "refusal": reply.refusal}
    usage = {"prompt_tokens": _words(asked["messages"]), "completion_tokens": len(reply.text.split()),
             "prompt_tokens_details": {"cached_tokens": 0}}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()),
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish or "stop",
                         "logprobs": reply.logprobs}],
            "usage": usage if reply.usage is ... else reply.usage}


def anthropic_body(reply: Reply, asked: Mapping[str, JSON]) -> JSON:
    content = [{"type": "text", "text": reply.text}] if reply.content is ... else reply.content
    usage = {"input_tokens": _words(asked["messages"]), "output_tokens": len(reply.text.split()),
             "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"],
            "content": content, "stop_reason": reply.finish or "end_turn", "stop_sequence": None,
            "usage": usage if reply.usage is ... else reply.usage}


def plain(content: JSON) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _words(messages: list[Mapping[str, JSON]]) -> int:
    return sum(len(plain(message["content"]).split()) for message in messages)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m distillctl.testing.chat_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--text", default="ok", help="what it answers to everything")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--fault", choices=get_args(Fault), default="none")
    parser.add_argument("--every", type=int, default=1, metavar="N",
                        help="the fault befalls every Nth request")
    given = parser.parse_args()

    def script(asked: Asked) -> Reply:
        fault = given.fault if asked.total % given.every == 0 else "none"
        return Reply(given.text, delay=given.delay, fault=fault)

    with ChatServer(script, port=given.port) as server:
        sys.stdout.write(f"OpenAI: base_url {server.base_url}\nAnthropic: base_url {server.anthropic_url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write(f"{len(server.asked)} requests, {server.answered.total()} answered\n")


if __name__ == "__main__":
    main()
