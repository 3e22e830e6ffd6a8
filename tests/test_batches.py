"""Collecting through batches, with the real SDKs at a loopback provider: joined by id, failures asked again
alone, left and cancelled, within the budget."""

import json
import re

import pytest
from support.batches import (
    PROVIDERS,
    RUN,
    collect_in_batches,
    collecting_at,
    echo,
    number,
    outputs,
    right,
    service_for,
    spent,
)
from support.chat import KEY, PRICE, prompts

from distillctl.backend import TERMINAL
from distillctl.batches import Left, under_way
from distillctl.errors import BackendError, BudgetError, TeacherError
from distillctl.jobs import cancel_run
from distillctl.prices import halved
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.store.ledger import Ledger, answer_key
from distillctl.testing.batch_server import BatchServer
from distillctl.testing.chat_server import Reply


@pytest.fixture(params=PROVIDERS)
def provider(request):
    return request.param


@pytest.fixture
def server():
    with BatchServer(echo, key=KEY) as server:
        yield server


@pytest.fixture
def collecting(server, provider, tmp_path):
    return collecting_at(provider, server.anthropic_url, tmp_path)


# --- answers, joined by id ------------------------------------------------------------------------------


def test_answers_come_back_to_their_prompts_whatever_their_order(collecting, server, tmp_path):
    collected = collecting(5)
    assert outputs(collected) == right(5)  # the provider gave them in reversed order
    assert (len(server.batches), server.creates, server.answered.total()) == (1, 1, 5)
    assert [answer.latency_s for answer in collected.answers] == [None] * 5


def test_a_batch_costs_half(collecting, tmp_path):
    collected = collecting(4)
    tokens_in, tokens_out = 2, 2  # of each
    half = PRICE.cost(tokens_in, tokens_out) / 2
    assert [answer.cost_usd for answer in collected.answers] == [pytest.approx(half)] * 4
    found = spent(tmp_path)
    assert (found.usd, found.unknown) == (pytest.approx(4 * half), 0)


def test_the_second_collection_asks_nothing(collecting, server):
    collecting(3)
    assert (outputs(collecting(3)), server.creates) == (right(3), 1)


def test_what_is_new_is_asked_alone(collecting, server):
    collecting(3)
    collecting(5)
    assert [len(batch.requests) for batch in server.batches] == [3, 2]


def test_a_batch_stays_within_the_providers_limits(collecting, server):
    collecting(5, limits={"most_requests": 2})
    assert sorted(len(batch.requests) for batch in server.batches) == [1, 2, 2]


