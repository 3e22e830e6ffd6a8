"""Examples from a data file: every row is checked against the task before anything is asked or paid.

Reading goes on after a bad row, so that all problems come at once, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distillctl.data.formats import read_rows
from distillctl.data.gold import Gold
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec
from distillctl.recipe.problems import nearest
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Example

MOST_PROBLEMS = 50  # shown; the rest is counted
_MAX_ID = 200  # characters
_LACKS = "the row lacks this field"
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number"}

# Marks of chat templates and tokenizers: <|im_start|>, </s>, [INST], <start_of_turn>, <｜User｜> ...
_SPECIAL = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</?(?:s|pad|bos|eos|unk|mask)>|\[/?INST\]|<</?SYS>>"
                      r"|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class ReadResult:
    """What a data file holds. problems: in the order of the lines; more than 50 are counted in the last."""

    examples: list[Example]
    problems: list[Problem]
    warnings: list[str]


def read_examples(path: Path, spec: DataSpec, task: Task, name: str | None = None) -> ReadResult:
    """Read and check a JSONL, CSV or Parquet file; nothing is skipped silently.

    name: the file as the recipe names it, for `Example.source` ("name:line"; in Parquet the row's number).
    Every row must have the fields that the prompt shows and that `spec` names, of one type throughout. Ids
    come from `spec.id`, else from `id` where the first row has one, else they are a hash of the row.
    Raises MissingExtra for Parquet without pyarrow.
    """
    reader = _Reader(str(path), name or str(path), spec, task)
    for line, row in read_rows(path):
        if isinstance(row, Problem):
            reader.add(line, row)
        else:
            reader.take(line, row)
    return reader.result()


class _Reader:
    """Turns rows into examples, and remembers what earlier rows were like."""

    def __init__(self, path: str, name: str, spec: DataSpec, task: Task) -> None:
        self._path, self._name, self._spec, self._task = path, name, spec, task
        self._gold = Gold(task, spec.expected)
        self._named = [*self._gold.columns, *(n for n in (spec.id, spec.group) if n)]
        self._variables = sorted(task.variables)
        self._examples: list[Example] = []
        self._problems: list[tuple[int, Problem]] = []
        self._count = 0
        self._rows = 0
        self._missing: dict[str, int] = {}  # by field: rows without it
        self._columns: list[str] = []  # of the first row
        self._kinds: dict[str, tuple[str, int]] = {}  # by variable: its type and the line that set it
        self._id_field = spec.id
        self._first_line = 0
        self._lines: dict[str, int] = {}  # by id
        self._repeats: dict[str, int] = {}  # by id that is a hash
        self._special: dict[str, int] = {}  # by mark: rows
        self._special_first = 0

    def add(self, line: int, problem: Problem) -> None:
        self._count += 1
        if len(self._problems) < MOST_PROBLEMS:
            where = problem.where or f"{self._path}:{line}"
            self._problems.append((line, Problem(**{**vars(problem), "where": where})))

    def take(self, line: int, row: dict[str, JSON]) -> None:
        self._rows += 1
        if self._rows == 1:
            self._columns, self._first_line = list(row), line
            if self._id_field is None and "id" in row:
                self._id_field = "id"
        before = self._count
        lacking = [name for name in self._named if name not in row]
        for name in lacking:
            self._lacks(name, line)
        self._check_prompt(line, row)
        expected = None
        if not lacking:
            expected, problems = self._gold.read(row)
            for problem in problems:
                self.add(line, problem)
            self._check_group(line, row)
        identity = self._identity(line, row)
        if self._count == before and identity is not None:
            self._examples.append(Example(identity, row, expected, f"{self._name}:{line}"))

    def result(self) -> ReadResult:
        if not self._rows and not self._count:
            self.add(0, Problem("holds no rows", self._path))
        problems = [problem for _, problem in sorted(self._problems, key=lambda pair: pair[0])]
        for name, rows in self._missing.items():
            if rows == self._rows > 1:  # one mistake in the recipe, not one in every row
                problems = [p for p in problems if p.field != name or p.what != _LACKS]
                problems.insert(0, Problem("no row has this field", self._path, name, hint=self._known(name)))
                self._count -= rows - 1
        if self._count > len(problems):
            problems.append(Problem(f"and {self._count - len(problems)} more problems", self._path))
        return ReadResult(self._examples, problems, self._warnings())

    # --- one row

    def _lacks(self, name: str, line: int) -> None:
        self._missing[name] = self._missing.get(name, 0) + 1
        self.add(line, Problem(_LACKS, field=name, hint=self._known(name)))

    def _known(self, name: str) -> str:
        close = nearest(name, self._columns)
        return f"did you mean `{close}`?" if close else f"the first row has: {', '.join(self._columns)}"[:300]

    def _check_prompt(self, line: int, row: Mapping[str, JSON]) -> None:
        try:
            self._task.render(row)
        except DataError as error:
            absent = [name for name in self._variables if name not in row
                      and f"'{name}' is undefined" in str(error)]
            for name in absent:
                if name not in self._named:
                    self._lacks(name, line)
            if not absent:
                unfit = [f"`{name}` is {'null' if row[name] is None else 'nested'}"
                         for name in self._variables if not isinstance(row.get(name, ""), str | int | float)]
                for problem in error.problems:
                    self.add(line, Problem(problem.what, hint="; ".join(unfit) or None))
            return
        shown = [(name, row[name]) for name in self._variables if row.get(name) is not None]
        if not any(str(value).strip() for _, value in shown):
            self.add(line, Problem("every field that the prompt shows is empty", hint="remove the row"))
        marks: set[str] = set()
        for name, value in shown:
            if kind := _KINDS.get(type(value)):
                first, first_line = self._kinds.setdefault(name, (kind, line))
                if kind != first:
                    self.add(line, Problem(f"is {kind} here and {first} in line {first_line}", field=name,
                                           value=value))
            if kind == "text" and ("<" in value or "[" in value):
                marks.update(_SPECIAL.findall(value))
        if marks:
            self._special_first = self._special_first or line
            for mark in marks:
                self._special[mark] = self._special.get(mark, 0) + 1

    def _check_group(self, line: int, row: Mapping[str, JSON]) -> None:
        group = self._spec.group and row[self._spec.group]
        if isinstance(group, float | list | dict):
            self.add(line, Problem("a group is text or a whole number, or null for none",
                                   field=self._spec.group, value=group))

    def _identity(self, line: int, row: Mapping[str, JSON]) -> str | None:
        if self._id_field is None:
            if "id" in row:
                self.add(line, Problem(f"has an id, line {self._first_line} has none", field="id",
                                       hint="give every row an id, or none"))
            return self._hashed(row)
        if self._id_field not in row:
            if self._spec.id is None:
                self.add(line, Problem(f"has no id, line {self._first_line} has one", field="id",
                                       hint="give every row an id, or none"))
            return None
        given = row[self._id_field]
        identity = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        if not isinstance(identity, str) or not identity.strip() or len(identity) > _MAX_ID:
            self.add(line, Problem(f"an id is text of 1 to {_MAX_ID} characters or a whole number",
                                   field=self._id_field, value=given))
            return None
        if (first := self._lines.setdefault(identity, line)) != line:
            self.add(line, Problem(f"the id of line {first} again", field=self._id_field, value=identity))
        return identity

    def _hashed(self, row: Mapping[str, JSON]) -> str:
        """The first 64 bits of the row's SHA-256; equal rows are numbered."""
        identity = digest_json(row).removeprefix("sha256:")[:16]
        repeat = self._repeats[identity] = self._repeats.get(identity, 0) + 1
        return identity if repeat == 1 else f"{identity}-{repeat}"

    def _warnings(self) -> list[str]:
        if not self._special:
            return []
        marks = ", ".join(f"{mark} in {rows}" for mark, rows in sorted(self._special.items())[:10])
        return [f"{self._name} holds text that chat templates use as marks ({marks} rows, first in line "
                f"{self._special_first}): it is treated as plain text"]
