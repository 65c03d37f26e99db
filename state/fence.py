"""The fence: a late checkpoint of an older attempt never becomes the head."""

from __future__ import annotations

from enum import StrEnum


class Commit(StrEnum):
    """Place of a verified checkpoint in the run."""

    HEAD = "head"
    """It extends the run's lineage and is its new head."""
    BRANCH = "branch"
    """It is kept and shown, and never used unless the user makes it the head."""


def next_fence(newest_fence: int) -> int:
    """Return the fence token of the next attempt of a run; the first one gets 1."""
    return newest_fence + 1


def judge_commit(*, fence: int, newest_fence: int, branch: str | None, step: int, head_step: int) -> Commit:
    """Decide whether a verified checkpoint becomes the head or a branch.

    An attempt is launched from the head only, and only when no other attempt can be alive. So a checkpoint that carries the
    newest token descends from the head.

    Args:
        fence: The token that the checkpoint carries.
        newest_fence: The newest token that an attempt of the run has.
        branch: The branch that the attempt was launched for, if any.
        step: The checkpoint's step.
        head_step: The head's step; 0 if the run has no head yet.
    """
    if branch is not None or fence < newest_fence or step <= head_step:
        return Commit.BRANCH
    return Commit.HEAD
