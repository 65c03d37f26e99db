"""From what was seen of an attempt on Kaggle to what the controller is told: pure.

A new session that starts because of a stale, wrong or refused answer would train beside the old one. So a word of Kaggle's
that a session is over is believed when its report is there or a second look says the same. A read that answers 403 or 404 says
nothing: what is known to have been there is gone when lists of the account's kernels do not show it, or past its ceiling.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.backends.kaggle.limits import ceiling
from orchestrator.backends.kaggle.sightings import Seen
from orchestrator.ports import AttemptRef, Observation, Sighting
from state.backend_settings import MACHINE_SHAPES, KaggleSettings
from state.kaggle.names import pushed_kernels
from state.kaggle.records import SessionStatus
from state.report import SessionReport

_MOST_LOOKS_AFTER_END = 30  # then the run goes on without what could not be looked through: should it show later, it is a branch
_NO_ACCELERATOR = ("", "None")


def judge(
    seen: Seen,
    ref: AttemptRef,
    *,
    report: SessionReport | None,
    delivered: bool,
    salvaged: bool,
    settings: KaggleSettings,
    now: datetime,
) -> Observation:
    """Return what is to be made of what was seen.

    Args:
        seen: What was seen.
        ref: Which attempt, and when it was pushed.
        report: Its report, once found.
        delivered: Whether it is known what became of the last checkpoint that the report names; without a report, False.
        salvaged: Whether all was looked through that it left in its dataset and in its output, since `all_shown_at`.
        settings: How long reads may lag.
        now: The current moment.
    """
    shown_at = all_shown_at(seen, ref, report=report, settings=settings)
    if seen.ended is not None:
        sure = report is not None or seen.ended_again or _is_gone(seen, ref, settings) or _is_past_ceiling(seen, ref, settings)
        if not sure:
            return Observation(Sighting.UNKNOWN, "Kaggle says that it is over; that is believed when it says so again")
        left = None if delivered else _left_behind(seen, shown_at, report, now, salvaged=salvaged)
        return left or Observation(Sighting.ENDED, _how_it_ended(seen, report), seen.ended_at)
    is_silent = seen.failure is not None or seen.missing_since is not None
    wait_s = settings.settle_s if delivered else settings.longest_lag_s
    if report is not None and is_silent and seen.report_at is not None and now >= seen.report_at + timedelta(seconds=wait_s):
        # The report is a session's last act; a status that cannot be had for days must not hold the chain up.
        why = seen.failure or "it refuses to show its kernel"
        return Observation(Sighting.ENDED, f"its report says that it is over; Kaggle says nothing of it: {why}")
    if seen.missing_since is not None:
        left = None if delivered else _left_behind(seen, shown_at, report, now, salvaged=salvaged)
        return _refused(seen, ref, report, settings, now, left)
    if seen.failure is not None or seen.status in (None, SessionStatus.UNKNOWN):
        return Observation(Sighting.UNKNOWN, _unknown(seen))
    if seen.status is SessionStatus.QUEUED:
        return Observation(Sighting.QUEUED, "it waits for a machine of Kaggle's")
    return Observation(Sighting.RUNNING, substituted(seen, settings) or "")


def all_shown_at(seen: Seen, ref: AttemptRef, *, report: SessionReport | None, settings: KaggleSettings) -> datetime | None:
    """Return from when on looks must show all that a session has left; None: it is not known to be over.

    What was saved and is being processed is worth more than the wait: a session that started without it would do it all again.
    """
    may_come = report is not None or (seen.dataset is not None and seen.dataset.is_processing)
    wait = timedelta(seconds=settings.longest_lag_s if may_come else settings.settle_s)
    if seen.ended_at is not None:
        return seen.ended_at + wait
    if seen.missing_since is not None and _is_gone(seen, ref, settings):
        return seen.missing_since + wait
    over_at = ceiling(seen, ref, settings) if _is_past_ceiling(seen, ref, settings) else None
    return over_at + wait if over_at is not None else None


def substituted(seen: Seen, settings: KaggleSettings) -> str | None:
    """Return, in words, which machine a session got when it is not the one that was asked for."""
    asked = MACHINE_SHAPES[settings.accelerator]
    if seen.shape is None or seen.shape == asked or (seen.shape in _NO_ACCELERATOR and asked in _NO_ACCELERATOR):
        return None
    return f"Kaggle gave it {seen.shape or 'no accelerator'} instead of {asked}"


def _left_behind(
    seen: Seen, shown_at: datetime | None, report: SessionReport | None, now: datetime, *, salvaged: bool
) -> Observation | None:
    """Return what is still waited for of a session that is over, if anything is."""
    if shown_at is not None and now < shown_at:
        what = "its last checkpoint" if report is not None else "what it may have delivered"
        return Observation(Sighting.UNKNOWN, f"it is over; {what} may still come to be shown, until {shown_at:%H:%M:%S} UTC")
    if not salvaged and seen.looks_after_end < _MOST_LOOKS_AFTER_END:
        return Observation(Sighting.UNKNOWN, "it is over; what it has left behind cannot be looked through now")
    return None


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


def _refused(
    seen: Seen,
    ref: AttemptRef,
    report: SessionReport | None,
    settings: KaggleSettings,
    now: datetime,
    left: Observation | None,
) -> Observation:
    """Return what is to be made of a kernel that Kaggle refuses to show."""
    was_there = _was_there(seen, ref) or report is not None
    is_gone = _is_gone(seen, ref, settings)
    if not was_there and (is_gone or ref.launched_at is None):
        return Observation(Sighting.MISSING, "Kaggle has no kernel of it")
    if not is_gone and not _is_past_ceiling(seen, ref, settings):
        return Observation(Sighting.UNKNOWN, _refusal(seen, ref, settings, now))
    if left is not None:
        return left
    if report is not None:
        return Observation(Sighting.ENDED, "", seen.alive_at)
    if is_gone:
        return Observation(Sighting.ENDED, "its kernel is gone: somebody has deleted it", seen.alive_at)
    over_at = ceiling(seen, ref, settings)
    return Observation(
        Sighting.ENDED,
        f"Kaggle refuses to show its kernel since {_moment(seen.missing_since or now, now)}, and it is past its limit",
        over_at,
    )


def _was_there(seen: Seen, ref: AttemptRef) -> bool:
    """Return whether the kernel is known to have been on the account."""
    return seen.alive_at is not None or seen.listed_at is not None or seen.ended is not None or ref.handle is not None


def _believed_at(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> datetime | None:
    """Return from when on a list that does not show the kernel proves something: when it cannot lag any more."""
    refused_since = seen.missing_since if _was_there(seen, ref) else None
    signs = [at for at in (ref.launched_at, seen.alive_at, seen.listed_at, refused_since) if at is not None]
    return max(signs) + timedelta(seconds=settings.settle_s) if signs else None


def _is_gone(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> bool:
    """Return whether two lists do not show the kernel, nor do reads, the last of each made after the wait is over."""
    believed_at = _believed_at(seen, ref, settings)
    if believed_at is None or seen.missing_at is None or seen.unlisted_at is None or seen.unlisted_since is None:
        return False
    return min(seen.missing_at, seen.unlisted_at) >= believed_at and seen.unlisted_at > seen.unlisted_since


def _is_past_ceiling(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> bool:
    """Return whether it cannot be alive any more, and has been refused for as long as what is shown may lag."""
    over_at = ceiling(seen, ref, settings)
    if over_at is None or seen.missing_at is None or seen.missing_since is None:
        return False
    return seen.missing_at >= max(over_at, seen.missing_since + timedelta(seconds=settings.settle_s))


def _refusal(seen: Seen, ref: AttemptRef, settings: KaggleSettings, now: datetime) -> str:
    """Return, in words, since when Kaggle refuses to show a kernel, and what is believed of it meanwhile."""
    slug = seen.kernel or pushed_kernels(ref.run, ref.session, ref.attempt, ref.handle)[0].slug
    said = f"Kaggle refuses to show the kernel {slug} (403 or 404) since {_moment(seen.missing_since or now, now)}"
    believed_at, over_at = _believed_at(seen, ref, settings), ceiling(seen, ref, settings)
    listed = f"a list of the account's kernels that is made after {_moment(believed_at, now)}" if believed_at is not None else ""
    if not _was_there(seen, ref):
        return f"{said}; whether its push arrived is unknown: that it did not is believed when {listed} does not show it"
    was = f"it was {seen.status or 'alive'} at {_moment(seen.alive_at, now)}" if seen.alive_at is not None else "it was pushed"
    until = f" until {_moment(over_at, now)}" if over_at is not None else ""
    unless = f", unless {listed} does not show it either" if seen.unlisted_at is not None else ""
    return f"{said}; {was} and counts as alive{until}{unless}"


def _moment(moment: datetime, now: datetime) -> str:
    return f"{moment:%H:%M} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M} UTC"


def _unknown(seen: Seen) -> str:
    said = seen.failure or "Kaggle says nothing about it"
    if seen.alive_at is None or seen.status is None:
        return said
    return f"{said}; last seen {seen.status} at {seen.alive_at:%H:%M:%S} UTC"
