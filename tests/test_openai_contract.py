"""The openai backend passes the hosted suite: the real SDK over HTTP to its sandbox."""

from distillctl_openai.backend import OpenAIBackend

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.testing import HostedBackendContract


class TestOpenAI(HostedBackendContract):
    backend = OpenAIBackend

    @classmethod
    def make_provider(cls, folder):
        return Sandbox(part("openai"), folder, tuner="nearest", speed=None)

    @classmethod
    def settings(cls, provider):
        return {"model": "gpt-4.1-mini-2025-04-14", "base_url": f"{provider.url}/v1",
                "price": {"input": 0, "output": 0}}
