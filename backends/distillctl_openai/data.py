"""Training rows as OpenAI's chat format, and its line numbers as places in our data.

The format: https://developers.openai.com/api/docs/guides/supervised-fine-tuning#formatting-your-data
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distillctl.store.files import read_json, read_jsonl, safe_join, write_json
from distillctl.types import JSON, Message

_LINE = re.compile(r"\b(lines? #?(\d+))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of the upload, its messages, and where its example came from ("file:line")."""

    messages: list[Message]
    source: str

    @property
    def line(self) -> str:
        return json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"


def upload_rows(train_file: Path) -> Iterator[Row]:
    """The rows of a job's training file as they are uploaded."""
    for row in read_jsonl(train_file):
        messages = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        yield Row(messages, str(row.get("source") or ""))


class Sources:
    """Where each line of an upload came from, kept in the workspace under the upload's name."""

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / "uploads"

    def keep(self, upload: str, sources: list[str]) -> None:
        write_json(self._path(upload), sources)

    def translate(self, upload: JSON, message: str) -> str:
        """`message` with our file:line behind each line number that the service names."""
        if not isinstance(upload, str) or not upload or not _LINE.search(message):
            return message
        path = self._path(upload)
        sources = read_json(path) if path.is_file() else []

        def place(found: re.Match[str]) -> str:
            number = int(found[2])
            known = sources[number - 1] if 1 <= number <= len(sources) else ""
            return f"{found[1]} ({known})" if known else found[1]
        return _LINE.sub(place, message)

    def _path(self, upload: str) -> Path:
        return safe_join(self._folder, f"{upload}.json")
