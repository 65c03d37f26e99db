"""How much of a run's checkpoints may stand on the account: pure."""

from __future__ import annotations

import math

from pydantic import Field

from state.document import Document

_FEWEST_VERIFIED = 2  # one may turn out corrupt: the other is what the run falls back to
SPEC_VERSION = 1  # the first version of an attempt's dataset holds the session's spec, and no checkpoint


class StoragePlan(Document):
    """How much an attempt may leave on the account."""

    most_versions: int = Field(ge=1, description="versions of its dataset that may stand")
    most_uploads: int = Field(ge=1, description="uploads that there is room for")
    is_over_budget: bool = Field(description="even the fewest that are safe do not fit beside what is there")


def storage_plan(
    *, checkpoint_bytes: int, stored_bytes: int, budget_bytes: int, uploads: int, kept_attempts: int, num_elsewhere: int
) -> StoragePlan:
    """Return how many versions an attempt's dataset may hold, so that all of a run's stay within the budget.

    Kaggle deletes old versions all at once or not at all, so that the number only says when. The new version then stands
    alone in the dataset, and nobody has verified it yet: where fewer than two verified checkpoints stand in other datasets,
    nothing is deleted, and what has no room is uploaded less often. Half of the room is left to the sessions that follow.

    Args:
        checkpoint_bytes: Size of one checkpoint; 0: not known.
        stored_bytes: What the run holds on the account already.
        budget_bytes: What it may hold.
        uploads: How often the attempt will upload at most.
        kept_attempts: Attempts whose datasets stay beside this one for a while.
        num_elsewhere: Verified checkpoints of the run that stand in other datasets.
    """
    everything = StoragePlan(most_versions=uploads + SPEC_VERSION, most_uploads=uploads, is_over_budget=False)
    if checkpoint_bytes <= 0:
        return everything
    left = math.floor((budget_bytes - stored_bytes) / checkpoint_bytes)
    if num_elsewhere < _FEWEST_VERIFIED:
        most_uploads = max(min(uploads, left // 2), _FEWEST_VERIFIED)
        return everything.evolve(most_uploads=min(most_uploads, uploads), is_over_budget=left < _FEWEST_VERIFIED)
    fair = math.floor(budget_bytes / checkpoint_bytes / (kept_attempts + 1))
    if uploads <= min(left, max(fair, 1)):
        return everything
    most = max(min(left, fair, uploads), 1)
    return everything.evolve(most_versions=most + SPEC_VERSION, is_over_budget=left < 1)
