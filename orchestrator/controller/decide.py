"""Decides the next action for a run from its record; pure functions without side effects."""

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
    """Plan a new attempt and submit it to the backend."""

    session: int
    attempt: int
    start_checkpoint: str | None
    branch: str | None = None
    adopt: bool = False
    max_steps: int | None = None


@dataclass(frozen=True)
class Resume:
    """Continue to launch an attempt that is recorded as planned but was not submitted."""

    attempt: AttemptRecord


@dataclass(frozen=True)
class Drop:
    """Drop a planned attempt that was never submitted."""

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
    """Do nothing now."""

    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class Finish:
    """End the run for now: it has reached its last step, or the user asked it to stop."""

    state: RunState
    message: str


@dataclass(frozen=True)
class GiveUp:
    """Stop the run as failed: it cannot continue until the user changes something."""

    message: str
    exit_code: int


Decision = Launch | Resume | Drop | AskToStop | Kill | Wait | Finish | GiveUp


def decide(record: RunRecord, quota: Quota, now: datetime, by_hand: AttemptRecord | None = None) -> Decision:
    """Return the next action for a run.

    Args:
        record: The run's record, reconciled with what the tick observed.
        quota: Whether the run's backend accepts another session.
        now: The current time.
        by_hand: An attempt that has ended in the record and that the user runs again by hand; None if there is none.
    """
    if record.live_attempt is not None:
        return _about_live_attempt(record.live_attempt, record.wishes.stop, now)
    if by_hand is not None:
        return Wait(f"session {by_hand.session} attempt {by_hand.attempt} is run by hand; the controller waits until it ends")
    stop, rerun = record.wishes.stop, record.wishes.rerun
    if rerun is not None and stop is None:
        return _rerun(record, rerun.session, adopt=rerun.adopt)
    if record.header.state is not RunState.ACTIVE:
        return _as_it_is(record)
    if record.head_step >= record.spec.total_steps:
        return Finish(RunState.FINISHED, f"the run has reached step {record.head_step} of {record.spec.total_steps}")
    if stop is not None:
        return Finish(RunState.STOPPED, stop_message(stop, record.head_step))
    match judge(record):
        case StopAndExplain(message, exit_code):
            return GiveUp(message, exit_code)
        case GoOn(not_before) if not_before is not None and now < not_before:
            return Wait("the last attempt failed without progress; the retry is delayed", not_before)
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
            return Kill(live, "killed on the user's request")
        late = _is_late(live, now)
        # After the machine was suspended, a healthy worker is late as well. So ask it to stop first; kill it only if it does not.
        if late and live.asked_at is not None and now > live.asked_at + timedelta(seconds=live.grace_s):
            return Kill(live, "it exceeded its time limit and did not stop when asked")
        if late or stop is StopWish.CHECKPOINT:
            return AskToStop(live)
    return Wait(f"{name} is {live.state} on {live.backend}")


def _is_late(live: AttemptRecord, now: datetime) -> bool:
    """Return whether an attempt has exceeded its time limit and grace; time in the queue does not count."""
    since = live.running_at or live.launched_at
    if live.state is AttemptState.QUEUED or since is None:
        return False
    return now > since + timedelta(seconds=live.limit_s + live.grace_s)


def stop_message(stop: StopWish, head_step: int) -> str:
    """Return the `message` of a run that the user stopped."""
    how = "stopped on request" if stop is StopWish.CHECKPOINT else "killed on request"
    return f"{how}, at step {head_step}; the same start command continues from there"


def _as_it_is(record: RunRecord) -> Finish | GiveUp:
    message = record.header.message or ""
    if record.header.state is RunState.FAILED:
        return GiveUp(message, record.header.exit_code or ExitCode.USER)
    return Finish(record.header.state, message)


def _next_session(record: RunRecord) -> Launch:
    """Return the launch of the next session, or a retry of the last one if that saved no new step."""
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
    """Return the number of a session's next attempt."""
    return 1 + max((attempt.attempt for attempt in record.attempts if attempt.session == session), default=0)


def _rerun(record: RunRecord, session: int, *, adopt: bool) -> Launch:
    original = first_attempt_with_progress(record, session)
    later = any(
        attempt.session > session and attempt.branch is None and attempt.saved_step is not None for attempt in record.attempts
    )
    max_steps = record.spec.limits.session_steps
    if later and original.saved_step is not None:  # the comparison needs the same last step as the original
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
    """Return the attempt of a session with which its rerun is compared.

    That is the first one in the lineage that saved a new step; if none did, the first attempt.

    Raises:
        ValueError: the run has no such session. The command line checks this before it records the request.
    """
    attempts = [attempt for attempt in record.attempts if attempt.session == session]
    if not attempts:
        raise ValueError(f"run {record.name} has no session {session}")
    with_progress = [attempt for attempt in attempts if attempt.branch is None and attempt.saved_step is not None]
    return with_progress[0] if with_progress else attempts[0]
