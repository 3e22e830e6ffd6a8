"""Matrix products in bf16, all else in fp32.

A processor or GPU that multiplies bf16 natively is two to three times as fast in it. With the residual
stream, norms, attention and logits in fp32 the answers stay those of fp32 but for true ties; a model wholly
in bf16 changes several in a hundred. Not for a model whose every weight was trained: see `result`.

On a processor each layer's weights are laid out once as oneDNN reads them, with the operators that torch's
compiler uses for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py). Otherwise oneDNN lays them out
for each product, which is two fifths of the time of a few tokens and a fiftieth of that of many.
"""

from __future__ import annotations

import types
from typing import Literal

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel


def multiply_in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Change `model` in place, for answers alone; every linear layer but the output head multiplies in bf16.

    Between the two halves of a feed-forward layer, where the second rounds anyway, bf16 stays: that saves a
    tenth of the time.
    """
    head = model.get_output_embeddings()
    packs = model.device.type == "cpu" and _onednn_has_bf16()
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and module is not head:
            widens = ".mlp." in name and module.out_features > module.in_features
            module.weight.data = module.weight.data.bfloat16()
            module.forward = types.MethodType(_forward_bf16 if widens else _forward, module)
            if module.bias is not None:
                module.bias.data = module.bias.data.float()
            if packs:
                _pack(module)
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    for module in model.modules():
        if _is_gated(module):
            module.forward = types.MethodType(_forward_gated, module)
    return model


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _pack(layer: torch.nn.Linear) -> None:
    """Let a layer keep its weights as oneDNN reads them, and only so."""
    layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data)
    layer.weight.data = layer.weight.data.new_empty(0)


def _is_gated(module: torch.nn.Module) -> bool:
    """Whether it is a feed-forward part down(silu(gate(x)) · up(x)) without biases, as in Llama, packed."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return all(hasattr(layer, "packed") and layer.bias is None for layer in layers) and type(
        getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")  # torch's, transformers'


def _product(layer: torch.nn.Linear, x: torch.Tensor,
             then: Literal["none", "swish"] = "none") -> torch.Tensor:
    if hasattr(layer, "packed"):
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), layer.packed, None, then, [], "")
    return linear(x.bfloat16(), layer.weight)


def _forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = _product(self, x).float()
    return out if self.bias is None else out + self.bias


def _forward_bf16(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = _product(self, x)
    return out if self.bias is None else out + self.bias.bfloat16()


def _forward_gated(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.bfloat16()
    gate = _product(self.gate_proj, x, "swish")
    inner = torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.up_proj.packed, None, "mul")
    return self.down_proj(inner)
