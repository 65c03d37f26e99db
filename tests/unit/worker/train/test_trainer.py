from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from state.clock import SystemClock
from state.errors import UserError
from state.spec import TrainingSpec
from tests.sessions import VOCAB, small_architecture
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state
from worker.train.optim import AdamW
from worker.train.trainer import BatchSource, TrainableModel, Trainer


class RandomBatches:
    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = np.random.default_rng(step).integers(0, VOCAB, (4, 9))
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


class Broken(nn.Module):
    """A model whose loss, or whose gradient, is no number."""

    def __init__(self, *, loss: float, slope: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self._loss, self._slope = loss, slope

    def loss(self, input_ids_BT: Tensor, target_ids_BT: Tensor, *, num_targets: int | None = None) -> Tensor:
        return _BrokenLoss.apply(self.weight, self._loss, self._slope)


class _BrokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, loss: float, slope: float) -> Tensor:
        ctx.slope, ctx.shape = slope, weight.shape
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return torch.full(ctx.shape, ctx.slope), None, None


class OneBatch(RandomBatches):
    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return super().batch(0)


def trainer(model: TrainableModel | None = None, batches: BatchSource | None = None, **values: object) -> Trainer:
    training = TrainingSpec(**{"batch_size": 4, "warmup_steps": 2, **values})
    if model is None:
        arch = small_architecture()
        model = Gemma3(arch)
        model.load_state_dict(initial_state(arch, 0))
    optimizer = AdamW(dict(model.named_parameters()), training)
    return Trainer(
        model,
        optimizer,
        batches or RandomBatches(),
        training,
        total_steps=100,
        step=0,
        device=torch.device("cpu"),
        clock=SystemClock(),
    )


def weights(made: Trainer) -> Iterator[Tensor]:
    return (parameter.detach() for _, parameter in made.model.named_parameters())


def train(made: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        made.gradients()
        losses.append(made.update().loss)
    return losses


def test_the_loss_falls_when_the_same_batch_comes_again_and_again():
    made = trainer(batches=OneBatch(), learning_rate=0.01)
    losses = train(made, 30)
    assert losses[-1] < losses[0] - 1.0


def test_micro_batches_add_up_to_the_batch():
    whole, halves, singles = trainer(), trainer(micro_batch_size=2), trainer(micro_batch_size=1)
    for made in (whole, halves, singles):
        made.gradients()
    for (_, one), (_, two), (_, four) in zip(
        whole.model.named_parameters(), halves.model.named_parameters(), singles.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(four.grad, one.grad, rtol=1e-4, atol=1e-7)
    assert train(halves, 3) == pytest.approx(train(whole, 3), rel=1e-5)


@pytest.mark.parametrize("size", [None, 2])
def test_the_next_loss_is_told_to_the_last_bit_and_changes_nothing(size: int | None):
    made, other = trainer(micro_batch_size=size), trainer(micro_batch_size=size)
    train(made, 2)
    train(other, 2)
    told = made.next_loss()
    assert all(parameter.grad is None for _, parameter in made.model.named_parameters())
    assert made.gradients() == told == other.gradients()
    made.update()
    other.update()
    assert all(torch.equal(one, two) for one, two in zip(weights(made), weights(other), strict=True))


def test_the_same_steps_give_the_same_bits():
    one, two = trainer(), trainer()
    assert train(one, 4) == train(two, 4)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(one), weights(two), strict=True))


def test_a_step_tells_its_number_rate_and_norm():
    made = trainer(learning_rate=0.5, warmup_steps=2)
    made.gradients()
    first = made.update()
    assert (first.step, first.learning_rate) == (1, 0.25)
    assert first.grad_norm > 0
    assert made.step == 1
    assert made.forward_s > 0


def test_gradients_are_gone_after_the_update():
    made = trainer()
    train(made, 1)
    assert all(parameter.grad is None for _, parameter in made.model.named_parameters())


def test_an_update_needs_gradients():
    with pytest.raises(RuntimeError, match="update without gradients"):
        trainer().update()


def test_a_loss_that_is_no_number_stops_the_training_before_the_weights_change():
    made = trainer(Broken(loss=float("nan"), slope=1.0))
    with pytest.raises(UserError, match="the loss of step 1 is nan"):
        made.gradients()
    assert next(weights(made)).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_gradient_that_is_no_number_stops_the_training_before_the_weights_change():
    made = trainer(Broken(loss=1.0, slope=float("inf")))
    made.gradients()
    with pytest.raises(UserError, match="the gradient norm of step 1 is inf"):
        made.update()
    assert next(weights(made)).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert made.step == 0
