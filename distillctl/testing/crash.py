"""Crash points: named places where a test can kill the process, as a power cut would.

`DISTILLCTL_CRASH_AT=name` kills at the first passing of `name`, `name:3` at the third; both only where
`DISTILLCTL_TESTING=1`. No other module is needed, so the core can call this anywhere.
"""

from __future__ import annotations

import os
import signal

_passed: dict[str, int] = {}


def crashpoint(name: str) -> None:
    """SIGKILL this process if a test asked for it here; else nothing."""
    wanted = os.environ.get("DISTILLCTL_CRASH_AT")
    if wanted is None or os.environ.get("DISTILLCTL_TESTING") != "1":
        return
    at, _, nth = wanted.partition(":")
    if at == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
