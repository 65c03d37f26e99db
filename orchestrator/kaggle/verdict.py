"""From what was seen of an attempt on Kaggle to what the controller is told: pure.

A word of Kaggle's that it is over is believed when the attempt's report is there or a second look says the same: a new
session that starts because of a stale or wrong answer would train beside the old one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.backends.base import Observation, Sighting
from orchestrator.kaggle.seen import Seen
from state.kaggle.records import SessionStatus
from state.kaggle.settings import MACHINE_SHAPES, KaggleSettings
from state.report import SessionReport

_MOST_LOOKS_AFTER_END = 30  # then the run goes on without what could not be looked through: should it show later, it is a branch
_NO_ACCELERATOR = ("", "None")


def judge(
    seen: Seen,
    *,
    launched_at: datetime | None,
    report: SessionReport | None,
    delivered: bool,
    salvaged: bool,
    settings: KaggleSettings,
    now: datetime,
) -> Observation:
    """Return what is to be made of what was seen.

    Args:
        seen: What was seen.
        launched_at: When the attempt was pushed; none: nobody knows that it was.
        report: Its report, once found.
        delivered: Whether it is known what became of the last checkpoint that the report names; without a report, False.
        salvaged: Whether all was looked through that it left in its dataset and in its output.
        settings: How long reads may lag.
        now: The current moment.
    """
    settle = timedelta(seconds=settings.settle_s)
    processing = timedelta(seconds=max(settings.settle_s, settings.processing_limit_s))
    if seen.ended is not None:
        return _over(seen, report, settings, now, delivered=delivered, salvaged=salvaged)
    if seen.missing_since is not None:
        return _missing(seen, launched_at, report, settle, now)
    if (
        report is not None
        and seen.failure is not None
        and seen.report_at is not None
        and now >= seen.report_at + (settle if delivered else processing)
    ):
        # The report is a session's last act; a status that cannot be had for days must not hold the chain up.
        return Observation(Sighting.ENDED, f"its report says that it is over; Kaggle says nothing of it: {seen.failure}")
    if seen.failure is not None or seen.status in (None, SessionStatus.UNKNOWN):
        return Observation(Sighting.UNKNOWN, _unknown(seen))
    if seen.status is SessionStatus.QUEUED:
        return Observation(Sighting.QUEUED, "it waits for a machine of Kaggle's")
    return Observation(Sighting.RUNNING, substituted(seen, settings) or "")


def substituted(seen: Seen, settings: KaggleSettings) -> str | None:
    """Return, in words, which machine a session got when it is not the one that was asked for."""
    asked = MACHINE_SHAPES[settings.accelerator]
    if seen.shape is None or seen.shape == asked or (seen.shape in _NO_ACCELERATOR and asked in _NO_ACCELERATOR):
        return None
    return f"Kaggle gave it {seen.shape or 'no accelerator'} instead of {asked}"


def _over(
    seen: Seen, report: SessionReport | None, settings: KaggleSettings, now: datetime, *, delivered: bool, salvaged: bool
) -> Observation:
    if report is None and not seen.ended_again:
        return Observation(Sighting.UNKNOWN, "Kaggle says that it is over; that is believed when it says so again")
    # What was saved and is being processed is worth more than the wait: a session that started without it would do it all again.
    may_come = report is not None or (seen.dataset is not None and seen.dataset.is_processing)
    wait_s = max(settings.settle_s, settings.processing_limit_s) if may_come else settings.settle_s
    until = (seen.ended_at or now) + timedelta(seconds=wait_s)
    if not delivered and now < until:
        what = "its last checkpoint" if report is not None else "what it may have delivered"
        return Observation(Sighting.UNKNOWN, f"it is over; {what} may still come to be shown, until {until:%H:%M:%S} UTC")
    if not delivered and not salvaged and seen.looks_after_end < _MOST_LOOKS_AFTER_END:
        return Observation(Sighting.UNKNOWN, "it is over; what it has left behind cannot be looked through now")
    return Observation(Sighting.ENDED, _how_it_ended(seen, report), seen.ended_at)


def _how_it_ended(seen: Seen, report: SessionReport | None) -> str:
    if report is not None:
        return ""
    match seen.ended:
        case SessionStatus.CANCELLED:
            return "Kaggle ended it at its limit, or somebody cancelled it; its outputs are lost, what it had uploaded is not"
        case SessionStatus.ERROR:
            return "its kernel failed without a report, and Kaggle keeps no outputs of such a one; gemma-orch logs may say why"
        case _:
            return "its kernel is complete and left no report: it was cut off, or its outputs were lost"


def _missing(
    seen: Seen, launched_at: datetime | None, report: SessionReport | None, settle: timedelta, now: datetime
) -> Observation:
    gone_since = seen.missing_since if seen.alive_at is not None else None  # what was alive is not gone at the first look
    signs = [moment for moment in (launched_at, seen.alive_at, gone_since) if moment is not None]
    believed_at = max(signs) + settle if signs else now
    # Two looks must say so, the last of them when reads could not lag any more: what was seen earlier proves nothing by its age.
    is_so_again = launched_at is None or (seen.missing_at is not None and seen.missing_at > (seen.missing_since or now))
    if not is_so_again or (signs and (seen.missing_at or now) < believed_at):
        return Observation(
            Sighting.UNKNOWN, f"Kaggle does not show it; that it does not exist is believed at {believed_at:%H:%M:%S} UTC"
        )
    if report is not None:
        return Observation(Sighting.ENDED, "", seen.alive_at)
    if seen.alive_at is not None:
        return Observation(Sighting.ENDED, "its kernel is gone: somebody has deleted it", seen.alive_at)
    return Observation(Sighting.MISSING, "Kaggle has no kernel of it")


def _unknown(seen: Seen) -> str:
    said = seen.failure or "Kaggle says nothing about it"
    if seen.alive_at is None or seen.status is None:
        return said
    return f"{said}; last seen {seen.status} at {seen.alive_at:%H:%M:%S} UTC"
