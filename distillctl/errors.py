"""The errors a user can meet, one class per boundary, and how a problem is worded.

An error says what is wrong, where, the value that was found, and what to do next. The command line
prints it without a traceback and exits with `exit_code`: 2 for what the user can mend before anything
runs (usage, recipe, data), 1 for a run that failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MISSING = object()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and how to mend it."""

    what: str
    where: str | None = None  # "file:line", as precise as is known
    field: str | None = None  # dotted path in the recipe or the row
    value: object = _MISSING
    hint: str | None = None

    def __str__(self) -> str:
        place = " ".join(p for p in (self.where, self.field and f"`{self.field}`") if p)
        text = f"{place}: {self.what}" if place else self.what
        if self.value is not _MISSING:
            shown = repr(self.value)
            text += f", got {shown if len(shown) <= 120 else shown[:117] + '...'}"
        if self.hint:
            text += f"\n    {self.hint}"
        return text

    def as_json(self) -> dict[str, object]:
        """The problem as a JSON-ready dict; `value` only where there is one, as its repr."""
        out: dict[str, object] = {
            "what": self.what, "where": self.where, "field": self.field, "hint": self.hint,
        }
        if self.value is not _MISSING:
            out["value"] = repr(self.value)
        return out


class DistillctlError(Exception):
    """Base of every error that is shown to a user without a traceback."""

    exit_code = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    @classmethod
    def of(cls, problems: Iterable[Problem | str]) -> DistillctlError:
        """The error for several problems at once."""
        return cls(*problems)


class UsageError(DistillctlError):
    """The command, or what it was pointed at, is wrong; nothing was run."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong."""


class DataError(UsageError):
    """A data file is wrong."""


class MissingExtra(UsageError):
    """A package that this recipe needs is not installed."""


class TeacherError(DistillctlError):
    """The teacher cannot be asked, or its answers cannot be used."""


class JudgeError(DistillctlError):
    """The judge cannot be asked."""


class BudgetError(DistillctlError):
    """Going on would cost more than the recipe allows."""


class BackendError(DistillctlError):
    """A training backend failed."""


class StudentError(DistillctlError):
    """A trained student cannot be opened or used."""


class StorageError(DistillctlError):
    """The run directory or the ledger cannot be read or written."""
