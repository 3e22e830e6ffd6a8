"""No test reaches beyond loopback, and none sees the user's keys."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from distillctl.backend import TrainJob

_real_connect = socket.socket.connect


def _guarded_connect(self: socket.socket, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = address[0]
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = host == "localhost"
        if not local:
            raise OSError(f"tests reach loopback only, not {host!r}")
    return _real_connect(self, address)


socket.socket.connect = _guarded_connect
# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DISTILLCTL_TESTING": "1"})
if "PYTEST_XDIST_WORKER" in os.environ:  # processes with a thread per core each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_real_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_TOKEN", "_CREDENTIALS")) or name.startswith(
                ("OPENAI_", "TOGETHER_", "ANTHROPIC_", "GOOGLE_", "DISTILLCTL_BACKEND_")):
            monkeypatch.delenv(name)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the shipped recipes in it."""
    shutil.copytree(Path(__file__).parents[1] / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A small job, as a hosted backend gets it."""
    from distillctl.recipe.models import TrainSpec
    from distillctl.testing.examples import example_job

    return example_job(tmp_path, "classification", "smollm2-135m", TrainSpec(epochs=3))
