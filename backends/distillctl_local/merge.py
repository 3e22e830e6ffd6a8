"""A LoRA adapter added into its base's weights: W + scaling · B A (Hu et al. 2021, arXiv 2106.09685).

Merged, an answer costs what the base's does. PEFT is not needed for it, which saves four seconds of import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distillctl.errors import Problem, StudentError
from distillctl_local.safety import CONFIG, WEIGHTS


@torch.inference_mode()
def merge_adapter(model: PreTrainedModel, folder: Path, canary: Sequence[int]) -> None:
    """Add a checked adapter (see safety.check_adapter) into `model`.

    canary: token ids of a prompt. Raises StudentError where the adapter has no place in the model, leaves
    the canary's logits as they were, or makes them overflow.
    """
    before = _logits(model, canary)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    tensors = load_file(folder / WEIGHTS)
    modules = dict(model.named_modules())
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    for name in sorted(name for name in tensors if name.endswith(suffix)):
        path = name.removeprefix(prefix).removesuffix(suffix)
        a, b = tensors[name].float(), tensors[f"{prefix}{path}.lora_B.weight"].float()
        module = modules.get(path)
        weight = getattr(module, "weight", None)
        if isinstance(module, Conv1D):  # GPT-2's linear layer, its weight [in, out]
            weight = weight.t()
        if not isinstance(module, torch.nn.Linear | Conv1D) or weight.shape != (b.shape[0], a.shape[1]):
            raise StudentError(Problem(
                "has weights for a layer that the base lacks, or of another shape: it was made for another "
                "base", where=str(folder / WEIGHTS), value=name))
        delta = (b.to(weight.device) @ a.to(weight.device)) * scaling
        weight.copy_(weight.float() + delta)
    after = _logits(model, canary)
    if not after.isfinite().all():
        raise StudentError(Problem("makes the base's answers NaN or infinite: its numbers are too large",
                                   where=str(folder / WEIGHTS),
                                   hint=f"its lora_alpha is {config['lora_alpha']}, its rank {config['r']}; "
                                        "train it again"))
    if torch.equal(before, after):
        raise StudentError(Problem("changes nothing: the base answers the same without it",
                                   where=str(folder / WEIGHTS), hint="train it again"))


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False,
                 logits_to_keep=1).logits.float()
