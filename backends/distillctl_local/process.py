"""The trainer's process: started so that it outlives us, found again by its folder, ended on request.

The job's folder is its name. A lock file that the process holds for its whole life says whether it lives;
the system frees it however the process ends, and a reused process id fools nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_RESTARTS = "restarts"
# What a trainer needs from our environment; credentials are not among it.
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
              "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME",
              "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HTTP_PROXY",
              "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "DISTILLCTL_TESTING", "DISTILLCTL_CRASH_AT")
# Threads that wait asleep: where other programs want the same cores, a step takes a third of the time, and
# where none does, as long as with threads that wait awake. One GPU: TRL refuses DataParallel.
DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "0",
             "HF_HUB_DISABLE_TELEMETRY": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
             "PYTHONUNBUFFERED": "1"}


def start(folder: Path, *, again: bool = False, offline: bool = False,
          also: Sequence[str] = ()) -> bool:
    """Start the trainer of a job folder, unless one is alive; returns whether it was started.

    The lock is taken here and handed on with its file, so there is no moment without it. again: it is
    counted as a restart. also: names of further environment variables that it gets.
    """
    with _try_lock(folder) as lock:
        if lock is None:
            return False
        if again:
            with (folder / _RESTARTS).open("a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")
        environment = DEFAULTS | {name: os.environ[name] for name in (*_PASSED_ON, *also)
                                  if name in os.environ}
        if offline:
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with (folder / "trainer.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "distillctl_local.trainer", str(folder)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, cwd=folder, env=environment, pass_fds=(lock,),
                start_new_session=True)
        (folder / "pid").write_text(str(child.pid), encoding="utf-8")
        # whoever started it is told of its end, looked for or not, so that it never stays a zombie
        threading.Thread(target=child.wait, name="trainer-ended", daemon=True).start()
        return True


def restarts(folder: Path) -> int:
    """How often the trainer of a job folder was started again."""
    path = folder / _RESTARTS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def is_alive(folder: Path) -> bool:
    """Whether the trainer of a job folder is running."""
    with _try_lock(folder) as lock:
        return lock is None


def end(folder: Path) -> None:
    """Ask the trainer and all it started to end."""
    if is_alive(folder):
        with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
            os.killpg(int((folder / "pid").read_text(encoding="utf-8")), signal.SIGTERM)


@contextlib.contextmanager
def _try_lock(folder: Path) -> Iterator[int | None]:
    """The lock's file descriptor while it is ours, None where the trainer has it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
