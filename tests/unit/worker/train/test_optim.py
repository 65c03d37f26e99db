from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from state.spec import TrainingSpec
from worker.train.optim import AdamW, is_decayed, learning_rate

SHAPES = {"embedder.weight": (7, 4), "model.layers.0.mlp.up_proj.weight": (3, 4), "model.norm.weight": (4,)}


def training(**values: object) -> TrainingSpec:
    return TrainingSpec(**{"learning_rate": 0.01, "warmup_steps": 4, **values})


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def give_gradients(owned: dict[str, nn.Parameter], step: int, size: float) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in owned.values():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("size", [0.01, 10.0], ids=["gradients that are left alone", "gradients that are clipped"])
def test_our_adamw_gives_the_bits_of_the_one_in_torch(size: float):
    spec = training()
    mine, theirs = parameters(), parameters()
    optimizer = AdamW(mine, spec)
    groups = [
        {"params": [theirs[name] for name in SHAPES if is_decayed(name, theirs[name])], "weight_decay": 0.1},
        {"params": [theirs[name] for name in SHAPES if not is_decayed(name, theirs[name])], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
    for step in range(5):
        rate = learning_rate(spec, step, 100)
        give_gradients(mine, step, size)
        give_gradients(theirs, step, size)
        norm = optimizer.gradient_norm()
        optimizer.step(step + 1, rate, norm)
        if norm > spec.grad_clip:
            for parameter in theirs.values():
                assert parameter.grad is not None
                parameter.grad /= torch.tensor(norm / spec.grad_clip)
        for group in peer.param_groups:
            group["lr"] = rate
        peer.step()
    for name in SHAPES:
        assert torch.equal(mine[name], theirs[name])
        assert torch.equal(optimizer.exp_avg[name], peer.state[theirs[name]]["exp_avg"])
        assert torch.equal(optimizer.exp_avg_sq[name], peer.state[theirs[name]]["exp_avg_sq"])


def test_clipped_gradients_have_the_norm_that_they_are_clipped_to():
    spec = training(grad_clip=0.5, beta1=0.0, weight_decay=0.0)
    owned = parameters()
    optimizer = AdamW(owned, spec)
    give_gradients(owned, 0, 3.0)
    optimizer.step(1, 0.01, optimizer.gradient_norm())
    # With beta1 = 0 the first moment is the gradient that was applied.
    applied = torch.cat([moment.flatten() for moment in optimizer.exp_avg.values()])
    assert float(applied.norm()) == pytest.approx(0.5, rel=1e-5)


def test_only_matrices_decay_and_the_embedding_does_not():
    owned = parameters()
    assert [name for name in SHAPES if is_decayed(name, owned[name])] == ["model.layers.0.mlp.up_proj.weight"]


def test_a_parameter_without_gradient_is_a_mistake_that_shows():
    with pytest.raises(RuntimeError, match="no gradient"):
        AdamW(parameters(), training()).gradient_norm()


def test_the_learning_rate_warms_up_from_its_first_step_and_stays():
    assert [learning_rate(training(), step, 10) for step in (0, 1, 3, 4, 1_000_000)] == [0.0025, 0.005, 0.01, 0.01, 0.01]


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(training(warmup_steps=0), 0, 10) == 0.01


def test_the_constant_schedule_does_not_know_its_end():
    assert [learning_rate(training(), step, 10) for step in range(20)] == [
        learning_rate(training(), step, 1000) for step in range(20)
    ]


def test_cosine_falls_from_the_peak_to_the_least():
    spec = training(schedule="cosine", min_learning_rate=0.001)
    rates = [learning_rate(spec, step, 24) for step in range(4, 26)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[10] == pytest.approx((0.01 + 0.001) / 2)
    assert rates[20] == pytest.approx(0.001)
    assert rates[21] == pytest.approx(0.001)
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates))


def test_cosine_with_nothing_after_the_warm_up_is_still_a_number():
    assert math.isfinite(learning_rate(training(schedule="cosine"), 4, 4))
