"""A plain table: one column with the prompt, one with the answer."""

from __future__ import annotations

from collections.abc import Callable

from distillctl.importing.calls import Call, NotUsable, amount, count, name
from distillctl.types import JSON


def columns(prompt: str, answer: str) -> Callable[[dict[str, JSON]], Call]:
    """A reader of rows with these two columns; `system`, `model`, `tokens_in`, `tokens_out`, `latency_s` and
    `cost_usd` are taken along where there are such columns."""
    def read(row: dict[str, JSON]) -> Call:
        for column in (prompt, answer):
            if column not in row:
                raise NotUsable(f"has no column {column!r}; the columns are: {', '.join(row)}"[:200])
            if not isinstance(row[column], str) or not row[column].strip():
                raise NotUsable(f"has nothing in the column {column!r}")
        system = row.get("system")
        messages = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
        return Call([*messages, {"role": "user", "content": row[prompt]}], row[answer], "stop",
                    name(row, ["model"]), count(row, ["tokens_in"]), count(row, ["tokens_out"]),
                    amount(row, ["latency_s"]), amount(row, ["cost_usd"]))
    return read
