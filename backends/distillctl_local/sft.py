"""TRL's trainer with our optimiser step: one batch is one step, its micro-batches are ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from distillctl_local.data import Row
from distillctl_local.prefix import plain_step, shared_step


class StepTrainer(SFTTrainer):
    """Takes rows that are tokenised already; `per_device_train_batch_size` is the whole optimiser step.

    prefix: tokens that all rows share, 0 to compute every row whole. Optimiser, schedule, clipping,
    checkpoints and logging stay TRL's.
    """

    def __init__(self, *args: Any, prefix: int, micro_tokens: int, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=_rows, **kwargs)
        self._prefix = prefix
        self._micro_tokens = micro_tokens

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any],
                      num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimiser step; returns its loss."""
        model.train()
        base = self.accelerator.unwrap_model(model).get_base_model()
        if self._prefix:
            loss = shared_step(base, inputs["rows"], self._prefix, self._micro_tokens)
        else:
            loss = plain_step(base, inputs["rows"], self._micro_tokens)
        return torch.tensor(loss, device=self.args.device)


def _rows(features: Sequence[dict[str, list[int]]]) -> dict[str, list[Row]]:
    return {"rows": [
        Row(feature["input_ids"], [token for token in feature["labels"] if token != -100], "")
        for feature in features]}
