"""A job is created once: whatever happens to the reply, to the listing or between two runs."""

from dataclasses import replace

import pytest
from support.jobs import KEY, Bench
from support.loopback import Provider

from distillctl.errors import BackendError, BudgetError


@pytest.fixture
def provider():
    with Provider() as provider:
        yield provider


@pytest.fixture
def bench(tmp_path, provider):
    return Bench(tmp_path, provider.url)


def test_a_job_is_created_followed_and_paid_once(bench, provider):
    row = bench.train()
    assert (row.state, row.raw, provider.creates(), provider.jobs()) == ("succeeded", "succeeded", 1, 1)
    assert bench.ledger.spent("recipe/run").usd == provider.cost


def test_the_intent_is_on_disk_before_the_request(bench, monkeypatch):
    seen = []
    submit = bench.backend.submit
    monkeypatch.setattr(bench.backend, "submit", lambda *args: (seen.extend(bench.rows()), submit(*args))[1])
    bench.train()
    assert [(row.state, row.handle) for row in seen] == [("intended", None)]


def test_the_bill_is_unknown_with_a_bound_until_the_provider_says(bench, provider):
    provider.cost = None
    bench.train(at_most_usd=2.0, detach=True)
    spent = bench.ledger.spent("recipe/run")
    assert (spent.usd, spent.unknown, spent.at_most) == (0, 1, 2.0)


def test_a_job_that_may_cost_more_than_is_left_is_not_created_and_nothing_is_uploaded(
        bench, provider, monkeypatch):
    monkeypatch.delattr(type(bench.backend), "stage")
    with pytest.raises(BudgetError, match=r"may cost \$2.00, and \$1.50 of the budget are left"):
        bench.train(at_most_usd=2.0, budget_left=lambda: 1.5)
    assert (provider.creates(), bench.rows()) == (0, [])


def test_a_service_s_own_estimate_counts_once_it_has_the_rows(bench, provider, monkeypatch):
    stage = bench.backend.stage
    monkeypatch.setattr(bench.backend, "stage", lambda job: replace(stage(job), cost_usd=2.0))
    with pytest.raises(BudgetError):
        bench.train(budget_left=lambda: 1.5)
    assert (provider.creates(), bench.rows()) == (0, [])
    bench.train(budget_left=lambda: 2.5, detach=True)
    assert bench.ledger.spent("recipe/run").at_most == 2.0


def test_a_job_that_is_in_the_books_is_followed_whatever_is_left(bench, provider):
    bench.train(at_most_usd=2.0, budget_left=lambda: 2.0, detach=True)
    assert bench.train(at_most_usd=2.0, budget_left=lambda: 0.0).state == "succeeded"


def test_a_refusal_is_an_error_in_the_provider_s_words(bench, provider):
    provider.break_next_create("refused")
    with pytest.raises(BackendError, match=provider.refusal):
        bench.train()
    assert [row.state for row in bench.rows()] == ["rejected"]


def test_a_refused_job_costs_nothing(bench, provider):
    provider.break_next_create("refused")
    with pytest.raises(BackendError):
        bench.train(at_most_usd=2.0)
    spent = bench.ledger.spent("recipe/run")
    assert (spent.usd, spent.unknown, spent.at_most) == (0, 0, 0)


def test_after_a_refusal_the_next_run_uses_a_new_token(bench, provider):
    provider.break_next_create("refused")
    with pytest.raises(BackendError):
        bench.train()
    bench.train()
    assert len(set(provider.create_requests)) == 2


@pytest.mark.parametrize("how", ["error_after", "lost_reply", "garbled"])
def test_a_lost_reply_does_not_make_a_second_job(bench, provider, how):
    provider.break_next_create(how)
    assert bench.train().state == "succeeded"
    assert (provider.creates(), provider.jobs()) == (1, 1)


def test_a_listing_that_lags_does_not_make_a_second_job(bench, provider):
    provider.break_next_create("lost_reply")
    provider.hidden_listings = 2
    bench.train()
    assert (provider.creates(), provider.jobs()) == (1, 1)


def test_within_the_doubt_no_second_create_is_sent(bench, provider):
    provider.break_next_create("error_before")
    times = []
    create = bench.backend.submit
    bench.backend.submit = lambda *args: (times.append(bench.clock.now), create(*args))[1]
    bench.train(request_timeout=30.0)
    assert times[1] - times[0] > 30.0 + 60.0


