"""Students with random weights: a tiny base in one folder, an adapter for it in another."""

from __future__ import annotations

import json
from pathlib import Path

from support.tiny_models import save_tiny_model

from distillctl.backend import StudentRef
from distillctl.store.files import digest_tree, write_json

RANK, ALPHA = 4, 8
STATEFUL = {  # families with layers that keep a state instead of keys and values, and what their configs need
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
}
_LAYERS = (*(f"self_attn.{name}_proj" for name in "qkvo"),
           *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))


def tiny_base(folder: Path, family: str = "llama", **changes: object) -> StudentRef:
    """An untrained model; `folder` gets its files."""
    return StudentRef("local", "model", str(save_tiny_model(folder, family, **changes)))


def tiny_student(base: StudentRef, folder: Path, *, seed: int = 0, size: float = 0.3,
                 **config: object) -> StudentRef:
    """A LoRA adapter for a llama-like `base`, as PEFT writes it. size: of its weights; config: goes over
    adapter_config.json."""
    import torch
    from safetensors.torch import save_file

    made = json.loads((Path(base.model) / "config.json").read_text(encoding="utf-8"))
    hidden, inner = made["hidden_size"], made["intermediate_size"]
    query, key = (made[name] * made["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    widths = {"q": (hidden, query), "k": (hidden, key), "v": (hidden, key), "o": (query, hidden),
              "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for number in range(made["num_hidden_layers"]):
        for layer in _LAYERS:
            width_in, width_out = widths[layer.rpartition(".")[2].removesuffix("_proj")]
            name = f"base_model.model.model.layers.{number}.{layer}.lora_"
            tensors[f"{name}A.weight"] = size * torch.randn(RANK, width_in, generator=random)
            tensors[f"{name}B.weight"] = size * torch.randn(width_out, RANK, generator=random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.model, "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in _LAYERS}), **config})
    return StudentRef("local", "adapter", base.model, ".", digest_tree(folder))
