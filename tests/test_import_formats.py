"""One row of each log format, read: prompt, answer, figures; and what cannot be used."""

from __future__ import annotations

import json

import pytest

from distillctl.importing import openai, tracing
from distillctl.importing.calls import NotUsable
from distillctl.importing.table import columns

ASKED = [{"role": "system", "content": "Route."}, {"role": "user", "content": "Where is main()?"}]
REPLY = {"role": "assistant", "content": "code"}
CHOICES = [{"index": 0, "finish_reason": "stop", "message": REPLY}]


def test_a_fine_tuning_row_ends_with_the_answer() -> None:
    call = openai.chat({"messages": [*ASKED, REPLY]})
    assert (call.messages, call.output) == (ASKED, "code")


def test_a_stored_completion_carries_its_prompt_and_usage() -> None:
    call = openai.stored({"object": "chat.completion", "model": "big", "choices": CHOICES, "messages": ASKED,
                          "usage": {"prompt_tokens": 12, "completion_tokens": 1}})
    assert (call.messages, call.output, call.model, call.tokens_in, call.tokens_out) == (
        ASKED, "code", "big", 12, 1)


def test_a_stored_completion_without_its_prompt_is_not_usable() -> None:
    with pytest.raises(NotUsable, match="no messages"):
        openai.stored({"object": "chat.completion", "choices": CHOICES})


@pytest.mark.parametrize("row", [
    {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:00:01.500Z", "model": "big",
     "usageDetails": {"input": 12, "output": 1}, "costDetails": {"total": 0.002}},
    {"start_time": "2026-01-01 00:00:00.000000", "end_time": "2026-01-01 00:00:01.500000",
     "provided_model_name": "big", "usage_details": json.dumps({"input": 12, "output": 1}),
     "cost_details": json.dumps({"total": 0.002})},
], ids=["api", "export"])
def test_a_langfuse_generation(row: dict) -> None:
    call = tracing.langfuse({"type": "GENERATION", "input": json.dumps(ASKED), "output": REPLY, **row})
    assert (call.messages, call.output, call.model) == (ASKED, "code", "big")
    assert (call.tokens_in, call.tokens_out, call.latency_s, call.cost_usd) == (12, 1, 1.5, 0.002)


def test_a_langfuse_span_is_no_call() -> None:
    with pytest.raises(NotUsable, match="a span"):
        tracing.langfuse({"type": "SPAN", "input": ASKED, "output": "code"})


def test_a_langsmith_run_of_the_openai_wrapper() -> None:
    call = tracing.langsmith({
        "run_type": "llm", "inputs": {"messages": ASKED}, "outputs": {"choices": CHOICES, "model": "big"},
        "prompt_tokens": 12, "completion_tokens": 1, "total_cost": "0.002", "error": None,
        "start_time": "2026-01-01T00:00:00", "end_time": "2026-01-01T00:00:02"})
    assert (call.messages, call.output, call.model) == (ASKED, "code", "big")
    assert (call.tokens_in, call.tokens_out, call.latency_s, call.cost_usd) == (12, 1, 2.0, 0.002)


def serialised(kind: str, content: str) -> dict:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind],
            "kwargs": {"content": content}}


def test_a_langsmith_run_of_langchain() -> None:
    call = tracing.langsmith({
        "run_type": "llm", "extra": {"metadata": {"ls_model_name": "big"}},
        "inputs": {"messages": [[serialised("SystemMessage", "Route."),
                                 serialised("HumanMessage", "Where is main()?")]]},
        "outputs": {"generations": [[{"text": "code", "message": serialised("AIMessage", "code"),
                                      "generation_info": {"finish_reason": "length"}}]]}})
    assert (call.messages, call.output, call.finish, call.model) == (ASKED, "code", "length", "big")


@pytest.mark.parametrize("row", [
    {"messages": ASKED, "response": {"model": "big", "choices": CHOICES}, "response_cost": 0.002,
     "startTime": 100.0, "endTime": 101.5},
    {"proxy_server_request": json.dumps({"messages": ASKED}), "spend": 0.002,
     "response": json.dumps({"model": "big", "choices": CHOICES}),
     "startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:00:01.5Z"},
], ids=["payload", "spend log"])
def test_a_litellm_row(row: dict) -> None:
    call = tracing.litellm({"status": "success", "prompt_tokens": 12, "completion_tokens": 1, **row})
    assert (call.messages, call.output, call.model) == (ASKED, "code", "big")
    assert (call.tokens_in, call.tokens_out, call.latency_s, call.cost_usd) == (12, 1, 1.5, 0.002)


