"""The gold answer of a row, in the shape that the task scores against."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from distillctl.errors import Problem
from distillctl.recipe.problems import nearest
from distillctl.task import Task
from distillctl.types import JSON

_TERMS = {"type": "array", "items": {"type": "string", "minLength": 1}}
_TEXT_SCHEMA = {"properties": {
    "text": {"type": "string", "minLength": 1}, "must_include": _TERMS, "must_not_include": _TERMS}}


class Gold:
    """Reads the expected answer from a row, as the recipe's `data.expected` says where it is.

    columns: the fields that every row must have for it.
    """

    def __init__(self, task: Task, expected: str | Mapping[str, str] | None) -> None:
        self._task = task
        self._expected = expected
        self.columns = ((expected,) if isinstance(expected, str) else
                        tuple(dict.fromkeys(expected.values())) if expected else ())

    def read(self, row: Mapping[str, JSON]) -> tuple[JSON, list[Problem]]:
        """The expected answer (None where the recipe names none), and what is wrong with it.

        A label comes as the recipe writes it. Text that holds JSON is read where the answer must be
        something else than text, as in a CSV cell.
        """
        if self._expected is None:
            return None, []
        if isinstance(self._expected, str):
            label = self._task.label(row[self._expected])
            return label, [] if label else [self._no_label(self._expected, row[self._expected])]
        gold, problems = {}, []
        for name, column in self._expected.items():
            gold[name] = value = self._value(name, row[column])
            if error := next(self._errors(name, value), None):
                problems.append(Problem(f"no right answer can have this as `{name}`: {error.message[:200]}",
                                        field=column, value=value))
        return gold, problems

    def _no_label(self, column: str, value: JSON) -> Problem:
        close = nearest(value, self._task.labels) if isinstance(value, str) else None
        return Problem("is not one of the labels", field=column, value=value,
                       hint=f"did you mean {close!r}?" if close else
                       f"the labels are: {', '.join(self._task.labels)}"[:300])

    def _value(self, name: str, value: JSON) -> JSON:
        if isinstance(value, str) and next(self._errors(name, value), None):
            try:
                return json.loads(value or "[]")  # an empty cell is an empty list
            except (ValueError, RecursionError):
                pass
        return value

    def _errors(self, name: str, value: JSON) -> Iterator[Any]:
        schema = self._validator.schema.get("properties", {}).get(name)
        return iter(()) if schema is None else self._validator.descend(value, schema)

    @cached_property
    def _validator(self) -> Any:
        import jsonschema  # 0.1 s to import: not for classification

        schema = self._task.json_schema or _TEXT_SCHEMA
        return jsonschema.validators.validator_for(schema)(schema)
