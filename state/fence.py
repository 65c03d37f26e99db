"""The fence: a late commit of an older attempt never becomes the head."""

from __future__ import annotations

from enum import StrEnum


class Commit(StrEnum):
    """What becomes of a verified checkpoint."""

    HEAD = "head"
    """It extends the run's lineage and is its new head."""
    BRANCH = "branch"
    """It is kept and shown, and never used unless the user adopts it."""


def next_fence(newest_fence: int) -> int:
    """Return the token of the next attempt of a run; 1 for the first one."""
    return newest_fence + 1


def judge_commit(*, fence: int, newest_fence: int, branch: str | None, step: int, head_step: int) -> Commit:
    """Decide what a verified checkpoint becomes.

    An attempt is launched only from the head and only when no other can be alive, so the newest token is enough to know
    that its checkpoints descend from the head.

    Args:
        fence: The token that the checkpoint carries.
        newest_fence: The newest token that the run has given out.
        branch: The branch that the attempt was launched for, if any.
        step: The checkpoint's step.
        head_step: The head's step; 0 when there is none.
    """
    if branch is not None or fence < newest_fence or step <= head_step:
        return Commit.BRANCH
    return Commit.HEAD
