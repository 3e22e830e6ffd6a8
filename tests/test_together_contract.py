"""The together backend passes the hosted suite: the real SDK over HTTP to its sandbox."""

from distillctl_together.backend import TogetherBackend

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.testing import HostedBackendContract


class TestTogether(HostedBackendContract):
    backend = TogetherBackend

    @classmethod
    def make_provider(cls, folder):
        return Sandbox(part("together"), folder, tuner="nearest", speed=None)

    @classmethod
    def settings(cls, provider):
        return {"model": "Qwen/Qwen3-0.6B", "base_url": provider.url}
