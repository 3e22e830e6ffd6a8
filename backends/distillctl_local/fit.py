"""What training has in common whichever engine does it: arguments, checkpoints, progress.

Imports transformers: with `engine: unsloth` only after Unsloth.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distillctl.recipe.models import DEFAULT_EPOCHS, TrainSpec
from distillctl.store.files import sync_tree
from distillctl.testing.crash import crashpoint
from distillctl_local.settings import LocalSettings
from distillctl_local.watch import Watch

CHECKPOINTS = "checkpoints"
WHOLE = "whole"  # a checkpoint folder with this file in it was written to its end
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def arguments(folder: Path, spec: TrainSpec, settings: LocalSettings, *,
              first: bool = True) -> dict[str, Any]:
    """For TRL's SFTConfig: what does not depend on the engine. first: whether this process is the one that
    keeps and tells."""
    return {
        "output_dir": str(folder / CHECKPOINTS), "num_train_epochs": float(spec.epochs or DEFAULT_EPOCHS),
        "max_steps": spec.max_steps or -1, "learning_rate": spec.learning_rate,
        "lr_scheduler_type": _SCHEDULES[spec.schedule], "warmup_steps": spec.warmup,
        "weight_decay": spec.weight_decay, "max_grad_norm": 1.0, "seed": spec.seed, "data_seed": spec.seed,
        "logging_strategy": "steps" if first else "no", "logging_steps": 1,
        "save_strategy": "steps" if first else "no", "save_steps": settings.checkpoint_steps,
        "save_total_limit": 2, "report_to": (list(settings.report_to) if first else []) or "none",
        "dataloader_num_workers": 0, "disable_tqdm": True}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a job's folder; halves that a kill left are removed."""
    whole = []
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        if (path / WHOLE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class Tell(TrainerCallback):
    """Passes the training's progress on, marks whole checkpoints, and looks at the dev split."""

    def __init__(self, tell: Callable[..., None], watch: Watch | None = None,
                 patience: int | None = None) -> None:
        """tell: takes a message and the numbers of a JobEvent. patience: epochs in vain after which to
        stop."""
        self._tell = tell
        self._watch = watch
        self._patience = patience
        self._began = (0.0, 0)

    def on_train_begin(self, args, state, control, **_) -> None:
        self._began = (time.monotonic(), state.global_step)
        if self._watch and state.global_step and state.epoch.is_integer() and (
                not self._watch.has_looked(state.global_step)):  # killed between the checkpoint and the look
            self.on_epoch_end(args, state, control)

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if logs and "loss" in logs and state.global_step > self._began[1]:
            pace = (time.monotonic() - self._began[0]) / (state.global_step - self._began[1])
            self._tell(f"step {state.global_step}", step=state.global_step, total_steps=state.max_steps,
                       epoch=logs.get("epoch"), loss=logs["loss"], learning_rate=logs.get("learning_rate"),
                       seconds_per_step=pace)

    def on_save(self, args, state, control, **_) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sync_tree(checkpoint)
        crashpoint("before-checkpoint-mark")
        (checkpoint / WHOLE).touch()
        crashpoint("after-checkpoint")

    def on_epoch_end(self, args, state, control, **_) -> None:
        if self._watch:
            score = self._watch.look(state.global_step)
            self._tell(f"epoch {state.epoch:.0f}: {score:.1%} on the dev split", step=state.global_step,
                       total_steps=state.max_steps, epoch=state.epoch, eval_score=score)
            if self._patience and self._watch.epochs_in_vain(state.global_step) >= self._patience:
                self._tell(f"stopped: no better for {self._patience} epochs")
                control.should_training_stop = True
