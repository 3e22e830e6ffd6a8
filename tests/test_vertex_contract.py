"""The vertex backend passes the hosted suite: Google's own SDKs over HTTP to its sandbox."""

from distillctl_vertex.backend import VertexBackend

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.testing import HostedBackendContract


class TestVertex(HostedBackendContract):
    backend = VertexBackend

    @classmethod
    def make_provider(cls, folder):
        return Sandbox(part("vertex"), folder, tuner="nearest", speed=None)

    @classmethod
    def settings(cls, provider):
        return {"model": "gemini-3.5-flash-lite", "project": "sandbox-project", "bucket": "sandbox-bucket",
                "base_url": provider.url, "price": {"input": 0, "output": 0}}
