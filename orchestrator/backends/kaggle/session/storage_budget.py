"""Plans how many checkpoints an attempt may keep on the account; pure functions."""

from __future__ import annotations

import math

from pydantic import Field

from state.document import Document

_FEWEST_VERIFIED = 2  # if one turns out corrupt, the run falls back to the other
SPEC_VERSION = 1  # the first version of an attempt's dataset holds the session's spec, and no checkpoint


class StoragePlan(Document):
    """Limits of an attempt's dataset."""

    most_versions: int = Field(ge=1, description="versions that its dataset may keep")
    most_uploads: int = Field(ge=1, description="uploads that fit into the budget")
    is_over_budget: bool = Field(description="even the smallest safe number of checkpoints does not fit")


def storage_plan(
    *, checkpoint_bytes: int, stored_bytes: int, budget_bytes: int, uploads: int, kept_attempts: int, num_elsewhere: int
) -> StoragePlan:
    """Return the limits with which all datasets of a run stay within its budget.

    Kaggle deletes all old versions of a dataset at once, or none: `most_versions` says when.

    Args:
        checkpoint_bytes: Size of one checkpoint; 0: not known.
        stored_bytes: Bytes that the run holds on the account already.
        budget_bytes: Bytes that it may hold.
        uploads: The most uploads that the attempt will make.
        kept_attempts: Attempts whose datasets are kept beside this one.
        num_elsewhere: Verified checkpoints of the run in other datasets.
    """
    everything = StoragePlan(most_versions=uploads + SPEC_VERSION, most_uploads=uploads, is_over_budget=False)
    if checkpoint_bytes <= 0:
        return everything
    left = math.floor((budget_bytes - stored_bytes) / checkpoint_bytes)
    # A deletion leaves only the newest version, which is not verified yet. So nothing is deleted while fewer than two verified
    # checkpoints are elsewhere: the attempt uploads less often instead, and leaves half of the room to the next sessions.
    if num_elsewhere < _FEWEST_VERIFIED:
        most_uploads = max(min(uploads, left // 2), _FEWEST_VERIFIED)
        return everything.evolve(most_uploads=min(most_uploads, uploads), is_over_budget=left < _FEWEST_VERIFIED)
    fair = math.floor(budget_bytes / checkpoint_bytes / (kept_attempts + 1))
    if uploads <= min(left, max(fair, 1)):
        return everything
    most = max(min(left, fair, uploads), 1)
    return everything.evolve(most_versions=most + SPEC_VERSION, is_over_budget=left < 1)
