"""A predictor that replays answers which were collected earlier."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from distillctl.errors import DataError, Problem
from distillctl.predictors.http import clean
from distillctl.store.files import digest_file
from distillctl.types import JSON, Answer, Finish, Request

_SHOWN = 20  # problems in one message
_COUNTS = ("tokens_in", "tokens_cached", "tokens_out")
_AMOUNTS = ("latency_s", "cost_usd")
_FINISHES = set(get_args(Finish))


class RecordedPredictor:
    """Answers from a JSONL file of {"id", "output"} and, where known, finish, tokens_in, tokens_cached,
    tokens_out, latency_s, cost_usd, model; other fields are ignored.

    The whole file is read and checked at once. Raises DataError with file:line for every bad row.
    """

    max_batch = 10_000
    replayed = True

    def __init__(self, path: Path, model: str | None = None) -> None:
        self._answers = _read(path, model)
        self.identity: Mapping[str, JSON] = {"provider": "recorded", "digest": digest_file(path),
                                             "model": model}

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that the recording has no answer for."""
        return [id for id in ids if id not in self._answers]

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        absent = Answer(None, "failed", error="the recording has no answer with this id")
        return [self._answers.get(request.id, absent) for request in requests]

    async def aclose(self) -> None:
        self._answers = {}


def _read(path: Path, model: str | None) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    id, answer = _row(line, model, where)
                except DataError as error:
                    problems += error.problems
                    continue
                if id in lines:
                    problems.append(Problem(f"a second answer for this id, the first is on line {lines[id]}",
                                            where=where, field="id", value=id))
                answers[id], lines[id] = answer, number
    except UnicodeDecodeError as error:
        raise DataError(Problem(f"not UTF-8 text: {error.reason}", where=str(path))) from None
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror}", where=str(path),
                                field="teacher.outputs")) from None
    if not answers and not problems:
        problems.append(Problem("holds no answers", where=str(path), field="teacher.outputs"))
    if problems:
        more = len(problems) - _SHOWN
        raise DataError(*problems[:_SHOWN], *([f"and {more} more"] if more > 0 else []))
    return answers


def _row(line: str, model: str | None, where: str) -> tuple[str, Answer]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(Problem(f"not JSON: {error}", where=where)) from None
    if not isinstance(row, dict):
        raise DataError(Problem("must be a JSON object", where=where, value=row))
    problems = []

    def check(field: str, good: bool, wanted: str) -> None:
        if not good:
            problems.append(Problem(f"must be {wanted}", where=where, field=field, value=row.get(field)))

    id, output = row.get("id"), row.get("output")
    check("id", isinstance(id, str | int) and not isinstance(id, bool) and id != "", "a string")
    check("output", "output" in row and isinstance(output, str | None), "a string or null")
    for name in _COUNTS:
        check(name, _is_amount(row.get(name), int), "a whole number, 0 or more, or null")
    for name in _AMOUNTS:
        check(name, _is_amount(row.get(name), int | float), "a number, 0 or more, or null")
    check("finish", row.get("finish", "stop") in _FINISHES, f"one of {', '.join(sorted(_FINISHES))}")
    check("model", isinstance(row.get("model"), str | None), "a string or null")
    if problems:
        raise DataError(*problems)
    finish = row.get("finish", "stop")
    if finish == "stop" and not (output and output.strip()):
        finish = "empty"
    return str(id), Answer(
        output if output is None else clean(output), finish, model=row.get("model") or model,
        **{name: row.get(name) for name in (*_COUNTS, *_AMOUNTS)})


def _is_amount(value: JSON, kind: object) -> bool:
    if value is None:
        return True
    return isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= 1e15
