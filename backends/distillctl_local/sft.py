"""TRL's trainer with our optimiser step: one batch is one step, its micro-batches are ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import SFTTrainer

from distillctl.errors import BackendError, Problem
from distillctl_local.data import Row
from distillctl_local.division import divide, in_step
from distillctl_local.known import Known
from distillctl_local.losses import Loss
from distillctl_local.prefix import NOTHING, accumulate, run
from distillctl_local.ranks import Ranks
from distillctl_local.result import plain_model


class SharedPrefixTrainer(SFTTrainer):
    """Trains on rows that are tokenised already; `per_device_train_batch_size` is the whole optimiser step.

    Optimiser, schedule, clipping, checkpoints and logging stay TRL's. micro_tokens: most tokens computed
    at once; halved when the GPU's memory does not hold them, and `tell` says so. loss: see losses.py. ranks:
    who shares the steps' rows. sharded: they share the base's weights too (see shard.py). known: what
    the steps need not compute again.
    """

    def __init__(self, *args: Any, rows: Sequence[Row], micro_tokens: int, loss: Loss,
                 tell: Callable[[str], None], ranks: Ranks | None = None, sharded: bool = False,
                 known: Known = NOTHING, **kwargs: Any) -> None:
        from datasets import Dataset

        # TRL takes tokenised rows as they are; what it needs not know travels by number.
        data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.ids for row in rows],
                                  "number": range(len(rows))})
        super().__init__(*args, train_dataset=data, data_collator=self._pick, **kwargs)
        self._rows = rows
        self._micro_tokens = micro_tokens
        self._loss = loss
        self._tell = tell
        self._ranks = ranks or Ranks()
        self._sharded = sharded
        self._known = known
        for parameter in self._trained():  # TRL makes one on a quantised base bf16, its steps too
            parameter.data = parameter.data.float()
        self._ranks.same_weights(self._trained())

    def _pick(self, features: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
        return {"rows": [self._rows[feature["number"]] for feature in features]}

    def training_step(self, model: torch.nn.Module, inputs: dict[str, list[Row]],
                      num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimiser step; returns its loss. Raises BackendError where the memory of a device
        does not even hold the longest row."""
        model.train()
        base = plain_model(self.accelerator.unwrap_model(model))
        rows = inputs["rows"]
        supervised = sum(len(row.completion) for row in rows)
        if self._ranks.count > 1:  # else dropout's masks are the same on all, and others after a restart
            torch.manual_seed(hash((self.args.seed, self.state.global_step, self._ranks.number)))
        if self._sharded:  # without room: an error. The others wait in a layer, and are not to be told
            mine = in_step(rows, self._ranks.count, self._micro_tokens)[self._ranks.number]
            (loss,) = self._ranks.add(run(base, mine, self._loss, supervised))
            self._ranks.add_gradients(self._trained())
            return torch.tensor(loss, device=self.args.device)
        mine = divide(rows, self._ranks.count)[self._ranks.number]
        while True:
            loss, full = 0.0, False
            try:
                loss = accumulate(base, mine, self._micro_tokens, self._loss, supervised, self._known)
            except torch.OutOfMemoryError:
                full = True
            loss, full = self._ranks.add(loss, full)  # where one has no room, all begin anew
            if not full:
                self._ranks.add_gradients(self._trained())
                return torch.tensor(loss, device=self.args.device)
            model.zero_grad()
            torch.cuda.empty_cache()
            self._halve(max(row.rest for row in rows))

    def _halve(self, longest: int) -> None:
        if self._micro_tokens <= longest:
            raise BackendError(Problem(
                f"out of GPU memory with one row of {longest} tokens at a time", field="student.model",
                hint="take a smaller student, shorter rows, or a hosted backend"))
        self._micro_tokens //= 2
        self._tell(f"out of GPU memory: at most {self._micro_tokens} tokens at once from here on, the batch "
                   "stays the same")

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
