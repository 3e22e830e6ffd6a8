"""`distillctl serve`, asked by the official openai SDK over real HTTP: the answers of `predict`."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.finished import linear_run

from distillctl import predict as work
from distillctl.context import Context
from distillctl.errors import UsageError
from distillctl.progress import Silent
from distillctl.secrets import Secret
from distillctl.types import Answer, Request
from distillctl.using import open_student

openai = pytest.importorskip("openai", reason="needs the `openai` extra")
pytest.importorskip("uvicorn", reason="needs the `serve` extra")
from support.serving import post, serving  # noqa: E402

from distillctl.serve.app import Limits  # noqa: E402
from distillctl.serve.server import Server  # noqa: E402

KEY = "a-key-for-tests-1234567890"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return linear_run(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def server(run: Context) -> Iterator[Server]:
    with open_student(run) as student, serving(student) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def predicted(run: Context, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What `predict` says to the test items."""
    folder = tmp_path_factory.mktemp("predicted")
    rows = [{"id": e.id, **e.fields} for e in run.examples("test")]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_student(run) as student:
        work.predict(student, work.read_requests(folder / "in.jsonl", run.task, None), folder / "out.jsonl",
                     Silent())
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def prompts(run: Context) -> list[list]:
    return [run.task.render(e.fields) for e in run.examples("test")]


def test_the_sdk_gets_the_answers_of_predict(
        run: Context, client: openai.OpenAI, predicted: list[dict]) -> None:
    for messages, line in zip(prompts(run)[:40], predicted, strict=False):
        done = client.chat.completions.create(model="routing", messages=messages)
        assert done.choices[0].message.content == line["output"]
        assert (done.choices[0].finish_reason, done.model) == ("stop", "routing")


def test_the_fields_alone_are_rendered_by_the_tasks_template(
        run: Context, client: openai.OpenAI, predicted: list[dict]) -> None:
    for example, line in zip(run.examples("test")[:10], predicted, strict=False):
        done = client.chat.completions.create(
            model="routing", messages=[], extra_body={"input": {"fields": example.fields}})
        assert done.choices[0].message.content == line["output"]


def test_logprobs_are_the_calibrated_probabilities(
        run: Context, client: openai.OpenAI, predicted: list[dict]) -> None:
    done = client.chat.completions.create(model="routing", messages=prompts(run)[0], logprobs=True,
                                          top_logprobs=4)
    (token,) = done.choices[0].logprobs.content
    stated = {one.token: math.exp(one.logprob) for one in token.top_logprobs}
    assert stated == pytest.approx(predicted[0]["probabilities"], abs=1e-5)
    assert token.token == done.choices[0].message.content == token.top_logprobs[0].token
    assert math.exp(token.logprob) == pytest.approx(stated[token.token])


def test_logprobs_without_alternatives(run: Context, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model="routing", messages=prompts(run)[0], logprobs=True)
    assert done.choices[0].logprobs.content[0].top_logprobs == []


def test_our_own_predictor_reads_the_probabilities(
        run: Context, server: Server, predicted: list[dict]) -> None:
    """As a teacher or a hosted student would be asked."""
    from distillctl.predictors.openai_chat import OpenAIPredictor

    async def ask() -> Answer:
        asked = OpenAIPredictor("routing", base_url=f"{server.url}/v1", labels=run.task.labels)
        answer = (await asked.answer([Request("1", prompts(run)[0])]))[0]
        await asked.aclose()
        return answer

    answer = asyncio.run(ask())
    assert {label: math.exp(log) for label, log in answer.label_logprobs.items()} == pytest.approx(
        predicted[0]["probabilities"], abs=1e-5)


