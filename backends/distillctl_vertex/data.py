"""Training rows as Vertex AI reads them, and its line numbers as places in our data.

Gemini: https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/tuning/supervised-tuning/
prepare-data; open models take chat messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from distillctl.types import JSON, Message
from distillctl.uploads import Row, Sources

_LINE = re.compile(r"\b((?:lines?|rows?|examples?|index):? #?(\d+))\b", re.IGNORECASE)


def line_of(row: Row, gemini: bool) -> str:
    """The row as JSON, in Gemini's form or in that of open models."""
    if not gemini:
        return row.line
    system, contents = conversation(row.messages)
    value: JSON = {"contents": contents}
    if system is not None:
        value = {"systemInstruction": {"role": "system", "parts": [{"text": system}]}, **value}
    return json.dumps(value, ensure_ascii=False) + "\n"


def conversation(messages: Sequence[Message]) -> tuple[str | None, list[dict[str, JSON]]]:
    """Chat messages as Gemini's system instruction (None: there is none) and contents."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    contents: list[dict[str, JSON]] = [
        {"role": "model" if message["role"] == "assistant" else "user",
         "parts": [{"text": message["content"]}]}
        for message in messages if message["role"] != "system"]
    return "\n\n".join(system) if system else None, contents


def sources(workspace: Path) -> Sources:
    """Where each line of an upload came from."""
    return Sources(workspace, _LINE)
