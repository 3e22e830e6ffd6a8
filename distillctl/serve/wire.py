"""OpenAI's chat completions on the wire (https://platform.openai.com/docs/api-reference/chat): what a
request may hold, and what is sent back.

What would change the answer and cannot be done is refused; what does not matter to a greedy answer
(temperature, seed, user, metadata) is taken and has no effect.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillctl.errors import DataError
from distillctl.task import Task
from distillctl.types import JSON, Answer, Message
from distillctl.using import Reading

MOST_ALTERNATIVES = 20  # of top_logprobs, as at OpenAI
MOST_MESSAGES = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UNSUPPORTED = ("tools", "functions", "tool_choice", "function_call", "stop", "logit_bias", "audio",
                "prediction", "web_search_options")
_NEUTRAL = {"tool_choice": ("none", "auto"), "function_call": ("none", "auto")}
_LEAST = -9999.0  # as at OpenAI: a probability of zero


class Refused(Exception):
    """A request that is not answered. param: the field at fault."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> JSON:
        kinds = {429: "requests", 403: "invalid_request_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered. alternatives: how many top_logprobs; None: no logprobs at all.
    usage: whether a stream ends with the token counts."""

    messages: list[Message]
    max_tokens: int | None
    alternatives: int | None
    stream: bool
    usage: bool


def parse_chat(raw: bytes, task: Task, names: tuple[str, ...]) -> ChatRequest:
    """Read a request's body. names: the models that are served here. Raises Refused."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.")
    model = _typed(body, "model", str)
    if model not in names:
        raise Refused(404, f"The model {str(model)[:100]!r} is not served here; {names[0]!r} is.",
                      "model_not_found", "model")
    for name in _UNSUPPORTED:
        if body.get(name) and body[name] not in _NEUTRAL.get(name, ()):
            raise Refused(400, f"`{name}` is not supported: the student does one task.",
                          "unsupported_parameter", name)
    if body.get("n") not in (None, 1):
        raise Refused(400, "There is one answer: `n` must be 1.", "unsupported_value", "n")
    for name, only in (("frequency_penalty", 0), ("presence_penalty", 0), ("modalities", ["text"])):
        if body.get(name) not in (None, only):
            raise Refused(400, f"`{name}` must be {json.dumps(only)}: answers are greedy text.",
                          "unsupported_value", name)
    _check_format(_typed(body, "response_format", dict), task)
    options = _typed(body, "stream_options", dict) or {}
    return ChatRequest(
        messages=_messages(body, task), max_tokens=_limit(body), alternatives=_alternatives(body, task),
        stream=bool(_typed(body, "stream", bool)), usage=options.get("include_usage") is True)


def _typed(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise Refused(400, f"`{name}` has the wrong type.", "invalid_type", name)
    return value


def _limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = _typed(body, name, int)
        if value is not None:
            if value < 1:
                raise Refused(400, f"`{name}` must be at least 1.", "integer_below_min_value", name)
            return value
    return None


def _alternatives(body: Mapping[str, Any], task: Task) -> int | None:
    wanted, top = _typed(body, "logprobs", bool), _typed(body, "top_logprobs", int)
    if not wanted:
        if top:
            raise Refused(400, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        return None
    if not task.labels:
        raise no_probabilities()
    if top is not None and not 0 <= top <= MOST_ALTERNATIVES:
        raise Refused(400, f"`top_logprobs` must be from 0 to {MOST_ALTERNATIVES}.", param="top_logprobs")
    return top or 0


def no_probabilities() -> Refused:
    """For a student that cannot say how likely its answer is."""
    return Refused(400, "This student states no probabilities: only scored label sets have `logprobs`.",
                   "unsupported_parameter", "logprobs")


def _check_format(wanted: Mapping[str, Any] | None, task: Task) -> None:
    kind = wanted.get("type") if wanted else None
    if kind in (None, "text"):
        return
    if kind not in ("json_object", "json_schema"):
        raise Refused(400, "`response_format.type` must be text, json_object or json_schema.",
                      param="response_format")
    if task.json_schema is None:
        raise Refused(400, f"The student answers a {task.kind} task: its answers are not JSON.",
                      "unsupported_value", "response_format")
    given = wanted.get("json_schema")
    if kind == "json_schema" and not (isinstance(given, dict) and given.get("schema") == task.json_schema):
        raise Refused(400, "The schema is not the one that the student was trained for.", "unsupported_value",
                      "response_format")


def _messages(body: Mapping[str, Any], task: Task) -> list[Message]:
    given = _typed(body, "messages", list) or []
    raw = _typed(body, "input", dict)
    if raw is not None:
        if given:
            raise Refused(400, "Give either `messages`, or `input` for the task's own template to render.",
                          param="input")
        fields = raw.get("fields")
        if not isinstance(fields, dict) or len(raw) > 1:
            raise Refused(400, '`input` must be {"fields": {...}}.', param="input")
        try:
            rendered = task.render(fields)
        except DataError as error:
            raise Refused(400, str(error.problems[0].what), param="input.fields") from None
        for message in rendered:
            _check_text(message["content"], "input.fields")
        return rendered
    if not given:
        raise Refused(400, "`messages` is empty, and there is no `input`.", param="messages")
    if len(given) > MOST_MESSAGES:
        raise Refused(400, f"There are more than {MOST_MESSAGES} messages.", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(given)]


def _message(given: JSON, where: str) -> Message:
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise Refused(400, f"`{where}.role` must be system, developer, user or assistant.", param=where)
    content = given.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                   for part in content):
            raise Refused(400, f"`{where}.content` may hold text alone.", param=where)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refused(400, f"`{where}.content` must be text.", param=where)
    _check_text(content, f"{where}.content")
    return {"role": _ROLES[role], "content": content}


def _check_text(text: str, where: str) -> None:
    """No tokenizer takes half a surrogate pair, which JSON can hold."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise Refused(400, f"`{where}` holds half a surrogate pair, no character.", param=where)


# --- replies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """One answer on its way out. id: "chatcmpl-...". fingerprint: tells students apart."""

    id: str
    model: str
    fingerprint: str
    answer: Answer
    reading: Reading
    asked: ChatRequest

    @property
    def finish(self) -> str:
        return {"length": "length", "refusal": "content_filter"}.get(self.answer.finish, "stop")

    def body(self) -> JSON:
        message = {"role": "assistant", "content": self.answer.output or "", "refusal": None}
        return {**self._head("chat.completion"), "usage": self._usage(), "choices": [
            {"index": 0, "message": message, "logprobs": self._logprobs(), "finish_reason": self.finish}]}

    def events(self) -> list[str]:
        """The same as server-sent events: the answer is whole before the first is sent."""
        head = self._head("chat.completion.chunk")
        if self.asked.usage:
            head["usage"] = None

        def chunk(delta: JSON, finish: str | None = None, logprobs: JSON = None) -> JSON:
            return {**head, "choices": [
                {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

        chunks = [chunk({"role": "assistant", "content": ""}),
                  chunk({"content": self.answer.output or ""}, logprobs=self._logprobs()),
                  chunk({}, self.finish)]
        if self.asked.usage:
            chunks.append({**head, "choices": [], "usage": self._usage()})
        return [*(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in chunks), "data: [DONE]\n\n"]

    def _head(self, kind: str) -> dict[str, JSON]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model,
                "system_fingerprint": self.fingerprint}

    def _usage(self) -> JSON:
        read, written = self.answer.tokens_in, self.answer.tokens_out
        if read is None or written is None:
            return None  # a student without tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _logprobs(self) -> JSON:
        """The label as one token, with the labels as its alternatives, at the run's temperature."""
        if self.asked.alternatives is None or self.reading.probabilities is None:
            return None
        stated = [_token(label, share) for label, share in self.reading.probabilities.items()]
        said = next((one for one in stated if one["token"] == self.answer.output), stated[0])
        return {"content": [{**said, "top_logprobs": stated[:self.asked.alternatives]}], "refusal": None}


def _token(label: str, share: float) -> dict[str, JSON]:
    return {"token": label, "logprob": math.log(share) if share > 0 else _LEAST,
            "bytes": list(label.encode())}
