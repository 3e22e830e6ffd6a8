"""Training rows as Together's conversation format, and its line numbers as places in our data.

The format: https://docs.together.ai/docs/fine-tuning/data-preparation
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distillctl.prices import prompt_tokens_at_most
from distillctl.uploads import Row, Sources

_LINE = re.compile(r"\b((?:lines?|rows?|samples?|examples?)(?: number)?:? #?(\d+))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Size:
    """An upload: its bytes, its tokens and those of its longest row, each at least and at most."""

    bytes: int
    tokens: tuple[int, int]
    longest: tuple[int, int]


def size_of(rows: Iterator[Row]) -> Size:
    """Measured without a tokenizer: a token has two to four bytes of UTF-8."""
    total = high = longest = 0
    for row in rows:
        total += len(row.line.encode("utf-8", "replace"))
        at_most = prompt_tokens_at_most(row.messages)
        high, longest = high + at_most, max(longest, at_most)
    return Size(total, (high // 2, high), (longest // 2, longest))


def sources(workspace: Path) -> Sources:
    """Where each line of an upload came from."""
    return Sources(workspace, _LINE)
