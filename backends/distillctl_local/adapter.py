"""A new LoRA adapter on a base: on which layers, and on which it cannot sit."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from distillctl.errors import Problem, UsageError
from distillctl.recipe.models import TrainSpec
from distillctl_local import lora

# What families call an expert's layers; PEFT adapts them as one tensor, which nothing else here can open.
_OF_EXPERTS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}


def add_adapter(model: PreTrainedModel, spec: TrainSpec, *, rslora: bool = False,
                layers: int | None = None) -> PeftModel:
    """The base model with a new LoRA adapter in fp32, computed in the base's precision; sets the seed.

    It sits on the language part alone of a model that sees or hears too, and leaves a mixture's experts as
    they are. layers: how many it sits on, the uppermost ones; None: all. Raises UsageError for targets that
    cannot be adapted.
    """
    set_seed(spec.seed)
    count = model.config.get_text_config().num_hidden_layers
    names, outside = _linear_layers(model)
    try:
        adapted = get_peft_model(model, LoraConfig(
            r=spec.lora.rank, lora_alpha=spec.lora.alpha, lora_dropout=spec.lora.dropout, bias="none",
            task_type="CAUSAL_LM", use_rslora=rslora, target_modules=spec.lora.targets or names,
            exclude_modules=outside, layers_to_transform=layers and list(range(count - layers, count))),
            autocast_adapter_dtype=False)
    except ValueError as error:
        raise _refused(spec, str(error).splitlines()[0], names) from None
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D):
            raise _refused(spec, f"an adapter on {name.removeprefix('base_model.model.')} is not possible, "
                                 "only on linear layers", names)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lora.fuse(adapted)
    return adapted


def _linear_layers(model: PreTrainedModel) -> tuple[list[str], str | None]:
    """What the language part's linear layers but the output head are called; and a pattern of the modules
    outside it, where any of them are linear."""
    language, head = model.get_decoder(), model.get_output_embeddings()
    inside = {id(module) for module in language.modules()}
    linear = {name: id(module) in inside for name, module in model.named_modules()
              if isinstance(module, torch.nn.Linear | Conv1D) and module is not head}
    names = {name.rpartition(".")[2] for name, ours in linear.items() if ours}
    if any("expert" in name and parameter.dim() == 3 for name, parameter in language.named_parameters()):
        names -= _OF_EXPERTS
    where = next(name for name, module in model.named_modules() if module is language)
    return sorted(names), None if all(linear.values()) else rf"(?!{re.escape(where)}\.).*"


def _refused(spec: TrainSpec, why: str, names: list[str]) -> UsageError:
    return UsageError(Problem(why, field="train.lora.targets", value=spec.lora.targets,
                              hint=f"leave it out, or take of {', '.join(names)}"))
