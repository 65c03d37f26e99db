"""The states of attempts and runs, with a table of allowed moves for each."""

from __future__ import annotations

from enum import StrEnum


class AttemptState(StrEnum):
    """State of an attempt."""

    PLANNED = "planned"
    """The intent is durable; nothing has been sent."""
    LAUNCHING = "launching"
    """Sent, or about to be sent: only a look at the backend tells whether it exists."""
    QUEUED = "queued"
    """The backend has accepted it and not started it."""
    RUNNING = "running"
    """The backend says that it runs."""
    ENDED = "ended"
    """The backend says that it is over; its results are not collected yet."""
    DONE = "done"
    """Collected, with a report."""
    LOST = "lost"
    """Collected, without a report; its committed checkpoints are kept."""
    DROPPED = "dropped"
    """Never sent, because the user stopped the run first."""


ATTEMPT_MOVES: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.PLANNED: frozenset({AttemptState.LAUNCHING, AttemptState.DROPPED}),
    AttemptState.LAUNCHING: frozenset({AttemptState.PLANNED, AttemptState.QUEUED, AttemptState.RUNNING, AttemptState.ENDED}),
    AttemptState.QUEUED: frozenset({AttemptState.RUNNING, AttemptState.ENDED}),
    AttemptState.RUNNING: frozenset({AttemptState.QUEUED, AttemptState.ENDED}),
    AttemptState.ENDED: frozenset({AttemptState.DONE, AttemptState.LOST}),
    AttemptState.DONE: frozenset(),
    AttemptState.LOST: frozenset(),
    AttemptState.DROPPED: frozenset(),
}
"""Every allowed move. An attempt goes from launching back to planned when a look shows that it does not exist, and from running
back to queued when the platform requeues it (Slurm does)."""

LIVE_STATES = frozenset(
    {
        AttemptState.PLANNED,
        AttemptState.LAUNCHING,
        AttemptState.QUEUED,
        AttemptState.RUNNING,
        AttemptState.ENDED,
    }
)
"""States in which an attempt blocks the launch of another one of its run."""


class RunState(StrEnum):
    """State of a run."""

    ACTIVE = "active"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.ACTIVE: frozenset({RunState.STOPPED, RunState.FINISHED, RunState.FAILED}),
    RunState.STOPPED: frozenset({RunState.ACTIVE}),
    RunState.FINISHED: frozenset({RunState.ACTIVE}),
    RunState.FAILED: frozenset({RunState.ACTIVE}),
}
"""Every allowed move; `start` makes an ended run active again."""


class IllegalMoveError(ValueError):
    """A move that the tables do not allow: a bug in the program, never the user's mistake."""


def check_attempt_move(old: AttemptState, new: AttemptState) -> None:
    """Raise IllegalMoveError unless the table allows the move; staying is always allowed."""
    if new != old and new not in ATTEMPT_MOVES[old]:
        raise IllegalMoveError(f"an attempt cannot go from {old} to {new}")


def check_run_move(old: RunState, new: RunState) -> None:
    """Raise IllegalMoveError unless the table allows the move; staying is always allowed."""
    if new != old and new not in RUN_MOVES[old]:
        raise IllegalMoveError(f"a run cannot go from {old} to {new}")
