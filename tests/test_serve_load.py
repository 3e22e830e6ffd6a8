"""`distillctl serve` under load: what waits goes together, limits hold, and a stop answers what is under way.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.finished import linear_run

from distillctl.collect import CollectOptions
from distillctl.context import Context
from distillctl.types import Answer, Request
from distillctl.using import Student

pytest.importorskip("uvicorn", reason="needs the `serve` extra")
from support.serving import post, serving

from distillctl.serve.app import Limits
from distillctl.serve.cascade import Cascade
from distillctl.serve.server import Server

SAID = {"role": "user", "content": "x"}


class Held:
    """A predictor that answers when it is told to, and writes down what came together."""

    identity = {}  # noqa: RUF012 - as the protocol has it
    max_batch = 8
    replayed = False

    def __init__(self) -> None:
        self.go, self.batches = threading.Event(), []
        self.first = threading.Event()

    async def answer(self, requests: list[Request]) -> list[Answer]:
        self.batches.append(len(requests))
        self.first.set()
        await asyncio.to_thread(self.go.wait, 30)
        if any("break" in r.messages[-1]["content"] for r in requests):
            raise RuntimeError("broken")
        return [Answer("code", tokens_in=3, tokens_out=1) for _ in requests]

    async def aclose(self) -> None: ...


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return linear_run(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def held(run: Context) -> tuple[Held, Student]:
    predictor = Held()
    return predictor, Student(run.rundir.name, run.task, predictor, None, CollectOptions(), None, None)


BODY = {"model": "routing", "messages": [SAID]}


def ask_in_threads(url: str, count: int) -> tuple[list[threading.Thread], list[int]]:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(post(url, BODY)[0])) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, statuses


def waits_for(server: Server, count: int) -> None:
    """Until so many requests are under way."""
    until = time.monotonic() + 20
    while f"distillctl_under_way {count}.0" not in metrics(server):
        assert time.monotonic() < until


def metrics(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        return reply.read().decode()


def test_what_waits_is_answered_together(held: tuple[Held, Student]) -> None:
    predictor, student = held
    with serving(student) as server:
        threads, statuses = ask_in_threads(server.url, 1)
        predictor.first.wait(30)
        more, others = ask_in_threads(server.url, 12)
        waits_for(server, 13)
        predictor.go.set()
        for thread in (*threads, *more):
            thread.join()
        found = metrics(server)
    assert statuses + others == [200] * 13
    assert predictor.batches == [1, 4, 4, 4]  # half of what it takes at once
    assert 'distillctl_requests_total{status="200"} 13.0' in found
    assert "distillctl_batch_size_count 4.0" in found
    assert 'distillctl_answers_total{value="code"} 13.0' in found
    assert 'distillctl_tokens_total{kind="in"} 39.0' in found


def test_beyond_the_limit_requests_are_told_to_come_back(held: tuple[Held, Student]) -> None:
    predictor, student = held
    with serving(student, limits=Limits(requests=2)) as server:
        threads, statuses = ask_in_threads(server.url, 2)
        waits_for(server, 2)
        status, reply = post(server.url, BODY)
        predictor.go.set()
        for thread in threads:
            thread.join()
    assert (status, reply["error"]["code"]) == (429, "rate_limit_exceeded")
    assert statuses == [200, 200]


class Unsure(Held):
    """A student that answers at once and is not sure."""

    async def answer(self, requests: list[Request]) -> list[Answer]:
        return [Answer("code", label_logprobs={"code": -0.7, "docs": -0.7}) for _ in requests]


def cascade(held: tuple[Held, Student]) -> tuple[Student, Cascade]:
    """An unsure student before a teacher that answers when it is told to."""
    _, teacher = held
    student = Student(teacher.run, teacher.task, Unsure(), None, CollectOptions())
    return student, Cascade(student, teacher, 0.99)


def test_what_waits_for_the_teacher_counts_too(held: tuple[Held, Student]) -> None:
    predictor, _ = held
    student, behind = cascade(held)
    with serving(student, limits=Limits(requests=2), cascade=behind) as server:
        threads, statuses = ask_in_threads(server.url, 2)
        predictor.first.wait(30)
        waits_for(server, 2)
        status, _ = post(server.url, BODY)
        predictor.go.set()
        for thread in threads:
            thread.join()
        waits_for(server, 0)
    assert (status, statuses) == (429, [200, 200])


@contextmanager
def raw_request(server: Server):
    """A request on a connection that closes at the end of the block, whatever was answered."""
    body = json.dumps(BODY).encode()
    with socket.create_connection(server._socket.getsockname(), timeout=30) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                    b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        yield raw


def test_nothing_is_computed_for_a_client_that_hung_up(held: tuple[Held, Student]) -> None:
    """Its place is free at once; what others asked meanwhile fills the batch."""
    predictor, student = held
    with serving(student, limits=Limits(requests=6)) as server:
        threads, statuses = ask_in_threads(server.url, 1)
        predictor.first.wait(30)
        for _ in range(3):
            with raw_request(server), raw_request(server):
                waits_for(server, 3)
            waits_for(server, 1)
        more, others = ask_in_threads(server.url, 4)
        waits_for(server, 5)
        predictor.go.set()
        for thread in (*threads, *more):
            thread.join()
        found = metrics(server)
    assert statuses + others == [200] * 5
    assert predictor.batches == [1, 4]
    assert 'distillctl_requests_total{status="499"} 6.0' in found
    assert 'status="500"' not in found


def test_a_teachers_call_is_paid_and_so_ends_though_its_client_hung_up(held: tuple[Held, Student]) -> None:
    predictor, teacher = held
    teacher.options = replace(teacher.options, concurrency=1)
    student, behind = cascade(held)
    with serving(student, cascade=behind) as server:
        with raw_request(server):
            predictor.first.wait(30)
            with raw_request(server):
                waits_for(server, 2)
            waits_for(server, 1)  # the second had not been begun
        threads, statuses = ask_in_threads(server.url, 1)
        waits_for(server, 2)
        predictor.go.set()
        for thread in threads:
            thread.join()
        waits_for(server, 0)
    assert statuses == [200]
    assert predictor.batches == [1, 1]


def test_a_student_that_fails_is_a_500_and_the_next_is_answered(held: tuple[Held, Student]) -> None:
    predictor, student = held
    predictor.go.set()
    with serving(student) as server:
        broken = post(server.url, {**BODY, "messages": [{"role": "user", "content": "break"}]})
        assert (broken[0], broken[1]["error"]["type"]) == (500, "server_error")
        assert "broken" not in broken[1]["error"]["message"]
        assert post(server.url, BODY)[0] == 200


def test_a_stop_answers_what_is_under_way(held: tuple[Held, Student]) -> None:
    predictor, student = held
    with serving(student) as server:
        threads, statuses = ask_in_threads(server.url, 3)
        waits_for(server, 3)
        server.stop()
        predictor.go.set()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 3