def test_a_create_that_made_nothing_is_sent_again_with_the_same_token(bench, provider):
    provider.break_next_create("error_before")
    bench.train()
    assert len(provider.create_requests) == 2
    assert len(set(provider.create_requests)) == 1
    assert provider.jobs() == 1


def test_a_service_that_never_replies_gets_two_creates_a_run(bench, provider):
    provider.faults = ["error_before"] * 5
    with pytest.raises(BackendError, match="no job is listed"):
        bench.train()
    assert provider.creates() == 2


def test_an_intent_of_a_dead_run_is_looked_for_before_anything_is_created(bench, provider):
    staged = bench.backend.stage(bench.job)
    bench.ledger.intend_job("abc123abc123", KEY, "recipe/run", "loopback", staged.data)
    bench.backend.submit(bench.job, staged, "abc123abc123")
    bench.train()
    assert (provider.creates(), provider.jobs()) == (1, 1)


def test_an_intent_that_came_to_nothing_keeps_its_token(bench, provider):
    bench.ledger.intend_job("abc123abc123", KEY, "recipe/run", "loopback", {})
    bench.train()
    assert provider.create_requests == ["abc123abc123"]


def test_of_duplicates_the_earliest_is_adopted_and_the_other_is_named(bench, provider):
    bench.ledger.intend_job("abc123abc123", KEY, "recipe/run", "loopback", {})
    first = bench.backend.submit(bench.job, bench.backend.stage(bench.job), "abc123abc123")
    second = provider.duplicate(first.job_id)
    row = bench.train()
    assert row.handle.job_id == first.job_id
    assert any("DUPLICATE" in text and second in text for text in bench.warnings())
    assert [row.state for row in bench.rows()] == ["succeeded", "duplicate"]


def test_a_duplicate_can_be_cancelled(bench, provider):
    bench.ledger.intend_job("abc123abc123", KEY, "recipe/run", "loopback", {})
    first = bench.backend.submit(bench.job, bench.backend.stage(bench.job), "abc123abc123")
    second = provider.duplicate(first.job_id)
    bench.train()
    bench.cancel(bench.rows()[-1])
    assert provider.cancels == [second]


def test_a_late_first_job_is_adopted_beside_the_second_create(bench, provider):
    """The first request came through after all, unseen by the listings before the second."""
    provider.break_next_create("lost_reply")
    provider.hidden_listings = 16  # more than there are in the time of doubt
    row = bench.train()
    assert provider.jobs() == 2
    assert row.handle.job_id == "job-0001"
    assert any("job-0002" in text for text in bench.warnings())


def test_a_job_that_succeeded_serves_again(bench, provider):
    bench.train()
    assert bench.train().state == "succeeded"
    assert provider.creates() == 1


def test_a_job_of_another_run_is_adopted(bench, provider):
    bench.train(run="recipe/one", detach=True)
    assert bench.train(run="recipe/two").run == "recipe/one"
    assert provider.creates() == 1


def test_another_training_key_gets_its_own_job(bench, provider):
    bench.train()
    bench.train(key="sha256:other")
    assert provider.jobs() == 2


def test_a_failed_job_is_replaced_at_the_next_run_and_that_is_said(bench, provider):
    provider.break_next_create("none")
    row = bench.train(detach=True)
    provider.say(row.handle.job_id, "failed")
    with pytest.raises(BackendError, match="failed"):
        bench.train()
    assert bench.train().state == "succeeded"
    assert provider.jobs() == 2
    assert any("creating a new one" in text for text in bench.warnings())


def test_resubmit_makes_a_new_job_beside_one_that_succeeded(bench, provider):
    bench.train()
    bench.train(resubmit=True)
    assert provider.jobs() == 2


def test_resubmit_makes_no_job_beside_a_live_one(bench, provider):
    bench.train(detach=True)
    bench.train(resubmit=True)
    assert provider.jobs() == 1


def test_detach_leaves_a_job_that_is_recorded(bench, provider):
    row = bench.train(detach=True)
    assert row.handle is not None
    assert row.state == "queued"


def test_reconcile_creates_nothing(bench, provider):
    assert bench.reconcile() is None
    bench.ledger.intend_job("abc123abc123", KEY, "recipe/run", "loopback", {})
    assert bench.reconcile().handle is None
    assert provider.creates() == 0


def test_a_backend_that_breaks_its_contract_leaves_the_intent_in_doubt(bench):
    def broken(*_):
        raise TypeError("oops")

    bench.backend.submit = broken
    with pytest.raises(BackendError, match="oops"):
        bench.train()
    assert [row.state for row in bench.rows()] == ["intended"]
