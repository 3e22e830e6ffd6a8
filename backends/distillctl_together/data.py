"""Training rows as Together's conversation format, and its line numbers as places in our data.

The format: https://docs.together.ai/docs/fine-tuning/data-preparation
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distillctl.prices import prompt_tokens_at_most
from distillctl.store.files import SAFE_NAME, read_json, read_jsonl, safe_join, write_json
from distillctl.types import JSON, Message

_LINE = re.compile(r"\b((?:lines?|rows?|samples?|examples?)(?: number)?:? #?(\d+))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One line of the upload, its messages, and where its example came from ("file:line")."""

    messages: list[Message]
    source: str

    @property
    def line(self) -> str:
        return json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Size:
    """An upload: its bytes, its tokens and those of its longest row, each at least and at most."""

    bytes: int
    tokens: tuple[int, int]
    longest: tuple[int, int]


def upload_rows(train_file: Path) -> Iterator[Row]:
    """The rows of a job's training file as they are uploaded."""
    for row in read_jsonl(train_file):
        messages = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        yield Row(messages, str(row.get("source") or ""))


def size_of(rows: Iterator[Row]) -> Size:
    """Measured without a tokenizer: a token has two to four bytes of UTF-8."""
    total = high = longest = 0
    for row in rows:
        total += len(row.line.encode("utf-8", "replace"))
        at_most = prompt_tokens_at_most(row.messages)
        high, longest = high + at_most, max(longest, at_most)
    return Size(total, (high // 2, high), (longest // 2, longest))


class Sources:
    """Where each line of an uploaded file came from, kept in the workspace under the file's id."""

    def __init__(self, workspace: Path) -> None:
        self._folder = workspace / "uploads"

    def keep(self, file_id: str, sources: list[str]) -> None:
        write_json(self._path(file_id), sources)

    def translate(self, file_id: JSON, message: str) -> str:
        """`message` with our file:line behind each line number that the service names."""
        if not isinstance(file_id, str) or not SAFE_NAME.fullmatch(file_id) or not _LINE.search(message):
            return message
        path = self._path(file_id)
        sources = read_json(path) if path.is_file() else []

        def place(found: re.Match[str]) -> str:
            number = int(found[2])
            known = sources[number - 1] if 1 <= number <= len(sources) else ""
            return f"{found[1]} ({known})" if known else found[1]
        return _LINE.sub(place, message)

    def _path(self, file_id: str) -> Path:
        return safe_join(self._folder, f"{file_id}.json")
