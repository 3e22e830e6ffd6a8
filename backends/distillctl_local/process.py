"""The trainer's process: started so that it outlives us, found again by its folder, ended on request.

The job's folder is its name. A lock file that the process holds for its whole life says whether it lives;
the system frees it however the process ends, and a reused process id fools nobody. Where several processes
train together, their launcher and each of them hold it: the trainer lives until the last of them is gone.
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

LAUNCHER = "DISTILLCTL_LAUNCHER"  # the environment variable with the process id that a rank lives as long as
_RESTARTS = "restarts"
# What a trainer needs from our environment; credentials are not among it.
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
              "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME",
              "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy",
              "https_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "DISTILLCTL_TESTING",
              "DISTILLCTL_CRASH_AT", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE",
              "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "CUDA_DEVICE_ORDER")
# One GPU: TRL refuses DataParallel. A thread that waits awake takes the core from another program's.
DEFAULTS = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1", "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# The base is here before the trainer is started.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def start(folder: Path, *, again: bool = False, also: Sequence[str] = (), devices: int = 1) -> bool:
    """Start the trainer of a job folder, unless one is alive; returns whether it was started.

    The lock is taken here and handed on with its file, so there is no moment without it. again: it is
    counted as a restart. also: names of further environment variables that it gets. devices: how many
    processes train together.
    """
    with _try_lock(folder) as lock:
        if lock is None or (devices > 1 and not _share(lock)):
            return False
        if again:
            with (folder / _RESTARTS).open("a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")
        environment = DEFAULTS | {
            name: os.environ[name] for name in (*_PASSED_ON, *also) if name in os.environ}
        environment |= {"CUDA_VISIBLE_DEVICES": visible_gpus(devices), **OFFLINE}
        program = (["distillctl_local.launch", str(folder), str(devices)] if devices > 1
                   else ["distillctl_local.trainer", str(folder)])
        with (folder / "trainer.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *program], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=folder, env=environment, pass_fds=(lock,), start_new_session=True)
        (folder / "pid").write_text(str(child.pid), encoding="utf-8")
        # whoever started it is told of its end, looked for or not, so that it never stays a zombie
        threading.Thread(target=child.wait, name="trainer-ended", daemon=True).start()
        return True


def visible_gpus(devices: int) -> str:
    """Which GPUs a trainer on so many devices sees: the first ones of those that we see."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ",".join(map(str, range(devices)) if seen is None else seen.split(",")[:devices])


def share_lock(folder: Path) -> bool:
    """Hold the lock of a job folder together with the launcher, until this process ends; whether it was to
    be had."""
    return _share(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))


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


def _share(descriptor: int) -> bool:
    """Lock a file so that others can share it, in the place of a lock that they cannot; not if one of them
    was faster."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
