"""The together backend in the job loop: kills, lost replies, outages and strange words make no second job."""

import pytest
from support.hosted_jobs import HostedJobs

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox


class TestTogetherJobs(HostedJobs):
    backend = "together"
    unknown_word = "paused"

    @pytest.fixture
    def sandbox(self, tmp_path):
        with Sandbox(part("together"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
            yield sandbox

    @pytest.fixture
    def settings(self, sandbox):
        return {"model": "Qwen/Qwen3-0.6B", "base_url": sandbox.url}

    def assert_is_the_student(self, workspace, student, sandbox):
        tuned = [job for job in sandbox.joblist.all() if job.end == "succeeded"]
        assert [(student["data"]["job_id"], student["data"]["object"])] == [
            (job.id, job.extra["merged"]) for job in tuned]

    def bill(self, charge):
        return pytest.approx(charge["amount"], abs=1e-8)  # the service's own
