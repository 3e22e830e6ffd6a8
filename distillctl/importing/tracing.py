"""Exports of tracing tools and of a gateway: Langfuse, LangSmith, LiteLLM."""

from __future__ import annotations

from distillctl.importing.calls import (
    Call,
    NotUsable,
    answer_of,
    count,
    dollars,
    first,
    messages_of,
    name,
    seconds,
    text_of,
    tokens,
)
from distillctl.types import JSON


def langfuse(row: dict[str, JSON]) -> Call:
    """An observation of the type GENERATION: a row of a blob storage export (snake_case; langfuse.com/docs/
    api-and-data-platform/features/blob-storage-export-fields), of the UI's export or of the API (both
    camelCase)."""
    kind = str(row.get("type") or "GENERATION")
    if kind.upper() != "GENERATION":
        raise NotUsable(f"is a {kind.lower()[:40]}, not a generation")
    if str(row.get("level")).upper() == "ERROR":
        raise NotUsable("is a call that failed")
    if first(row, ["tool_calls"], ["toolCalls"]):
        raise NotUsable("was answered by a tool call")
    output, finish = answer_of(row.get("output"))
    usage = (["usage_details"], ["usageDetails"], ["usage"])
    return Call(
        messages_of(row.get("input")), output, finish,
        name(row, ["provided_model_name"], ["providedModelName"], ["model"]),
        tokens(row, *usage, of="input") or count(row, ["inputUsage"], ["promptTokens"]),
        tokens(row, *usage, of="output") or count(row, ["outputUsage"], ["completionTokens"]),
        seconds(row, ("start_time", "startTime"), ("end_time", "endTime")),
        dollars(row, ["total_cost"], ["totalCost"], ["calculatedTotalCost"], ["cost_details", "total"],
                ["costDetails", "total"]))


def langsmith(row: dict[str, JSON]) -> Call:
    """A run of the type llm (docs.langchain.com/langsmith/run-data-format): of the OpenAI wrapper or in its
    or Anthropic's format, or of LangChain (serialised messages, generations)."""
    kind = str(row.get("run_type") or "llm").lower()  # the second version of the API writes LLM
    if kind != "llm":
        raise NotUsable(f"is a {kind[:40]} run, not an llm run")
    if row.get("error") or str(row.get("status") or "success").lower() != "success":
        raise NotUsable("is a call that failed, or is not finished")
    output, finish = answer_of(row.get("outputs"))
    prompt = first(row, ["inputs", "messages"], ["inputs", "prompts", 0], ["inputs", "prompt"],
                   ["inputs", "input"])
    asked = messages_of(prompt)
    system = first(row, ["inputs", "system"])  # Anthropic's place for it
    if system is not None:
        asked = [{"role": "system", "content": text_of(system)}, *asked]
    usages = (["outputs", "usage_metadata"], ["outputs", "usage"], ["extra", "metadata", "usage_metadata"],
              ["outputs", "generations", 0, 0, "message", "kwargs", "usage_metadata"],
              ["outputs", "llm_output", "token_usage"])
    return Call(
        asked, output, finish,
        name(row, ["outputs", "model"], ["outputs", "llm_output", "model_name"],
             ["extra", "metadata", "ls_model_name"], ["extra", "invocation_params", "model"],
             ["extra", "invocation_params", "model_name"]),
        count(row, ["prompt_tokens"], *([*usage, "input_tokens"] for usage in usages),
              *([*usage, "prompt_tokens"] for usage in usages)),
        count(row, ["completion_tokens"], *([*usage, "output_tokens"] for usage in usages),
              *([*usage, "completion_tokens"] for usage in usages)),
        seconds(row, ("start_time",), ("end_time",)), dollars(row, ["total_cost"]))


def litellm(row: dict[str, JSON]) -> Call:
    """A standard logging payload (docs.litellm.ai/docs/proxy/logging_spec), as its S3, GCS and other loggers
    write it, or a row of the table LiteLLM_SpendLogs with prompts stored."""
    if str(row.get("status") or "success") != "success":
        raise NotUsable("is a call that failed")
    kind = str(row.get("call_type") or "completion")
    if "completion" not in kind:
        raise NotUsable(f"is a call of the type {kind[:40]}, not a completion")
    prompt = first(row, ["messages"], ["proxy_server_request", "messages"],
                   ["proxy_server_request", "body", "messages"])
    if prompt is None or first(row, ["response"]) is None:
        raise NotUsable("holds no prompt and answer: LiteLLM's spend logs have them only with "
                        "`store_prompts_in_spend_logs: true`")
    messages, (output, finish) = messages_of(prompt), answer_of(row["response"])
    if any("(litellm_truncated " in text for text in (output, *(one["content"] for one in messages))):
        raise NotUsable("was cut by LiteLLM, which stores 2,048 characters of a text unless "
                        "MAX_STRING_LENGTH_PROMPT_IN_DB is larger")
    if any("redacted-by-litellm" in text for text in (output, *(one["content"] for one in messages))):
        raise NotUsable("was redacted by LiteLLM, and holds no text")
    cached = str(row.get("cache_hit")).lower() == "true"  # its time is the cache's, its price nothing
    return Call(
        messages, output, finish, name(row, ["response", "model"], ["model"]),
        count(row, ["prompt_tokens"]), count(row, ["completion_tokens"]),
        None if cached else seconds(row, ("startTime",), ("endTime",)),
        None if cached else dollars(row, ["response_cost"], ["spend"]))
