"""Killed with SIGKILL anywhere, the next run ends with one job, one charge and the same student."""

import json
import signal
import subprocess
import sys

import pytest
from support.children import Children
from support.jobs import PROGRAM, Bench
from support.loopback import Provider

from distillctl.backend import StudentRef
from distillctl.errors import BackendError
from distillctl.store.files import exclusive_lock
from distillctl.store.ledger import Ledger

POINTS = ["before-intent", "after-intent", "after-submit", "after-record", "during-poll", "during-poll:3",
          "after-poll", "after-poll:4", "before-publish", "after-collect"]


def names_in(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def children():
    children = Children(PROGRAM)
    yield children
    children.close()


@pytest.fixture
def provider():
    with Provider() as provider:
        yield provider


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_with_the_same_job(tmp_path, provider, children, point):
    killed = children.run(tmp_path, provider.url, crash_at=point)
    assert killed.returncode == -signal.SIGKILL, killed.output
    again = children.run(tmp_path, provider.url)
    assert again.returncode == 0, again.output
    assert (provider.creates(), provider.jobs()) == (1, 1)
    assert names_in(tmp_path / "student") == ["receipt.json"]
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert [row.state for row in ledger.jobs()] == ["succeeded"]
        assert ledger.spent("recipe/run").usd == provider.cost


def test_killed_twice_it_is_still_one_job(tmp_path, provider, children):
    for point in ("after-submit", "during-poll"):
        assert children.run(tmp_path, provider.url, crash_at=point).returncode == -signal.SIGKILL
    assert children.run(tmp_path, provider.url).returncode == 0
    assert provider.jobs() == 1


def test_killed_after_a_lost_reply_it_is_still_one_job(tmp_path, provider, children):
    provider.break_next_create("lost_reply")
    assert children.run(tmp_path, provider.url, crash_at="during-poll").returncode == -signal.SIGKILL
    assert children.run(tmp_path, provider.url).returncode == 0
    assert (provider.creates(), provider.jobs()) == (1, 1)


def test_no_crash_without_the_testing_switch(tmp_path, provider, children):
    done = children.run(tmp_path, provider.url, crash_at="after-intent", testing="")
    assert done.returncode == 0, done.output


def test_two_runs_at_once_make_one_job(tmp_path, provider):
    """Both find nothing; one waits for the other, then adopts its job."""
    children = [subprocess.Popen([sys.executable, PROGRAM, str(tmp_path), provider.url],
                                 stderr=subprocess.PIPE) for _ in range(2)]
    errors = [child.communicate(timeout=60)[1] for child in children]
    assert provider.jobs() == 1, errors


def test_a_run_waits_for_one_that_is_submitting(tmp_path, provider):
    bench = Bench(tmp_path, provider.url)
    bench.reconcile()
    lock = exclusive_lock(tmp_path / "locks" / names_in(tmp_path / "locks")[0])
    lock.__enter__()
    bench.clock.each = lambda now: lock.__exit__(None, None, None) if len(bench.clock.slept) == 3 else None
    bench.train()
    assert bench.clock.slept[:3] == [1.0, 1.0, 1.0]
    assert "another process" in bench.events[0].message


def test_a_student_that_is_not_what_its_reference_says_is_refused(tmp_path, provider):
    bench = Bench(tmp_path, provider.url)
    row = bench.train()

    def collect(handle, into):
        (into / "weights").write_text("damaged on the way")
        return StudentRef("loopback", "model", "m", ".", {"weights": "sha256:" + "0" * 64})

    bench.backend.collect = collect
    with pytest.raises(BackendError, match="another digest"):
        bench.collect(row)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.pkl", "modeling.py"])
def test_a_student_with_pickles_or_code_is_refused(tmp_path, provider, name):
    bench = Bench(tmp_path, provider.url)
    row = bench.train()

    def collect(handle, into):
        (into / name).write_text("")
        return StudentRef("loopback", "hosted", "m")

    bench.backend.collect = collect
    with pytest.raises(BackendError, match="pickles or code"):
        bench.collect(row)


def test_collecting_again_replaces_a_damaged_student(tmp_path, provider):
    bench = Bench(tmp_path, provider.url)
    row = bench.train()
    bench.collect(row)
    receipt = tmp_path / "student/receipt.json"
    receipt.write_text("edited")
    (tmp_path / "student/leftover").write_text("of something else")
    bench.collect(row)
    assert json.loads(receipt.read_text()) == {"job": row.handle.job_id}
    assert names_in(tmp_path / "student") == ["receipt.json"]
