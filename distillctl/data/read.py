"""Rows into examples: ids, expected answers, and everything that is wrong with a file at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distillctl.data.formats import read_rows
from distillctl.errors import DataError, DistillctlError, Problem
from distillctl.recipe.models import DataSpec
from distillctl.task import Task
from distillctl.types import JSON, Example

MOST_PROBLEMS = 50
_SPECIAL = re.compile(r"<\|[\w ]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class ReadResult:
    """The examples of one file, in its order, and what a user should know about them."""

    examples: list[Example]
    warnings: list[str]


def read_examples(path: Path, spec: DataSpec, task: Task) -> ReadResult:
    """Read and check a data file; ids come from `spec.id`, from `id` where every row has one, else from
    the content. Raises DataError with the problems of all rows (the first 50, and how many more)."""
    problems = _Problems()
    examples: list[Example] = []
    special = 0
    for line, row in read_rows(path):
        where = f"{path}:{line}" if line else str(path)
        if isinstance(row, Problem):
            problems.add(row)
            continue
        found = _example(row, spec, task, where, problems)
        if found is not None:
            examples.append(found)
            special += any(isinstance(row.get(name), str) and _SPECIAL.search(row[name])
                           for name in task.variables)
    if not examples and not problems.count:
        problems.add(Problem("there are no rows", where=str(path)))
    examples = _with_ids(examples, spec, problems)
    problems.stop()
    warnings = []
    if special:
        warnings.append(f"{path}: {special} rows hold text in the shape of special tokens (`<|…|>`, `</s>`); "
                        "it is treated as plain text")
    return ReadResult(examples, warnings)


class _Problems:
    """Keeps the first problems and counts the rest."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.kept) < MOST_PROBLEMS:
            self.kept.append(problem)

    def stop(self) -> None:
        if self.count:
            more = self.count - len(self.kept)
            raise DataError(*self.kept, *([Problem(f"and {more} more problems like these")] if more else []))


def _example(row: Mapping[str, JSON], spec: DataSpec, task: Task, where: str,
             problems: _Problems) -> Example | None:
    before = problems.count
    try:
        if not any(message["content"].strip() for message in task.render(row, where)):
            problems.add(Problem("the prompt of this row is empty", where=where))
    except DistillctlError as error:
        for problem in error.problems:
            problems.add(problem)
    expected = _expected(row, spec, task, where, problems)
    name = spec.id or "id"
    own = row.get(name)
    if own is not None and (isinstance(own, bool | float | dict | list) or str(own).strip() == ""):
        problems.add(Problem("an id must be text or a whole number", where=where, field=name, value=own))
    if problems.count > before:
        return None
    return Example("" if own is None else str(own), row, expected, where)


def _expected(row: Mapping[str, JSON], spec: DataSpec, task: Task, where: str, problems: _Problems) -> JSON:
    if spec.expected is None:
        return None
    names = {"": spec.expected} if isinstance(spec.expected, str) else spec.expected
    absent = [name for name in names.values() if row.get(name) is None]
    for name in absent:
        problems.add(Problem("the expected answer is missing", where=where, field=name))
    if absent:
        return None
    if isinstance(spec.expected, dict):
        return {part: row[name] for part, name in spec.expected.items()}
    value = row[spec.expected]
    if task.kind != "classification":
        return value
    label = task.label(value)  # type: ignore[attr-defined]
    if label is None:
        problems.add(Problem("is not one of the labels", where=where, field=spec.expected, value=value,
                             hint=f"the labels are {', '.join(task.labels)}"))
    return label


def _with_ids(examples: list[Example], spec: DataSpec, problems: _Problems) -> list[Example]:
    given = sum(1 for example in examples if example.id)
    if given == 0 and spec.id is None:
        return _content_ids(examples)
    if given < len(examples):
        for example in examples:
            if not example.id:
                problems.add(Problem("has no id, other rows have one", where=example.source,
                                     field=spec.id or "id", hint="give every row an id, or none"))
    first: dict[str, str] = {}
    for example in examples:
        if example.id and (earlier := first.setdefault(example.id, example.source)) != example.source:
            problems.add(Problem(f"has the id of {earlier}", where=example.source, field=spec.id or "id",
                                 value=example.id))
    return examples


def _content_ids(examples: list[Example]) -> list[Example]:
    """Ids by content; of equal rows the later ones get a number behind it."""
    seen: dict[str, int] = {}
    found = []
    for example in examples:
        text = json.dumps(example.fields, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[key] = seen.get(key, 0) + 1
        name = key if seen[key] == 1 else f"{key}-{seen[key]}"
        found.append(Example(name, example.fields, example.expected, example.source))
    return found
