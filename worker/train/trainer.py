"""The training itself: a step is a pure function of the state before it and of the batch that its number names.

Nothing in here is random and nothing is remembered but the state. With the same environment the same bits come out,
however many sessions the steps are cut into.
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
    """What the trainer needs of a model."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter with its name."""
        ...

    def loss(self, input_ids_BT: Tensor, target_ids_BT: Tensor, *, num_targets: int | None = None) -> Tensor:
        """Return the summed cross-entropy divided by `num_targets`."""
        ...


class BatchSource(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets) of a step, [B, T] each."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step tells about itself."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Before the update, in nats a token."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""


class Trainer:
    """Model, optimizer and step: the whole training state, and how it goes on.

    A step is two calls, `gradients` and `update`, because its loss must be judged before the update: it is the canary of
    a restored checkpoint.
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
        """How long the forward passes of the last batch took."""
        self._batches = batches
        self._training = training
        self._total_steps = total_steps
        self._device = device
        self._clock = clock
        self._loss: float | None = None

    def gradients(self) -> float:
        """Compute the loss and the gradients of the next step and return the loss; the state stays as it is.

        Raises:
            UserError: the loss is no finite number.
        """
        self._loss = self._accumulate(backward=True)
        if not math.isfinite(self._loss):
            raise _diverged(f"the loss of step {self.step + 1} is {self._loss}")
        return self._loss

    def update(self) -> StepResult:
        """Apply the gradients that were computed: the step is done.

        Raises:
            UserError: the gradients are no finite numbers; the state stays as it is.
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
        """Return the loss that the next step will have, bit for bit, without training it.

        The pass records a graph although nobody walks it back: without one, other kernels may be chosen.
        """
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
