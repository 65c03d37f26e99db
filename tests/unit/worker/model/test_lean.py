"""Operations with a backward pass of their own equal what autograd makes of their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worker.model.lean import gated_gelu, rms_norm


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def assert_gradients_equal(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    upstream = random(*found.shape, seed=9).detach()
    for gradient, expected_gradient in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (2, 5, 3, 24)])
def test_a_norm_and_its_gradients_are_right(shape: tuple[int, ...]) -> None:
    x, weight = random(*shape, seed=1), random(24, seed=2)

    expected = functional.rms_norm(x, (24,), 1 + weight, 1e-6)
    assert_gradients_equal(rms_norm(x, weight, 1e-6), expected, (x, weight))


def test_a_norm_of_a_part_of_a_wider_tensor_is_right() -> None:
    wide, weight = random(2, 5, 6, 8, seed=3), random(8, seed=4)
    heads = wide[:, :, 1:4].transpose(1, 2)

    expected = functional.rms_norm(heads, (8,), 1 + weight, 1e-6)
    assert_gradients_equal(rms_norm(heads, weight, 1e-6), expected, (wide, weight))


def test_a_norm_computes_in_fp32_whatever_comes_in() -> None:
    x, weight = random(4, 64, seed=5).detach().bfloat16(), torch.zeros(64, dtype=torch.bfloat16)

    expected = functional.rms_norm(x.float(), (64,), None, 1e-6).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-6), expected)


def test_a_vector_of_zeros_stays_zero() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, torch.zeros(8), 1e-6)
    y.sum().backward()

    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_gate_and_its_gradients_are_right() -> None:
    gate, up = random(3, 17, seed=6), random(3, 17, seed=7)

    assert_gradients_equal(gated_gelu(gate, up), functional.gelu(gate, approximate="tanh") * up, (gate, up))
