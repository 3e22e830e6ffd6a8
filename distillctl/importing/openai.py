"""OpenAI's files: chat fine-tuning rows, and completions with the request that they answer."""

from __future__ import annotations

from distillctl.importing.calls import (
    Call,
    NotUsable,
    answer_of,
    at,
    count,
    first,
    last_turn,
    messages_of,
    name,
)
from distillctl.types import JSON


def chat(row: dict[str, JSON]) -> Call:
    """{"messages": [..., {"role": "assistant", "content": ...}]}: the last turn is the answer."""
    messages, output = last_turn(messages_of(row.get("messages")))
    return Call(messages, output)


def stored(row: dict[str, JSON]) -> Call:
    """A stored chat completion that carries its own prompt: beside `choices`, or under `request`; also the
    pair {"request": {...}, "response": {...}}.

    The API's list of stored completions has no prompts; they are what `chat.completions.messages.list(id)`
    gives for each.
    """
    prompt = first(row, ["messages"], ["input"], ["request", "messages"], ["request", "body", "messages"])
    if prompt is None:
        raise NotUsable("has no messages beside the completion: add to each completion, as `messages`, what "
                        "`client.chat.completions.messages.list(id)` gives")
    answer = first(row, ["response", "body"], ["response"], ["completion"]) or row
    output, finish = answer_of({"choices": first(answer, ["choices"])})
    prompt = at(prompt, "data") or prompt  # that call's own answer
    return Call(messages_of(prompt), output, finish, name(answer, ["model"]),
                count(answer, ["usage", "prompt_tokens"]), count(answer, ["usage", "completion_tokens"]))
