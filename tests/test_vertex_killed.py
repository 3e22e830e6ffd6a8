"""The vertex backend in the job loop: kills, lost replies, outages and strange words make no second job."""

import pytest
from support.hosted_jobs import HostedJobs

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox


class TestVertexJobs(HostedJobs):
    backend = "vertex"
    unknown_word = "JOB_STATE_DREAMING"

    @pytest.fixture
    def sandbox(self, tmp_path):
        with Sandbox(part("vertex"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
            yield sandbox

    @pytest.fixture
    def settings(self, sandbox):
        return {"model": "gemini-3.5-flash-lite", "project": "sandbox-project", "bucket": "sandbox-bucket",
                "base_url": sandbox.url, "training_price": 5.0, "price": {"input": 0, "output": 0}}

    def assert_is_the_student(self, workspace, student, sandbox):
        (tuned,) = [job for job in sandbox.joblist.all() if job.end == "succeeded"]
        assert student["data"]["job_id"] == tuned.id
        assert student["model"].endswith(f"/endpoints/{tuned.extra['model_id']}")
        assert sandbox.store.requests()["objects.create"] == 1

    def bill(self, charge):
        return pytest.approx(charge["amount"] * 5.0 / 1e6)  # trained tokens times the rate