def test_a_batch_stays_within_the_providers_bytes(collecting, server, provider, tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        one = service_for(provider, server.anthropic_url, tmp_path, ledger).size("0" * 40, prompts(1)[0])
    collecting(5, limits={"most_bytes": 3 * one})
    assert sorted(len(batch.requests) for batch in server.batches) == [2, 3]


def test_repeated_and_foreign_results_are_ignored_loudly(collecting, server, tmp_path):
    server.repeats = True
    events = []
    assert outputs(collecting(3, events=events)) == right(3)
    warnings = " ".join(event.message for event in events if event.level == "warning")
    assert "ignored 1 result with an id that was given before" in warnings
    assert "ignored 1 result with an id that is not of this batch" in warnings


def test_nothing_is_left_behind_once_a_batch_is_settled(collecting, tmp_path):
    collecting(3)
    assert list((tmp_path / "batches").iterdir()) == []


def test_the_key_is_in_no_file(collecting, tmp_path, server):
    server.create_faults = ["refused"]
    with pytest.raises(BackendError):
        collecting(2)
    with pytest.raises(Left):
        collecting(3, detach=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# --- what fails -----------------------------------------------------------------------------------------


def test_what_failed_is_asked_again_alone(collecting, server):
    server.script = lambda asked: Reply(status=500) if number(asked) == 1 and asked.nth == 1 else echo(asked)
    assert outputs(collecting(4)) == right(4)
    assert [len(batch.requests) for batch in server.batches] == [4, 1]
    assert server.answered.total() == 4


def test_what_expired_is_asked_again_alone(collecting, server):
    server.finishes = 2
    assert outputs(collecting(5)) == right(5)
    assert [len(batch.requests) for batch in server.batches] == [5, 3, 1]
    assert server.answered.total() == 5


def test_what_always_fails_is_given_up_after_the_attempts_of_a_live_call(collecting, server, tmp_path):
    server.script = lambda asked: Reply(status=500) if number(asked) == 1 else echo(asked)
    collected = collecting(4, attempts=3, max_failures=0.5)
    assert [answer.finish for answer in collected.answers] == ["stop", "failed", "stop", "stop"]
    assert [len(batch.requests) for batch in server.batches] == [4, 1, 1]


def test_too_many_failures_stop_the_collection_and_keep_the_answers(collecting, server):
    server.script = lambda asked: Reply(status=400) if number(asked) else echo(asked)
    with pytest.raises(TeacherError, match="left 3 of 4 prompts unanswered, more than max_failures"):
        collecting(4)


def test_a_rejected_prompt_is_a_failure_that_is_not_asked_again(collecting, server):
    server.script = lambda asked: Reply(status=400) if number(asked) == 1 else echo(asked)
    for _ in range(2):
        collected = collecting(4, max_failures=0.5)
        assert collected.answers[1].finish == "failed"
    assert len(server.batches) == 1


def test_a_refused_key_in_a_result_stops_the_collection(collecting, server):
    server.script = lambda asked: Reply(status=401, code="invalid_api_key") if number(asked) else echo(asked)
    with pytest.raises(TeacherError, match="refuses the key"):
        collecting(2)


def test_an_answer_without_token_counts_is_booked_with_the_most_it_can_cost(collecting, server, tmp_path):
    server.script = lambda asked: Reply(f"answer {number(asked)}", usage=None)
    assert collecting(1).answers[0].cost_usd is None
    found = spent(tmp_path)
    assert (found.usd, found.unknown) == (0, 1)
    assert found.at_most == pytest.approx(halved(PRICE).cost(len("question 0") // 2 + 16, 16))


def test_a_filtered_prompt_is_a_refusal(server, tmp_path):
    server.script = lambda asked: Reply(status=400, code="content_filter") if number(asked) else echo(asked)
    collected = collect_in_batches("openai", server.anthropic_url, tmp_path, prompts(2))
    assert [answer.finish for answer in collected.answers] == ["stop", "refusal"]


def test_a_file_that_is_refused_as_a_whole_names_our_rows(server, tmp_path, monkeypatch):
    monkeypatch.setattr(server._server.RequestHandlerClass, "_validated", lambda handler, batch: (
        batch.errors.append({"code": "invalid_request", "line": 2,
                             "message": "This line is not a valid request."})))
    with pytest.raises(BackendError) as caught:
        collect_in_batches("openai", server.anthropic_url, tmp_path, prompts(3))
    assert "line 2 (row-1): This line is not a valid request." in str(caught.value)
    assert spent(tmp_path).usd == 0
    assert spent(tmp_path).unknown == 0


# --- leave, cancel, pay ---------------------------------------------------------------------------------


def test_a_collection_can_be_left_and_gone_on_with(collecting, server, tmp_path):
    with pytest.raises(Left, match="a batch of the teacher is under way"):
        collecting(3, detach=True)
    assert server.creates == 1
    with Ledger(tmp_path / "ledger.db") as ledger:
        (row,) = ledger.jobs(run=RUN)
        assert row.state not in TERMINAL
    assert outputs(collecting(3)) == right(3)
    assert server.creates == 1


def test_a_cancelled_batch_keeps_what_was_finished_and_a_rerun_asks_the_rest(collecting, server, provider,
                                                                            tmp_path):
    with pytest.raises(Left):
        collecting(4, detach=True)
    server.finishes = 1
    with Ledger(tmp_path / "ledger.db") as ledger:
        service = service_for(provider, server.anthropic_url, tmp_path, ledger)
        for _ in range(2):
            assert "asked for the end of" in cancel_run(ledger, RUN, lambda name: service)
        service.close()
    with pytest.raises(BackendError, match="cancelled"):
        collecting(4)
    assert server.creates == 1  # nobody resubmits what somebody cancelled
    server.finishes = None
    assert outputs(collecting(4)) == right(4)
    assert [len(batch.requests) for batch in server.batches] == [4, 3]
    assert server.answered.total() == 4


def test_the_most_a_batch_can_cost_is_booked_while_it_is_under_way(collecting, tmp_path):
    with pytest.raises(Left):
        collecting(2, detach=True)
    found = spent(tmp_path)
    assert (found.usd, found.unknown) == (0, 1)
    assert found.at_most == pytest.approx(2 * halved(PRICE).cost(len("question 0") // 2 + 16, 16))


def test_the_budget_holds_before_anything_is_submitted(collecting, server):
    with pytest.raises(BudgetError, match="raise it, or lower max_tokens"):
        collecting(3, max_usd=0.000001)
    assert (server.creates, server.files) == (0, {})


def test_a_small_budget_is_spent_batch_after_batch(collecting, server):
    """The worst case of a batch is set aside, and free again once its true cost is known."""
    one = halved(PRICE).cost(len("question 0") // 2 + 16, 16)
    assert outputs(collecting(6, max_usd=2.9 * one)) == right(6)
    assert [len(batch.requests) for batch in server.batches] == [2, 2, 2]


def test_without_a_price_nothing_is_submitted(collecting, server):
    with pytest.raises(BudgetError, match="the price of the teacher is unknown"):
        collecting(2, price=None)
    assert server.creates == 0


def test_batches_under_way_are_known_by_the_predictor(collecting, server, provider, tmp_path):
    with pytest.raises(Left):
        collecting(2, detach=True)
    with Ledger(tmp_path / "ledger.db") as ledger:
        service = service_for(provider, server.anthropic_url, tmp_path, ledger)
        (row,) = under_way(ledger, service.identity)
        assert row.handle.job_id == server.batches[0].id
        assert under_way(ledger, {**service.identity, "model": "another"}) == []


def test_the_sandbox_of_openai_takes_our_batches(tmp_path):
    with Sandbox(part("openai"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        sandbox.add_fault(Fault("batches.create", "drop_after"))
        collected = collect_in_batches("openai", sandbox.url, tmp_path, prompts(3), model="gpt-4o-2024-08-06")
        assert [answer.finish for answer in collected.answers] == ["stop"] * 3
        assert sandbox.store.requests()["batches.create"] == 1
        assert [charge["amount"] for charge in sandbox.store.charges()] == [3]


def test_every_request_has_an_id_of_its_answers_key(collecting, server, provider, tmp_path):
    collecting(2)
    with Ledger(tmp_path / "ledger.db") as ledger:
        service = service_for(provider, server.anthropic_url, tmp_path, ledger)
        (row,) = ledger.jobs()
    wanted = [answer_key(service.identity, request).removeprefix("sha256:")[:40] for request in prompts(2)]
    prefix = "" if provider == "openai" else f"{row.token}-"
    assert [id for id, _ in server.batches[0].requests] == [prefix + id for id in wanted]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id) for id, _ in server.batches[0].requests)
    if provider == "openai":
        assert server.batches[0].metadata == {"distillctl_token": row.token}
        assert json.loads(next(iter(server.files.values())).splitlines()[0])["url"] == "/v1/chat/completions"
