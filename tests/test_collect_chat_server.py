"""The loopback provider refuses what the originals refuse, and runs by itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from distillctl.testing.chat_server import ChatServer

USER = {"role": "user", "content": "hello"}
OPENAI = {"model": "m", "messages": [USER]}
ANTHROPIC = {**OPENAI, "max_tokens": 5}
KEY = {"Authorization": "Bearer some-key"}
VERSION = {"anthropic-version": "2026-10-21"}


def post(url: str, body: object, headers: dict[str, str]) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(("body", "headers", "status"), [
    (OPENAI, KEY, 200),
    (OPENAI, {}, 401),
    (OPENAI, {"Authorization": "Bearer wrong"}, 401),
    (b"{", KEY, 400),
    ({**OPENAI, "temprature": 1}, KEY, 400),
    ({**OPENAI, "temperature": 3}, KEY, 400),
    ({**OPENAI, "max_tokens": 0}, KEY, 400),
    ({**OPENAI, "top_logprobs": 5}, KEY, 400),
    ({**OPENAI, "model": "unknown"}, KEY, 404),
    ({**OPENAI, "messages": []}, KEY, 400),
    ({**OPENAI, "messages": [{"role": "robot", "content": "x"}]}, KEY, 400),
    ({**OPENAI, "messages": [{"role": "user", "content": ""}]}, KEY, 400),
    ({**OPENAI, "messages": [{"role": "system", "content": "x"}]}, KEY, 400)])
def test_openais_format_is_as_strict_as_openai(body, headers, status):
    with ChatServer(key="some-key", models=frozenset({"m"})) as server:
        got, reply = post(server.base_url + "/chat/completions", body, headers)
        assert len(server.asked) == (status == 200)
    assert got == status
    assert ("choices" if status == 200 else "error") in reply


@pytest.mark.parametrize(("body", "headers", "status"), [
    (ANTHROPIC, {**KEY, **VERSION}, 200),
    (ANTHROPIC, {"x-api-key": "some-key", **VERSION}, 200),
    (ANTHROPIC, VERSION, 401),
    (ANTHROPIC, KEY, 400),
    (OPENAI, {**KEY, **VERSION}, 400),
    ({**ANTHROPIC, "temperature": 1.0}, {**KEY, **VERSION}, 400),
    ({**ANTHROPIC, "temperature": 1.0}, {**KEY, "anthropic-version": "2023-06-01"}, 200),
    ({**ANTHROPIC, "seed": 1}, {**KEY, **VERSION}, 400),
    ({**ANTHROPIC, "messages": [{"role": "system", "content": "x"}, USER]}, {**KEY, **VERSION}, 400)])
def test_anthropics_format_is_as_strict_as_anthropic(body, headers, status):
    with ChatServer(key="some-key") as server:
        got, reply = post(server.anthropic_url + "/v1/messages", body, headers)
    assert got == status
    assert reply["type"] == ("message" if status == 200 else "error")


def test_it_runs_for_a_person():
    command = [sys.executable, "-m", "distillctl.testing.chat_server", "--text", "docs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            status, reply = post(url + "/chat/completions", OPENAI, KEY)
        finally:
            process.terminate()
    assert (status, reply["choices"][0]["message"]["content"]) == (200, "docs")
