"""Every way to multiply gives the product; which library does it is nobody's business."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.model.matmul import add_product_tn, linear, product_nn_into, product_nt, product_nt_into


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1_000 + columns))


LAYOUTS = {
    "row-major": lambda x: x.clone(),
    "column-major": lambda x: x.T.contiguous().T,
    "columns of a wider matrix": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
}


@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
def test_products_are_right_in_every_layout(a_layout: str, b_layout: str) -> None:
    a, b = LAYOUTS[a_layout](matrix(37, 24)), LAYOUTS[b_layout](matrix(50, 24))

    torch.testing.assert_close(product_nt(a, b), a @ b.T, atol=1e-5, rtol=0)


def test_wide_products_are_right_across_slices() -> None:
    a, b = matrix(9, 12), matrix(5_000, 12)
    out = torch.empty(9, 5_000)
    product_nt_into(out, a, b)
    torch.testing.assert_close(out, a @ b.T, atol=1e-5, rtol=0)

    back = torch.empty(9, 12)
    product_nn_into(back, out, b)
    torch.testing.assert_close(back, out @ b, atol=0.1, rtol=0)  # of some 7 000

    total = torch.ones(5_000, 12)
    add_product_tn(total, out, a)
    torch.testing.assert_close(total, 1 + out.T @ a, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (2, 3, 4, 8)])
def test_a_linear_layer_and_its_gradients_are_right(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, requires_grad=True)
    weight = matrix(5, 8).requires_grad_()

    found, expected = linear(x, weight), x @ weight.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for gradient, expected_gradient in zip(
        torch.autograd.grad(found, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


def test_an_expanded_gradient_is_no_trap() -> None:
    x, weight = matrix(4, 8).requires_grad_(), matrix(5, 8).requires_grad_()

    linear(x, weight).sum().backward()

    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(5, 8))


def test_other_number_types_take_the_ordinary_way() -> None:
    x, weight = matrix(4, 8).double(), matrix(5, 8).double()

    torch.testing.assert_close(linear(x, weight), x @ weight.T)
