"""The states of an attempt and of a run, and the moves between them: one table each."""

from __future__ import annotations

from enum import StrEnum


class AttemptState(StrEnum):
    """Where an attempt is in its life."""

    PLANNED = "planned"
    """The intent is durable; nothing has been sent."""
    LAUNCHING = "launching"
    """Sent, or about to be: whether it exists is known only by looking."""
    QUEUED = "queued"
    """The backend has it and has not started it."""
    RUNNING = "running"
    """The backend says that it runs."""
    ENDED = "ended"
    """The backend says that it is over; its results are not collected yet."""
    DONE = "done"
    """Collected, with a report."""
    LOST = "lost"
    """Collected, without a report: what it had committed is kept."""
    DROPPED = "dropped"
    """Never sent: the user stopped the run before."""


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
"""Every allowed move. Planned again after launching: we looked, and it is not there. Queued again after running: a
platform may take a job back (Slurm's requeue)."""

LIVE_STATES = frozenset(
    {
        AttemptState.PLANNED,
        AttemptState.LAUNCHING,
        AttemptState.QUEUED,
        AttemptState.RUNNING,
        AttemptState.ENDED,
    }
)
"""States in which an attempt of a run forbids another one."""


class RunState(StrEnum):
    """Where a run is in its life."""

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
"""Every allowed move; `start` makes a run active again, whatever ended it."""


class IllegalMoveError(ValueError):
    """A move that no table allows: a mistake in the program, never the user's."""


def check_attempt_move(old: AttemptState, new: AttemptState) -> None:
    """Raise IllegalMoveError unless the table allows the move; staying is always allowed."""
    if new != old and new not in ATTEMPT_MOVES[old]:
        raise IllegalMoveError(f"an attempt cannot go from {old} to {new}")


def check_run_move(old: RunState, new: RunState) -> None:
    """Raise IllegalMoveError unless the table allows the move; staying is always allowed."""
    if new != old and new not in RUN_MOVES[old]:
        raise IllegalMoveError(f"a run cannot go from {old} to {new}")
