"""Training rows as chat conversations for a service, and its line numbers as places in our data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distillctl.store.files import SAFE_NAME, read_json, read_jsonl, safe_join, write_json
from distillctl.types import JSON, Message


@dataclass(frozen=True)
class Row:
    """One line of an upload: its messages, the last one the answer, and where its example came from
    ("file:line")."""

    messages: list[Message]
    source: str

    @property
    def line(self) -> str:
        """The row in OpenAI's chat format, which most services read."""
        return json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"


def upload_rows(train_file: Path) -> Iterator[Row]:
    """The rows of a job's training file as they are uploaded."""
    for row in read_jsonl(train_file):
        messages = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        yield Row(messages, str(row.get("source") or ""))


class Sources:
    """Where each line of an upload came from, kept in a backend's workspace under the upload's name.

    line: how the service names a line, its first group the whole of it, the second its number from 1.
    """

    def __init__(self, workspace: Path, line: re.Pattern[str]) -> None:
        self._folder = workspace / "uploads"
        self._line = line

    def keep(self, upload: str, sources: list[str]) -> None:
        write_json(self._path(upload), sources)

    def of(self, upload: JSON) -> list[str]:
        """The places of an upload's lines; empty where this workspace did not make it."""
        if not isinstance(upload, str) or not SAFE_NAME.fullmatch(upload):
            return []
        path = self._path(upload)
        return read_json(path) if path.is_file() else []

    def translate(self, upload: JSON, message: str) -> str:
        """`message` with our file:line behind each line number that the service names."""
        sources = self.of(upload) if self._line.search(message) else []

        def place(found: re.Match[str]) -> str:
            number = int(found[2])
            known = sources[number - 1] if 1 <= number <= len(sources) else ""
            return f"{found[1]} ({known})" if known else found[1]
        return self._line.sub(place, message)

    def _path(self, upload: str) -> Path:
        return safe_join(self._folder, f"{upload}.json")
