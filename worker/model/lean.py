"""Small operations whose backward pass keeps its inputs only, and recomputes what autograd would have kept.

Kept are tensors that are alive anyway. Measured on the 50 M-parameter configuration (batch 4, 512 positions), eager: a
step's peak is 0.4 GB lower, and the step is no slower, because it writes less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_fp32 = x.float()
        mean_square = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_rms = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        y: Tensor = (x_fp32 * inverse_rms).mul_(1.0 + weight.float()).type_as(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        grad, factor = grads[0].float(), 1.0 + weight.float()
        unit = x.float() * inverse_rms
        product = grad * unit
        grad_weight = product.flatten(0, -2).sum(0)
        along = product.mul_(factor).mean(-1, keepdim=True)
        grad_x = (grad * factor).sub_(unit.mul_(along)).mul_(inverse_rms)
        return grad_x.type_as(x), grad_weight.type_as(weight), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x scaled to root mean square 1 over its last dimension, times `1 + weight`; fp32 inside."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        gate, up = ctx.saved_tensors
        grad_up = functional.gelu(gate, approximate="tanh").mul_(grad)
        return torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"), grad_up


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """Return `gelu(gate) * up` with the tanh form of GELU."""
    y: Tensor = _GatedGelu.apply(gate, up)  # type: ignore[no-untyped-call]
    return y
