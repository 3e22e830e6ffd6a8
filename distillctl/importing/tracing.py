"""Exports of tracing tools and of a gateway: Langfuse, LangSmith, LiteLLM."""

from __future__ import annotations

from distillctl.importing.calls import (
    Call,
    NotUsable,
    amount,
    answer_of,
    count,
    dollars,
    first,
    messages_of,
    name,
    seconds,
)
from distillctl.types import JSON


def langfuse(row: dict[str, JSON]) -> Call:
    """An observation of the type GENERATION, from the API (camelCase) or the export (snake_case)."""
    kind = str(row.get("type") or "GENERATION")
    if kind.upper() != "GENERATION":
        raise NotUsable(f"is a {kind.lower()[:40]}, not a generation")
    if str(row.get("level")).upper() == "ERROR":
        raise NotUsable("is a call that failed")
    output, finish = answer_of(row.get("output"))
    return Call(
        messages_of(row.get("input")), output, finish,
        name(row, ["provided_model_name"], ["providedModelName"], ["model"]),
        count(row, ["usage_details", "input"], ["usageDetails", "input"], ["usage", "input"],
              ["promptTokens"]),
        count(row, ["usage_details", "output"], ["usageDetails", "output"], ["usage", "output"],
              ["completionTokens"]),
        seconds(row, ("start_time", "startTime"), ("end_time", "endTime")),
        dollars(row, ["cost_details", "total"], ["costDetails", "total"], ["total_cost"], ["totalCost"],
                ["calculatedTotalCost"]))


def langsmith(row: dict[str, JSON]) -> Call:
    """A run of the type llm: of the OpenAI wrapper, or of LangChain (serialised messages, generations)."""
    kind = str(row.get("run_type") or "llm")
    if kind != "llm":
        raise NotUsable(f"is a {kind[:40]} run, not an llm run")
    if row.get("error"):
        raise NotUsable("is a call that failed")
    output, finish = answer_of(row.get("outputs"))
    prompt = first(row, ["inputs", "messages"], ["inputs", "prompts", 0], ["inputs", "prompt"],
                   ["inputs", "input"])
    return Call(
        messages_of(prompt), output, finish,
        name(row, ["outputs", "model"], ["extra", "metadata", "ls_model_name"],
             ["extra", "invocation_params", "model"], ["extra", "invocation_params", "model_name"]),
        count(row, ["prompt_tokens"], ["outputs", "usage_metadata", "input_tokens"],
              ["outputs", "usage", "prompt_tokens"]),
        count(row, ["completion_tokens"], ["outputs", "usage_metadata", "output_tokens"],
              ["outputs", "usage", "completion_tokens"]),
        seconds(row, ("start_time",), ("end_time",)), dollars(row, ["total_cost"]))


def litellm(row: dict[str, JSON]) -> Call:
    """A standard logging payload, or a row of the spend logs with prompts stored."""
    if str(row.get("status") or "success") != "success":
        raise NotUsable("is a call that failed")
    prompt = first(row, ["messages"], ["proxy_server_request", "messages"],
                   ["proxy_server_request", "body", "messages"])
    if prompt is None or not row.get("response"):
        raise NotUsable("holds no prompt and answer: LiteLLM's spend logs have them only with "
                        "`store_prompts_in_spend_logs: true`")
    output, finish = answer_of(row["response"])
    cached = str(row.get("cache_hit")).lower() == "true"  # its time is the cache's, its price nothing
    return Call(
        messages_of(prompt), output, finish, name(row, ["response", "model"], ["model"]),
        count(row, ["prompt_tokens"]), count(row, ["completion_tokens"]),
        None if cached else seconds(row, ("startTime",), ("endTime",)) or amount(row, ["response_time"]),
        None if cached else dollars(row, ["response_cost"], ["spend"]))
