"""TRL's trainer with our optimiser step: one batch is one step, its micro-batches are ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import SFTTrainer

from distillctl_local.data import Row
from distillctl_local.losses import Loss
from distillctl_local.prefix import accumulate
from distillctl_local.result import plain_model


class SharedPrefixTrainer(SFTTrainer):
    """Trains on rows that are tokenised already; `per_device_train_batch_size` is the whole optimiser step.

    Optimiser, schedule, clipping, checkpoints and logging stay TRL's. micro_tokens: most tokens computed
    at once; halved when the GPU's memory does not hold them, and `tell` says so. loss: see losses.py.
    """

    def __init__(self, *args: Any, rows: Sequence[Row], micro_tokens: int, loss: Loss,
                 tell: Callable[[str], None], **kwargs: Any) -> None:
        from datasets import Dataset

        # TRL takes tokenised rows as they are; what it needs not know travels by number.
        data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.ids for row in rows],
                                  "number": range(len(rows))})
        super().__init__(*args, train_dataset=data, data_collator=self._pick, **kwargs)
        self._rows = rows
        self._micro_tokens = micro_tokens
        self._loss = loss
        self._tell = tell

    def _pick(self, features: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
        return {"rows": [self._rows[feature["number"]] for feature in features]}

    def training_step(self, model: torch.nn.Module, inputs: dict[str, list[Row]],
                      num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimiser step; returns its loss."""
        model.train()
        base = plain_model(self.accelerator.unwrap_model(model))
        rows = inputs["rows"]
        while True:
            try:
                loss = accumulate(base, rows, self._micro_tokens, self._loss)
                return torch.tensor(loss, device=self.args.device)
            except torch.OutOfMemoryError:
                if self._micro_tokens <= max(row.rest for row in rows):
                    raise
            model.zero_grad()
            torch.cuda.empty_cache()
            self._micro_tokens //= 2
            self._tell(f"out of GPU memory: at most {self._micro_tokens} tokens at once from here on, the "
                       "batch stays the same")
