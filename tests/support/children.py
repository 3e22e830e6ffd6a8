"""Processes that a test can kill at a crash point, forked from one that has imported what they need.

A program calls `serve`; a test starts it as `Children(program, ...)`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """A process that has ended. returncode: as of subprocess."""

    returncode: int
    output: str


class Children:
    """Runs a program's work in processes of their own, one after the other."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._parent = subprocess.Popen([sys.executable, program, *arguments], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, folder: Path, given: Any, crash_at: str | None = None, testing: str = "1") -> Ended:
        """Do the work in the workspace `folder`; the process kills itself at `crash_at`, unless `testing`
        switches that off."""
        variables = {"DISTILLCTL_CRASH_AT": crash_at or "", "DISTILLCTL_TESTING": testing}
        row = {"folder": str(folder), "given": given, "variables": variables}
        self._parent.stdin.write(json.dumps(row) + "\n")
        self._parent.stdin.flush()
        code = int(self._parent.stdout.readline())
        log = folder.with_suffix(".log")
        output = log.read_text()
        log.unlink()
        return Ended(code, output)

    def close(self) -> None:
        self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()


def serve(work: Callable[[Path, Any], None]) -> None:
    """Fork for each line of the input, do the work there, and tell how that ended."""
    for line in sys.stdin:
        row = json.loads(line)
        folder = Path(row["folder"])
        child = os.fork()
        if child == 0:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(row["variables"])
            work(folder, row["given"])
            sys.stdout.flush()
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
