"""Watching the student on the dev split while it learns: how often it answers as the teacher did."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import read_json, read_jsonl, sync_tree, write_json
from distillctl.task import Task, rouge_l
from distillctl.types import JSON, Request
from distillctl_local.encode import Encoder
from distillctl_local.ranks import Ranks
from distillctl_local.result import load_weights, plain_model, save_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from distillctl_local.stream import Prefix

ROWS = 200  # dev rows that are looked at, the first ones: enough to see a trend


class Watch:
    """Scores by epoch, and the best epoch's trained weights, in a job's folder.

    A trainer that was killed and goes on from an earlier checkpoint finds and writes the same ones again.
    how: the student is asked so. ranks: who shares the dev rows; the first one writes. frozen: prefixes that
    the base alone computes.
    """

    def __init__(self, folder: Path, model: PreTrainedModel | PeftModel, encoder: Encoder, task: Task,
                 how: EvaluateSpec, ranks: Ranks | None = None, frozen: Sequence[Prefix] = ()) -> None:
        self._folder = folder
        self._model = model
        self._encoder = encoder
        self._task = task
        self._how = how
        self._rows = list(read_jsonl(folder / "dev.jsonl"))[:ROWS]
        self._ranks = ranks or Ranks()
        self._frozen = frozen

    def look(self, step: int) -> float:
        """The student's score at the end of an epoch, in [0, 1]; its weights are kept if it is the best."""
        mine = self._rows[self._ranks.number::self._ranks.count]
        (total,) = self._ranks.add(points(self._model, self._encoder, self._task, mine, self._how,
                                          self._frozen))
        score = total / len(self._rows)
        if self._ranks.first:
            self._note(step, score)
        self._ranks.wait()  # nobody reads the scores before they are written
        return score

    def _note(self, step: int, score: float) -> None:
        scores = {**self._scores(before=step), step: score}
        if score == max(scores.values()):  # of equal ones the later
            partial = self._folder / "best.partial"
            save_weights(self._model, partial)
            sync_tree(partial)
            shutil.rmtree(self._folder / "best", ignore_errors=True)
            partial.rename(self._folder / "best")
        write_json(self._folder / "dev.json", {str(number): value for number, value in scores.items()})

    def has_looked(self, step: int) -> bool:
        """Whether the epoch that ended at `step` was scored."""
        return step in self._scores(before=step + 1)

    def epochs_in_vain(self, step: int) -> int:
        """How many epochs up to `step`, one after the other, brought nothing better."""
        scores = list(self._scores(before=step + 1).values())
        return len(scores) - 1 - scores.index(max(scores))

    def restore_best(self) -> None:
        """Give the model the best epoch's weights."""
        load_weights(self._model, self._folder / "best")

    def _scores(self, before: int) -> dict[int, float]:
        path = self._folder / "dev.json"
        found = read_json(path) if path.exists() else {}
        return {int(step): score for step, score in found.items() if int(step) < before}


def points(model: PreTrainedModel | PeftModel, encoder: Encoder, task: Task, rows: Sequence[JSON],
           how: EvaluateSpec, frozen: Sequence[Prefix] = ()) -> float:
    """How well a model being trained answers as the teacher did, added up over the rows: 1 for a right
    answer, for free text its ROUGE-L. how: it is asked so."""
    from distillctl_local.predictor import LocalPredictor, identity_of_mode

    was_training = model.training
    model.eval()
    identity = {"model": "student", **identity_of_mode(task, how)}
    predictor = LocalPredictor(plain_model(model), encoder, task, how, identity, frozen)
    answers = []
    for start in range(0, len(rows), predictor.max_batch):
        part = rows[start:start + predictor.max_batch]
        answers += asyncio.run(predictor.answer([Request(row["id"], row["messages"]) for row in part]))
    model.train(was_training)
    total = 0.0
    for row, answer in zip(rows, answers, strict=True):
        if task.kind == "text":
            total += rouge_l(answer.output or "", row["completion"])
        else:
            wanted = task.parse(row["completion"]).value
            total += task.score(task.parse(answer.output).value, wanted).correct
    return total
