"""The hf-jobs backend passes the hosted suite: the real SDK over HTTP to its sandbox, whose job is the
submitted command: the local trainer, from the wheel that was uploaded, on a tiny student."""

import pytest
from distillctl_hf_jobs.backend import HfJobsBackend
from support.tiny_models import save_tiny_model

from distillctl.recipe.models import TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.testing import HostedBackendContract


class TestHfJobs(HostedBackendContract):
    backend = HfJobsBackend
    train = TrainSpec(max_steps=2, batch_size=4, learning_rate=1e-2)
    patience_s = 250.0

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def tiny(cls, tmp_path_factory):
        cls.model = str(save_tiny_model(tmp_path_factory.mktemp("tiny")))

    @classmethod
    def make_provider(cls, folder):
        return Sandbox(part("hf-jobs"), folder, speed=None)

    @classmethod
    def settings(cls, provider):
        return {"base_url": provider.url, "trainer": {"threads": 1}}
