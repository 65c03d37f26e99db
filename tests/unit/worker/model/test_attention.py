"""Attention by blocks equals attention under one dense mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.model.attention import causal_attention, window_attention


def heads(num_positions: int, *, num_heads: int = 4, num_kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_positions)
    counts = (num_heads, num_kv_heads, num_kv_heads)
    q, k, v = (torch.randn(2, count, num_positions, 8, generator=generator, requires_grad=True) for count in counts)
    return q, k, v


def dense_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    query, key = torch.arange(q.shape[2])[:, None], torch.arange(q.shape[2])
    hidden = (key > query) | (key <= query - window)
    return (q @ k.mT * scale).masked_fill(hidden, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize(
    ("window", "num_positions"),
    [
        (8, 5),
        (8, 8),
        (8, 9),
        (8, 64),
        (1, 7),
        (7, 31),
        (65, 300),
        (100, 333),
        (128, 256),
        (256, 600),
        (300, 301),
    ],
)
def test_a_window_of_w_shows_exactly_the_last_w_positions(window: int, num_positions: int) -> None:
    q, k, v = heads(num_positions)

    found = window_attention(q, k, v, window=window, scale=0.3)
    expected = dense_attention(q, k, v, window, 0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    found_gradients = torch.autograd.grad(found, (q, k, v), upstream)
    expected_gradients = torch.autograd.grad(expected, (q, k, v), upstream)
    for gradient, expected_gradient in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=3e-5, rtol=0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_global_attention_shares_each_key_head_among_neighbouring_query_heads(num_kv_heads: int) -> None:
    q, k, v = heads(19, num_kv_heads=num_kv_heads)

    expected = dense_attention(q, k, v, window=19, scale=0.5)
    torch.testing.assert_close(causal_attention(q, k, v, scale=0.5), expected, atol=1e-5, rtol=0)


class ScoreCounter(TorchDispatchMode):
    """Counts the scores that attention kernels are asked for: queries times keys."""

    num_scores = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.num_scores += args[0].shape[2] * args[1].shape[2]
        return func(*args, **(kwargs or {}))


def test_the_work_of_a_local_layer_grows_with_the_sequence_times_the_window() -> None:
    q, k, v = (x.detach() for x in heads(2_048))
    with ScoreCounter() as counter:
        window_attention(q, k, v, window=256, scale=1.0)

    assert counter.num_scores <= 2_048 * 256 * 1.25
