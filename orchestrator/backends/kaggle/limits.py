"""For how long Kaggle lets a session run, and when it is over whatever Kaggle shows of it: pure."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.sightings import Seen
from orchestrator.ports import AttemptRef
from state.backend_settings import KaggleSettings
from state.ledger import CEILING_GRACE_S

_START_SHARE = 0.03  # of a session's limit, for the machine's start: 20 minutes of 11h30m
_LONGEST_SESSION_S = 12 * 3600
_LONGEST_QUEUE = timedelta(hours=12)  # 50 minutes were seen; Kaggle names no limit


def session_timeout_s(limit_s: float) -> int:
    """Return the seconds after which Kaggle is to end a session of a limit, which the session itself counts from its start.

    Kaggle may count from when it began to get the machine ready, so it is given a little more, up to the most that it allows.
    """
    return max(math.ceil(limit_s), min(math.ceil(limit_s * (1.0 + _START_SHARE)), _LONGEST_SESSION_S))


def ceiling(seen: Seen, ref: AttemptRef, settings: KaggleSettings) -> datetime | None:
    """Return from when on a session cannot be alive any more; None: it was never seen, nor launched.

    Kaggle ends a session at the limit that its push named. When it was not seen running, it may have been queued for long.

    Args:
        seen: What was seen of it.
        ref: Which attempt, with its limit.
        settings: How long what is shown may lag.
    """
    longest_s = session_timeout_s(ref.limit_s) if ref.limit_s is not None else _LONGEST_SESSION_S
    most = timedelta(seconds=longest_s + CEILING_GRACE_S + settings.settle_s)
    if seen.running_at is not None:
        return seen.running_at + most
    last_known = seen.alive_at or ref.launched_at
    return last_known + _LONGEST_QUEUE + most if last_known is not None else None
