"""The predictor for OpenAI-compatible servers: the real SDK over real HTTP."""

from __future__ import annotations

import asyncio
import math

import pytest
from support.chat import KEY, PRICE, predictor_for, prompt

from distillctl.predictors.openai_chat import OpenAIPredictor, label_logprobs
from distillctl.secrets import Secret
from distillctl.testing.chat_server import ChatServer, Reply
from distillctl.types import Answer, CallFailed, Request


def ask(predictor, request: Request) -> Answer:
    async def go() -> Answer:
        try:
            return (await predictor.answer([request]))[0]
        finally:
            await predictor.aclose()

    return asyncio.run(go())


def reply_to(reply: Reply, **options) -> tuple[Answer, ChatServer]:
    with ChatServer(lambda asked: reply) as server:
        return ask(predictor_for(server, **options), prompt(1)), server


def failure_of(reply: Reply, **options) -> CallFailed:
    with ChatServer(lambda asked: reply) as server, pytest.raises(CallFailed) as caught:
        ask(predictor_for(server, **options), prompt(1))
    assert len(server.asked) == 1, "the SDK must not retry by itself"
    return caught.value


def test_an_answer_has_its_text_tokens_cost_latency_and_model():
    answer, _ = reply_to(Reply("docs"), price=PRICE)
    assert (answer.output, answer.finish, answer.model) == ("docs", "stop", "some-model")
    assert (answer.tokens_in, answer.tokens_cached, answer.tokens_out) == (2, 0, 1)
    assert answer.cost_usd == pytest.approx((2 * 1.0 + 1 * 2.0) / 1e6)
    assert answer.latency_s > 0


def test_what_is_asked_is_what_the_recipe_says():
    _, server = reply_to(Reply("docs"), temperature=0.3, seed=7, max_tokens=5)
    body = server.asked[0].body
    assert body == {"model": "some-model", "messages": [{"role": "user", "content": "question 1"}],
                    "temperature": 0.3, "seed": 7, "max_tokens": 5}
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_no_temperature_is_sent_where_the_recipe_leaves_it_to_the_provider():
    _, server = reply_to(Reply("docs"), temperature=None)
    assert "temperature" not in server.asked[0].body


def test_the_environment_cannot_redirect_the_data(monkeypatch):
    with ChatServer() as elsewhere:
        monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.base_url)
        reply_to(Reply("docs"))
    assert not elsewhere.asked


def test_openais_account_headers_go_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    _, server = reply_to(Reply("docs"))
    assert not [value for value in server.asked[0].headers.values() if "mine" in value]


@pytest.mark.parametrize(("reply", "finish"), [
    (Reply("a longer text that was", finish="length"), "length"),
    (Reply("no", refusal="I cannot help with that"), "refusal"),
    (Reply("", finish="content_filter"), "refusal"),
    (Reply(content=None), "empty"),
    (Reply("  \n "), "empty"),
    (Reply(content=None, finish="tool_calls"), "empty"),
    (Reply(finish="eos"), "stop"),
    (Reply(status=400, code="content_filter"), "refusal"),
])
def test_how_an_answer_ended_is_told(reply, finish):
    answer, _ = reply_to(reply)
    assert answer.finish == finish


def test_content_given_as_parts_is_joined():
    answer, _ = reply_to(Reply(content=[{"type": "text", "text": "do"}, {"type": "text", "text": "cs"}]))
    assert answer.output == "docs"


@pytest.mark.parametrize("usage", [
    None, {}, [], {"prompt_tokens": -3, "completion_tokens": -1}, {"prompt_tokens": 10**12},
    {"prompt_tokens": True, "completion_tokens": "7"}])
def test_usage_that_cannot_be_is_unknown(usage):
    answer, _ = reply_to(Reply("docs", usage=usage), price=PRICE)
    assert (answer.tokens_in, answer.tokens_out, answer.cost_usd) == (None, None, None)


def test_a_price_of_zero_is_known_without_usage():
    free = PRICE.__class__(PRICE.rate.__class__(0.0, 0.0), "own server")
    answer, _ = reply_to(Reply("docs", usage=None), price=free)
    assert answer.cost_usd == 0.0


def test_lone_surrogates_in_an_answer_become_replacement_characters():
    answer, _ = reply_to(Reply("a\ud800b"))
    assert answer.output == "a\ufffdb"


