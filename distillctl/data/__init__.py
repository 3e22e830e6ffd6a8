"""Data: read, split, and audited before anything is paid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distillctl.data.audit import Audit, audit
from distillctl.data.read import read_examples
from distillctl.data.split import Splits, split_by_list, split_by_shares
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec, SplitFiles
from distillctl.task import Task
from distillctl.types import SPLITS

__all__ = ["Audit", "audit", "load_splits"]


def load_splits(spec: DataSpec, task: Task, resolve: Callable[[str], Path]) -> tuple[Splits, list[str]]:
    """The recipe's examples by split, and warnings. Raises DataError with all problems of the files.

    resolve: a path of the recipe, as it lies on disk.
    """
    if isinstance(spec.examples, SplitFiles):
        return _from_files(spec, task, resolve)
    read = read_examples(resolve(spec.examples), spec, task)
    if isinstance(spec.split, str):
        return split_by_list(read.examples, resolve(spec.split)), read.warnings
    return split_by_shares(read.examples, spec, spec.split, task), read.warnings


def _from_files(spec: DataSpec, task: Task, resolve: Callable[[str], Path]) -> tuple[Splits, list[str]]:
    splits: Splits = {}
    warnings: list[str] = []
    problems: list[Problem] = []
    for split in SPLITS:
        try:
            read = read_examples(resolve(getattr(spec.examples, split)), spec, task)
        except DataError as error:
            problems += error.problems
            continue
        splits[split] = read.examples
        warnings += read.warnings
    if problems:
        raise DataError(*problems)
    seen: dict[str, str] = {}
    for split in SPLITS:
        for example in splits[split]:
            if example.id in seen:
                problems.append(Problem(f"has the id of {seen[example.id]}, in another split",
                                        where=example.source, value=example.id))
            seen[example.id] = example.source
    if problems:
        raise DataError(*problems[:20])
    return splits, warnings
