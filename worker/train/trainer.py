"""Runs training steps: each step is a pure function of the state before it and of the batch of its number.

Nothing here is random, and nothing but the state is carried from step to step. So in the same environment the bits do not
depend on how the steps are cut into sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from state.clock import Clock
from state.errors import UserError
from state.spec import TrainingSpec
from worker.train.optim import AdamW, learning_rate


class TrainableModel(Protocol):
    """The methods of a model that the trainer calls."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter with its name."""
        ...

    def loss(self, input_ids_BT: Tensor, target_ids_BT: Tensor, *, num_targets: int | None = None) -> Tensor:
        """Return the summed cross-entropy divided by `num_targets`."""
        ...


class BatchSource(Protocol):
    """The source of batches."""

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets) of a step, [B, T] each."""
        ...


@dataclass(frozen=True)
class StepResult:
    """The measurements of one step."""

    step: int
    """Number of steps done, including this one."""
    loss: float
    """Before the update, in nats per token."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""


class Trainer:
    """Holds the training state (model, optimizer, step) and advances it step by step.

    A step is two calls, `gradients` and `update`: after a restore, the loss is compared with the canary between them, before
    the update changes the state.
    """

    def __init__(
        self,
        model: TrainableModel,
        optimizer: AdamW,
        batches: BatchSource,
        training: TrainingSpec,
        *,
        total_steps: int,
        step: int,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.step = step
        self.forward_s = 0.0
        """Seconds that the forward passes of the last batch took."""
        self._batches = batches
        self._training = training
        self._total_steps = total_steps
        self._device = device
        self._clock = clock
        self._loss: float | None = None

    def gradients(self) -> float:
        """Compute the gradients of the next step and return its loss; the state does not change.

        Raises:
            UserError: the loss is not finite.
        """
        self._loss = self._accumulate(backward=True)
        if not math.isfinite(self._loss):
            raise _diverged(f"the loss of step {self.step + 1} is {self._loss}")
        return self._loss

    def update(self) -> StepResult:
        """Apply the computed gradients, which completes the step.

        Raises:
            UserError: the gradient norm is not finite; the state does not change.
        """
        if self._loss is None:
            raise RuntimeError("update without gradients")
        grad_norm = self.optimizer.gradient_norm()
        if not math.isfinite(grad_norm):
            raise _diverged(f"the gradient norm of step {self.step + 1} is {grad_norm}")
        rate = learning_rate(self._training, self.step, self._total_steps)
        self.optimizer.step(self.step + 1, rate, grad_norm)
        self._forget_gradients()
        self.step += 1
        result = StepResult(step=self.step, loss=self._loss, learning_rate=rate, grad_norm=grad_norm)
        self._loss = None
        return result

    def next_loss(self) -> float:
        """Return the loss that the next step will have, bit for bit, without training it."""
        # The pass records a graph although no backward pass follows: without it, torch may choose other kernels, which round
        # differently.
        return self._accumulate(backward=False)

    def _accumulate(self, *, backward: bool) -> float:
        inputs_BT, targets_BT = (torch.from_numpy(array).to(self._device) for array in self._batches.batch(self.step))
        size = self._training.micro_batch_size or self._training.batch_size
        losses = []
        self.forward_s = 0.0
        for first in range(0, len(inputs_BT), size):
            begun_s = self._clock.monotonic()
            part = slice(first, first + size)
            loss = self.model.loss(inputs_BT[part], targets_BT[part], num_targets=targets_BT.numel())
            losses.append(loss.detach())
            self.forward_s += self._clock.monotonic() - begun_s
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
        return float(torch.stack(losses).sum())

    def _forget_gradients(self) -> None:
        for _, parameter in self.model.named_parameters():
            parameter.grad = None


def _diverged(evidence: str) -> UserError:
    return UserError(
        f"the training has diverged: {evidence}",
        remedy="start another run with a lower training.learning_rate or a longer training.warmup_steps",
    )
