"""Following a job: unreachable is not failed, unknown is not an end, an end stays."""

import pytest
from support.jobs import Bench
from support.loopback import Provider

from distillctl import jobs
from distillctl.backend import NotYet, Snapshot, Unreachable
from distillctl.errors import BackendError


@pytest.fixture
def provider():
    with Provider() as provider:
        yield provider


@pytest.fixture
def bench(tmp_path, provider):
    return Bench(tmp_path, provider.url)


def after(bench, seconds, act):
    """Let `act` happen once so many seconds of the bench's clock have gone by."""
    due = bench.clock.now + seconds

    def each(now):
        if now >= due:
            bench.clock.each = None
            act()

    bench.clock.each = each


def test_half_an_hour_of_outage_changes_nothing(bench, provider):
    row = bench.train(detach=True)
    provider.down = True
    after(bench, 1800, lambda: setattr(provider, "down", False))
    assert bench.follow(row).state == "succeeded"
    assert (provider.creates(), provider.cancels) == (1, [])
    assert any("unreachable since" in text for text in bench.warnings())


def test_an_upload_that_is_looked_at_is_waited_for_and_not_called_unreachable(bench, monkeypatch):
    stage = bench.backend.stage
    replies = [NotYet("being validated"), NotYet("being validated"), Unreachable("503")]

    def slowly(job):
        if replies:
            raise replies.pop(0)
        return stage(job)

    monkeypatch.setattr(bench.backend, "stage", slowly)
    assert bench.train().state == "succeeded"
    told = [event.message.partition(" since")[0] for event in bench.events]
    assert [told.count(one) for one in ("waiting: being validated", "unreachable")] == [1, 1]


def test_an_outage_is_told_once_and_its_end_too(bench, provider):
    row = bench.train(detach=True)
    provider.down = True
    after(bench, 1800, lambda: setattr(provider, "down", False))
    bench.follow(row)
    told = [event.message for event in bench.events if "reachable" in event.message]
    assert len(told) == 2
    assert told[1].startswith("reachable again")


def test_pauses_in_an_outage_grow_to_a_minute(bench, provider):
    row = bench.train(detach=True)
    provider.down = True
    after(bench, 1800, lambda: setattr(provider, "down", False))
    bench.clock.slept.clear()
    bench.follow(row)
    assert 30 < max(bench.clock.slept) <= 60