def test_a_stream_says_the_same(run: Context, client: openai.OpenAI, predicted: list[dict]) -> None:
    chunks = list(client.chat.completions.create(
        model="routing", messages=prompts(run)[0], stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == predicted[0]["output"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, "stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []


def test_the_models_are_the_recipe_and_the_run(run: Context, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["routing", run.rundir.name]
    assert client.models.retrieve(run.rundir.name).owned_by == "distillctl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_many_clients_at_once_all_get_their_own_answer(
        run: Context, server: Server, predicted: list[dict]) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as asked:
            done = await asyncio.gather(*(
                asked.chat.completions.create(model="routing", messages=messages)
                for messages in prompts(run)[:64]))
        return [one.choices[0].message.content for one in done]

    assert asyncio.run(ask()) == [line["output"] for line in predicted[:64]]


SAID = {"role": "user", "content": "x"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
HALF = b'{"model": "routing", "messages": [{"role": "user", "content": "\\ud800"}]}'
HALF_FIELD = {"question": "\ud800", "conversation_context": ""}
REFUSED = {
    "no JSON": (b"{", 400, None), "a list": ([], 400, None),
    "no model": ({"model": None}, 404, "model_not_found"),
    "another model": ({"model": "gpt-5"}, 404, "model_not_found"),
    "no messages": ({"messages": []}, 400, None),
    "messages of text": ({"messages": "hi"}, 400, "invalid_type"),
    "a strange role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, None),
    "a list as role": ({"messages": [{"role": [], "content": "x"}]}, 400, None),
    "an image": ({"messages": [PICTURE]}, 400, None),
    "half a surrogate pair": (HALF, 400, None),
    "half of one in a field": ({"messages": [], "input": {"fields": HALF_FIELD}}, 400, None),
    "several answers": ({"n": 2}, 400, "unsupported_value"),
    "tools": ({"tools": [{}]}, 400, "unsupported_parameter"),
    "JSON wanted": ({"response_format": {"type": "json_object"}}, 400, "unsupported_value"),
    "a format as text": ({"response_format": "json_object"}, 400, "invalid_type"),
    "fewer repetitions": ({"frequency_penalty": 0.5}, 400, "unsupported_value"),
    "new topics": ({"presence_penalty": -1}, 400, "unsupported_value"),
    "speech": ({"modalities": ["text", "audio"]}, 400, "unsupported_value"),
    "too many alternatives": ({"logprobs": True, "top_logprobs": 21}, 400, None),
    "no tokens": ({"max_tokens": 0}, 400, "integer_below_min_value"),
    "fields and messages": ({"input": {"fields": {}}}, 400, None),
    "a field lacking": ({"messages": [], "input": {"fields": {"question": "x"}}}, 400, None),
}


@pytest.mark.parametrize(("change", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_answered_is_refused_as_openai_refuses(
        server: Server, change: object, status: int, code: str | None) -> None:
    body = change
    if isinstance(change, dict):
        body = {"model": "routing", "messages": [SAID], **change}
    found, reply = post(server.url, body)
    assert (found, reply["error"]["code"]) == (status, code)
    assert reply["error"]["message"] and reply["error"]["type"] == "invalid_request_error"


def test_what_does_not_matter_to_the_answer_is_taken(run: Context, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="routing", messages=prompts(run)[0], temperature=0.7, top_p=0.9, seed=1, user="me",
        max_tokens=1, metadata={"a": "b"}, response_format={"type": "text"}, frequency_penalty=0.0,
        presence_penalty=0, modalities=["text"])
    assert done.choices[0].message.content in run.task.labels  # a label is never cut


def test_unknown_routes_and_methods(server: Server) -> None:
    for path, status in (("/v1/completions", 404), ("/v1/chat/completions", 405)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(server.url + path, timeout=30)
        assert error.value.code == status
        assert "error" in json.load(error.value)


def test_head_and_body_of_an_answer_do_not_wait_for_each_other(server: Server) -> None:
    assert server._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_web_page_cannot_use_a_server_without_a_key(server: Server) -> None:
    """Under a name of its own (DNS rebinding), or with a form's content type, which needs no preflight."""
    good = {"model": "routing", "messages": [SAID]}
    assert post(server.url, good, Host="evil.example:8765")[0] == 403
    assert post(server.url, good, Content_Type="text/plain")[0] == 400
    assert post(server.url, good, Host="localhost:1")[0] == 200
    assert post(server.url, good, Host="[::1]:1")[0] == 200


def test_a_key_is_asked_for_where_there_is_one(run: Context) -> None:
    with open_student(run) as student, serving(student, key=Secret("K", KEY)) as server:
        for wrong in ("none", KEY[:-1], KEY + "x"):
            with pytest.raises(openai.AuthenticationError) as error:
                openai.OpenAI(base_url=f"{server.url}/v1", api_key=wrong, max_retries=0).models.list()
            assert error.value.code == "invalid_api_key"
        asked = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        done = asked.chat.completions.create(model="routing", messages=prompts(run)[0])
        assert done.choices[0].message.content
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{server.url}/metrics", timeout=30)
        assert urllib.request.urlopen(f"{server.url}/health", timeout=30).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com"])
def test_an_address_that_others_reach_needs_a_key(run: Context, host: str) -> None:
    with open_student(run) as student, pytest.raises(UsageError, match="no key is asked for"):
        Server(student, host=host)


def test_a_taken_port_is_named(run: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, open_student(run) as student, pytest.raises(
            UsageError, match="cannot listen there"):
        Server(student, port=taken.getsockname()[1])


def test_a_large_body_is_refused_announced_or_not(run: Context) -> None:
    with open_student(run) as student, serving(student, limits=Limits(body=2000)) as server:
        assert post(server.url, b" " * 3000)[0] == 413
        with socket.create_connection(server._socket.getsockname(), timeout=30) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                        b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
                        + b"3e8\r\n" + b" " * 1000 + b"\r\n7d0\r\n" + b" " * 2000 + b"\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_given_up(run: Context) -> None:
    limits = Limits(body_seconds=0.05)
    with (open_student(run) as student, serving(student, limits=limits) as server,
          socket.create_connection(server._socket.getsockname(), timeout=30) as raw):
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n"
                    b"Content-Type: application/json\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_cleanly(run: Context, name: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "distillctl.cli.main", "serve", run.run_name, "--workspace",
         str(run.workspace.root), "--port", "0", "--api-key-env", "SERVE_KEY"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "SERVE_KEY": KEY, "PYTHONUNBUFFERED": "1"})
    try:
        first = child.stdout.readline()
        url = first.split(" at ")[1].split()[0]
        asked = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
        assert asked.chat.completions.create(model="routing", messages=prompts(run)[0]).choices
        child.send_signal(getattr(signal, name))
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, err) == (0, "")
    assert "stopped" in out
    assert KEY not in first + out


@pytest.mark.parametrize("value", [None, "short"])
def test_a_key_that_is_none_is_refused(
        run: Context, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from distillctl.cli.main import cli

    monkeypatch.delenv("SERVE_KEY", raising=False)
    if value:
        monkeypatch.setenv("SERVE_KEY", value)
    with pytest.raises(UsageError, match="SERVE_KEY"):
        CliRunner().invoke(cli, [
            "serve", run.run_name, "--workspace", str(run.workspace.root), "--api-key-env", "SERVE_KEY"],
            catch_exceptions=False)


def test_a_structured_student_serves_json_that_fits(tmp_path: Path) -> None:
    """A language model: generated, counted, and cut where a client wants it shorter."""
    pytest.importorskip("torch", reason="needs the `local` extra")
    from support.finished import SCHEMA, tiny_run
    from support.tiny_students import tiny_base

    run = tiny_run(tmp_path / "workspace", tiny_base(tmp_path / "base"), "structured")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    with open_student(run) as student, serving(student) as server:
        asked = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for example, was in zip(run.examples("test"), run.predictions("student", "test"), strict=True):
            done = asked.chat.completions.create(model="tiny-structured", response_format=form,
                                                 messages=run.task.render(example.fields))
            assert done.choices[0].message.content == was.answer.output
            assert done.usage.completion_tokens == was.answer.tokens_out
        short = asked.chat.completions.create(model="tiny-structured", max_tokens=3,
                                              messages=run.task.render(example.fields))
        assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
        for refused in ({"logprobs": True}, {"response_format": {
                **form, "json_schema": {"name": "x", "schema": {"type": "object"}}}}):
            with pytest.raises(openai.BadRequestError):
                asked.chat.completions.create(model="tiny-structured", messages=[SAID], **refused)
        with pytest.raises(openai.BadRequestError) as error:
            asked.chat.completions.create(model="tiny-structured",
                                          messages=[{"role": "user", "content": "x" * 600}])
        assert error.value.code == "context_length_exceeded"
        assert post(server.url, {"model": "tiny-structured", "messages": [SAID],
                                 "response_format": "json_object"})[0] == 400


def test_what_the_chat_template_refuses_costs_nobody_elses_answer(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the `local` extra")
    from support.finished import tiny_run
    from support.tiny_students import tiny_base

    base = tiny_base(tmp_path / "base")
    template = Path(base.model) / "chat_template.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}"
                        "{% endif %}" + template.read_text())
    run = tiny_run(tmp_path / "workspace", base)
    said = {e.id: run.task.render(e.fields) for e in run.examples("test")}
    wanted = {p.id: p.answer.output for p in run.predictions("student", "test")}
    half = {"input": {"fields": {"question": "\ud800"}}}

    async def ask(url: str) -> list:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as asked:
            ask = functools.partial(asked.chat.completions.create, model="tiny-classification")
            bad = [ask(messages=[{"role": "system", "content": "x"}, SAID]) for _ in range(3)]
            good = [ask(messages=messages) for messages in said.values()]
            return await asyncio.gather(*bad, *good, return_exceptions=True)

    with open_student(run) as student, serving(student) as server:
        assert post(server.url, {"model": "tiny-classification", "messages": [], **half})[0] == 400
        replies = asyncio.run(ask(f"{server.url}/v1"))
    for error in replies[:3]:
        assert isinstance(error, openai.BadRequestError)
        assert "no system turn" in str(error) and str(tmp_path) not in str(error)
    assert [one.choices[0].message.content for one in replies[3:]] == list(wanted.values())
