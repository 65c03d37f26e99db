"""What the model uses of torch that torch may change without a word; each has something public to take its place.

Whether torch has it follows from torch's version, which a checkpoint's environment names: so a chain's bits do. A session says at
its start what takes whose place.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PrivateOperator:
    """An operator as it is called here."""

    namespace: str
    name: str
    schema: str
    instead: str
    """What a session does without it, in words."""

    def is_known(self, operators: Any = torch.ops) -> bool:
        """Return whether torch has it, and with the arguments that are known here."""
        operator = getattr(getattr(operators, self.namespace, None), self.name, None)
        return str(getattr(getattr(operator, "default", None), "_schema", None)) == self.schema

    def missing(self) -> str:
        """Return the line for the log where torch does not have it."""
        return f"torch {torch.__version__} has no {self.namespace}::{self.name} that gemma-orch knows: {self.instead}"


ONEDNN_PRODUCT = PrivateOperator(
    namespace="mkldnn",
    name="_linear_pointwise",
    schema="mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y",
    instead="torch's own product of matrices is used, which may be slower",
)
GELU_BACKWARD = PrivateOperator(
    namespace="aten",
    name="gelu_backward",
    schema='aten::gelu_backward(Tensor grad_output, Tensor self, *, str approximate="none") -> Tensor',
    instead="autograd is used, which gives the same bits and needs more memory",
)


def let_backward_recompute(say: Callable[[str], None], module: str = "torch._functorch.config") -> None:
    """Let compiled backward passes recompute the inputs of matrix products, which are cheap, from what is kept anyway.

    The peak of a step is 16 % lower, and the step is not slower (50 M-parameter configuration, CPU).

    Args:
        say: Told when this torch does not have the setting.
        module: Where torch has it.
    """
    try:
        partitioner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        partitioner = None
    if hasattr(partitioner, "ban_recompute_materialized_backward"):
        partitioner.ban_recompute_materialized_backward = False
    else:
        say(f"torch {torch.__version__} has no {module}.ban_recompute_materialized_backward: compiled layers need more memory")
