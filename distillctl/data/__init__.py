"""Data: read, split, and audited before anything is paid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distillctl.data.audit import Audit, audit, check_leaks, check_not_empty
from distillctl.data.read import ReadResult, read_examples
from distillctl.data.split import Splits, split_by_list, split_by_shares
from distillctl.errors import DataError, Problem
from distillctl.recipe.models import DataSpec, SplitFiles
from distillctl.task import Task
from distillctl.types import SPLITS, Example

__all__ = ["Audit", "audit", "load_splits"]


def load_splits(spec: DataSpec, task: Task, resolve: Callable[[str], Path]) -> tuple[Splits, list[str]]:
    """The recipe's examples by split, and warnings. What comes back is whole and does not leak.

    resolve: a path of the recipe, as it lies on disk. Raises DataError with all problems of the files;
    where a split that the user made puts equal or near-equal inputs into different splits; and where train
    or test is empty. Raises MissingExtra for Parquet without pyarrow.
    """
    if isinstance(spec.examples, SplitFiles):
        splits, warnings = _from_files(spec.examples, spec, task, resolve)
    else:
        read = read_examples(resolve(spec.examples), spec, task, spec.examples)
        if read.problems:
            raise DataError(*read.problems)
        if isinstance(spec.split, str):
            splits, warnings = split_by_list(read.examples, resolve(spec.split)), read.warnings
        else:
            splits, warnings = split_by_shares(read.examples, spec, spec.split, task)
            warnings = [*read.warnings, *warnings]
    check_not_empty(splits)
    if isinstance(spec.examples, SplitFiles) or isinstance(spec.split, str):  # shares cannot leak
        check_leaks(splits, task, spec.near_duplicate)
    return splits, warnings


def _from_files(files: SplitFiles, spec: DataSpec, task: Task,
                resolve: Callable[[str], Path]) -> tuple[Splits, list[str]]:
    read: dict[str, ReadResult] = {
        split: read_examples(resolve(name), spec, task, name) for split, name in files}
    splits: Splits = {split: read[split].examples for split in SPLITS}
    problems = [problem for split in SPLITS for problem in read[split].problems]
    problems = problems or _shared_ids(splits, spec.id or "id")
    if problems:
        raise DataError(*problems)
    return splits, [warning for split in SPLITS for warning in read[split].warnings]


def _shared_ids(splits: Splits, name: str) -> list[Problem]:
    """Ids that stand in two splits; those made from content are seen as leaks, which says more."""
    first: dict[str, Example] = {}
    shared = [(earlier, example) for split in SPLITS for example in splits[split]
              if name in example.fields and (earlier := first.setdefault(example.id, example)) is not example]
    problems = [Problem(f"has the id of {earlier.source}", example.source, value=example.id,
                        hint="an id stands in one split only") for earlier, example in shared[:20]]
    if len(shared) > 20:
        problems.append(Problem(f"and {len(shared) - 20:,} more ids that stand in two splits"))
    return problems
