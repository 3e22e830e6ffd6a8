"""Answers prompts with a linear student: the likeliest label, and the probability of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distillctl.errors import Problem, StudentError
from distillctl.store.files import digest_tree
from distillctl.task import Task
from distillctl.types import JSON, Answer, Request
from distillctl_linear.model import LinearModel


class LinearPredictor:
    """A linear student in memory. Raises StudentError where it was not trained for the task's labels."""

    max_batch = 512
    replayed = False

    def __init__(self, folder: Path, task: Task) -> None:
        self._model = LinearModel.load(folder)
        self._labels = list(task.labels)
        if foreign := [label for label in self._model.labels if label not in self._labels]:
            raise StudentError(Problem(f"was trained for labels that the task lacks: {', '.join(foreign)}",
                                       where=str(folder), hint="train it again: run the recipe"))
        self.identity: Mapping[str, JSON] = {
            "backend": "linear", "files": digest_tree(folder), "labels": self._labels}

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        started = time.perf_counter()
        rows = self._model.log_probabilities([request.messages for request in requests], self._labels)
        took = time.perf_counter() - started
        return [Answer(self._labels[int(row.argmax())], latency_s=took, model="tf-idf + logistic regression",
                       label_logprobs=dict(zip(self._labels, map(float, row), strict=True)))
                for row in rows]

    async def aclose(self) -> None:
        """Nothing is held."""
