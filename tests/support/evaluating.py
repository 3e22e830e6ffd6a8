"""Predictions of made-up entrants on made-up items, for the evaluator's tests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from distillctl.evaluate.cascade import Sure
from distillctl.evaluate.evaluate import Entrant, EvaluationInput, evaluate
from distillctl.evaluate.results import Metrics
from distillctl.recipe.models import ClassificationSpec, StructuredSpec, TextSpec, VerdictSpec
from distillctl.task import Task, build_task
from distillctl.types import JSON, Answer, Example, Prediction

LABELS = ("code", "docs", "skip")
LABELLING = build_task(ClassificationSpec(kind="classification", labels=list(LABELS), prompt="Q: {{ q }}"))
SCHEMA = {"type": "object", "properties": {"file": {"type": "string"}, "lines": {"type": "integer"},
                                           "title": {"type": "string"}}, "required": ["file"]}


def structured(**fields: Mapping[str, JSON]) -> Task:
    return build_task(StructuredSpec(
        kind="structured", prompt="Q: {{ q }}", json_schema=SCHEMA, fields=fields))


def text(**settings: JSON) -> Task:
    return build_task(TextSpec(kind="text", prompt="Q: {{ q }}", **settings))


def examples(expected: Sequence[JSON]) -> list[Example]:
    return [Example(f"e{i:04d}", {"q": f"question {i}"}, value, f"data.jsonl:{i + 1}")
            for i, value in enumerate(expected)]


def predictions(task: Task, outputs: Sequence[str | dict | None], *, latency_s: float | None = None,
                stated: Sequence[Mapping[str, float] | None] | None = None, **answer: object,
                ) -> list[Prediction]:
    """Predictions for `examples`, read by the task. stated: log-probabilities per label of each."""
    made = []
    for i, output in enumerate(outputs):
        said = json.dumps(output) if isinstance(output, dict) else output
        parsed = task.parse(said)
        made.append(Prediction(f"e{i:04d}", Answer(
            said, "stop" if said else "failed", label_logprobs=stated[i] if stated else None,
            latency_s=latency_s, **answer), parsed.value, parsed.problem))
    return made


def entrant(role: str, outputs: Sequence[str | dict | None], task: Task = LABELLING, *,
            name: str | None = None, seconds: float | None = None, **more: object) -> Entrant:
    """seconds: median of 60 measured latencies."""
    latencies = [seconds * (0.9 + 0.2 * i / 59) for i in range(60)] if seconds else None
    return Entrant(name or role, role, f"{role}-model", predictions(task, outputs), latencies_s=latencies,
                   **more)


def given(expected: Sequence[JSON], *entrants: Entrant, task: Task = LABELLING,
          verdict: VerdictSpec | None = None, **more: object) -> EvaluationInput:
    return EvaluationInput(task, verdict or VerdictSpec(), examples(expected), entrants, **more)


def logs(label: str, share: float, labels: Sequence[str] = LABELS) -> dict[str, float]:
    """Log-probabilities that give `label` this share and the others the rest."""
    rest = (1 - share) / (len(labels) - 1)
    return {one: math.log(share if one == label else rest) for one in labels}


def gold(n: int) -> list[str]:
    """Labels by turns."""
    return [LABELS[i % len(LABELS)] for i in range(n)]


def answers(expected: Sequence[str], right: Sequence[bool], wrong: str = "") -> list[str]:
    """Right where it should be; else `wrong`, or the next label."""
    return [label if good else wrong or LABELS[(LABELS.index(label) + 1) % len(LABELS)]
            for label, good in zip(expected, right, strict=True)]


def falling(n: int = 100, sure: float = 0.6) -> list[Sure]:
    """The student is right where it is surer than 1 - sure, wrong below; the teacher is always right."""
    return [Sure((i + 0.5) / n, i >= (1 - sure) * n, True) for i in range(n)]


def judged(both: int, teacher_only: int = 0, student_only: int = 0, neither: int = 0, *,
           seconds: tuple[float | None, float | None] = (1.0, 0.1), verdict: VerdictSpec | None = None,
           baseline: int | None = None, base: int | None = None, wrong: str = "", with_gold: bool = True,
           teacher: Mapping[str, object] | None = None) -> Metrics:
    """An evaluation with these counts of right answers. seconds: median latencies of teacher and student,
    unknown where None. baseline, base: how many items they have right, the first ones. wrong: the student's
    wrong answer."""
    n = both + teacher_only + student_only + neither
    expected = gold(n)
    said = answers(expected, [i < both + teacher_only for i in range(n)])
    right = [i < both or both + teacher_only <= i < both + teacher_only + student_only for i in range(n)]
    entrants = [entrant("teacher", said, seconds=seconds[0], **(teacher or {})),
                entrant("student", answers(expected, right, wrong), seconds=seconds[1])]
    for role, name, count in (("baseline", "linear", baseline), ("base", "base", base)):
        if count is not None:
            entrants.append(entrant(role, answers(expected, [i < count for i in range(n)]), name=name))
    return evaluate(given(expected if with_gold else [None] * n, *entrants, verdict=verdict))
