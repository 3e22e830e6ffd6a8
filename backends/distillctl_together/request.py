"""The recipe's training in Together's terms: what is asked for, and what it does not fit.

Parameters: https://docs.together.ai/reference/post-fine-tunes; limits are each model's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distillctl.backend import TrainJob
from distillctl.errors import Problem
from distillctl.hosted import whole_epochs
from distillctl.recipe.models import LoraSpec, TrainSpec
from distillctl.types import JSON
from distillctl_together.data import Size

_STEP = 64  # tokens; sequences are a multiple of it


@dataclass
class Translated:
    """Arguments for the SDK's create (without files, token and model), and what is to be said of them."""

    arguments: dict[str, JSON] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def translate(job: TrainJob, size: Size, limits: Mapping[str, Any]) -> Translated:
    """limits: what the service says of the model; where it lacks one, the value is sent as it is."""
    found = Translated()
    train = job.train
    own = limits.get("lora_training" if train.lora else "full_training")
    own = own if isinstance(own, Mapping) else {}
    found.arguments = {
        "n_epochs": _epochs(job, limits, found), "learning_rate": _learning_rate(job, limits, found),
        "batch_size": _batch(job, own, found), "max_seq_length": _sequence(job, size, limits, found),
        "packing": True, "train_on_inputs": False, "warmup_ratio": train.warmup,
        "weight_decay": train.weight_decay, "random_seed": train.seed,
        # a linear fall to the whole of the learning rate is a constant one
        "lr_scheduler_type": "linear" if train.schedule == "constant" else train.schedule,
        "min_lr_ratio": 1.0 if train.schedule == "constant" else 0.0,
        **(_lora(train.lora, own, found) if train.lora else _full(train, limits, found))}
    steps = [max(1, math.ceil(tokens / (found.arguments["batch_size"] * found.arguments["max_seq_length"])))
             for tokens in size.tokens]
    epochs = found.arguments["n_epochs"]
    found.notes.append(
        f"it packs rows into sequences of {found.arguments['max_seq_length']} tokens and trains on "
        f"{found.arguments['batch_size']} sequences a step: about {steps[0] * epochs} to {steps[1] * epochs} "
        f"steps in {epochs} epoch{'s' if epochs > 1 else ''}")
    found.notes.append("the dev split is not sent: the last state of the training is taken")
    return found


def price_question(arguments: Mapping[str, JSON]) -> dict[str, Any]:
    """The same training as the arguments of `estimate_price`."""
    return {"n_epochs": arguments["n_epochs"], "n_evals": 0,
            "training_method": {"method": "sft", "train_on_inputs": arguments["train_on_inputs"]},
            "training_type": {"type": "Lora", **{name: arguments[name] for name in (
                "lora_r", "lora_alpha", "lora_dropout", "lora_trainable_modules")}}
            if arguments["lora"] else {"type": "Full"}}


def _epochs(job: TrainJob, limits: Mapping[str, Any], found: Translated) -> int:
    train, most = job.train, _number(limits.get("max_num_epochs"))
    epochs = whole_epochs(job)
    if train.epochs is None:
        found.notes.append(f"it counts no steps: train.max_steps {train.max_steps} of {train.batch_size} "
                           f"rows become {epochs} epochs")
    if most is not None and epochs > most:
        found.problems.append(Problem(f"at most {most:g} epochs for this model", field="train", value=epochs))
    return epochs


def _learning_rate(job: TrainJob, limits: Mapping[str, Any], found: Translated) -> float:
    rate = job.train.learning_rate
    least, most = _number(limits.get("min_learning_rate")), _number(limits.get("max_learning_rate"))
    if (least is not None and rate < least) or (most is not None and rate > most):
        found.problems.append(Problem(f"this model takes {_between(least, most)}", value=rate,
                                      field="train.learning_rate"))
    return rate


def _batch(job: TrainJob, limits: Mapping[str, Any], found: Translated) -> int:
    """limits: those of LoRA, or of full fine-tuning."""
    wanted = job.train.batch_size
    least, most = _number(limits.get("min_batch_size")), _number(limits.get("max_batch_size"))
    batch = int(max(least or 1, min(wanted, most or wanted)))
    if batch != wanted:
        found.notes.append(f"this model takes {_between(least, most)} sequences a step: {batch} in place of "
                           f"train.batch_size {wanted}")
    return batch


def _sequence(job: TrainJob, size: Size, limits: Mapping[str, Any], found: Translated) -> int:
    """Tokens of a packed sequence: enough for the longest row, and not many more, so that a step trains on
    about as many rows as the recipe says."""
    least = int(_number(limits.get("min_max_seq_length")) or 1)
    most = int(min(job.train.max_length, _number(limits.get("max_seq_length_sft")) or math.inf))
    if size.longest[0] > most:
        found.problems.append(Problem(
            f"the longest row has at least {size.longest[0]} tokens, and {most} are the most",
            field="train.max_length", value=job.train.max_length))
    elif size.longest[1] > most:
        found.warnings.append(f"the longest row may have up to {size.longest[1]} tokens; Together cuts rows "
                              f"after {most}")
    return max(least, min(most, math.ceil(size.longest[1] / _STEP) * _STEP))


def _full(train: TrainSpec, limits: Mapping[str, Any], found: Translated) -> dict[str, JSON]:
    """limits: all of the model's."""
    if limits and not (limits.get("supports_full_training") and limits.get("full_training")):
        found.problems.append(Problem("Together trains adapters alone of this model, not every weight",
                                      field="train.lora", value=None,
                                      hint="give it a rank, or name a model that can be trained in full"))
    if train.rate_warning:
        found.warnings.append(train.rate_warning)
    found.notes.append("every weight is trained (full fine-tuning)")
    return {"lora": False}


def _lora(lora: LoraSpec, limits: Mapping[str, Any], found: Translated) -> dict[str, JSON]:
    most = _number(limits.get("max_rank"))
    if most is not None and lora.rank > most:
        found.problems.append(Problem(f"the rank is at most {most:g} for this model", value=lora.rank,
                                      field="train.lora.rank"))
    if lora.alpha != int(lora.alpha):
        found.problems.append(Problem("Together takes whole numbers", field="train.lora.alpha",
                                      value=lora.alpha))
    offered = limits.get("target_modules")
    unknown = set(lora.targets or ()) - set(offered if isinstance(offered, list) else lora.targets or ())
    if unknown:
        found.problems.append(Problem(f"this model has the layers {', '.join(offered)}",
                                      field="train.lora.targets", value=sorted(unknown)[0]))
    return {"lora": True, "lora_r": lora.rank, "lora_alpha": int(lora.alpha), "lora_dropout": lora.dropout,
            "lora_trainable_modules": ",".join(lora.targets) if lora.targets else "all-linear"}


def _between(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return f"at most {most:g}" if least is None else f"at least {least:g}"
    return f"{least:g} to {most:g}"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
