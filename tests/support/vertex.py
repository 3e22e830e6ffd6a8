"""A vertex backend at a sandbox of its own, as its tests open it."""

import time

from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.settings import VertexSettings

from distillctl.backend import BackendEnv
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox

MODEL = "gemini-3.5-flash-lite"
OPEN = "meta/llama3_1@llama-3.1-8b-instruct"
TOKEN = "a-token-0123456789"


def rehearsal(tmp_path):
    """The service; what it tunes answers as the nearest training row."""
    return Sandbox(part("vertex"), tmp_path / "provider", tuner="nearest", speed=None)


def env(tmp_path, token=TOKEN, at=None, offline=False):
    return BackendEnv(tmp_path / "workspace", lambda name: token, lambda: at or time.time(), offline)


def settings(sandbox=None, **more):
    where = {"base_url": sandbox.url} if sandbox else {}
    return VertexSettings(**{"model": MODEL, "project": "sandbox-project", "bucket": "sandbox-bucket",
                             "price": {"input": 0, "output": 0}, **where, **more})


def opened(sandbox, tmp_path, token=TOKEN, **more):
    return VertexBackend(settings(sandbox, **more), env(tmp_path, token))


def sent(sandbox):
    """The request of the one job that there is."""
    (made,) = sandbox.joblist.all()
    return made.request
