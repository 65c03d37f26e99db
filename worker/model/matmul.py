"""Matrix products of trainable layers, through whichever library is fast on the processor at hand.

Legend: M rows, I inputs, O outputs of a linear layer.

PyTorch sends fp32 products on a CPU to MKL, which keeps to 256-bit vectors on processors that are not Intel's; oneDNN,
which is built into PyTorch as well, uses 512 bits wherever they exist. Measured at the shapes of the 50 M-parameter
configuration on an AVX-512 AMD EPYC, 2 cores, torch 2.13: MKL 190-210 GFLOP/s; oneDNN 390-460 forward and for the input's
gradient, 300-390 for the weight's. Both are exact fp32 and bit-identical from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CPU_IS_WIDE = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)

_SLICE_OUTPUTS = 2048
"""Outputs of one slice of a wide product: its result (4 MB at a width of 512) is still in the cache when it is added or
copied to where it belongs, and neither it nor oneDNN's copy of the matrix needs fresh pages from the system."""


def product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    """Return `a @ b.T` with no gradient: [M, O]; either matrix may be a transposed view."""
    if not _runs_on_onednn(a_MI):
        return a_MI @ b_OI.T
    if torch.compiler.is_compiling():
        product_MO: Tensor = _opaque_product_nt(a_MI, b_OI)
        return product_MO
    return _onednn_product_nt(a_MI, b_OI)


def product_nt_into(out_MO: Tensor, a_MI: Tensor, b_OI: Tensor) -> None:
    """Write `a @ b.T` to `out`; meant for many outputs, such as logits."""
    if not _runs_on_onednn(a_MI):
        torch.mm(a_MI, b_OI.T, out=out_MO)
        return
    for start in range(0, b_OI.shape[0], _SLICE_OUTPUTS):
        outputs = slice(start, start + _SLICE_OUTPUTS)
        out_MO[:, outputs] = _onednn_product_nt(a_MI, b_OI[outputs])


def product_nn_into(out_MI: Tensor, a_MO: Tensor, b_OI: Tensor) -> None:
    """Write `a @ b` to `out`; meant for many terms, such as the gradient behind logits."""
    if not _runs_on_onednn(a_MO):
        torch.mm(a_MO, b_OI, out=out_MI)
        return
    out_MI.zero_()
    for start in range(0, b_OI.shape[0], _SLICE_OUTPUTS):
        terms = slice(start, start + _SLICE_OUTPUTS)
        out_MI += _onednn_product_nt(a_MO[:, terms], b_OI[terms].T)


def add_product_tn(sum_OI: Tensor, a_MO: Tensor, b_MI: Tensor) -> None:
    """Add `a.T @ b` to `sum`; meant for many outputs, such as an embedding's gradient."""
    if not _runs_on_onednn(a_MO):
        sum_OI.addmm_(a_MO.T, b_MI)
        return
    for start in range(0, sum_OI.shape[0], _SLICE_OUTPUTS):
        outputs = slice(start, start + _SLICE_OUTPUTS)
        # Contiguous first: PyTorch turns whole matrices quickly, columns of a wider one slowly.
        sum_OI[outputs] += _onednn_product_nt(a_MO[:, outputs].contiguous().T, b_MI.T)


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """Return `x @ weight.T` over the last dimension of x, with gradients; no bias.

    Shapes: x [..., I], result [..., O].
    """
    if not _runs_on_onednn(x):
        return functional.linear(x, weight_OI)
    y_MO: Tensor = _Linear.apply(x.flatten(0, -2), weight_OI)  # type: ignore[no-untyped-call]
    return y_MO.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product_nt(x_MI, weight_OI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_MO,) = grads
        x_MI, weight_OI = ctx.saved_tensors
        grad_x_MI = product_nt(grad_MO, weight_OI.T) if ctx.needs_input_grad[0] else None
        grad_weight_OI = product_nt(grad_MO.T, x_MI.T) if ctx.needs_input_grad[1] else None
        return grad_x_MI, grad_weight_OI


def _runs_on_onednn(x: Tensor) -> bool:
    return _CPU_IS_WIDE and x.device.type == "cpu" and x.dtype == torch.float32


def _onednn_product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    # oneDNN multiplies a matrix that is neither row- nor column-major by its reference loops, a thousand times slower.
    if not (b_OI.is_contiguous() or b_OI.T.is_contiguous()):
        b_OI = b_OI.contiguous()
    product_MO: Tensor = torch.ops.mkldnn._linear_pointwise(a_MI, b_OI, None, "none", [], "")
    return product_MO


# Inductor takes oneDNN's own operator for inference with frozen weights, so a compiled layer calls it through this one,
# which it leaves as it is.
@torch.library.custom_op("gemma_orch::product_nt", mutates_args=())
def _opaque_product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    return _onednn_product_nt(a_MI, b_OI)


@_opaque_product_nt.register_fake
def _(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    return a_MI.new_empty(a_MI.shape[0], b_OI.shape[0])
