"""Every way to multiply gives the product; which library does it is nobody's business."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from state.errors import UserError
from worker.model.matmul import (
    USES_ONEDNN,
    add_product_tn,
    check_products,
    compare_products,
    linear,
    product_nn_into,
    product_nt,
    product_nt_into,
)


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


def half_of_it(rest: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A product of which one of two threads is missing."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        whole = a @ b.T
        whole[len(whole) // 2 :] = rest
        return whole

    return product


def only_up_to(num_outputs: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A product that is right unless it is wide."""
    return lambda a, b: a @ b.T * (1.0 if len(b) <= num_outputs else 1.01)


def test_a_right_product_passes() -> None:
    compare_products(lambda a, b: a @ b.T)
    said: list[str] = []
    check_products(said.append)
    assert said == []


@pytest.mark.parametrize("product", [half_of_it(0.0), half_of_it(torch.nan), only_up_to(256)], ids=["zeros", "junk", "wide"])
def test_a_product_that_misses_a_part_is_refused(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="oneDNN's product is wrong in this process") as caught:
        compare_products(product)
    assert "OMP_THREAD_LIMIT" in caught.value.remedy


def test_a_torch_without_the_product_is_said_where_it_would_be_used() -> None:
    said: list[str] = []
    check_products(said.append, SimpleNamespace())
    assert all("has no mkldnn::_linear_pointwise that gemma-orch knows" in line for line in said)
    assert said or not USES_ONEDNN  # on other processors it would not be used anyway


def test_other_number_types_take_the_ordinary_way() -> None:
    x, weight = matrix(4, 8).double(), matrix(5, 8).double()

    torch.testing.assert_close(linear(x, weight), x @ weight.T)
