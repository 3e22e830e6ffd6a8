"""Together's check of an uploaded file, after the upload and on the server.

The formats: https://docs.together.ai/docs/fine-tuning/data-preparation. Its words for what is wrong are not
documented: these name the line as its SDK's own check does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from distillctl.types import JSON

_FORMATS = {"CONVERSATION": {"messages"}, "INSTRUCTION": {"prompt", "completion"}, "GENERAL": {"text"},
            "PREFERENCE_OPENAI": {"input", "preferred_output", "non_preferred_output"}}
_EXTRA = {"CONVERSATION": {"tools"}}
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Examined:
    """A file as validation left it. rows: {"messages", "completion"}, what can be trained on; error: of the
    first bad line, None where all are good."""

    rows: list[dict[str, JSON]] = field(default_factory=list)
    format: str | None = None
    lines: int = 0
    error: str | None = None

    def report(self, file_id: str) -> JSON:
        """The `validation_report` of the file."""
        if self.error is not None:
            return {"valid": False, "error": self.error, "error_type": "INVALID_FORMAT", "file_id": file_id}
        return {"valid": True, "file_id": file_id, "dataset_format": self.format, "nlines": self.lines,
                "dataset_has_tools": False, "dataset_has_reasoning": False, "dataset_is_multimodal": False,
                "dataset_has_message_weights": False, "dataset_has_sample_weights": False,
                "dataset_has_parallel_tool_calls": False}


def examine(data: bytes) -> Examined:
    """Read a JSONL file as the service does; it stops at the first bad line."""
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return Examined(error="File is not UTF-8 encoded.")
    rows: list[dict[str, JSON]] = []
    found: str | None = None
    for number, line in enumerate(lines, 1):
        try:
            name, row = _line(line)
        except _Wrong as wrong:
            return Examined(error=f"Error parsing file on line {number}: {wrong}")
        if found not in (None, name):
            return Examined(error=f"Error parsing file on line {number}: all samples in the dataset must "
                                  f"have the same dataset format. Got {name} for this line and {found} for "
                                  "the first one.")
        found = name
        rows.append(row)
    return Examined(rows, found, len(lines))


class _Wrong(Exception):
    """What is wrong with a line."""


def _line(line: str) -> tuple[str, dict[str, JSON]]:
    """A line's format, and the row to train on."""
    try:
        row = json.loads(line)
    except ValueError:
        raise _Wrong("invalid JSON.") from None
    if not isinstance(row, dict):
        raise _Wrong("expected a JSON object.")
    fits = [name for name, keys in _FORMATS.items() if keys <= set(row)]
    if not fits:
        raise _Wrong(f"could not detect a format for the columns {sorted(row)}.")
    if len(fits) > 1:
        raise _Wrong(f"the columns fit multiple formats: {', '.join(fits)}.")
    (name,) = fits
    if unknown := sorted(set(row) - _FORMATS[name] - _EXTRA.get(name, set())):
        raise _Wrong(f"found extra column '{unknown[0]}' for the format {name}.")
    if name == "CONVERSATION":
        return name, _conversation(row["messages"])
    for key in _FORMATS[name]:
        if name != "PREFERENCE_OPENAI" and (not isinstance(row[key], str) or not row[key]):
            raise _Wrong(f"expected a non-empty string in column '{key}'.")
    if name == "INSTRUCTION":
        return name, {"messages": [{"role": "user", "content": row["prompt"]}],
                      "completion": row["completion"]}
    return name, {"messages": [], "completion": row.get("text", "")}


def _conversation(messages: JSON) -> dict[str, JSON]:
    if not isinstance(messages, list) or not messages:
        raise _Wrong("'messages' must be a non-empty list.")
    for message in messages:
        _message(message)
    roles = [message["role"] for message in messages]
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk or talk[0] != "user":
        raise _Wrong("the conversation must start with a system or user message.")
    for before, role in pairwise(talk):
        if role == before or role == "system":
            raise _Wrong(f"invalid role turns: '{role}' after '{before}'.")
    if talk[-1] != "assistant":
        raise _Wrong("the last message must be from the assistant.")
    return {"messages": [{"role": message["role"], "content": message["content"]}
                         for message in messages[:-1]],
            "completion": messages[-1]["content"]}


def _message(message: JSON) -> None:
    if not isinstance(message, Mapping) or "role" not in message:
        raise _Wrong("a message has no 'role'.")
    if message["role"] not in _ROLES:
        raise _Wrong(f"found invalid role '{message['role']}'. Possible roles: {', '.join(_ROLES)}.")
    if not isinstance(message.get("content"), str) or not message["content"]:
        raise _Wrong(f"a message from the {message['role']} has no content.")
    if unknown := sorted(set(message) - {"role", "content", "weight", "tool_calls", "name", "reasoning",
                                         "reasoning_content"}):
        raise _Wrong(f"a message has the unknown field '{unknown[0]}'.")
    if message.get("weight", 1) not in (0, 1):
        raise _Wrong("the weight of a message must be 0 or 1.")
