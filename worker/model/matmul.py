"""Matrix products of trainable layers; uses oneDNN on CPUs with AVX-512, where it is faster than torch's own product.

Legend: M rows, I inputs, O outputs of a linear layer.

By default PyTorch computes fp32 products on a CPU with MKL, which uses only 256-bit vectors on processors that are not Intel's.
oneDNN is built into PyTorch as well, and uses 512-bit vectors on every processor that has them. Measured at the shapes of the
50 M-parameter configuration, on an AMD EPYC with AVX-512, 2 cores, torch 2.13, in GFLOP/s: MKL 190-210; oneDNN 390-460 for the
forward product and the input's gradient, 300-390 for the weight's gradient. Both compute in exact fp32 and give identical bits
in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from state.errors import UserError
from worker.model.private_torch import ONEDNN_PRODUCT

_CPU_IS_WIDE = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
USES_ONEDNN = _CPU_IS_WIDE and ONEDNN_PRODUCT.is_known()
"""Whether products use oneDNN. It depends only on processor and torch, which a checkpoint's environment names: sessions in equal
environments give equal bits."""

_SLICE_OUTPUTS = 2048
"""Number of outputs in one slice of a wide product. The result of a slice (4 MB at a width of 512) is still in the cache when it
is copied or added to its destination. Neither it nor oneDNN's copy of the matrix needs new pages from the system."""


_CHECKED_SHAPES = ((512, 256, 256), (64, 64, 2048), (37, 24, 50))  # M, I, O: oneDNN divides each product among several threads
_LARGEST_ERROR = 1e-2  # for sums of up to 256 terms of size 1; rounding alone stays below 1e-4


def check_products(say: Callable[[str], None], operators: Any = torch.ops) -> None:
    """Compare oneDNN's product with torch's own, if it is used; takes some milliseconds at a session's start.

    Args:
        say: Receives a line if this torch lacks the product on a processor that would use it.
        operators: The namespace of torch's operators.

    Raises:
        UserError: the two products differ.
    """
    if not _CPU_IS_WIDE:
        return
    if ONEDNN_PRODUCT.is_known(operators):
        compare_products(_onednn_product_nt)
    else:
        say(ONEDNN_PRODUCT.missing())


def compare_products(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare a product `a @ b.T` with torch's own.

    Raises:
        UserError: they differ.
    """
    # No fallback to torch's own product: it rounds differently, so the sessions would not give the bits of one long session.
    generator = torch.Generator().manual_seed(0)
    for rows, inputs, outputs in _CHECKED_SHAPES:
        a_MI, b_OI = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
        expected_MO = a_MI @ b_OI.T
        # Freed at once, so that the product gets this memory: an output that it does not write stays NaN.
        torch.full((rows, outputs), torch.nan)
        error = float((product(a_MI, b_OI) - expected_MO).abs().max())
        if not error <= _LARGEST_ERROR:
            raise UserError(
                f"oneDNN's product is wrong in this process: [{rows}, {inputs}] by [{inputs}, {outputs}] is off by {error:g}",
                expected=f"the result of torch's own product, with all {torch.get_num_threads()} threads of the session",
                remedy="unset OMP_THREAD_LIMIT and OMP_MAX_ACTIVE_LEVELS, with which OpenMP starts fewer threads, for the worker",
            )


def product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    """Return `a @ b.T`, shape [M, O], without a gradient; either matrix may be a transposed view."""
    if not _runs_on_onednn(a_MI):
        return a_MI @ b_OI.T
    if torch.compiler.is_compiling():
        product_MO: Tensor = _opaque_product_nt(a_MI, b_OI)
        return product_MO
    return _onednn_product_nt(a_MI, b_OI)


def product_nt_into(out_MO: Tensor, a_MI: Tensor, b_OI: Tensor) -> None:
    """Write `a @ b.T` to `out`; for many outputs, such as logits."""
    if not _runs_on_onednn(a_MI):
        torch.mm(a_MI, b_OI.T, out=out_MO)
        return
    for start in range(0, b_OI.shape[0], _SLICE_OUTPUTS):
        outputs = slice(start, start + _SLICE_OUTPUTS)
        out_MO[:, outputs] = _onednn_product_nt(a_MI, b_OI[outputs])


def product_nn_into(out_MI: Tensor, a_MO: Tensor, b_OI: Tensor) -> None:
    """Write `a @ b` to `out`; for sums of many terms, such as the gradient from the logits."""
    if not _runs_on_onednn(a_MO):
        torch.mm(a_MO, b_OI, out=out_MI)
        return
    out_MI.zero_()
    for start in range(0, b_OI.shape[0], _SLICE_OUTPUTS):
        terms = slice(start, start + _SLICE_OUTPUTS)
        out_MI += _onednn_product_nt(a_MO[:, terms], b_OI[terms].T)


def add_product_tn(sum_OI: Tensor, a_MO: Tensor, b_MI: Tensor) -> None:
    """Add `a.T @ b` to `sum`; for many outputs, such as an embedding's gradient."""
    if not _runs_on_onednn(a_MO):
        sum_OI.addmm_(a_MO.T, b_MI)
        return
    for start in range(0, sum_OI.shape[0], _SLICE_OUTPUTS):
        outputs = slice(start, start + _SLICE_OUTPUTS)
        # Make the slice contiguous first: PyTorch transposes a whole matrix fast, but columns of a wider one slowly.
        sum_OI[outputs] += _onednn_product_nt(a_MO[:, outputs].contiguous().T, b_MI.T)


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """Return `x @ weight.T` over the last dimension of x, with gradients and without a bias.

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
    return USES_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _onednn_product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    # For a matrix that is neither row- nor column-major, oneDNN uses its reference loops, which are a thousand times slower.
    if not (b_OI.is_contiguous() or b_OI.T.is_contiguous()):
        b_OI = b_OI.contiguous()
    product_MO: Tensor = torch.ops.mkldnn._linear_pointwise(a_MI, b_OI, None, "none", [], "")
    return product_MO


# Inductor treats oneDNN's operator as inference with frozen weights. So a compiled layer calls it through this custom operator,
# which Inductor does not change.
@torch.library.custom_op("gemma_orch::product_nt", mutates_args=())
def _opaque_product_nt(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    return _onednn_product_nt(a_MI, b_OI)


@_opaque_product_nt.register_fake
def _(a_MI: Tensor, b_OI: Tensor) -> Tensor:
    return a_MI.new_empty(a_MI.shape[0], b_OI.shape[0])
