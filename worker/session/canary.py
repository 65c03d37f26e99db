"""The canary: a restored state must give the very loss that its checkpoint promised, before anything is built on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from state.errors import CanaryError

OTHER_ENVIRONMENT_TOLERANCE = 1e-3
"""Largest relative difference of the loss between two environments.

Another torch, processor or number of threads adds the same numbers up in another order, which moves an fp32 loss in its
sixth digit; what the canary is there for, a wrong tensor or a wrong batch, moves it far more."""


@dataclass(frozen=True)
class Canary:
    """What the first step after a restore must show."""

    checkpoint_id: str
    next_loss: float
    same_environment: bool
    """Whether all is the same that decides the bits: then the loss must be the same to the last of them."""

    def check(self, loss: float) -> None:
        """Compare the first loss with the promised one.

        Raises:
            CanaryError: it is another; the checkpoint, or how it was restored, is wrong.
        """
        tolerance = 0.0 if self.same_environment else OTHER_ENVIRONMENT_TOLERANCE
        if loss == self.next_loss or math.isclose(loss, self.next_loss, rel_tol=tolerance):
            return
        where = "in the same environment" if self.same_environment else f"within {tolerance:g} of it, relative"
        raise CanaryError(
            self.checkpoint_id,
            f"the first step after checkpoint {self.checkpoint_id} has loss {loss!r}",
            expected=f"{self.next_loss!r} {where}, as the checkpoint's manifest promises",
        )