def test_an_outage_beyond_all_patience_ends_the_wait_and_not_the_job(bench, provider, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_PATIENCE_S", 1800.0)
    row = bench.train(detach=True)
    provider.down = True
    with pytest.raises(BackendError, match="unreachable since"):
        bench.follow(row)
    assert bench.rows()[0].state == "queued"


def test_an_unknown_word_is_waited_out(bench, provider):
    row = bench.train(detach=True)
    provider.say(row.handle.job_id, "reticulating")
    after(bench, 600, lambda: provider.say(row.handle.job_id, "succeeded"))
    assert bench.follow(row).state == "succeeded"
    assert any("'reticulating'" in text for text in bench.warnings())


def test_an_unknown_word_beyond_all_patience_ends_the_wait_and_not_the_job(bench, provider, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_PATIENCE_S", 1800.0)
    row = bench.train(detach=True)
    provider.say(row.handle.job_id, "reticulating")
    with pytest.raises(BackendError, match="reticulating"):
        bench.follow(row)
    assert (bench.rows()[0].state, provider.cancels) == ("unknown", [])


def test_a_deleted_job_is_lost_and_not_created_again(bench, provider):
    row = bench.train(detach=True)
    provider.delete(row.handle.job_id)
    for _ in range(2):
        with pytest.raises(BackendError, match="not there any more"):
            bench.train()
    assert provider.creates() == 1


def test_a_lost_job_is_created_again_when_asked_to(bench, provider):
    row = bench.train(detach=True)
    provider.delete(row.handle.job_id)
    with pytest.raises(BackendError):
        bench.train()
    assert bench.train(resubmit=True).state == "succeeded"
    assert provider.creates() == 2


def test_another_account_s_key_names_both_accounts(bench, provider, tmp_path):
    row = bench.train(detach=True)
    stranger = Bench(tmp_path, provider.url, secret="another-key")
    with pytest.raises(BackendError) as caught:
        stranger.train()
    assert row.handle.account in str(caught.value)
    assert stranger.backend._account() in str(caught.value)
    assert provider.creates() == 1


def test_with_the_right_key_again_a_lost_job_is_found_again(bench, provider, tmp_path):
    bench.train(detach=True)
    with pytest.raises(BackendError):
        Bench(tmp_path, provider.url, secret="another-key").train()
    assert bench.train().state == "succeeded"
    assert provider.creates() == 1


def test_an_end_seen_by_another_shell_stays_and_the_conflict_is_told(bench):
    row = bench.train(detach=True)
    bench.ledger.record_snapshot(row.token, Snapshot("failed", "failed", "out of memory"))
    assert bench.follow(row).state == "failed"
    assert any("stays so" in text for text in bench.warnings())


def test_events_are_told_once_and_in_order(bench):
    bench.train()
    assert [event.key for event in bench.events] == ["step-1", "step-2", "step-3"]


def test_attaching_from_another_shell_tells_the_whole_story(bench, provider, tmp_path):
    bench.train()
    other = Bench(tmp_path, provider.url)
    other.follow(other.rows()[0])
    assert [event.key for event in other.events] == ["step-1", "step-2", "step-3"]


def test_following_an_intent_finds_its_job(bench):
    bench.ledger.intend_job("abc123abc123", "sha256:k", "recipe/run", "loopback", {})
    bench.backend.submit(bench.job, bench.backend.stage(bench.job), "abc123abc123")
    assert bench.follow(bench.rows()[0]).state == "succeeded"


def test_following_an_intent_without_a_job_says_so(bench):
    bench.ledger.intend_job("abc123abc123", "sha256:k", "recipe/run", "loopback", {})
    with pytest.raises(BackendError, match="never created"):
        bench.follow(bench.rows()[0])


def test_polls_slow_down_with_age_and_are_bounded():
    for hosted, longest in ((True, 36.0), (False, 1.2)):
        waits = [jobs.poll_interval(age, hosted) for age in (0, 60, 3600, 86400)]
        assert all(0.4 <= wait <= longest for wait in waits)


def test_leaving_says_how_to_come_back_and_the_job_goes_on(bench, provider):
    row = bench.train(detach=True)

    def interrupt(now):
        raise KeyboardInterrupt

    bench.clock.each = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.follow(row)
    assert "distillctl attach recipe/run" in bench.warnings()[-1]
    assert (provider.cancels, bench.rows()[0].state) == ([], "queued")


def test_a_cancelled_job_ends_as_the_provider_says(bench, provider):
    row = bench.train(detach=True)
    bench.cancel(row)
    assert bench.follow(row).state == "cancelled"


def test_cancelling_a_job_that_has_succeeded_keeps_its_result(bench, provider):
    row = bench.train(detach=True)
    provider.say(row.handle.job_id, "succeeded")
    bench.cancel(row)
    assert bench.follow(row).state == "succeeded"


def test_cancelling_an_intent_without_a_job_costs_nothing(bench):
    bench.ledger.intend_job("abc123abc123", "sha256:k", "recipe/run", "loopback", {})
    assert bench.cancel(bench.rows()[0]).state == "cancelled"
    assert bench.ledger.spent("recipe/run").unknown == 0


def test_cancelling_a_run_cancels_its_live_jobs(bench, provider):
    row = bench.train(detach=True)
    said = jobs.cancel_run(bench.ledger, "recipe/run", lambda name: bench.backend)
    assert row.handle.job_id in said
    assert provider.cancels == [row.handle.job_id]


def test_cancelling_a_run_without_live_jobs_says_so(bench):
    bench.train()
    assert "no job" in jobs.cancel_run(bench.ledger, "recipe/run", lambda name: bench.backend)


def test_a_key_that_a_provider_echoes_is_not_kept(bench, provider, monkeypatch):
    from distillctl import secrets

    monkeypatch.setenv("LOOPBACK_API_KEY", "sk-canary-5d1e0b7c")
    secrets.value("LOOPBACK_API_KEY")
    row = bench.train(detach=True)
    provider.say(row.handle.job_id, "bad key sk-canary-5d1e0b7c")
    after(bench, 60, lambda: provider.say(row.handle.job_id, "succeeded"))
    bench.follow(row)
    assert not any("sk-canary" in event.message for event in bench.events)
    assert not any(b"sk-canary" in path.read_bytes() for path in bench.folder.glob("ledger.db*"))
