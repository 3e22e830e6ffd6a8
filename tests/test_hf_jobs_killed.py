"""The hf-jobs backend in the job loop: kills, lost replies, outages and strange words make no second job."""

import hashlib

import pytest
from support.hf_jobs import delivering
from support.hosted_jobs import HostedJobs

from distillctl.store.files import digest_tree


class TestHfJobs(HostedJobs):
    backend = "hf-jobs"
    unknown_word = "PAUSED"

    @pytest.fixture
    def sandbox(self, tmp_path):
        with delivering(tmp_path / "provider") as sandbox:
            yield sandbox

    @pytest.fixture(autouse=True)
    def short_pauses(self, monkeypatch):
        """A running job's log stays open; nothing is ever written to these."""
        monkeypatch.setattr("distillctl_hf_jobs.client.LOG_PAUSE_S", 0.1)

    @pytest.fixture
    def settings(self, sandbox):
        return {"base_url": sandbox.url, "model": "someone/small"}

    def assert_is_the_student(self, workspace, student, sandbox):
        (job,) = sandbox.joblist.all()
        assert student["data"]["repo"].endswith(job.request["labels"]["distillctl-token"])
        delivered = {name: "sha256:" + hashlib.sha256(data).hexdigest()
                     for name, data in sandbox.part.container.files.items()}
        assert student["files"] == digest_tree(workspace / "student") == delivered

    def bill(self, charge):
        return pytest.approx(charge["amount"] * 0.8 / 60, rel=1e-3)  # the minutes that it ran
