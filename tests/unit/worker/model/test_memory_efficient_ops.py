"""Operations with a backward pass of their own equal what autograd makes of their definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from state.errors import UserError
from worker.model.memory_efficient_ops import check_gate, compare_gates, gated_gelu, rms_norm


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


def test_a_gate_without_torchs_private_operator_has_the_same_bits() -> None:
    gate, up, upstream = (random(5, 129, seed=seed) for seed in (8, 9, 10))

    lean, plain = (gated_gelu(gate, up, lean=lean) for lean in (True, False))
    assert torch.equal(lean, plain)
    for found, expected in zip(
        torch.autograd.grad(lean, (gate, up), upstream), torch.autograd.grad(plain, (gate, up), upstream), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_torch_without_the_operator_is_said_and_one_that_has_it_is_compared() -> None:
    said: list[str] = []
    check_gate(said.append)
    assert said == []
    check_gate(said.append, SimpleNamespace())
    assert "has no aten::gelu_backward that gemma-orch knows: autograd is used" in said[0]


def test_a_gate_with_wrong_gradients_is_refused() -> None:
    with pytest.raises(UserError, match="computes the gradient of GELU wrongly: gelu_backward is off by"):
        compare_gates(lambda gate, up: functional.gelu(gate) * up)  # the exact form of GELU, not the tanh form
