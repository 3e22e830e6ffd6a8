"""The openai backend in the job loop: kills, lost replies, outages and strange words make no second job."""

import pytest
from support.hosted_jobs import HostedJobs

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox


class TestOpenAIJobs(HostedJobs):
    backend = "openai"
    unknown_word = "paused"

    @pytest.fixture
    def sandbox(self, tmp_path):
        with Sandbox(part("openai"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
            yield sandbox

    @pytest.fixture
    def settings(self, sandbox):
        return {"model": "gpt-4.1-mini-2025-04-14", "base_url": f"{sandbox.url}/v1", "training_price": 5.0,
                "price": {"input": 0, "output": 0}}

    def assert_is_the_student(self, workspace, student, sandbox):
        tuned = [job for job in sandbox.joblist.all() if job.end == "succeeded"]
        assert [student["data"]["job_id"]] == [job.id for job in tuned]

    def bill(self, charge):
        return pytest.approx(charge["amount"] * 5.0 / 1e6)  # trained tokens times the rate
