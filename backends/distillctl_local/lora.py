"""A LoRA layer's forward and backward as one step, in the base model's precision.

PEFT computes the adapter in its own (fp32) precision around a bf16 layer and keeps every step for the
backward pass. Here the small matrices are cast once, the products accumulate into the layer's output, and
only the input and the rank-sized product are kept. Equal in fp32 up to the order of additions.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scaling · x Aᵀ Bᵀ for x [n, in], with a frozen W [out, in], A [r, in], B [out, r] (Hu et
    al. 2021)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
        a_cast, b_cast = a.to(x.dtype), b.to(x.dtype)
        low = (x @ a_cast.t()) * scaling
        out = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        out.addmm_(low, b_cast.t())
        ctx.save_for_backward(x, weight, a_cast, b_cast, low)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        low_grad = (grad @ b) * ctx.scaling
        x_grad = (grad @ weight).addmm_(low_grad, a) if ctx.needs_input_grad[0] else None
        return x_grad, None, None, (low_grad.t() @ x).to(ctx.dtype), (grad.t() @ low).to(ctx.dtype), None


def fuse(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer the fused step; returns how many. Others (dropout, DoRA, quantised) keep
    PEFT's. The saved adapter is the same."""
    fused = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = types.MethodType(_forward, layer)
            fused += 1
    return fused


def drop_nothing(model: torch.nn.Module) -> None:
    """Switch a base's own dropout off: `train.lora.dropout` alone says what is dropped, and what rows share
    must not have one mask for all of them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # OPT's `dropout`, Llama's `attention_dropout`
                setattr(module, name, 0.0)


def _is_plain(layer: Linear) -> bool:
    name = "default"
    return (list(layer.lora_A) == [name] and isinstance(layer.lora_dropout[name], torch.nn.Identity)
            and not layer.use_dora.get(name, False) and layer.lora_A[name].bias is None
            and layer.lora_B[name].bias is None and type(layer.base_layer) is torch.nn.Linear)


def _forward(self: Linear, x: torch.Tensor) -> torch.Tensor:
    base = self.base_layer
    # Shaped outside: a family may change the output in place, which a view made inside does not allow.
    out = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, self.lora_A["default"].weight,
                            self.lora_B["default"].weight, self.scaling["default"])
    return out.view(*x.shape[:-1], -1)
