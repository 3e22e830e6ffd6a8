"""Matrix products in bf16, all else in fp32.

A processor or GPU that multiplies bf16 natively is two to three times as fast in it. With the residual
stream, norms, attention and logits in fp32 the answers stay those of fp32 but for true ties; a model wholly
in bf16 changes several in a hundred. A model whose every weight is trained keeps them in fp32, because most
of a step is smaller than bf16 can tell, and rounds a copy for each product.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel


def multiply_in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Change `model` in place; every linear layer but the output head multiplies in bf16.

    Between the two halves of a feed-forward layer, where the second rounds anyway, bf16 stays: that saves a
    tenth of the time.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and module is not head:
            widens = ".mlp." in name and module.out_features > module.in_features
            module.weight.data = module.weight.data.bfloat16()
            module.forward = types.MethodType(_forward_bf16 if widens else _forward, module)
            if module.bias is not None:
                module.bias.data = module.bias.data.float()
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    return model


def train_in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Change `model` in place; every linear layer but the output head multiplies in bf16, forward and back.
    Weights and their gradients stay in fp32."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is torch.nn.Linear and module is not head:
            module.forward = types.MethodType(_forward_trained, module)
    return model


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b with x, W [out, in], b and y in fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        ctx.save_for_backward(flat, weight)  # not the rounded copy: it would be as large as the model
        ctx.shape, ctx.has_bias = x.shape, bias is not None
        out = (flat @ weight.bfloat16().t()).float()
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        rounded = grad.bfloat16()
        x_grad = (rounded @ weight.bfloat16()).float().view(ctx.shape) if ctx.needs_input_grad[0] else None
        return x_grad, (rounded.t() @ flat).float(), grad.sum(0) if ctx.has_bias else None


def _forward_trained(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _Product.apply(x, self.weight, self.bias)


def _forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = linear(x.bfloat16(), self.weight).float()
    return out if self.bias is None else out + self.bias


def _forward_bf16(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = linear(x.bfloat16(), self.weight)
    return out if self.bias is None else out + self.bias.bfloat16()
