"""The predictor for Anthropic's Messages API: the real SDK over real HTTP."""

from __future__ import annotations

import asyncio

import pytest
from support.chat import KEY, PRICE, prompt

from distillctl.predictors.anthropic_chat import AnthropicPredictor
from distillctl.secrets import Secret
from distillctl.testing.chat_server import ChatServer, Reply
from distillctl.types import Answer, CallFailed, Request


def ask(server: ChatServer, request: Request, **options) -> Answer:
    async def go() -> Answer:
        options.setdefault("max_tokens", 16)
        predictor = AnthropicPredictor("claude-test", base_url=server.anthropic_url,
                                       api_key=Secret("TEST_KEY", KEY), **options)
        try:
            return (await predictor.answer([request]))[0]
        finally:
            await predictor.aclose()

    return asyncio.run(go())


def failure_of(reply: Reply) -> CallFailed:
    with ChatServer(lambda asked: reply) as server, pytest.raises(CallFailed) as caught:
        ask(server, prompt(1))
    assert len(server.asked) == 1, "the SDK must not retry by itself"
    return caught.value


def test_a_system_turn_becomes_the_system_parameter():
    request = Request("a", [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}])
    with ChatServer(lambda asked: Reply("hi")) as server:
        answer = ask(server, request, price=PRICE)
    assert server.asked[0].body == {
        "model": "claude-test", "system": "be brief", "max_tokens": 16,
        "messages": [{"role": "user", "content": "hello"}]}
    assert (answer.output, answer.finish, answer.model) == ("hi", "stop", "claude-test")
    assert answer.cost_usd == pytest.approx((1 * 1.0 + 1 * 2.0) / 1e6)


def test_a_temperature_is_sent_under_the_version_that_takes_one():
    with ChatServer() as server:
        assert ask(server, prompt(1), temperature=0.5).output == "ok"
    assert server.asked[0].body["temperature"] == 0.5
    assert server.asked[0].headers["anthropic-version"] == "2023-06-01"


def test_a_model_that_takes_no_temperature_stops_with_what_to_do():
    reply = Reply(status=400, message="`temperature` is deprecated for this model.")
    with ChatServer(lambda asked: reply) as server, pytest.raises(CallFailed, match="to null") as caught:
        ask(server, prompt(1), temperature=0.0)
    assert caught.value.kind == "setup"


def test_a_long_answer_may_be_asked_for_without_streaming():
    with ChatServer() as server:
        assert ask(server, prompt(1), max_tokens=60_000).output == "ok"


@pytest.mark.parametrize(("reply", "finish"), [
    (Reply(finish="stop_sequence"), "stop"), (Reply(finish="max_tokens"), "length"),
    (Reply(finish="model_context_window_exceeded"), "length"), (Reply(finish="refusal"), "refusal"),
    (Reply(content=[]), "empty"), (Reply(" "), "empty"),
    (Reply(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]), "stop")])
def test_how_an_answer_ended_is_told(reply, finish):
    with ChatServer(lambda asked: reply) as server:
        assert ask(server, prompt(1)).finish == finish


def test_cached_tokens_are_part_of_the_prompt():
    usage = {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 5}
    with ChatServer(lambda asked: Reply(usage=usage)) as server:
        answer = ask(server, prompt(1), price=PRICE)
    assert (answer.tokens_in, answer.tokens_cached, answer.tokens_out) == (100, 90, 5)


@pytest.mark.parametrize("usage", [
    None, [], {"input_tokens": -1}, {"input_tokens": 1, "output_tokens": None}])
def test_usage_that_cannot_be_leaves_the_cost_unknown(usage):
    with ChatServer(lambda asked: Reply(usage=usage)) as server:
        assert ask(server, prompt(1), price=PRICE).cost_usd is None


@pytest.mark.parametrize(("reply", "kind"), [
    (Reply(status=401, code="authentication_error"), "auth"),
    (Reply(status=403, code="permission_error"), "auth"),
    (Reply(status=402, code="billing_error"), "quota"),
    (Reply(status=400, message="Your credit balance is too low to access the API"), "quota"),
    (Reply(status=404, code="not_found_error"), "setup"),
    (Reply(status=400, code="invalid_request_error"), "rejected"),
    (Reply(status=413, code="request_too_large"), "rejected"),
    (Reply(status=429, code="rate_limit_error"), "rate_limited"),
    (Reply(status=529, code="overloaded_error"), "transient"),
    (Reply(status=500, code="api_error"), "transient"),
    (Reply(fault="drop_after"), "transient"),
    (Reply(fault="html"), "bad_response"),
    (Reply(finish="pause_turn"), "bad_response"),
    (Reply(body={"content": None, "stop_reason": "end_turn"}), "bad_response"),
    (Reply(body={"content": [], "stop_reason": ["odd"]}), "bad_response")])
def test_every_failure_is_classified_after_one_request(reply, kind):
    assert failure_of(reply).kind == kind


def test_the_environment_cannot_redirect_the_data(monkeypatch):
    with ChatServer() as elsewhere, ChatServer() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", elsewhere.anthropic_url)
        ask(server, prompt(1))
    assert not elsewhere.asked and len(server.asked) == 1
