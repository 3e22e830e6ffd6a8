"""Exports of logging tools in the shapes that their documentation gives, made up row by row.

Each function gives the file's name and content for the same `CALLS`: a system text, a question, an answer.
"""

from __future__ import annotations

import csv
import io
import json

SYSTEM = "Route the question."
PLACES = {"code": ("function", "class", "module", "test"), "docs": ("guide", "manual", "page", "README"),
          "skip": ("weather", "football", "recipe", "song")}
WORDS = ("amber", "birch", "cedar", "dune", "elm", "fern", "grove", "heath", "iris", "juniper", "kelp")
CALLS = [(f"Question: where is the {place} about {word} {word[::-1]}?\n\nMode:", label)
         for word in WORDS for label, places in PLACES.items() for place in places]


def _messages(question: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def _completion(number: int, answer: str) -> dict:
    return {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_780_000_000 + number,
            "model": "gpt-big-2026", "system_fingerprint": "fp_1", "service_tier": "default",
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": {
                "role": "assistant", "content": answer, "tool_calls": None, "function_call": None}}],
            "usage": {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32}}


def _jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def openai_chat() -> tuple[str, str]:
    """Fine-tuning rows."""
    return "chat.jsonl", _jsonl([
        {"messages": [*_messages(question), {"role": "assistant", "content": answer, "weight": 1}],
         "parallel_tool_calls": True} for question, answer in CALLS])


def openai_stored() -> tuple[str, str]:
    """The API's list of stored completions, each with what its list of messages gives."""
    rows = [{**_completion(number, answer), "request_id": f"req_{number}", "tool_choice": None, "seed": 7,
             "top_p": 1.0, "temperature": 0.0, "input_user": None, "tools": None, "metadata": {},
             "response_format": None, "messages": [
                 {"id": f"chatcmpl-{number}-{i}", "name": None, "content_parts": None, **message}
                 for i, message in enumerate(_messages(question))]}
            for number, (question, answer) in enumerate(CALLS)]
    return "stored.json", json.dumps({"object": "list", "data": rows, "first_id": "chatcmpl-0",
                                      "last_id": "chatcmpl-9", "has_more": False}, indent=2)


def langfuse() -> tuple[str, str]:
    """Enriched observations of a blob storage export, spans among them."""
    def row(number: int, kind: str, given: str, said: str) -> dict:
        generation = kind == "GENERATION"
        return {"id": f"obs-{number}-{kind}", "trace_id": f"trace-{number}", "project_id": "p",
                "environment": "default", "type": kind, "parent_observation_id": "",
                "start_time": "2026-05-29 13:46:19.000000", "end_time": "2026-05-29 13:46:19.750000",
                "name": "route", "metadata": {}, "level": "DEFAULT", "status_message": "", "version": "",
                "input": given, "output": said, "provided_model_name": "gpt-big-2026" if generation else "",
                "model_parameters": '{"temperature":0}' if generation else "",
                "usage_details": {"input": 11, "input_cached_tokens": 20, "output": 1, "total": 32}
                if generation else {}, "cost_details": {"input": 0.0003, "output": 0.0001}, "tool_calls": [],
                "completion_start_time": None, "total_cost": 0.0004, "latency": 0.75, "tags": []}
    rows = [one for number, (question, answer) in enumerate(CALLS) for one in (
        row(number, "SPAN", json.dumps({"q": question}), ""),
        row(number, "GENERATION", json.dumps(_messages(question)),
            json.dumps({"role": "assistant", "content": answer})))]
    return "observations.jsonl", _jsonl(rows)


def langsmith() -> tuple[str, str]:
    """Runs as the API lists them: LangChain's chat models under their chains."""
    def message(kind: str, content: str) -> dict:
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind],
                "kwargs": {"content": content, "type": kind.removesuffix("Message").lower()}}

    def row(number: int, question: str, answer: str) -> dict:
        said = message("AIMessage", answer)
        said["kwargs"]["usage_metadata"] = {"input_tokens": 31, "output_tokens": 1, "total_tokens": 32}
        return {"id": f"run-{number}", "name": "ChatOpenAI", "run_type": "LLM", "status": "success",
                "start_time": "2026-05-29T13:46:19.000000", "end_time": "2026-05-29T13:46:19.750000",
                "error": None, "parent_run_id": f"chain-{number}", "trace_id": f"chain-{number}", "tags": [],
                "inputs": {"messages": [[message("SystemMessage", SYSTEM),
                                         message("HumanMessage", question)]]},
                "outputs": {"generations": [[{"text": answer, "type": "ChatGeneration", "message": said,
                                              "generation_info": {"finish_reason": "stop"}}]],
                            "llm_output": {"token_usage": {"prompt_tokens": 31, "completion_tokens": 1},
                                           "model_name": "gpt-big-2026"}, "run": None, "type": "LLMResult"},
                "extra": {"invocation_params": {"model": "gpt-big", "_type": "openai-chat"},
                          "metadata": {"ls_provider": "openai", "ls_model_name": "gpt-big"}},
                "total_cost": "0.0004"}
    rows = [one for number, (question, answer) in enumerate(CALLS) for one in (
        {"id": f"chain-{number}", "run_type": "CHAIN", "inputs": {"q": question}, "outputs": {"a": answer}},
        row(number, question, answer))]
    return "runs.json", json.dumps({"items": rows, "next_cursor": None})


def litellm() -> tuple[str, str]:
    """Rows of LiteLLM_SpendLogs, read out of the database with prompts stored; the last one was cut."""
    def row(number: int, question: str, answer: str) -> dict:
        return {"request_id": f"chatcmpl-{number}", "call_type": "acompletion", "spend": 0.0004,
                "total_tokens": 32, "prompt_tokens": 31, "completion_tokens": 1, "status": "success",
                "startTime": "2026-05-29 13:46:19.000", "endTime": "2026-05-29 13:46:19.750",
                "completionStartTime": "2026-05-29 13:46:19.750", "model": "gpt-big", "cache_hit": "None",
                "model_group": "big", "messages": "{}", "metadata": "{}", "request_tags": "[]",
                "proxy_server_request": json.dumps({"model": "big", "messages": _messages(question)}),
                "response": json.dumps(_completion(number, answer))}
    rows = [row(number, *call) for number, call in enumerate(CALLS)]
    cut = row(len(rows), "Question: wh... (litellm_truncated 9000 chars) ...re?", "docs")
    return "spend.jsonl", _jsonl([*rows, cut, {**rows[0], "call_type": "aembedding"}])


def table() -> tuple[str, str]:
    """A CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["system", "prompt", "answer", "model", "latency_s"])
    writer.writeheader()
    writer.writerows({"system": SYSTEM, "prompt": question, "answer": answer, "model": "gpt-big-2026",
                      "latency_s": 0.75} for question, answer in CALLS)
    return "calls.csv", text.getvalue()


EXPORTS = {"openai-chat": openai_chat, "openai-stored": openai_stored, "langfuse": langfuse,
           "langsmith": langsmith, "litellm": litellm, "csv": table}
