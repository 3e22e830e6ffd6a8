"""The errors of a finished run, item by item, and those of its dev split as seeds of new training rows.

Seeds never come from the test split: a student that is trained on what it was judged on cannot be judged
on it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distillctl.context import Context
from distillctl.deciding import evaluation_input
from distillctl.errors import Problem, UsageError
from distillctl.evaluate.evaluate import Entrant, EvaluationInput, evaluate
from distillctl.evaluate.results import Cell, LedgerItem
from distillctl.store.files import write_jsonl
from distillctl.types import JSON, Example

ErrorSplit = Literal["dev", "test"]


@dataclass(frozen=True)
class ErrorItem:
    """One item on which teacher or student is wrong.

    parts: by field or check that is wrong for one of them, the cell that it falls in; empty for labels.
    teacher, student: the parsed value, else the raw output, else None.
    """

    id: str
    cell: Cell
    fields: Mapping[str, JSON]
    expected: JSON
    teacher: JSON
    student: JSON
    parts: Mapping[str, Cell]

    def as_json(self) -> dict[str, JSON]:
        return {"id": self.id, "cell": self.cell, "fields": dict(self.fields), "expected": self.expected,
                "teacher": self.teacher, "student": self.student, "parts": dict(self.parts)}


@dataclass(frozen=True)
class Errors:
    """The error ledger of one split. n: its items, right ones too. gold: whether `expected` is a gold
    answer; else it is the teacher's."""

    split: ErrorSplit
    n: int
    gold: bool
    items: Sequence[ErrorItem]

    def cells(self) -> dict[Cell, int]:
        """Items by cell; cells without any are left out."""
        return dict(Counter(item.cell for item in self.items).most_common())

    def parts(self) -> dict[str, dict[Cell, int]]:
        """For every field or check that is wrong somewhere, items by cell."""
        found: dict[str, Counter] = {}
        for item in self.items:
            for name, where in item.parts.items():
                found.setdefault(name, Counter())[where] += 1
        return {name: dict(counts.most_common()) for name, counts in found.items()}

    def as_json(self) -> dict[str, JSON]:
        return {"split": self.split, "n": self.n, "gold": self.gold, "cells": self.cells(),
                "parts": self.parts(), "items": [item.as_json() for item in self.items]}


def find_errors(ctx: Context, split: ErrorSplit) -> Errors:
    """The error ledger of a finished run's split, from its predictions. Calls no model, writes nothing.

    Raises UsageError for a run that is not finished or a split without items.
    """
    if not ctx.path("metrics.json").exists():
        raise UsageError(Problem("this run is not finished: not everybody has answered",
                                 where=str(ctx.rundir.path), hint=f"distillctl attach {ctx.rundir.name}"))
    whole = evaluation_input(ctx)
    examples = whole.dev if split == "dev" else whole.test
    if not examples:
        raise UsageError(Problem(f"the run has no {split} items", where=str(ctx.rundir.path),
                                 hint=f"give the {split} split a share in data.split"))
    pair = [_on(one, split) for one in whole.entrants if one.role in ("teacher", "student")]
    metrics = evaluate(EvaluationInput(whole.task, whole.verdict, examples, pair, (), whole.groups))
    ledger = next(one for one in metrics.comparisons if one.student == "student").items
    by_id = {example.id: example for example in examples}
    return Errors(split, len(examples), metrics.gold, [_item(by_id[one.id], one) for one in ledger])


def write_seeds(errors: Errors, path: Path) -> int:
    """Write the items as JSONL; returns how many. Raises UsageError for those of the test split."""
    if errors.split != "dev":
        raise UsageError(test_refusal())
    return write_jsonl(path, [item.as_json() for item in errors.items])


def test_refusal() -> Problem:
    """Why test items are never written as seeds."""
    return Problem("test items are shown, never written as seeds: a student trained on them could no longer "
                   "be judged on them", field="--split", value="test",
                   hint="leave out -o to look at them, or export the dev split's: --split dev -o FILE")


def _on(who: Entrant, split: ErrorSplit) -> Entrant:
    predictions = who.predictions if split == "test" else who.dev_predictions or ()
    return Entrant(who.name, who.role, who.model, predictions)


def _item(example: Example, found: LedgerItem) -> ErrorItem:
    return ErrorItem(found.id, found.cell, example.fields, found.expected, found.teacher, found.student,
                     found.part_cells)
