"""A sandbox: one provider's part behind HTTP on loopback, with faults, state and a log."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distillctl.sandbox.faults import BEFORE, Fault, Faults
from distillctl.sandbox.jobs import Jobs
from distillctl.sandbox.store import Store
from distillctl.sandbox.tuner import Students, Tuner, tuner_named
from distillctl.sandbox.wire import Call, ProviderPart, Refused, Reply, encode, match, query_of
from distillctl.types import JSON, Answer, Message

MOST_BYTES = 600 * 1024 * 1024  # of one request


class Sandbox:
    """A provider, as a context manager; `url` is where it answers.

    folder: where its state lives, also after a restart. tuner: what trains, see `tuner.tuner_named`.
    speed: the provider's seconds in one of ours; None: a job goes on each time it is looked at. It is a
    `distillctl.testing.ProviderControl`.
    """

    def __init__(self, part: type[ProviderPart], folder: Path, *, tuner: str | Tuner = "local",
                 port: int = 0, speed: float | None = 1.0, faults: Iterable[Fault] = ()) -> None:
        self.store = Store(folder)
        behind = tuner_named(tuner) if isinstance(tuner, str) else tuner
        self.joblist = Jobs(self.store, behind, speed)
        self.students = Students(behind)
        self.faults = Faults(faults)
        self.part = self.joblist.part = part(self)
        self.routes = part.routes()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"sandbox": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02},
                                        daemon=True)

    def __enter__(self) -> Sandbox:
        self.joblist.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.joblist.stop()
        self.students.close()
        self.store.close()

    def answer(self, student: Path | None, messages: Sequence[Message],
               schema: Mapping[str, Any] | None = None) -> Answer:
        """What a student (None: the untrained model) says; `schema`: the answer must fit it. Call it from
        routes that are `slow`."""
        return self.students.answer(student, messages, schema)

    # --- what tests ask and tell (ProviderControl) ---

    @property
    def refusal(self) -> str:
        return self.part.refusal

    def creates(self) -> int:
        return self.store.requests().get("jobs.create", 0)

    def jobs(self) -> int:
        return sum(1 for job in self.joblist.all() if job.ours)

    def break_next_create(self, how: str) -> None:
        what, value = {"refused": ("refuse", ""), "error_before": ("status", "500"),
                       "error_after": ("status_after", "500"), "lost_reply": ("drop_after", ""),
                       "garbled": ("garble", "")}[how]
        self.add_fault(Fault("jobs.create", what, value))

    def add_fault(self, fault: Fault) -> None:
        with self.store.transaction():
            self.faults.add(fault)

    @contextmanager
    def outage(self) -> Iterator[None]:
        fault = Fault("*", "status", "503", None)
        self.add_fault(fault)
        try:
            yield
        finally:
            with self.store.transaction():
                self.faults.remove(fault)

    def say(self, job_id: str, word: str) -> None:
        with self.store.transaction():
            job = self.joblist.get(job_id, None)
            job.word = word
            self.joblist.save(job)

    def delete(self, job_id: str) -> None:
        self.joblist.delete(job_id)

    def duplicate(self, job_id: str) -> str:
        with self.store.transaction():
            job = self.joblist.get(job_id, None)
            copy = replace(job, id=self.part.new_job_id(), created_at=job.created_at + 1, looks=0)
            self.joblist.save(copy)
        return copy.id

    def crowd(self, count: int) -> None:
        with self.store.transaction():
            first = self.joblist.all()[-1]
            for _ in range(count):
                self.joblist.save(replace(first, id=self.part.new_job_id(), end="cancelled", ours=False,
                                       request=self.part.anonymous(first.request)))

    def paid_servers(self) -> int:
        return self.part.paid_servers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Drop(Exception):
    """Break the connection."""


class _Handler(BaseHTTPRequestHandler):
    sandbox: Sandbox
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would wait for each other for 40 ms

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        found = match(self.sandbox.routes, self.command, url.path)
        name = found[0].name if found else "unknown"
        store = self.sandbox.store
        with store.transaction():
            fault = self.sandbox.faults.take(name)
            number = store.log(time.time(), name, self.command, url.path, f"{fault or ''}")
        try:
            reply = self._reply(found, url.query, fault)
            store.answered(number, reply.status)
            self._send(reply, fault)
            self.wfile.flush()
        except _Drop:
            self._drop()

    def _reply(self, found: Any, query: str, fault: Fault | None) -> Reply:
        part = self.sandbox.part
        try:
            body = self._body()
            self._before(fault)
            call = Call(self.command, self.path, {}, query_of(query), {
                name.lower(): value for name, value in self.headers.items()}, body,
                f"http://{self.headers.get('Host', '')}", fault)
            call.account = part.account(call)
            if found is None:
                raise Refused(404, f"Unknown request URL: {self.command} {self.path}.")
            route, call.path = found
            with nullcontext() if route.slow else self.sandbox.store.transaction():
                made = getattr(part, route.handler)(call)
            if fault and fault.what == "status_after":
                raise Refused(fault.number, "The server had an error while processing your request.")
        except Refused as refused:
            return Reply(part.error_body(refused), refused.status, part.error_headers(refused))
        except (_Drop, OSError):
            raise
        except Exception as error:
            refused = Refused(500, f"The sandbox failed: {type(error).__name__}: {error}")
            return Reply(part.error_body(refused), 500)
        return made if isinstance(made, Reply) else Reply(made)

    def _before(self, fault: Fault | None) -> None:
        if fault is None or fault.what not in BEFORE:
            return
        if fault.what == "drop_before":
            raise _Drop
        if fault.what == "refuse":
            raise Refused(403, self.sandbox.part.refusal)
        raise Refused(fault.number, "The server is not able to answer just now.")

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(pieces)
        length = int(self.headers.get("Content-Length") or 0)
        if length > MOST_BYTES:
            self.close_connection = True
            raise Refused(413, f"A request has at most {MOST_BYTES} bytes.")
        return self.rfile.read(length)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        what = fault.what if fault else ""
        if what == "drop_after":
            raise _Drop
        if what == "stall":
            self.sandbox.closing.wait(fault.number)
        if what == "garble":
            reply = Reply(b"<html><title>502 Bad Gateway</title>", 200, {"Content-Type": "text/html"})
        if isinstance(reply.body, Iterator):
            self._stream(reply, reply.body)
            return
        data = encode(reply.body)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **reply.headers}
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if what == "truncate":
            self.wfile.write(data[:len(data) // 2])
            self.wfile.flush()
            raise _Drop
        if self.command != "HEAD":
            self.wfile.write(data)

    def _stream(self, reply: Reply, pieces: Iterator[bytes]) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def _drop(self) -> None:
        """Break the connection with a reset, as a crash does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def counts(sandbox: Sandbox) -> dict[str, JSON]:
    """What has happened, for a person: requests by route, jobs, charges."""
    return {"requests": sandbox.store.requests(), "jobs": sandbox.jobs(),
            "charges": sandbox.store.charges()}
