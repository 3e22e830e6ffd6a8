"""Vertex AI's check of training rows: Gemini's contents, and the chat messages of open models.

Format: https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/tuning/supervised-tuning/
prepare-data. Rows that are too long are dropped in silence and only counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from distillctl.sandbox.openai_data import token_count
from distillctl.types import JSON


@dataclass
class Rows:
    """What came of a training file. kept: {"messages", "completion"} of the rows that are trained on;
    tokens: of those, once each; dropped: number and reason of each row left out; failure: the job's error."""

    kept: list[dict[str, JSON]] = field(default_factory=list)
    tokens: int = 0
    dropped: list[tuple[int, str]] = field(default_factory=list)
    failure: dict[str, JSON] | None = None


def examine(data: bytes, gemini: bool, most_tokens: int) -> Rows:
    """The rows of a file that a job trains on."""
    found = Rows()
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        row = _row(line, gemini)
        if isinstance(row, str):
            found.failure = {"code": 3, "message": f"Dataset validation failed. Row: {number}. {row}"}
            return found
        tokens = token_count(row)
        if tokens > most_tokens:
            found.dropped.append((number, f"The example has {tokens} tokens, the limit is {most_tokens}."))
        else:
            found.kept.append(row)
            found.tokens += tokens
    if not found.kept:
        found.failure = {"code": 3, "message": "Dataset validation failed. No valid examples found."}
    return found


def conversation(system: JSON, contents: JSON) -> list[dict[str, str]] | str:
    """Gemini's contents as chat messages, or what is wrong with them."""
    if not isinstance(contents, list) or not contents:
        return "Missing required `contents` field."
    messages = []
    if system is not None:
        text = _text(system)
        if text is None:
            return "`systemInstruction` must have text parts."
        messages.append({"role": "system", "content": text})
    for content in contents:
        role = content.get("role") if isinstance(content, dict) else None
        text = _text(content)
        if role not in ("user", "model"):
            return "Please use a valid role: user, model."
        if not text:
            return f"The {role} content must have a non-empty text part."
        messages.append({"role": "assistant" if role == "model" else "user", "content": text})
    return messages


def _row(line: bytes, gemini: bool) -> dict[str, JSON] | str:
    """One line as a row to train on, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        row = None
    if not isinstance(row, dict):
        return "Malformed JSON."
    messages = _of_gemini(row) if gemini else _of_chat(row)
    if isinstance(messages, str):
        return messages
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[-1:] != ["assistant"]:
        return f"The last turn must be from the {'model' if gemini else 'assistant'}."
    if roles[0] != "user" or any(roles[n] == roles[n + 1] for n in range(len(roles) - 1)):
        return "Turns must alternate, beginning with the user."
    return {"messages": messages[:-1], "completion": messages[-1]["content"]}


def _of_gemini(row: dict[str, JSON]) -> list[dict[str, str]] | str:
    if unknown := set(row) - {"systemInstruction", "contents", "tools", "generationConfig", "labels"}:
        return f"Unknown field `{sorted(unknown)[0]}`."
    return conversation(row.get("systemInstruction"), row.get("contents"))


def _of_chat(row: dict[str, JSON]) -> list[dict[str, str]] | str:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return "Missing required `messages` field."
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            return "Please use a valid role: system, user, assistant."
        if not isinstance(message.get("content"), str) or not message["content"]:
            return f"The {message['role']} message has no content."
        if message["role"] == "system" and index:
            return "The system message must come first."
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _text(content: JSON) -> str | None:
    """The text of a content's parts, None where it has others."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts or any(
            not isinstance(part, dict) or set(part) != {"text"} or not isinstance(part["text"], str)
            for part in parts):
        return None
    return "".join(part["text"] for part in parts)
