"""Rows in OpenAI's chat format, for services that read it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from distillctl.types import JSON


def row(n: int, answer: str | None = None) -> dict[str, JSON]:
    word, label = (("meow", "hybrid"), ("woof", "hydrant"))[n % 2]
    return {"messages": [{"role": "system", "content": "Name the animal."},
                         {"role": "user", "content": f"{word} number {n}"},
                         {"role": "assistant", "content": answer or label}]}


def jsonl(rows: Iterable[JSON]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = [row(n) for n in range(12)]
