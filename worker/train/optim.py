"""AdamW with fused kernels, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from state.spec import TrainingSpec

EMBEDDING_NAME = "embedder.weight"


def learning_rate(training: TrainingSpec, step: int, total_steps: int) -> float:
    """Return the learning rate of a step.

    The warm-up is linear; its first step has peak / warmup_steps, not 0. After it the rate is constant, or follows a half cosine
    that reaches `min_learning_rate` after the run's last step.

    Args:
        training: Peak, warm-up and schedule.
        step: Steps done before this one.
        total_steps: The step at which the cosine ends; not used by the constant schedule.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    progress = min(1.0, (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps))
    span = training.learning_rate - training.min_learning_rate
    return training.min_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies to a parameter: to matrices only, without norms and the embedding."""
    return parameter.ndim >= 2 and name != EMBEDDING_NAME


class AdamW:
    """AdamW with two state tensors for each parameter; the caller passes the step number and the learning rate.

    It calls the same function as `torch.optim.AdamW(fused=True)` and gives the same bits, which a test checks. The class is not
    used: its constructor imports the compiler, which takes a second at the start of every session.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], training: TrainingSpec) -> None:
        self._training = training
        self._parameters = dict(parameters)
        self.exp_avg = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def reset(self) -> None:
        """Set the moments to zero, their values before the run's first step."""
        for moments in (self.exp_avg, self.exp_avg_sq):
            for moment in moments.values():
                moment.zero_()

    def gradient_norm(self) -> float:
        """Return the global norm of the gradients before clipping."""
        return float(get_total_norm([_gradient(parameter) for parameter in self._parameters.values()]))

    @torch.no_grad()
    def step(self, number: int, rate: float, grad_norm: float) -> None:
        """Update every parameter from its gradient, clipped by the global norm.

        Args:
            number: The number of this step, 1 for the run's first; for the bias correction of the moments.
            rate: Learning rate of this step.
            grad_norm: Global norm of the gradients.
        """
        # The kernel divides the gradients as it reads them, so clipping needs no separate pass over the memory.
        excess = grad_norm / self._training.grad_clip
        scale = torch.tensor(excess) if excess > 1.0 else None
        decayed = [name for name, parameter in self._parameters.items() if is_decayed(name, parameter)]
        others = [name for name, parameter in self._parameters.items() if not is_decayed(name, parameter)]
        self._update(decayed, number, rate, self._training.weight_decay, scale)
        self._update(others, number, rate, 0.0, scale)

    def _update(self, names: Sequence[str], number: int, rate: float, decay: float, scale: Tensor | None) -> None:
        parameters: list[Tensor] = [self._parameters[name] for name in names]
        if not parameters:
            return
        device = parameters[0].device
        done = torch.full((len(names),), float(number - 1), device=device)  # torch adds 1 for this step, in place
        adamw(
            parameters,
            [_gradient(self._parameters[name]) for name in names],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            list(done),
            fused=True,
            lr=rate,
            beta1=self._training.beta1,
            beta2=self._training.beta2,
            weight_decay=decay,
            eps=self._training.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None if scale is None else scale.to(device),
        )


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter has no gradient: the loss does not depend on it")
    return parameter.grad
