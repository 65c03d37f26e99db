"""The chunked loss equals cross-entropy over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worker.model.loss import EmbeddingGradient, cross_entropy, shared_lookup


def problem(num_positions: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_positions)
    h = torch.randn(num_positions, 16, generator=generator, requires_grad=True)
    embedding = torch.randn(vocab_size, 16, generator=generator, requires_grad=True)
    return h, embedding, torch.randint(0, vocab_size, (num_positions,), generator=generator)


@pytest.mark.parametrize(
    ("num_positions", "vocab_size"),
    [(1, 11), (300, 11), (256, 20_000), (257, 20_000), (700, 20_000)],
    ids=["one position", "one chunk", "a chunk that is full", "one position over", "three chunks"],
)
def test_loss_and_gradients_equal_those_over_all_logits(num_positions: int, vocab_size: int) -> None:
    h, embedding, targets = problem(num_positions, vocab_size)

    loss = cross_entropy(h, embedding, targets, num_positions)
    expected = functional.cross_entropy(h @ embedding.T, targets)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(3.0 * loss, (h, embedding)),
        torch.autograd.grad(3.0 * expected, (h, embedding)),
        strict=True,
    ):
        error = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
        assert error < 1e-5


def test_only_the_gradients_that_are_wanted_are_computed() -> None:
    h, embedding, targets = problem(30, 50)

    cross_entropy(h, embedding.detach(), targets, 30).backward()
    assert h.grad is not None
    assert embedding.grad is None

    cross_entropy(h.detach(), embedding, targets, 30).backward()
    assert embedding.grad is not None


def test_a_loss_far_from_its_targets_stays_finite() -> None:
    h = torch.full((2, 4), 100.0, requires_grad=True)
    embedding = torch.tensor([[100.0] * 4, [-100.0] * 4])

    loss = cross_entropy(h, embedding, torch.tensor([0, 1]), 2)
    loss.backward()

    assert loss.item() == pytest.approx(40_000.0)
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_the_lookups_gradient_has_the_bits_of_torchs_own() -> None:
    _, embedding, ids = problem(600, 50)
    ids, upstream = ids.view(4, 150), torch.randn(4, 150, 16, generator=torch.Generator().manual_seed(1))
    shared = EmbeddingGradient()
    shared.leave(torch.zeros_like(embedding))

    (found,) = torch.autograd.grad(shared_lookup(embedding, ids, 2.0, shared), embedding, upstream)
    (expected,) = torch.autograd.grad(functional.embedding(ids, embedding), embedding, 2.0 * upstream)

    assert torch.equal(found, expected)


def test_gradients_are_handed_over_once() -> None:
    h, embedding, targets = problem(30, 50)
    loss = cross_entropy(h, embedding, targets, 30)
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
