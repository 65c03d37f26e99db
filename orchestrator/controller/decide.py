"""What to do next with a run: one decision from its record. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.controller.retry import GoOn, StopAndExplain, judge
from orchestrator.ports import Quota
from state.errors import ExitCode
from state.ledger import AttemptRecord, RunRecord, StopWish
from state.session import AttemptState, RunState


@dataclass(frozen=True)
class Launch:
    """Plan a new attempt and launch it."""

    session: int
    attempt: int
    start_checkpoint: str | None
    branch: str | None = None
    adopt: bool = False
    max_steps: int | None = None


@dataclass(frozen=True)
class Resume:
    """Go on with an attempt whose intent is durable and whose launch is not certain."""

    attempt: AttemptRecord


@dataclass(frozen=True)
class Drop:
    """Forget an attempt that was never sent."""

    attempt: AttemptRecord


@dataclass(frozen=True)
class AskToStop:
    """Ask the live attempt to save at its next step boundary and end."""

    attempt: AttemptRecord


@dataclass(frozen=True)
class Kill:
    """End the live attempt at once."""

    attempt: AttemptRecord
    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing may be done now."""

    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class Finish:
    """The run is over for now: its last step is reached, or the user asked it to stop."""

    state: RunState
    message: str


@dataclass(frozen=True)
class GiveUp:
    """The run cannot go on until somebody changes something."""

    message: str
    exit_code: int


Decision = Launch | Resume | Drop | AskToStop | Kill | Wait | Finish | GiveUp


def decide(record: RunRecord, quota: Quota, now: datetime, by_hand: AttemptRecord | None = None) -> Decision:
    """Return the one next thing to do with a run.

    Args:
        record: What is remembered, reconciled with the world.
        quota: What the run's backend says about taking another session.
        now: The current moment.
        by_hand: An attempt that the record holds for over and that somebody runs again by hand.
    """
    if record.live_attempt is not None:
        return _about_live_attempt(record.live_attempt, record.wishes.stop, now)
    if by_hand is not None:
        return Wait(f"session {by_hand.session} attempt {by_hand.attempt} is being run by hand")
    stop, rerun = record.wishes.stop, record.wishes.rerun
    if rerun is not None and stop is None:
        return _rerun(record, rerun.session, adopt=rerun.adopt)
    if record.header.state is not RunState.ACTIVE:
        return _as_it_is(record)
    if record.head_step >= record.spec.total_steps:
        return Finish(RunState.FINISHED, f"step {record.head_step} of {record.spec.total_steps} is reached")
    if stop is not None:
        return Finish(RunState.STOPPED, stop_message(stop, record.head_step))
    match judge(record):
        case StopAndExplain(message, exit_code):
            return GiveUp(message, exit_code)
        case GoOn(not_before) if not_before is not None and now < not_before:
            return Wait("the last attempt failed without progress; the next one waits a little", not_before)
        case GoOn():
            pass
    if not quota.available:
        return Wait(quota.reason, quota.until)
    return _next_session(record)


def _about_live_attempt(live: AttemptRecord, stop: StopWish | None, now: datetime) -> Decision:
    name = f"session {live.session} attempt {live.attempt}"
    if live.state is AttemptState.PLANNED:
        return Resume(live) if stop is None else Drop(live)
    if live.state in (AttemptState.QUEUED, AttemptState.RUNNING):
        if stop is StopWish.NOW:
            return Kill(live, "the user asked for it")
        late = _is_late(live, now)
        # A machine that has slept makes a healthy worker late: it is asked before it is killed.
        if late and live.asked_at is not None and now > live.asked_at + timedelta(seconds=live.grace_s):
            return Kill(live, "it is past its limit and did not stop when asked")
        if late or stop is StopWish.CHECKPOINT:
            return AskToStop(live)
    return Wait(f"{name} is {live.state} on {live.backend}")


def _is_late(live: AttemptRecord, now: datetime) -> bool:
    """Return whether an attempt has run longer than it may; one that is queued uses nothing up, however long it waits."""
    since = live.running_at or live.launched_at
    if live.state is AttemptState.QUEUED or since is None:
        return False
    return now > since + timedelta(seconds=live.limit_s + live.grace_s)


def stop_message(stop: StopWish, head_step: int) -> str:
    """Return what a run says about itself after it was stopped."""
    how = "stopped as asked" if stop is StopWish.CHECKPOINT else "stopped at once as asked"
    return f"{how}, at step {head_step}; the same start command goes on from there"


def _as_it_is(record: RunRecord) -> Finish | GiveUp:
    message = record.header.message or ""
    if record.header.state is RunState.FAILED:
        return GiveUp(message, record.header.exit_code or ExitCode.USER)
    return Finish(record.header.state, message)


def _next_session(record: RunRecord) -> Launch:
    """Return the next session, or the next attempt of the last one when that brought nothing."""
    line = [attempt for attempt in record.attempts if attempt.branch is None and attempt.state is not AttemptState.DROPPED]
    last = line[-1] if line else None
    if last is None:
        session = 1
    elif last.saved_step is None:
        session = last.session
    else:
        session = max(attempt.session for attempt in line) + 1
    return Launch(
        session=session,
        attempt=next_attempt_number(record, session),
        start_checkpoint=record.header.head,
        max_steps=record.spec.limits.session_steps,
    )


def next_attempt_number(record: RunRecord, session: int) -> int:
    """Return the number that the next attempt of a session gets."""
    return 1 + max((attempt.attempt for attempt in record.attempts if attempt.session == session), default=0)


def _rerun(record: RunRecord, session: int, *, adopt: bool) -> Launch:
    original = first_attempt_with_progress(record, session)
    later = any(
        attempt.session > session and attempt.branch is None and attempt.saved_step is not None for attempt in record.attempts
    )
    max_steps = record.spec.limits.session_steps
    if later and original.saved_step is not None:  # to be compared, it must end where the original did
        max_steps = original.saved_step - original.start_step
    number = next_attempt_number(record, session)
    return Launch(
        session=session,
        attempt=number,
        start_checkpoint=original.start_checkpoint,
        branch=f"rerun-s{session:03d}a{number}",
        adopt=adopt or not later,
        max_steps=max_steps,
    )


def first_attempt_with_progress(record: RunRecord, session: int) -> AttemptRecord:
    """Return the attempt of a session that its rerun is compared with: the one on the run's line that brought it on.

    Raises:
        ValueError: the run has no such session; the command line checks this before it writes the wish.
    """
    attempts = [attempt for attempt in record.attempts if attempt.session == session]
    if not attempts:
        raise ValueError(f"run {record.name} has no session {session}")
    with_progress = [attempt for attempt in attempts if attempt.branch is None and attempt.saved_step is not None]
    return with_progress[0] if with_progress else attempts[0]
