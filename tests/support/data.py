"""Tasks, specs and files for tests of the data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distillctl.data import load_splits
from distillctl.data.split import Splits
from distillctl.recipe.models import ClassificationSpec, DataSpec, StructuredSpec, TextSpec
from distillctl.task import Task, build_task
from distillctl.types import Example

LABELS = ["code", "docs", "hybrid", "skip"]


def routing(prompt: str = "{{ question }}") -> Task:
    return build_task(ClassificationSpec(kind="classification", labels=LABELS, prompt=prompt))


def structured(schema: Mapping[str, Any], prompt: str = "{{ question }}") -> Task:
    return build_task(StructuredSpec(kind="structured", json_schema=dict(schema), prompt=prompt))


def free_text(prompt: str = "{{ question }}") -> Task:
    return build_task(TextSpec(kind="text", prompt=prompt))


def spec(examples: Any = "rows.jsonl", expected: Any = "label", **more: Any) -> DataSpec:
    return DataSpec(examples=examples, expected=expected, **more)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(folder: Path, data: DataSpec, task: Task | None = None) -> tuple[Splits, list[str]]:
    return load_splits(data, task or routing(), lambda name: folder / name)


def example(number: int, question: str, label: str | None = None, **fields: Any) -> Example:
    row = {"id": f"q{number}", "question": question, **({"label": label} if label else {}), **fields}
    return Example(row["id"], row, label, f"rows.jsonl:{number}")


def where(splits: Splits) -> dict[str, str]:
    """The split of each id."""
    return {one.id: split for split, found in splits.items() for one in found}
