"""Compute a run's goodput, speed and ETA from its record. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from state.ledger import AttemptRecord, RunRecord
from state.lineage import ancestors


def goodput(record: RunRecord, now: datetime) -> float | None:
    """Return the seconds of training that survived over the seconds billed, 0 to 1; None before the first launch.

    Training survives if the head's lineage holds its checkpoint. A session is billed from its launch to its end, or until now.
    """
    billed_s = sum(billed_seconds(attempt, now) for attempt in record.attempts)
    if billed_s <= 0.0:
        return None
    survived: dict[tuple[int, int], float] = {}
    for checkpoint_id in ancestors(record.header.head, record.parents):
        checkpoint = record.checkpoints[checkpoint_id]
        key = (checkpoint.session, checkpoint.attempt)
        survived[key] = max(survived.get(key, 0.0), checkpoint.train_s)
    return min(sum(survived.values()) / billed_s, 1.0)


def billed_seconds(attempt: AttemptRecord, now: datetime) -> float:
    """Return the seconds from an attempt's launch to its end, or until now while it runs."""
    if attempt.launched_at is None:
        return 0.0
    return max(((attempt.ended_at or now) - attempt.launched_at).total_seconds(), 0.0)


def steps_per_billed_second(record: RunRecord, now: datetime) -> float | None:
    """Return the head's step over all seconds billed: the rate that the ETA uses, lost time included."""
    billed_s = sum(billed_seconds(attempt, now) for attempt in record.attempts)
    return record.head_step / billed_s if billed_s > 0.0 and record.head_step else None


def steps_per_second(record: RunRecord) -> float | None:
    """Return the steps per second of training of the newest attempt that saved a step; None if no attempt has."""
    for attempt in reversed(record.attempts):
        if attempt.saved_step is not None and attempt.train_s > 0.0:
            return (attempt.saved_step - attempt.start_step) / attempt.train_s
    return None


def eta(record: RunRecord, now: datetime, *, step: int, live_steps_per_s: float | None) -> datetime | None:
    """Return when the last step will be reached at the past rate; None if no rate is known or no step remains.

    Args:
        record: The run.
        now: The current moment.
        step: The last step trained, saved or not.
        live_steps_per_s: The rate that the running session reports; used while the run has no saved step.
    """
    rate = steps_per_billed_second(record, now) or live_steps_per_s
    remaining = record.spec.total_steps - step
    if rate is None or rate <= 0.0 or remaining <= 0:
        return None
    try:
        return now + timedelta(seconds=remaining / rate)
    except OverflowError:
        return None
