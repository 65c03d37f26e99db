"""How much of a run's checkpoints may stand on the account: pure."""

from __future__ import annotations

import math

from pydantic import Field

from state.document import Document

_FEWEST_VERIFIED = 2  # one may turn out corrupt: the other is what the run falls back to
_SPEC_VERSION = 1  # the first version of an attempt's dataset holds the session's spec, and no checkpoint


class StoragePlan(Document):
    """How much an attempt may leave on the account."""

    most_versions: int = Field(ge=1, description="versions of its dataset that may stand")
    is_over_budget: bool = Field(description="even the fewest that are safe do not fit beside what is there")


def storage_plan(
    *, checkpoint_bytes: int, stored_bytes: int, budget_bytes: int, uploads: int, kept_attempts: int, has_start: bool
) -> StoragePlan:
    """Return how many versions an attempt's dataset may hold, so that all of a run's stay within the budget.

    Kaggle deletes old versions all at once or not at all, so that the number only says when. With a start checkpoint in
    another dataset two verified ones remain after that; without one, the attempt's own last two must stand.

    Args:
        checkpoint_bytes: Size of one checkpoint; 0: not known.
        stored_bytes: What the run holds on the account already.
        budget_bytes: What it may hold.
        uploads: How often the attempt will upload at most.
        kept_attempts: Attempts whose datasets stay beside this one for a while.
        has_start: Whether it starts from a checkpoint, which lies in another dataset.
    """
    everything = uploads + _SPEC_VERSION
    if checkpoint_bytes <= 0:
        return StoragePlan(most_versions=everything, is_over_budget=False)
    fewest = 1 if has_start else _FEWEST_VERIFIED
    left = math.floor((budget_bytes - stored_bytes) / checkpoint_bytes)
    fair = math.floor(budget_bytes / checkpoint_bytes / (kept_attempts + 1))
    if uploads <= min(left, max(fair, fewest)):
        return StoragePlan(most_versions=everything, is_over_budget=False)
    most = max(min(left, fair, uploads), fewest)
    return StoragePlan(most_versions=most + _SPEC_VERSION, is_over_budget=left < fewest)