@pytest.mark.parametrize(("reply", "kind"), [
    (Reply(status=429), "rate_limited"),
    (Reply(status=429, code="insufficient_quota"), "quota"),
    (Reply(status=402), "quota"),
    (Reply(status=401), "auth"),
    (Reply(status=403), "auth"),
    (Reply(status=404), "setup"),
    (Reply(status=400, code="unsupported_value"), "setup"),
    (Reply(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"}), "setup"),
    (Reply(status=400), "rejected"),
    (Reply(status=422), "rejected"),
    (Reply(status=413), "rejected"),
    (Reply(status=408), "transient"),
    (Reply(status=500), "transient"),
    (Reply(status=503), "transient"),
    (Reply(fault="drop_before"), "transient"),
    (Reply(fault="truncate"), "transient"),
    (Reply(fault="html"), "bad_response"),
    (Reply(fault="no_body"), "bad_response"),
    (Reply(fault="not_json"), "bad_response"),
    (Reply(fault="gzip"), "bad_response"),
    (Reply(fault="huge"), "bad_response"),
    (Reply(body=[1, 2]), "bad_response"),
    (Reply(body={"choices": []}), "bad_response"),
    (Reply(body={"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}), "bad_response"),
    (Reply(body={"choices": [{"message": {"content": "x"}}]}), "bad_response"),
    (Reply(finish="abort"), "bad_response"),
    (Reply(body={"error": {"code": 429, "message": "upstream"}}), "rate_limited"),
    (Reply(body={"error": {"message": "upstream"}}), "transient"),
])
def test_every_failure_is_classified_after_one_request(reply, kind):
    assert failure_of(reply).kind == kind


@pytest.mark.parametrize(("reply", "maybe"), [
    (Reply(fault="drop_after"), True), (Reply(fault="html"), True), (Reply(fault="truncate"), True),
    (Reply(status=500), False), (Reply(status=429), False), (Reply(status=400), False)])
def test_a_reply_that_was_lost_may_have_been_billed(reply, maybe):
    assert failure_of(reply).maybe_billed is maybe


def test_a_server_that_is_not_there_is_transient_and_not_billed():
    with ChatServer() as server:
        pass
    with pytest.raises(CallFailed) as caught:
        ask(predictor_for(server), prompt(1))
    assert (caught.value.kind, caught.value.maybe_billed) == ("transient", False)


def test_a_server_that_stalls_ends_in_a_timeout():
    failure = failure_of(Reply(delay=30), timeout=0.2)
    assert (failure.kind, failure.maybe_billed) == ("transient", True)


def test_a_redirect_is_not_followed():
    with ChatServer() as elsewhere:
        failure_of(Reply(status=307, headers={"Location": elsewhere.base_url + "/chat/completions"}))
    assert not elsewhere.asked


@pytest.mark.parametrize(("value", "seconds"), [
    ("3", 3.0), ("0.25", 0.25), ("-1", None), ("soon", None), ("inf", None), ("nan", None),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), (None, None)])
def test_retry_after_is_read(value, seconds):
    headers = {"Retry-After": value} if value else {}
    assert failure_of(Reply(status=429, headers=headers)).retry_after == seconds


def test_a_key_that_the_server_echoes_is_not_in_the_message():
    with ChatServer(key="another") as server, pytest.raises(CallFailed) as caught:
        ask(predictor_for(server), prompt(1))
    assert caught.value.kind == "auth"
    assert KEY not in str(caught.value) and "TEST_KEY" in str(caught.value)


def test_a_key_with_a_stray_character_is_refused_before_it_is_sent():
    with ChatServer() as server, pytest.raises(CallFailed) as caught:
        ask(OpenAIPredictor("m", base_url=server.base_url, api_key=Secret("K", "sk-“quoted”-key")), prompt(1))
    assert caught.value.kind == "auth" and not server.asked


def test_a_server_that_wants_max_completion_tokens_gets_it_on_the_next_try():
    async def go(server: ChatServer) -> Answer:
        predictor = predictor_for(server)
        with pytest.raises(CallFailed) as caught:
            await predictor.answer([prompt(1)])
        assert caught.value.kind == "transient"
        answer, = await predictor.answer([prompt(1)])
        await predictor.aclose()
        return answer

    with ChatServer(completion_tokens_only=True) as server:
        assert asyncio.run(go(server)).output == "ok"
    assert server.asked[0].body["max_completion_tokens"] == 16


def test_a_json_schema_is_asked_for_where_it_is_given():
    _, server = reply_to(Reply("{}"), json_schema={"type": "object", "minProperties": 1})
    assert server.asked[0].body["response_format"]["json_schema"] == {
        "name": "answer", "schema": {"type": "object", "minProperties": 1}}


def test_label_probabilities_come_from_the_first_token():
    def top(*pairs):
        return {"content": [{"token": pairs[0][0], "logprob": 0.0, "top_logprobs": [
            {"token": token, "logprob": math.log(p)} for token, p in pairs]}]}

    answer, server = reply_to(Reply("docs", logprobs=top(("do", 0.6), (" code", 0.3), ("x", 0.01))),
                              labels=["code", "docs", "skip"])
    assert server.asked[0].body["top_logprobs"] == 20
    shares = {label: math.exp(value) for label, value in answer.label_logprobs.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["docs"] == pytest.approx(0.6 / 0.91)
    assert shares["skip"] == pytest.approx(0.01 / 0.91)


@pytest.mark.parametrize("logprobs", [
    None, {}, {"content": []}, {"content": [{"top_logprobs": []}]},
    {"content": [{"top_logprobs": [{"token": "c", "logprob": -0.1}]}]},
    {"content": [{"top_logprobs": [{"token": "zzz", "logprob": -0.1}]}]},
    {"content": [{"top_logprobs": [{"token": "co", "logprob": "NaN"}]}]}])
def test_label_probabilities_that_cannot_be_told_are_unknown(logprobs):
    assert label_logprobs(logprobs, ["code", "chat"]) is None


def test_the_identity_holds_what_determines_an_answer_and_no_key():
    with ChatServer() as server:
        one, two = predictor_for(server, temperature=0.0), predictor_for(server, temperature=1.0)
    assert one.identity != two.identity
    assert KEY not in str(one.identity)
