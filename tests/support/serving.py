"""A server in a thread of this process, and plain requests to it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from distillctl.serve.server import Server
from distillctl.using import Student


@contextmanager
def serving(student: Student, **options: object) -> Iterator[Server]:
    server = Server(student, **options)
    thread = threading.Thread(target=server.run, kwargs={"signals": False})
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def post(url: str, body: object, **headers: str) -> tuple[int, dict]:
    """A plain POST, for what the SDK would not send."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, {
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()}})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
