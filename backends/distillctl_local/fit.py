"""What training has in common whichever engine does it: arguments, checkpoints, progress.

Imports transformers: with `engine: unsloth` only after Unsloth.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from distillctl.recipe.models import DEFAULT_EPOCHS, TrainSpec
from distillctl.store.files import sync_tree
from distillctl.testing.crash import crashpoint
from distillctl_local.result import load_weights
from distillctl_local.settings import LocalSettings
from distillctl_local.watch import Watch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"
WHOLE = "whole"  # a checkpoint folder with this file in it was written to its end
_STATE = "trainer_state.json"  # transformers' name
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


def is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint is that of the last step. transformers, going on from it, would see that only
    after one more step."""
    state = TrainerState.load_from_json(str(checkpoint / _STATE))
    return state.global_step >= state.max_steps


def make_no_step(arguments: TrainingArguments) -> None:
    """Let a trainer that goes on from a checkpoint load it, as ever, and end."""
    arguments.max_steps, arguments.num_train_epochs = -1, 0


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
            self._look(self._watch, state)
            if self._in_vain(self._watch, state):
                control.should_training_stop = True

    def ended(self, model: PreTrainedModel | PeftModel, checkpoint: Path) -> bool:
        """Whether training had ended at a checkpoint: with the last step, or for want of patience. A look
        that the kill came before is made now. All ranks must ask; they read the same files."""
        state = TrainerState.load_from_json(str(checkpoint / _STATE))
        ended = is_last(checkpoint)
        if self._watch and (ended or state.epoch.is_integer()):  # the last step may be within an epoch
            if not self._watch.has_looked(state.global_step):
                load_weights(model, checkpoint)
                self._look(self._watch, state)
            ended = self._in_vain(self._watch, state) or ended
        return ended

    def _look(self, watch: Watch, state: TrainerState) -> None:
        score = watch.look(state.global_step)
        self._tell(f"epoch {state.epoch:.0f}: {score:.1%} on the dev split", step=state.global_step,
                   total_steps=state.max_steps, epoch=state.epoch, eval_score=score)

    def _in_vain(self, watch: Watch, state: TrainerState) -> bool:
        if not self._patience or watch.epochs_in_vain(state.global_step) < self._patience:
            return False
        self._tell(f"stopped: no better for {self._patience} epochs")
        return True
