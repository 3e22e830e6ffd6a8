"""One logged call, and the readings that several log formats share.

A log is data that others wrote: what cannot be read is a `NotUsable` with the reason, never a guess. A
figure (tokens, seconds, dollars) that cannot be read is left out and so unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from distillctl.data.formats import Row, read_rows
from distillctl.errors import Problem
from distillctl.types import JSON, Message

_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
          "assistant": "assistant", "ai": "assistant"}
_CUT = {"length": "length", "max_tokens": "length", "content_filter": "refusal", "refusal": "refusal"}
_LISTS = ("data", "items", "runs", "observations")  # OpenAI, Langfuse; LangSmith; its SDK; a Langfuse trace
_NOTHING = (None, "", [], {})
_MILLISECONDS = 1e11  # Unix seconds of the year 5138


class NotUsable(Exception):
    """Why a row of a log cannot become an example."""


@dataclass(frozen=True)
class Call:
    """One call: what was asked (without the answer), what came back, and what is known about it."""

    messages: list[Message]
    output: str
    finish: str = "stop"
    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency_s: float | None = None
    cost_usd: float | None = None


def rows_of(path: Path) -> Iterator[Row]:
    """Rows of JSONL, CSV or Parquet by line, or of one JSON document by their number: an array, or an object
    that holds one, as APIs answer."""
    if path.suffix.lower() == ".json" and (document := _document(path)) is not None:
        for number, row in enumerate(document, 1):
            wrong = Problem("is not a JSON object", f"{path}:{number}")
            yield number, row if isinstance(row, dict) else wrong
    else:
        yield from read_rows(path)


def _document(path: Path) -> list[JSON] | None:
    """The rows of a file that is one JSON document; None where it is none, as JSON Lines are not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None  # whoever reads the rows says why
    if isinstance(found, list):
        return found
    held = (found.get(name) for name in _LISTS) if isinstance(found, dict) else ()
    return next((rows for rows in held if isinstance(rows, list)), [found])


def loosened(value: JSON) -> JSON:
    """JSON that stands in a text (a CSV cell, a column of a database), read; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def at(value: JSON, *path: str | int) -> JSON:
    """The value under nested keys and indexes, None where there is none."""
    for part in path:
        value = loosened(value)
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and -len(value) <= part < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def first(row: JSON, *paths: Sequence[str | int]) -> JSON:
    """The first of several places that holds something."""
    return next((found for path in paths if loosened(found := at(row, *path)) not in _NOTHING), None)


def messages_of(value: JSON) -> list[Message]:
    """A prompt as chat messages: a list of them, {"messages": [...]}, or one text. Raises NotUsable."""
    found = loosened(value)
    if isinstance(found, Mapping):
        found = loosened(first(found, ["messages"], ["input"], ["prompt"]))
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]  # a batch of one
    if isinstance(found, list) and found and all(isinstance(one, Mapping) for one in found):
        return [_message(one) for one in found]
    text = found if isinstance(found, str) else value  # a text may itself be JSON
    if isinstance(text, str) and text.strip():
        return [{"role": "user", "content": text}]
    raise NotUsable("holds no prompt")


def _message(value: JSON) -> Message:
    kind = at(value, "id", -1)  # a serialised object names its class last
    if isinstance(kind, str) and isinstance(at(value, "kwargs"), Mapping):
        role = kind.removesuffix("Chunk").removesuffix("Message").lower()
        content = at(value, "kwargs", "content")
    else:
        role = first(value, ["role"], ["type"])
        content = first(value, ["content"], ["data", "content"], ["content_parts"])
    if _ROLES.get(str(role)) is None:
        raise NotUsable(f"has a turn of the role {str(role)[:40]!r}, which a prompt cannot hold")
    return {"role": _ROLES[str(role)], "content": text_of(content)}


def text_of(content: JSON) -> str:
    """The text of a message's content: a text, or a list of text parts. Raises NotUsable."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [part if isinstance(part, str) else at(part, "text") for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
        raise NotUsable("holds something else than text (an image, a file, a tool's result)")
    raise NotUsable("has a turn without text (a tool call, or nothing)")


def answer_of(value: JSON) -> tuple[str, str]:
    """Output and finish of an answer: a text, a message, a completion with choices, or a batch of one
    generation. Raises NotUsable."""
    found = loosened(value)
    if isinstance(found, list) and found:
        found = found[0]
    if at(found, "object") == "response":
        raise NotUsable("is of the Responses API, whose items are not read; chat completions are")
    choice = first(found, ["choices", 0], ["generations", 0, 0], ["generations", 0], ["messages", -1])
    reason = first(choice or found, ["finish_reason"], ["generation_info", "finish_reason"], ["stop_reason"],
                   ["response_metadata", "finish_reason"])
    found = found if choice is None else choice
    for path in (["message", "kwargs"], ["message"], ["output"], ["kwargs"], ["data"]):
        if isinstance(at(found, *path), Mapping):
            found = at(found, *path)
    if first(found, ["tool_calls"], ["additional_kwargs", "tool_calls"]):
        raise NotUsable("was answered by a tool call")
    output = first(found, ["content"], ["text"], ["output"])
    if output is None and isinstance(value, str):
        output = value  # a text, which may itself be JSON
    elif output is None and isinstance(found, Mapping) and found and "role" not in found and not choice:
        output = json.dumps(found, ensure_ascii=False)  # an object as the answer
    if output is None or not text_of(output).strip():
        raise NotUsable("has no answer")
    return text_of(output), _CUT.get(str(reason), "stop")


def last_turn(messages: list[Message]) -> tuple[list[Message], str]:
    """A conversation that ends with the answer, parted before it. Raises NotUsable."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise NotUsable("does not end with the assistant's answer")
    return messages[:-1], messages[-1]["content"]


# --- figures --------------------------------------------------------------------------------------------


def count(row: JSON, *paths: Sequence[str | int]) -> int | None:
    """A number of tokens from the first place that has one above 0; some logs write 0 for unknown."""
    found = amount(row, *paths)
    return int(found) if found and found == int(found) else None


def amount(row: JSON, *paths: Sequence[str | int]) -> float | None:
    """A number of 0 or more, also where it stands as text."""
    found = first(row, *paths)
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        number = float(found)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def tokens(row: JSON, *paths: Sequence[str | int], of: str) -> int | None:
    """All tokens of one side from the first usage table that counts it: `of` is "input" or "output", and a
    key such as `input_cached_tokens` is a part of its own, not one that `input` holds."""
    for path in paths:
        table = at(row, *path)
        table = loosened(table) if table is not None else None
        if isinstance(table, Mapping):
            counted = [int(n) for key in table if of in str(key).lower()
                       and (n := amount(table, [key])) is not None]
            if sum(counted):
                return sum(counted)
    return None


def dollars(row: JSON, *paths: Sequence[str | int]) -> float | None:
    """A cost above 0: logs write 0 where a model has no price."""
    return amount(row, *paths) or None


def seconds(row: JSON, start: Sequence[str], end: Sequence[str]) -> float | None:
    """The time between two moments, ISO texts or Unix seconds or milliseconds; None unless it is above 0."""
    moments = [_moment(next((row[name] for name in names if row.get(name)), None)) for names in (start, end)]
    if None in moments:
        return None
    return passed if (passed := moments[1] - moments[0]) > 0 else None


def _moment(value: JSON) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1000 if value > _MILLISECONDS else float(value)
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def name(row: JSON, *paths: Sequence[str | int]) -> str | None:
    """A short text, such as a model's name."""
    found = first(row, *paths)
    return found[:300] if isinstance(found, str) else None
