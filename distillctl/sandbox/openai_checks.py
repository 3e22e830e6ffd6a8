"""What OpenAI refuses in a request, with its words for it.

Limits: https://developers.openai.com/api/reference (fine-tuning jobs, chat completions).
"""

from __future__ import annotations

from collections.abc import Mapping

from distillctl.sandbox.wire import Call, Refused
from distillctl.types import JSON

CREATE_ARGUMENTS = {
    "model", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations", "method",
    "hyperparameters"}
CHAT_ARGUMENTS = {
    "model", "messages", "temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "seed", "stop",
    "response_format", "logprobs", "top_logprobs", "user", "stream", "store", "metadata"}
_HYPER = {"n_epochs": (int, 1, 50), "batch_size": (int, 1, 256),
          "learning_rate_multiplier": (float, 1e-9, 1e9)}


def bad(message: str, param: str | None, code: str | None = None) -> Refused:
    return Refused(400, message, param=param, code=code)


def only(asked: Mapping[str, JSON], known: set[str]) -> None:
    if unknown := sorted(set(asked) - known):
        raise bad(f"Unrecognized request argument supplied: {unknown[0]}", None)


def check_text(asked: Mapping[str, JSON], name: str, most: int) -> None:
    text = asked.get(name)
    if text is not None and (not isinstance(text, str) or not 1 <= len(text) <= most):
        raise bad(f"Invalid '{name}': expected a string with 1 to {most} characters.", name)


def check_metadata(metadata: JSON) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > 16:
        raise bad("Invalid 'metadata': expected an object with at most 16 properties.", "metadata")
    for key, text in metadata.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise bad(f"Invalid 'metadata.{key}': expected a string of at most 512 characters under a key "
                       "of at most 64.", "metadata")


def hyperparameters(asked: Mapping[str, JSON]) -> dict[str, JSON]:
    """n_epochs, batch_size and learning_rate_multiplier, "auto" where not given."""
    method = asked.get("method")
    given, where = asked.get("hyperparameters") or {}, "hyperparameters"
    if method is not None:
        if not isinstance(method, dict) or method.get("type") != "supervised":
            raise bad("Invalid value for 'method.type': only 'supervised' is available for this model.",
                       "method.type", "invalid_value")
        only_under("method", method, {"type", "supervised"})
        supervised = method.get("supervised") or {}
        where = "method.supervised.hyperparameters"
        only_under("method.supervised", supervised, {"hyperparameters"})
        given = supervised.get("hyperparameters") or {}
    only_under(where, given, set(_HYPER))
    found: dict[str, JSON] = {}
    for name, (kind, least, most) in _HYPER.items():
        value = given.get(name, "auto")
        right = value == "auto" or (isinstance(value, int | kind) and not isinstance(value, bool)
                                    and least <= value <= most)
        if not right:
            raise bad(f"Invalid '{where}.{name}': expected 'auto' or a number from {least} to {most}, got "
                       f"{value!r}.", f"{where}.{name}", "invalid_value")
        found[name] = value
    return found


def only_under(where: str, given: JSON, known: set[str]) -> None:
    if not isinstance(given, dict):
        raise bad(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    if unknown := sorted(set(given) - known):
        raise bad(f"Unknown parameter: '{where}.{unknown[0]}'.", f"{where}.{unknown[0]}",
                   "unknown_parameter")


def check_chat(asked: Mapping[str, JSON]) -> None:
    if not isinstance(asked.get("model"), str):
        raise bad("you must provide a model parameter", None)
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages",
                   "empty_array")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise bad(f"Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user' and "
                       "'developer'.", f"messages[{number}].role", "invalid_value")
        if not isinstance(message.get("content"), str):
            raise bad(f"Invalid value for 'content' of messages[{number}]: expected a string.",
                       f"messages[{number}].content", "invalid_type")
    if asked.get("stream"):
        raise bad("This rehearsal does not stream.", "stream", "unsupported_value")
    if "max_tokens" in asked and "max_completion_tokens" in asked:
        raise bad("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
                   "max_tokens", "invalid_parameter_combination")
    top = asked.get("top_logprobs")
    if top is not None and not asked.get("logprobs"):
        raise bad("Invalid 'top_logprobs': only with 'logprobs'.", "top_logprobs", "invalid_value")
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        raise bad(f"Invalid 'top_logprobs': expected a value from 0 to 20, got {top!r}.", "top_logprobs",
                   "integer_above_max_value")
    wanted = asked.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        described = wanted.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            raise bad("Missing required parameter: 'response_format.json_schema.name'.",
                       "response_format.json_schema.name", "missing_required_parameter")


def page(call: Call, rows: list[JSON], default: int, most: int) -> JSON:
    """One page of `rows`, from behind the id in `after`."""
    limit = call.number("limit", default, most)
    after = call.query.get("after")
    if after:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise bad(f"No such object: {after}", "after")
        rows = rows[len(ids) - ids[::-1].index(after):]
    page = rows[:limit]
    return {"object": "list", "data": page, "has_more": len(rows) > limit,
            "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
