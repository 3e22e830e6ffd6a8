"""What collection keeps: nothing is asked twice, spending stays under its cap, a killed run goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.chat import KEY, PRICE, collect_all, kept_answers, prompt, prompts

from distillctl.budget import Budget
from distillctl.collect import CollectOptions, collect
from distillctl.errors import BudgetError, StorageError
from distillctl.predictors.recorded import RecordedPredictor
from distillctl.prices import PricePoint, Rate
from distillctl.store.ledger import Ledger
from distillctl.testing.chat_server import Asked, ChatServer, Reply
from distillctl.types import Answer, Request

# a collection in a process of its own, to be killed
CHILD = """
import json, sys
from pathlib import Path
tests, url, folder, count, concurrency, grace = sys.argv[1:]
sys.path.insert(0, tests)
from support.chat import collect_all, prompts

class Server:
    base_url = url

try:
    collected = collect_all(Server, Path(folder), prompts(int(count)), concurrency=int(concurrency),
                            grace=float(grace))
except KeyboardInterrupt:
    sys.exit(130)
print(json.dumps([answer.output for answer in collected.answers]))
"""
TESTS = str(Path(__file__).parent)


def child(server: ChatServer, folder: Path, count: int, concurrency: int, grace: float = 5.0,
          **env: str) -> subprocess.Popen:
    arguments = map(str, (TESTS, server.base_url, folder, count, concurrency, grace))
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, **env})


def echo(asked: Asked) -> Reply:
    return Reply(f"answer to {asked.prompt}")


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.005)


# --- nothing is asked twice ---

def test_a_second_run_asks_nothing(tmp_path):
    with ChatServer(echo) as server:
        first = collect_all(server, tmp_path, prompts(30), concurrency=8)
        second = collect_all(server, tmp_path, prompts(30), concurrency=8)
    assert len(server.asked) == 30
    assert second.answers == first.answers
    assert (first.asked, first.reused, second.asked, second.reused) == (30, 0, 0, 30)


def test_answers_come_in_the_order_of_the_requests(tmp_path):
    with ChatServer(lambda asked: Reply(asked.prompt, delay=0.02 * (asked.total % 3))) as server:
        collected = collect_all(server, tmp_path, prompts(12), concurrency=6)
    assert [answer.output for answer in collected.answers] == [f"question {n}" for n in range(12)]


def test_equal_prompts_are_asked_once_and_samples_apart(tmp_path):
    messages = prompt(1).messages
    requests = [Request("a", messages), Request("b", messages), Request("a", messages, sample=1)]
    with ChatServer(lambda asked: Reply(f"reply {asked.nth}")) as server:
        collected = collect_all(server, tmp_path, requests)
    assert [answer.output for answer in collected.answers] == ["reply 1", "reply 1", "reply 2"]


@pytest.mark.parametrize(("reply", "finish"), [
    (Reply("cut", finish="length"), "length"), (Reply(content=None), "empty"),
    (Reply(refusal="no"), "refusal")])
def test_answers_without_use_are_recorded_as_what_they_are(tmp_path, reply, finish):
    with ChatServer(lambda asked: reply) as server:
        for _ in range(2):
            assert collect_all(server, tmp_path, [prompt(1)]).answers[0].finish == finish
    assert len(server.asked) == 1


def test_a_faulty_provider_leaves_a_correct_ledger_and_a_clear_account(tmp_path):
    faults = [
        Reply(status=429, headers={"Retry-After": "1"}), Reply(status=500), Reply(delay=30),
        Reply(fault="drip"), Reply(fault="truncate"), Reply(fault="no_body"), Reply(fault="not_json"),
        Reply(fault="html"), Reply(fault="drop_after"), Reply(body={"choices": []})]

    def script(asked: Asked) -> Reply:
        number = int(asked.prompt.split()[1])
        if number == 3:
            return Reply("cut o", finish="length")
        if number == 4:
            return Reply(content="")
        if number == 5:
            return Reply(status=400, message="flagged")
        fault = faults[number % len(faults)] if number >= 10 and asked.nth == 1 else None
        return fault or echo(asked)

    with ChatServer(script) as server:
        collected = collect_all(server, tmp_path, prompts(40), concurrency=16, deadline=0.5)
    kept = kept_answers(server, tmp_path, prompts(40))
    assert len(kept) == 40
    wrong = {id: answer.finish for id, answer in kept.items() if answer.finish != "stop"}
    assert wrong == {"row-3": "length", "row-4": "empty", "row-5": "failed"}
    assert all(kept[f"row-{n}"].output == f"answer to question {n}" for n in range(6, 40))
    assert (collected.failed, collected.models) == (1, {"some-model": 39})


def test_a_switched_model_is_told(tmp_path):
    def script(asked: Asked) -> Reply:
        return Reply(body={"model": "another" if asked.total > 2 else "some-model",
                           "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})

    with ChatServer(script) as server:
        collected = collect_all(server, tmp_path, prompts(3))
    assert collected.models == {"some-model": 2, "another": 1}


def test_progress_is_told(tmp_path):
    shown = []
    with ChatServer(echo) as server:
        collect_all(server, tmp_path, prompts(5), paid=True, price=PRICE, budget=Budget(1.0))
        collect_all(server, tmp_path, prompts(20), paid=True, price=PRICE, budget=Budget(1.0),
                    on_progress=shown.append)
    assert (shown[0].done, shown[0].total, shown[0].reused) == (5, 20, 5)
    assert (shown[-1].done, shown[-1].failed) == (20, 0)
    assert shown[-1].usd == pytest.approx(15 * (2 * 1.0 + 4 * 2.0) / 1e6)


def test_a_recording_is_replayed_without_the_ledger(tmp_path):
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps({"id": f"row-{n}", "output": f"o{n % 2}"}) + "\n" for n in range(4)))
    same = [Request(f"row-{n}", prompt(0).messages) for n in range(5)]  # equal prompts, answers of their own

    async def go():
        with Ledger(tmp_path / "ledger.db") as ledger:
            collected = await collect(RecordedPredictor(path), same, ledger=ledger, run="run", kind="teacher",
                                      paid=False, options=CollectOptions())
            return collected, ledger.spent("run")

    collected, spent = asyncio.run(go())
    assert [answer.output for answer in collected.answers] == ["o0", "o1", "o0", "o1", None]
    assert (collected.failed, spent.usd, spent.unknown) == (1, 0, 0)


def test_a_batch_predictor_is_asked_in_batches_and_recorded(tmp_path):
    class Local:
        max_batch = 4
        replayed = False

        def __init__(self):
            self.identity = {"provider": "local"}
            self.sizes = []

        async def answer(self, requests):
            self.sizes.append(len(requests))
            return [Answer(request.id) for request in requests]

        async def aclose(self): ...

    async def go(predictor):
        with Ledger(tmp_path / "ledger.db") as ledger:
            return await collect(predictor, prompts(10), ledger=ledger, run="run", kind="student", paid=False,
                                 options=CollectOptions(concurrency=1))

    first, second = Local(), Local()
    collected = asyncio.run(go(first))
    asyncio.run(go(second))
    assert [answer.output for answer in collected.answers] == [f"row-{n}" for n in range(10)]
    assert (first.sizes, second.sizes) == ([4, 4, 2], [])


# --- the cap ---

def test_the_cap_is_never_passed_by_many_at_once(tmp_path):
    usage = {"prompt_tokens": 20, "completion_tokens": 16}
    one = PRICE.cost(20, 16)
    cap = 10.5 * one
    with ChatServer(lambda asked: Reply(usage=usage, delay=0.01)) as server:
        with pytest.raises(BudgetError) as caught:
            collect_all(server, tmp_path, prompts(200), concurrency=64, paid=True, price=PRICE,
                        budget=Budget(cap))
        assert server.answered.total() * one <= cap
        assert "answered and kept" in str(caught.value)
        with Ledger(tmp_path / "ledger.db") as ledger:
            spent = ledger.spent("run")
            budget = Budget.of(ledger, "run", cap)
        assert spent.usd == pytest.approx(server.answered.total() * one)
        with pytest.raises(BudgetError):
            collect_all(server, tmp_path, prompts(200), concurrency=64, paid=True, price=PRICE, budget=budget)
        assert server.answered.total() * one <= cap


def test_money_set_aside_too_carefully_is_used_after_all(tmp_path):
    with ChatServer(lambda asked: Reply(usage={"prompt_tokens": 1, "completion_tokens": 1})) as server:
        collect_all(server, tmp_path, prompts(100), concurrency=64, paid=True, price=PRICE,
                    budget=Budget(100 * PRICE.cost(20, 16)))
    assert server.answered.total() == 100


def test_lost_replies_count_against_the_cap_with_the_most_they_can_cost(tmp_path):
    budget = Budget(1.0)
    with ChatServer(lambda asked: Reply(fault="drop_after") if asked.nth == 1 else Reply()) as server:
        collect_all(server, tmp_path, prompts(4), paid=True, price=PRICE, budget=budget)
    with Ledger(tmp_path / "ledger.db") as ledger:
        spent = ledger.spent("run")
        assert Budget.of(ledger, "run", 1.0).spent == pytest.approx(budget.spent)
    assert spent.unknown == 4
    assert budget.spent == pytest.approx(spent.usd + spent.at_most)
    assert budget.reserved == pytest.approx(0)


def test_an_answer_without_usage_counts_with_the_most_it_can_cost(tmp_path):
    budget = Budget(1.0)
    with ChatServer(lambda asked: Reply(usage=None)) as server:
        collect_all(server, tmp_path, prompts(2), paid=True, price=PRICE, budget=budget)
    with Ledger(tmp_path / "ledger.db") as ledger:
        spent = ledger.spent("run")
    assert (spent.usd, spent.unknown) == (0, 2)
    assert budget.spent == pytest.approx(spent.at_most)
    assert spent.at_most > 0


def test_an_unknown_price_is_an_error_before_the_first_call(tmp_path):
    with ChatServer() as server, pytest.raises(BudgetError, match=r"teacher\.price"):
        collect_all(server, tmp_path, prompts(3), paid=True, price=None, budget=Budget(5.0))
    assert not server.asked


def test_a_cap_of_nothing_pays_nothing_and_a_price_of_nothing_fits_it(tmp_path):
    with ChatServer() as server:
        with pytest.raises(BudgetError):
            collect_all(server, tmp_path, prompts(3), paid=True, price=PRICE, budget=Budget(0.0))
        assert not server.asked
        free = PricePoint(Rate(0.0, 0.0), "own server")
        collect_all(server, tmp_path, prompts(3), paid=True, price=free, budget=Budget(0.0))
    assert len(server.asked) == 3


# --- ends that nobody planned ---

def test_kill_9_loses_at_most_what_was_under_way(tmp_path):
    with ChatServer(lambda asked: Reply(f"answer to {asked.prompt}", delay=0.01)) as server:
        process = child(server, tmp_path, 60, 4)
        wait_for(lambda: len(server.asked) >= 25 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = len(kept_answers(server, tmp_path, prompts(60)))
        assert kept >= 25 - 4 - 1
        done, _ = child(server, tmp_path, 60, 4).communicate()
    assert json.loads(done) == [f"answer to question {n}" for n in range(60)]
    assert server.answered.total() <= 60 + 4


@pytest.mark.parametrize("point", ["before-answer-commit:7", "after-answer-commit:7"])
def test_kill_9_around_a_commit_keeps_the_account_right(tmp_path, point):
    with ChatServer(echo) as server:
        process = child(server, tmp_path, 20, 2, DISTILLCTL_TESTING="1", DISTILLCTL_CRASH_AT=point)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done, errors = child(server, tmp_path, 20, 2).communicate()
        assert json.loads(done) == [f"answer to question {n}" for n in range(20)], errors
    assert server.answered.total() <= 20 + 2


def test_ctrl_c_lets_calls_under_way_finish_and_goes_on_later(tmp_path):
    def slow(asked: Asked) -> Reply:
        return Reply(f"answer to {asked.prompt}", delay=0.3 if asked.total > 10 else 0.0)

    with ChatServer(slow) as server:
        process = child(server, tmp_path, 40, 4)
        wait_for(lambda: len(server.asked) >= 12 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        asked = len(server.asked)
        assert asked < 40
        assert len(kept_answers(server, tmp_path, prompts(40))) == asked, "what was paid for is kept"
        server.script = echo
        child(server, tmp_path, 40, 4).communicate()
    assert server.answered.total() == 40


def test_a_second_ctrl_c_ends_at_once_and_the_ledger_is_whole(tmp_path):
    with ChatServer(lambda asked: Reply(delay=60 if asked.total > 5 else 0)) as server:
        process = child(server, tmp_path, 20, 3, grace=50)
        wait_for(lambda: len(server.asked) >= 8 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals in one instant would arrive as one
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert len(kept_answers(server, tmp_path, prompts(20))) == 5


def test_an_answer_that_cannot_be_written_stops_the_asking(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise StorageError("the ledger cannot be written: database or disk is full")

    monkeypatch.setattr(Ledger, "record_answers", full)
    with ChatServer(echo) as server, pytest.raises(StorageError, match="disk is full"):
        collect_all(server, tmp_path, prompts(100), concurrency=4)
    assert len(server.asked) <= 8


def test_no_key_is_written_anywhere(tmp_path):
    with ChatServer(lambda asked: Reply(status=401, message=f"bad key {KEY}")) as server, (
            pytest.raises(Exception, match="refuses the key")) as caught:
        collect_all(server, tmp_path, prompts(2))
    assert KEY not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if KEY.encode() in path.read_bytes()]
