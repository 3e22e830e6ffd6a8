"""Retries, Retry-After, pacing and adaptive concurrency, on a clock that only sleeping moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.chat import PRICE, FakeTiming, collect_all, kept_answers, predictor_for, prompt, prompts

from distillctl.budget import Budget
from distillctl.collect import CollectOptions, collect
from distillctl.errors import StudentError, TeacherError
from distillctl.retry import LONGEST_WAIT, Gate, Pace, back_off, parse_retry_after
from distillctl.store.ledger import Ledger
from distillctl.testing.chat_server import ChatServer, Reply


def first_then_ok(*replies: Reply):
    """The scripted replies to a prompt, in turn, and then an answer."""
    return lambda asked: replies[asked.nth - 1] if asked.nth <= len(replies) else Reply("docs")


# --- the parts ---

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("value", "seconds"), [
    ("7", 7.0), ("1.5", 1.5), (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
    (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
    ("-5", None), ("", None), ("later", None), ("nan", None), ("1e999", None), (None, None)])
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(("attempt", "asked", "dice", "wait"), [
    (1, None, 0.0, 0.0), (1, None, 1.0, 1.0), (3, None, 0.5, 2.0), (50, None, 1.0, LONGEST_WAIT),
    (1, 30.0, 0.0, 30.0), (1, 30.0, 1.0, 31.0), (1, 1e9, 0.0, LONGEST_WAIT)])
def test_waits_grow_with_jitter_and_honour_the_provider_up_to_a_bound(attempt, asked, dice, wait):
    assert back_off(attempt, asked, dice) == wait


def test_concurrency_is_halved_once_per_round_and_grows_back():
    async def go() -> list[int]:
        gate = Gate(8, FakeTiming().timing())
        limits = []
        tickets = [await gate.enter() for _ in range(8)]
        for ticket in tickets:  # eight refusals of one burst are one cut
            gate.too_many(ticket)
        limits.append(gate.limit)
        for _ in range(8):
            gate.leave()
        gate.too_many(await gate.enter())
        limits.append(gate.limit)
        for _ in range(100):
            gate.answered()
        return [*limits, gate.limit]

    assert asyncio.run(go()) == [4, 2, 8]


def test_pace_spreads_units_evenly_and_takes_back_what_was_not_used():
    async def go() -> list[float]:
        clock = FakeTiming()
        pace = Pace(60, clock.timing())
        for _ in range(3):
            await pace.take(2)
        pace.give_back(2)
        await pace.take(2)
        return clock.slept

    assert asyncio.run(go()) == [2.0, 2.0]


# --- the collection ---

def test_retry_after_is_waited_out(tmp_path):
    clock = FakeTiming()
    refusal = Reply(status=429, headers={"Retry-After": "17"})
    with ChatServer(first_then_ok(refusal)) as server:
        collected = collect_all(server, tmp_path, [prompt(1)], timing=clock.timing(dice=0.0))
    assert collected.answers[0].output == "docs"
    assert sum(clock.slept) == pytest.approx(17)


@pytest.mark.parametrize("value", ["999999", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_huge_retry_after_is_capped(tmp_path, value):
    clock = FakeTiming()
    with ChatServer(first_then_ok(Reply(status=429, headers={"Retry-After": value}))) as server:
        collect_all(server, tmp_path, [prompt(1)], timing=clock.timing(dice=0.0))
    assert sum(clock.slept) == pytest.approx(LONGEST_WAIT)


@pytest.mark.parametrize("value", ["-3", "soon", ""])
def test_a_senseless_retry_after_is_ignored(tmp_path, value):
    clock = FakeTiming()
    with ChatServer(first_then_ok(Reply(status=503, headers={"Retry-After": value}))) as server:
        collect_all(server, tmp_path, [prompt(1)], timing=clock.timing(dice=0.5))
    assert sum(clock.slept) == pytest.approx(0.5)


@pytest.mark.parametrize("fault", [
    Reply(status=500), Reply(status=503), Reply(status=429), Reply(status=408), Reply(fault="drop_before"),
    Reply(fault="drop_after"), Reply(fault="truncate"), Reply(fault="html"), Reply(fault="no_body"),
    Reply(fault="not_json"), Reply(body={"choices": []})])
def test_a_passing_fault_is_tried_again(tmp_path, fault):
    with ChatServer(first_then_ok(fault, fault)) as server:
        collected = collect_all(server, tmp_path, [prompt(1)])
    assert (collected.answers[0].output, len(server.asked)) == ("docs", 3)


def test_a_server_that_wants_another_name_for_the_limit_is_asked_again(tmp_path):
    with ChatServer(completion_tokens_only=True) as server:
        assert collect_all(server, tmp_path, prompts(20), concurrency=8).failed == 0
    assert len(server.asked) == 20


def test_tries_are_bounded_and_the_request_stays_owed(tmp_path):
    with ChatServer(lambda asked: Reply(status=500)) as server:
        collected = collect_all(server, tmp_path, [prompt(1)], max_failures=1.0, attempts=4)
        assert (collected.answers[0].finish, collected.failed, len(server.asked)) == ("failed", 1, 4)
        assert "500" in collected.answers[0].error
        server.script = lambda asked: Reply("docs")
        assert collect_all(server, tmp_path, [prompt(1)]).answers[0].output == "docs"


def test_what_may_have_been_billed_is_tried_at_most_three_times(tmp_path):
    with ChatServer(lambda asked: Reply(fault="drop_after")) as server:
        collect_all(server, tmp_path, [prompt(1)], max_failures=1.0, paid=True, price=PRICE,
                    budget=Budget(1.0))
    assert server.answered.total() == 3
    with Ledger(tmp_path / "ledger.db") as ledger:
        spent = ledger.spent("run")
    assert (spent.usd, spent.unknown) == (0, 3)
    assert spent.at_most > 0


def test_a_slow_drip_ends_at_the_deadline(tmp_path):
    with ChatServer(first_then_ok(Reply(fault="drip"))) as server:
        collected = collect_all(server, tmp_path, [prompt(1)], deadline=0.3)
    assert (collected.answers[0].output, len(server.asked)) == ("docs", 2)


def test_concurrency_follows_the_providers_refusals(tmp_path):
    shown = []
    with ChatServer(first_then_ok(Reply(status=429))) as server:
        collect_all(server, tmp_path, prompts(40), concurrency=16, on_progress=shown.append)
    assert min(progress.concurrency for progress in shown) <= 8
    assert shown[-1].done == 40


def test_concurrency_is_never_exceeded_and_is_used(tmp_path):
    with ChatServer(lambda asked: Reply(delay=0.05)) as server:
        collect_all(server, tmp_path, prompts(40), concurrency=8)
    assert server.most_at_once == 8


def test_requests_per_minute_are_kept(tmp_path):
    clock = FakeTiming()
    with ChatServer() as server:
        collect_all(server, tmp_path, prompts(11), requests_per_minute=60, timing=clock.timing())
    assert clock.time - 1000 == pytest.approx(10)


def test_tokens_per_minute_count_what_was_used(tmp_path):
    clock = FakeTiming()
    usage = {"prompt_tokens": 50, "completion_tokens": 50}
    with ChatServer(lambda asked: Reply(usage=usage)) as server:
        collect_all(server, tmp_path, prompts(11), tokens_per_minute=600, max_tokens=900,
                    timing=clock.timing())
    assert clock.time - 1000 == pytest.approx(100)


# --- when to stop ---

@pytest.mark.parametrize(("reply", "word"), [
    (Reply(status=401), "refuses the key"), (Reply(status=403), "refuses the key"),
    (Reply(status=402), "quota"), (Reply(status=429, code="insufficient_quota"), "quota"),
    (Reply(status=404), "cannot be asked")])
def test_what_only_the_user_can_mend_stops_everything_and_loses_nothing(tmp_path, reply, word):
    with ChatServer(lambda asked: reply if asked.total > 10 else Reply()) as server, (
            pytest.raises(TeacherError, match=word)) as caught:
        collect_all(server, tmp_path, prompts(100), concurrency=4)
    assert "10 of 100 prompts are answered and kept" in str(caught.value)
    assert len(server.asked) <= 10 + 4
    assert len(kept_answers(server, tmp_path, prompts(100))) == 10


def test_a_rejected_prompt_is_recorded_once_and_the_rest_goes_on(tmp_path):
    def script(asked):
        return Reply(status=400, message="too long") if asked.prompt == "question 3" else Reply()

    with ChatServer(script) as server:
        collected = collect_all(server, tmp_path, prompts(40), concurrency=4)
        assert len(server.asked) == 40
        again = collect_all(server, tmp_path, prompts(40))
        assert len(server.asked) == 40
    assert (collected.failed, again.failed) == (1, 1)
    assert again.answers[3].finish == "failed" and "too long" in again.answers[3].error


def test_where_all_is_rejected_the_run_stops_and_asks_again_next_time(tmp_path):
    with ChatServer(lambda asked: Reply(status=400, message="no such format")) as server:
        with pytest.raises(TeacherError, match="not one was answered") as caught:
            collect_all(server, tmp_path, prompts(300), concurrency=2)
        assert "no such format" in str(caught.value) and len(server.asked) <= 12
        server.script = lambda asked: Reply("docs")
        assert collect_all(server, tmp_path, prompts(300), concurrency=16).failed == 0


def test_too_many_failures_stop_the_run_with_the_reason(tmp_path):
    with ChatServer(lambda asked: Reply(status=400) if asked.total % 2 else Reply()) as server, (
            pytest.raises(TeacherError, match="more than max_failures")):
        collect_all(server, tmp_path, prompts(100), max_failures=0.1)
    assert len(server.asked) <= 23


def test_a_students_failures_are_named_as_the_students(tmp_path):
    with ChatServer(lambda asked: Reply(status=401)) as server, (
            pytest.raises(StudentError, match="the student")):
        collect_all(server, tmp_path, [prompt(1)], kind="student")


def test_a_mistake_in_a_predictor_is_not_swallowed(tmp_path):
    class Broken:
        max_batch = 4
        replayed = False

        def __init__(self):
            self.identity = {"provider": "broken"}

        async def answer(self, requests):
            raise ZeroDivisionError("a bug")

        async def aclose(self): ...

    async def go():
        with Ledger(tmp_path / "ledger.db") as ledger:
            await collect(Broken(), prompts(9), ledger=ledger, run="run", kind="student", paid=False,
                          options=CollectOptions(concurrency=2))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(go())


def test_two_predictors_do_not_share_answers(tmp_path):
    async def go(server, temperature):
        predictor = predictor_for(server, temperature=temperature)
        with Ledger(tmp_path / "ledger.db") as ledger:
            await collect(predictor, prompts(3), ledger=ledger, run="run", kind="teacher", paid=False,
                          options=CollectOptions())
        await predictor.aclose()

    with ChatServer() as server:
        asyncio.run(go(server, 0.0))
        asyncio.run(go(server, 1.0))
    assert len(server.asked) == 6
