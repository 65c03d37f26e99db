"""Time limits of a session on Kaggle: its timeout, and the moment after which it cannot be alive; pure functions."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.sightings import Seen
from orchestrator.ports import AttemptRef
from state.backend_settings import KaggleSettings
from state.ledger import CEILING_GRACE_S

_START_SHARE = 0.03  # of a session's limit, added for the start of the machine: 20 minutes at 11h30m
_LONGEST_SESSION_S = 12 * 3600
_LONGEST_QUEUE = timedelta(hours=12)  # the longest observed was 50 minutes; Kaggle names no limit


def session_timeout_s(limit_s: float) -> int:
    """Return the timeout in seconds to give Kaggle for a session with a limit: a little more, up to Kaggle's maximum.

    The session counts its limit from its own start; Kaggle may count from when it began to prepare the machine.
    """
    return max(math.ceil(limit_s), min(math.ceil(limit_s * (1.0 + _START_SHARE)), _LONGEST_SESSION_S))


def ceiling(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> datetime | None:
    """Return the moment after which a session cannot be alive; None: it was neither seen nor launched.

    Kaggle ends a session at the timeout of its push. If no poll saw it running, it may have been queued for long.

    Args:
        seen: What polls showed of it.
        ref: The attempt, with its limit.
        settings: The settle time.
    """
    longest_s = session_timeout_s(ref.limit_s) if ref.limit_s is not None else _LONGEST_SESSION_S
    most = timedelta(seconds=longest_s + CEILING_GRACE_S + settings.settle_s)
    if seen.running_at is not None:
        return seen.running_at + most
    last_known = seen.alive_at or ref.launched_at
    return last_known + _LONGEST_QUEUE + most if last_known is not None else None
