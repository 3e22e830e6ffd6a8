"""Training rows as Vertex AI reads them, and its line numbers as places in our data.

Gemini: https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/tuning/supervised-tuning/
prepare-data; open models take chat messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl.store.files import read_json, read_jsonl, safe_join, write_json
from distillctl.types import JSON, Message

_LINE = re.compile(r"\b((?:lines?|rows?|examples?|index):? #?(\d+))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of the upload: its messages, the last one the answer, and where its example came from
    ("file:line")."""

    messages: list[Message]
    source: str

    def line(self, gemini: bool) -> str:
        """The row as JSON, in Gemini's form or in that of open models."""
        value: JSON = {"messages": self.messages}
        if gemini:
            system, contents = conversation(self.messages)
            value = {"contents": contents}
            if system is not None:
                value = {"systemInstruction": {"role": "system", "parts": [{"text": system}]}, **value}
        return json.dumps(value, ensure_ascii=False) + "\n"


def upload_rows(train_file: Path) -> Iterator[Row]:
    """The rows of a job's training file as they are uploaded."""
    for row in read_jsonl(train_file):
        messages = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        yield Row(messages, str(row.get("source") or ""))


def conversation(messages: Sequence[Message]) -> tuple[str | None, list[dict[str, JSON]]]:
    """Chat messages as Gemini's system instruction (None: there is none) and contents."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    contents: list[dict[str, JSON]] = [
        {"role": "model" if message["role"] == "assistant" else "user",
         "parts": [{"text": message["content"]}]}
        for message in messages if message["role"] != "system"]
    return "\n\n".join(system) if system else None, contents


class Sources:
    """Where each line of an upload came from, kept in the workspace under the upload's name."""

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / "uploads"

    def keep(self, upload: str, sources: list[str]) -> None:
        write_json(self._path(upload), sources)

    def of(self, upload: str | None) -> list[str]:
        """The places of an upload's lines; empty where this workspace did not make it."""
        path = self._path(upload) if upload else None
        return read_json(path) if path is not None and path.is_file() else []

    def translate(self, upload: str | None, message: str) -> str:
        """`message` with our file:line behind each line that the service names."""
        sources = self.of(upload) if _LINE.search(message) else []

        def place(found: re.Match[str]) -> str:
            number = int(found[2])
            known = sources[number - 1] if 1 <= number <= len(sources) else ""
            return f"{found[1]} ({known})" if known else found[1]
        return _LINE.sub(place, message)

    def _path(self, upload: str) -> Path:
        return safe_join(self._folder, f"{upload}.json")
