"""The hf-jobs backend in the job loop: kills, lost replies, outages and strange words make no second job."""

import json
import signal

import pytest
from support.hf_jobs import Delivery
from support.sandbox_bench import SECRET, SandboxBench, in_child

from distillctl.errors import BackendError
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox

POINTS = ["after-intent", "after-submit", "during-poll:2", "before-publish"]


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("hf-jobs"), tmp_path / "provider", speed=None) as sandbox:
        sandbox.part.container = Delivery(sandbox.part)
        yield sandbox


@pytest.fixture
def settings(sandbox):
    return {"base_url": sandbox.url, "model": "someone/small"}


@pytest.fixture
def bench(tmp_path, settings):
    return SandboxBench(tmp_path / "workspace", "hf-jobs", settings)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_ends_with_one_job_one_charge_and_the_same_student(tmp_path, sandbox, settings, point):
    killed = in_child(tmp_path / "workspace", "hf-jobs", settings, crash_at=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = in_child(tmp_path / "workspace", "hf-jobs", settings)
    assert again.returncode == 0, again.stderr
    assert (sandbox.creates(), sandbox.jobs(), len(sandbox.store.charges())) == (1, 1, 1)
    student = json.loads((tmp_path / "workspace/student.json").read_text())
    (job,) = sandbox.joblist.all()
    assert student["data"]["repo"].endswith(job.request["labels"]["distillctl-token"])
    assert sorted(path.name for path in (tmp_path / "workspace/student").iterdir()
                  if path.name in student["files"]) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_token_is_in_no_file_and_no_output(tmp_path, sandbox, settings):
    done = in_child(tmp_path / "workspace", "hf-jobs", settings)
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr
    assert [path for path in tmp_path.rglob("*")
            if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("what", ["drop_after", "status_after", "garble", "truncate"])
def test_a_lost_reply_is_one_create(bench, sandbox, what):
    sandbox.add_fault(Fault("jobs.create", what, "500"))
    assert bench.train().state == "succeeded"
    assert (sandbox.creates(), sandbox.jobs()) == (1, 1)


def test_a_lost_reply_and_listings_that_lag_are_one_create(bench, sandbox):
    sandbox.add_fault(Fault("jobs.create", "drop_after"))
    sandbox.add_fault(Fault("jobs.list", "hide", "1", times=3))
    assert bench.train().state == "succeeded"
    assert (sandbox.creates(), sandbox.jobs()) == (1, 1)


def test_a_listing_that_repeats_itself_is_no_duplicate(bench, sandbox):
    sandbox.add_fault(Fault("jobs.create", "drop_after"))
    sandbox.add_fault(Fault("jobs.list", "repeat", times=None))
    bench.train()
    assert not any("DUPLICATE" in text for text in bench.warnings())


def test_half_an_hour_without_status_changes_nothing(bench, sandbox):
    start = bench.clock.now
    outage = Fault("jobs.get", "status", "503", times=None)
    sandbox.add_fault(outage)
    bench.clock.each = lambda now: sandbox.faults.remove(outage) if now - start > 1800 else None
    assert bench.train().state == "succeeded"
    assert (sandbox.creates(), sandbox.store.requests().get("jobs.cancel", 0)) == (1, 0)
    assert any("unreachable" in text for text in bench.warnings())


def test_a_stage_that_nobody_knows_is_waited_out(bench, sandbox):
    sandbox.add_fault(Fault("jobs.get", "word", "PAUSED", times=5))
    assert bench.train().state == "succeeded"
    assert any("'PAUSED'" in text for text in bench.warnings())


def test_a_job_deleted_at_the_provider_is_not_made_again(bench, sandbox):
    row = bench.train(detach=True)
    sandbox.delete(row.handle.job_id)
    for _ in range(2):
        with pytest.raises(BackendError, match="not there any more"):
            bench.train()
    assert sandbox.creates() == 1


def test_the_bill_is_the_minutes_that_it_ran(bench, sandbox):
    bench.train()
    (charge,) = sandbox.store.charges()
    assert bench.ledger.spent("recipe/run").usd == pytest.approx(charge["amount"] * 0.8 / 60, rel=1e-3)
