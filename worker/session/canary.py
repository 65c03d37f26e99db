"""The canary: the first loss after a restore must equal the `next_loss` in the checkpoint's manifest.

It is compared before the first update, so that a wrong state is never trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from state.errors import CanaryError

OTHER_ENVIRONMENT_TOLERANCE = 1e-3
"""Largest relative difference of the loss between two environments.

Another torch, processor or number of threads adds the same numbers in another order, which changes an fp32 loss in its
sixth digit. The faults that the canary must catch, a wrong tensor or a wrong batch, change it far more."""


@dataclass(frozen=True)
class Canary:
    """The loss that the first step after a restore must show."""

    checkpoint_id: str
    next_loss: float
    same_environment: bool
    """Whether everything that decides the bits (torch, processor, threads ...) is the same: then the loss must be equal
    bit for bit."""

    def check(self, loss: float) -> None:
        """Compare the first loss with the expected one.

        Raises:
            CanaryError: they differ: the checkpoint, or the way it was restored, is wrong.
        """
        tolerance = 0.0 if self.same_environment else OTHER_ENVIRONMENT_TOLERANCE
        if loss == self.next_loss or math.isclose(loss, self.next_loss, rel_tol=tolerance):
            return
        where = "in the same environment" if self.same_environment else f"within {tolerance:g} of it, relative"
        raise CanaryError(
            self.checkpoint_id,
            f"the first step after checkpoint {self.checkpoint_id} has loss {loss!r}",
            expected=f"{self.next_loss!r} {where} (next_loss in the checkpoint's manifest)",
        )
