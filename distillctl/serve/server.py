"""Listens, and stops cleanly: what is under way is answered first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from distillctl.errors import Problem, UsageError
from distillctl.secrets import Secret
from distillctl.serve.app import Limits, Service, is_loopback
from distillctl.serve.cascade import Cascade
from distillctl.using import Student

GRACE = 30  # seconds that requests under way get once the server is to stop
CUT_OFF = 0.2  # seconds in which tasks that are cut off write down what they must


class _Uvicorn(uvicorn.Server):
    """The signals are ours: uvicorn raises them again once it has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """A student's server. `url` is known from the start: the port is taken, but not answered yet.

    port: 0 takes a free one. Raises UsageError where the address cannot be had, or others could reach it
    without a key.
    """

    def __init__(self, student: Student, *, host: str = "127.0.0.1", port: int = 0, key: Secret | None = None,
                 limits: Limits | None = None, cascade: Cascade | None = None) -> None:
        self._socket = _listen(host, port, key)
        bound = self._socket.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.url = f"http://{shown}:{bound[1]}"
        self._server = _Uvicorn(uvicorn.Config(
            Service(student, key, limits or Limits(), cascade).app(), access_log=False, log_config=None,
            server_header=False, timeout_graceful_shutdown=GRACE, proxy_headers=False, ws="none",
            lifespan="on", h11_max_incomplete_event_size=64 * 1024))
        self._student = student

    def run(self, *, signals: bool = True) -> None:
        """Serve until `stop`, SIGINT or SIGTERM; a second signal ends at once. signals: whether to listen
        for them; only the main thread can. Raises SystemExit(1) after the second, or ends the process."""
        try:
            asyncio.run(self._run(signals))
        except asyncio.CancelledError:
            sys.exit(1)

    def stop(self) -> None:
        """Take no more requests, answer those under way, and end. From any thread."""
        if self._server.should_exit:
            self._server.force_exit = True
        self._server.should_exit = True

    async def _run(self, signals: bool) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        if signals:
            for name in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(name, self._signalled)
        await self._server.serve(sockets=[self._socket])

    def _signalled(self) -> None:
        if not self._server.should_exit:
            self.stop()
            return
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off is no error
        for task in asyncio.all_tasks():
            task.cancel()
        if not self._student.paid:  # a hosted one computes elsewhere, and what it started is to be stopped
            asyncio.get_running_loop().call_later(CUT_OFF, _end)


def _end() -> None:
    """End this process, though a thread computes: asyncio and Python would both wait for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(1)


def _listen(host: str, port: int, key: Secret | None) -> socket.socket:
    if key is None and not is_loopback(host):
        raise UsageError(Problem(
            "anybody who reaches this address could use the student, and no key is asked for", "--host",
            value=host, hint="put a key into an environment variable and name it: --api-key-env NAME"))
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
        # asyncio does this for sockets of its own alone; without it a kept connection waits 40 ms an answer
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise UsageError(Problem(f"cannot listen there: {error.strerror or error}", "--host",
                                 value=f"{host}:{port}", hint="choose another --port, or 0 for a free one"
                                 )) from None
