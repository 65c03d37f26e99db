"""Maps what polls showed of an attempt on Kaggle to an observation for the controller; pure functions.

A session that starts because of a stale, wrong or refused answer would train beside the old one. So evidence comes first:

- Kaggle's word that a session ended counts when the session's report is found, or when a second poll repeats it.
- A read that answers 403 or 404 proves nothing. A kernel that existed is gone only when whole lists of the account's kernels do
  not show it, or when the session is past its ceiling: the moment after which it cannot be alive.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.backends.kaggle.limits import ceiling
from orchestrator.backends.kaggle.sightings import Seen
from orchestrator.ports import AttemptRef, AttemptStatus, Observation
from state.backend_settings import MACHINE_SHAPES, KaggleSettings
from state.kaggle.names import pushed_kernels
from state.kaggle.records import SessionStatus
from state.report import SessionReport

_MOST_LOOKS_AFTER_END = 30  # then the run goes on without what could not be read; a checkpoint that appears later is a branch
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
    """Return the observation that the polls of an attempt amount to.

    Args:
        seen: What the polls showed.
        ref: The attempt, and when it was pushed.
        report: Its report, once found.
        delivered: Whether the last checkpoint that the report names was found, whole or corrupt; without a report, False.
        salvaged: Whether its dataset and its output were read to the end, after `all_shown_at`.
        settings: The settle time and other limits.
        now: The current moment.
    """
    shown_at = all_shown_at(seen, ref, report=report, settings=settings)
    if seen.ended is not None:
        sure = report is not None or seen.ended_again or _is_gone(seen, ref, settings) or _is_past_ceiling(seen, ref, settings)
        if not sure:
            return Observation(AttemptStatus.UNKNOWN, "Kaggle reports that it ended; the next poll must confirm that")
        left = None if delivered else _left_behind(seen, shown_at, report, now, salvaged=salvaged)
        return left or Observation(AttemptStatus.ENDED, _how_it_ended(seen, report), seen.ended_at)
    is_silent = seen.failure is not None or seen.missing_since is not None
    wait_s = settings.settle_s if delivered else settings.longest_lag_s
    if report is not None and is_silent and seen.report_at is not None and now >= seen.report_at + timedelta(seconds=wait_s):
        # Writing the report is a session's last act, so a status that Kaggle withholds for days must not block the run.
        why = seen.failure or "it refuses to show the kernel (403 or 404)"
        return Observation(AttemptStatus.ENDED, f"its report says that it ended; Kaggle gives no status: {why}")
    if seen.missing_since is not None:
        left = None if delivered else _left_behind(seen, shown_at, report, now, salvaged=salvaged)
        return _refused(seen, ref, report, settings, now, left)
    if seen.failure is not None or seen.status in (None, SessionStatus.UNKNOWN):
        return Observation(AttemptStatus.UNKNOWN, _unknown(seen))
    if seen.status is SessionStatus.QUEUED:
        return Observation(AttemptStatus.QUEUED, "it waits for a Kaggle machine")
    return Observation(AttemptStatus.RUNNING, substituted(seen, settings) or "")


def all_shown_at(seen: Seen, ref: AttemptRef, *, report: SessionReport | None, settings: KaggleSettings) -> datetime | None:
    """Return the moment from which polls must show everything that a session left; None: it may not have ended.

    While something may still appear, the wait is the longest lag instead of the settle time.
    """
    # The wait costs less than a lost checkpoint: a session that started without it would train the same steps again.
    may_come = report is not None or (seen.dataset is not None and seen.dataset.is_processing)
    wait = timedelta(seconds=settings.longest_lag_s if may_come else settings.settle_s)
    if seen.ended_at is not None:
        return seen.ended_at + wait
    if seen.missing_since is not None and _is_gone(seen, ref, settings):
        return seen.missing_since + wait
    over_at = ceiling(seen, ref, settings) if _is_past_ceiling(seen, ref, settings) else None
    return over_at + wait if over_at is not None else None


def substituted(seen: Seen, settings: KaggleSettings) -> str | None:
    """Return a message when a session got another machine than it asked for, else None."""
    asked = MACHINE_SHAPES[settings.accelerator]
    if seen.shape is None or seen.shape == asked or (seen.shape in _NO_ACCELERATOR and asked in _NO_ACCELERATOR):
        return None
    return f"Kaggle gave it {seen.shape or 'no accelerator'} instead of {asked}"


def _left_behind(
    seen: Seen, shown_at: datetime | None, report: SessionReport | None, now: datetime, *, salvaged: bool
) -> Observation | None:
    """Return an UNKNOWN observation while something that an ended session left may still appear or be unread, else None."""
    if shown_at is not None and now < shown_at:
        what = "its last checkpoint" if report is not None else "a checkpoint or report"
        return Observation(AttemptStatus.UNKNOWN, f"it has ended; {what} may still appear, until {shown_at:%H:%M:%S} UTC")
    if not salvaged and seen.looks_after_end < _MOST_LOOKS_AFTER_END:
        return Observation(AttemptStatus.UNKNOWN, "it has ended; its dataset or its output cannot be read now")
    return None


def _how_it_ended(seen: Seen, report: SessionReport | None) -> str:
    if report is not None:
        return ""
    match seen.ended:
        case SessionStatus.CANCELLED:
            return "Kaggle ended it at its limit, or it was cancelled on kaggle.com; its outputs are lost, its uploads are kept"
        case SessionStatus.ERROR:  # Kaggle keeps no outputs of a failed kernel
            return "its kernel failed without a report, and its outputs are lost; gemma-orch logs may show why"
        case _:
            return "its kernel completed without a report: the session was cut off, or its outputs were lost"


def _refused(
    seen: Seen,
    ref: AttemptRef,
    report: SessionReport | None,
    settings: KaggleSettings,
    now: datetime,
    left: Observation | None,
) -> Observation:
    """Return the observation for a kernel whose reads answer 403 or 404.

    Args:
        seen: What the polls showed.
        ref: The attempt.
        report: Its report, once found.
        settings: The settle time and other limits.
        now: The current moment.
        left: The observation while something that it left may still appear, if any.
    """
    was_there = _was_there(seen, ref) or report is not None
    is_gone = _is_gone(seen, ref, settings)
    if not was_there and (is_gone or ref.launched_at is None):
        return Observation(AttemptStatus.MISSING, "Kaggle has no kernel of this attempt")
    if not is_gone and not _is_past_ceiling(seen, ref, settings):
        return Observation(AttemptStatus.UNKNOWN, _refusal(seen, ref, settings, now))
    if left is not None:
        return left
    if report is not None:
        return Observation(AttemptStatus.ENDED, "", seen.alive_at)
    if is_gone:
        return Observation(AttemptStatus.ENDED, "its kernel is gone: it was deleted", seen.alive_at)
    over_at = ceiling(seen, ref, settings)
    return Observation(
        AttemptStatus.ENDED,
        f"Kaggle has refused to show its kernel since {_moment(seen.missing_since or now, now)}, and its time limit has passed",
        over_at,
    )


def _was_there(seen: Seen, ref: AttemptRef) -> bool:
    """Return whether there is evidence that the kernel existed: a poll, a list or the answer to its push."""
    return seen.alive_at is not None or seen.listed_at is not None or seen.ended is not None or ref.handle is not None


def _believed_at(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> datetime | None:
    """Return the moment from which a list without the kernel proves that it is missing: its last sign plus the settle time."""
    refused_since = seen.missing_since if _was_there(seen, ref) else None
    signs = [at for at in (ref.launched_at, seen.alive_at, seen.listed_at, refused_since) if at is not None]
    return max(signs) + timedelta(seconds=settings.settle_s) if signs else None


def _is_gone(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> bool:
    """Return whether two lists and the reads do not show the kernel, the last of each made after `_believed_at`."""
    believed_at = _believed_at(seen, ref, settings)
    if believed_at is None or seen.missing_at is None or seen.unlisted_at is None or seen.unlisted_since is None:
        return False
    return min(seen.missing_at, seen.unlisted_at) >= believed_at and seen.unlisted_at > seen.unlisted_since


def _is_past_ceiling(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> bool:
    """Return whether the session is past its ceiling, and its kernel was refused for at least the settle time."""
    over_at = ceiling(seen, ref, settings)
    if over_at is None or seen.missing_at is None or seen.missing_since is None:
        return False
    return seen.missing_at >= max(over_at, seen.missing_since + timedelta(seconds=settings.settle_s))


def _refusal(seen: Seen, ref: AttemptRef, settings: KaggleSettings, now: datetime) -> str:
    """Return the message for a refused kernel: since when, and until when it counts as alive."""
    slug = seen.kernel or pushed_kernels(ref.run, ref.session, ref.attempt, ref.handle)[0].slug
    said = f"Kaggle has refused to show the kernel {slug} (403 or 404) since {_moment(seen.missing_since or now, now)}"
    believed_at, over_at = _believed_at(seen, ref, settings), ceiling(seen, ref, settings)
    listed = f"a list of the account's kernels read after {_moment(believed_at, now)}" if believed_at is not None else ""
    if not _was_there(seen, ref):
        return f"{said}; it is unknown whether its push arrived: it did not if {listed} does not show it"
    was = f"it was {seen.status or 'alive'} at {_moment(seen.alive_at, now)}" if seen.alive_at is not None else "it was pushed"
    until = f" until {_moment(over_at, now)}" if over_at is not None else ""
    unless = f", unless {listed} does not show it either" if seen.unlisted_at is not None else ""
    return f"{said}; {was} and counts as alive{until}{unless}"


def _moment(moment: datetime, now: datetime) -> str:
    return f"{moment:%H:%M} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M} UTC"


def _unknown(seen: Seen) -> str:
    said = seen.failure or "Kaggle gives no status"
    if seen.alive_at is None or seen.status is None:
        return said
    return f"{said}; last seen {seen.status} at {seen.alive_at:%H:%M:%S} UTC"
