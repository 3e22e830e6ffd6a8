"""`--offline`: a guarantee, not a wish. While it holds, this process can connect to this machine only."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from distillctl.errors import Problem, UsageError

_active = False


@contextmanager
def guarded(offline: bool) -> Iterator[None]:
    """Refuse every connection and name look-up beyond loopback while the block runs (UsageError).

    Libraries that know an offline switch get it, and child processes inherit it.
    """
    global _active
    if not offline:
        yield
        return
    _install()
    switches = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    _active = True
    try:
        yield
    finally:
        _active = False
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _install() -> None:
    sys.addaudithook(_hook)  # cannot be taken out again, hence `_active`


def _hook(event: str, arguments: tuple) -> None:
    if not _active or event not in ("socket.connect", "socket.getaddrinfo"):
        return
    if event == "socket.connect":
        sock, address = arguments
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        host = address[0]
    else:
        host = arguments[0]
    if not _is_this_machine(host):
        raise UsageError(Problem("--offline: nothing is sent beyond this machine", value=str(host),
                                 hint="run without --offline, or use a recorded teacher"))


def _is_this_machine(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False
