"""Does the teacher agree with itself? Asked before anything is distilled from it.

Each of some training prompts is asked several times, in a shuffled order. How often two of its answers
are equal is the ceiling for any student's agreement with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from distillctl.collect import CollectOptions, collect
from distillctl.select import predictions_of
from distillctl.task import Task
from distillctl.types import JSON, Prediction, Predictor, Request

_SEED = 20_231


@dataclass(frozen=True)
class Stability:
    """measured: False for a recording, which has one answer a prompt; all else is then None.

    agreed: prompts whose `samples` answers were all readable and equal, of `items`; unanimous: their
    share; low, high: its 95 % Wilson interval; enough: it reaches min_agreement. agreement: mean share of
    equal pairs of answers. disagreements: the prompts that were not unanimous, {"id", "answers"}; an
    unreadable answer is None there, and equals nothing.
    """

    measured: bool
    items: int | None = None
    samples: int | None = None
    agreed: int | None = None
    unanimous: float | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    min_agreement: float | None = None
    enough: bool | None = None
    disagreements: tuple[dict[str, JSON], ...] = ()

    def as_json(self) -> dict[str, JSON]:
        """The account for `stability.json`."""
        return {**vars(self), "format": 1, "disagreements": list(self.disagreements)}


async def measure(predictor: Predictor, task: Task, requests: Sequence[Request], *, items: int, samples: int,
                  min_agreement: float, options: CollectOptions, **collecting: Any) -> Stability:
    """Ask `items` of `requests` (the training prompts) `samples` times each.

    The first sampling is the one that collection reuses, so it is not paid twice. `collecting` goes to
    `collect`, with what that raises.
    """
    if predictor.replayed:
        return Stability(measured=False)
    dice = random.Random(_SEED)
    distinct = list({str(request.messages): request for request in requests}.values())
    chosen = dice.sample(distinct, min(items, len(distinct)))
    asked = [Request(request.id, request.messages, sample) for request in chosen for sample in range(samples)]
    dice.shuffle(asked)
    collected = await collect(predictor, asked, options=options, **collecting)
    answers: dict[str, list[Prediction]] = {request.id: [] for request in chosen}
    for prediction in predictions_of(task, asked, collected.answers):
        answers[prediction.id].append(prediction)
    return _summary(task, answers, samples, min_agreement)


def _summary(task: Task, answers: dict[str, list[Prediction]], samples: int,
             min_agreement: float) -> Stability:
    from distillctl.evaluate.stats import wilson

    agreements: list[float] = []
    disagreements: list[dict[str, JSON]] = []
    for id, predictions in answers.items():
        texts = [None if p.value is None or p.answer.finish != "stop" else task.target(p.value)
                 for p in sorted(predictions, key=lambda p: p.sample)]
        pairs = [a is not None and a == b for a, b in combinations(texts, 2)]
        agreements.append(sum(pairs) / len(pairs))
        if not all(pairs):
            disagreements.append({"id": id, "answers": texts})
    items = len(answers)
    agreed = items - len(disagreements)
    low, high = wilson(agreed, items)
    return Stability(True, items, samples, agreed, agreed / items, low, high, sum(agreements) / items,
                     min_agreement, agreed / items >= min_agreement, tuple(disagreements))