def test_a_langsmith_run_in_anthropics_format_keeps_its_system_text() -> None:
    call = tracing.langsmith({
        "run_type": "llm", "inputs": {"system": "Route.", "messages": [ASKED[1]], "model": "claude"},
        "outputs": {"role": "assistant", "content": [{"type": "text", "text": "code"}], "model": "claude-1",
                    "stop_reason": "max_tokens", "usage": {"input_tokens": 12, "output_tokens": 1}},
        "start_time": 1_780_000_000_000, "end_time": 1_780_000_001_500})
    assert (call.messages, call.output, call.finish, call.model) == (ASKED, "code", "length", "claude-1")
    assert (call.tokens_in, call.tokens_out, call.latency_s) == (12, 1, 1.5)


@pytest.mark.parametrize("outputs", [
    {"messages": [{"role": "assistant", "content": "code"}]},
    {"message": {"type": "ai", "data": {"content": "code"}}},
    {"output": {"role": "assistant", "content": "code"}}])
def test_answers_in_langsmiths_other_shapes(outputs: dict) -> None:
    assert tracing.langsmith({"inputs": {"messages": [
        {"type": "human", "data": {"content": "Where?"}}]}, "outputs": outputs}).output == "code"


@pytest.mark.parametrize(("row", "reason"), [
    ({"messages": [{"role": "user", "content": "redacted-by-litellm"}], "response": "code"}, "redacted"),
    ({"messages": "{}", "proxy_server_request": "{}", "response": "{}"}, "store_prompts_in_spend_logs"),
    ({"messages": ASKED, "response": {"object": "response", "output": []}}, "Responses API")])
def test_litellm_rows_without_their_texts_say_why(row: dict, reason: str) -> None:
    with pytest.raises(NotUsable, match=reason):
        tracing.litellm(row)


def test_what_a_cache_answered_has_no_latency_and_no_cost() -> None:
    call = tracing.litellm({"messages": ASKED, "response": "code", "cache_hit": "True", "spend": 0.1,
                            "startTime": 100.0, "endTime": 100.01})
    assert (call.latency_s, call.cost_usd) == (None, None)


def test_figures_of_zero_are_unknown() -> None:
    call = tracing.litellm({"messages": ASKED, "response": "code", "prompt_tokens": 0, "spend": 0.0,
                            "startTime": 100.0, "endTime": 100.0})
    assert (call.tokens_in, call.latency_s, call.cost_usd) == (None, None, None)


def test_a_table_has_a_prompt_and_an_answer() -> None:
    call = columns("q", "a")({"q": "Where?", "a": "code", "system": "Route.", "cost_usd": "0.5", "model": ""})
    assert call.messages == [{"role": "system", "content": "Route."}, {"role": "user", "content": "Where?"}]
    assert (call.output, call.cost_usd, call.model) == ("code", 0.5, None)


def test_texts_that_are_json_stay_texts() -> None:
    call = tracing.langfuse({"input": [{"role": "user", "content": '["a", "b"]'}], "output": '{"file": "x"}'})
    assert (call.messages[0]["content"], call.output) == ('["a", "b"]', '{"file": "x"}')


@pytest.mark.parametrize(("row", "reason"), [
    ({"messages": ASKED}, "does not end"),
    ({"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "without text"),
    ({"messages": [{"role": "tool", "content": "x"}, REPLY]}, "role 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, REPLY]}, "something else than text"),
    ({"messages": 3}, "no prompt"), ({}, "no prompt"),
])
def test_what_cannot_be_an_example_says_why(row: dict, reason: str) -> None:
    with pytest.raises(NotUsable, match=reason):
        openai.chat(row)


@pytest.mark.parametrize("outputs", [
    {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}}]},
    {"role": "assistant", "content": ""}, None, {}])
def test_an_answer_that_is_none_is_not_usable(outputs: object) -> None:
    with pytest.raises(NotUsable):
        tracing.langsmith({"run_type": "llm", "inputs": {"messages": ASKED}, "outputs": outputs})
