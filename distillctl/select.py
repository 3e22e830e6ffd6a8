"""Which of a predictor's answers become training rows, and why the others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Answer, Example, Prediction, Request

REASONS = {
    "no answer": "the predictor gave none",
    "refused": "the predictor or its filter refused",
    "cut off": "the answer reached the length limit",
    "empty": "the answer was empty",
    "unreadable": "the answer cannot be read by the task",
    "wrong": "the answer differs from the expected one",
    "inconsistent": "an equal input got another answer",
}
_BY_FINISH = {"failed": "no answer", "refusal": "refused", "length": "cut off", "empty": "empty"}


@dataclass(frozen=True)
class Selection:
    """rows: {"id", "messages", "completion", "source"} in the order of the examples, as a `TrainJob` wants
    them. dropped: ids by reason (a key of `REASONS`). gold: examples with an expected answer."""

    rows: list[dict[str, JSON]]
    dropped: dict[str, list[str]] = field(default_factory=dict)
    gold: int = 0

    def summary(self) -> str:
        """The account in one line."""
        lost = ", ".join(f"{len(ids)} {reason}" for reason, ids in self.dropped.items())
        kept = len(self.rows)
        total = kept + sum(len(ids) for ids in self.dropped.values())
        return f"{kept} of {total} answers become training rows" + (f"; dropped: {lost}" if lost else "")

    def as_json(self) -> dict[str, JSON]:
        """The account for `selection.json` and the report; the rows themselves are not in it."""
        dropped = sum(len(ids) for ids in self.dropped.values())
        return {"format": 1, "examples": len(self.rows) + dropped, "kept": len(self.rows), "gold": self.gold,
                "dropped": [{"reason": reason, "meaning": REASONS[reason], "count": len(ids), "ids": ids}
                            for reason, ids in self.dropped.items()]}


def requests_of(task: Task, examples: Sequence[Example]) -> list[Request]:
    """One request per example, in order. Raises DataError where a prompt cannot be rendered."""
    return [Request(example.id, task.render(example.fields, example.source)) for example in examples]


def predictions_of(task: Task, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Prediction]:
    """The answers, read by the task, in the order of the requests."""
    return [_prediction(task, request, answer) for request, answer in zip(requests, answers, strict=True)]


def select(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Selection:
    """Keep what is complete, readable, right where an expected answer exists, and consistent.

    predictions: one per example, in the same order. Of equal prompts whose remaining answers differ, none
    is kept: a student cannot learn both.
    """
    dropped: dict[str, list[str]] = {reason: [] for reason in REASONS}
    kept: list[dict[str, JSON]] = []
    by_prompt: dict[str, set[str]] = defaultdict(set)
    prompts: list[str] = []
    for example, prediction in zip(examples, predictions, strict=True):
        reason = _fault(task, example, prediction)
        if reason:
            dropped[reason].append(example.id)
            continue
        messages = task.render(example.fields, example.source)
        completion = task.target(prediction.value)
        prompts.append(digest_json(messages))
        by_prompt[prompts[-1]].add(completion)
        kept.append({"id": example.id, "messages": messages, "completion": completion,
                     "source": example.source})
    rows = []
    for row, prompt in zip(kept, prompts, strict=True):
        if len(by_prompt[prompt]) > 1:
            dropped["inconsistent"].append(row["id"])
        else:
            rows.append(row)
    return Selection(rows, {reason: ids for reason, ids in dropped.items() if ids},
                     sum(example.expected is not None for example in examples))


def _prediction(task: Task, request: Request, answer: Answer) -> Prediction:
    if answer.finish in ("failed", "refusal", "empty"):
        return Prediction(request.id, answer, None, answer.error or answer.finish, request.sample)
    parsed = task.parse(answer.output)
    return Prediction(request.id, answer, parsed.value, parsed.problem, request.sample)


def _fault(task: Task, example: Example, prediction: Prediction) -> str | None:
    """Why an answer cannot be trained on, None where it can."""
    if example.id != prediction.id:
        raise ValueError(f"the prediction for {example.id!r} is of {prediction.id!r}")
    if reason := _BY_FINISH.get(prediction.answer.finish):
        return reason
    if prediction.value is None:
        return "unreadable"
    if example.expected is not None and not task.score(prediction.value, example.expected).correct:
        return "wrong"
    return None
