"""Decides whether Kaggle accepts another session now: the weekly GPU quota, and refusals of earlier pushes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.ports import Quota
from state.backend_settings import KaggleSettings
from state.errors import GemmaOrchError, NotLaunchedError, QuotaError, TemporaryError
from state.kaggle.errors import BusyError, KaggleQuotaError
from state.kaggle.records import AcceleratorQuota

_BUSY_POLLS = 3.0  # poll intervals to wait when the account runs as many sessions as it may; that passes within minutes


@dataclass(frozen=True)
class _Refusal:
    """A refusal of a push: its reason, and until when no push is tried."""

    reason: str
    until: datetime


class Admission:
    """Tells whether Kaggle accepts sessions of one run; remembers its last refusal.

    Args:
        context: The run; its settings name the accelerator, the reserve of GPU hours and the poll interval.
    """

    def __init__(self, context: KaggleContext) -> None:
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._refusal: _Refusal | None = None
        self._quota: tuple[datetime, Quota] | None = None

    def quota(self, now: datetime) -> Quota:
        """Return whether Kaggle would accept a session now; CPU sessions have no quota.

        A quota that cannot be read counts as not available, until the next poll.
        """
        if (refusal := self._refused(now)) is not None:
            return Quota(available=False, reason=refusal.reason, until=refusal.until)
        if self._settings.accelerator == "cpu":
            return Quota(available=True)
        # Asked at most once a poll interval.
        if self._quota is None or now >= self._quota[0] + timedelta(seconds=self._settings.poll_every_s):
            self._quota = (now, self._ask_quota(now))
        return self._quota[1]

    def refusal(self, now: datetime) -> str | None:
        """Return the reason of a refusal that is still in force, else None."""
        refusal = self._refused(now)
        return refusal.reason if refusal is not None else None

    def not_now(self, error: TemporaryError) -> NotLaunchedError:
        """Remember the refusal of a push, and return the error for the controller."""
        now = self._clock.now()
        if isinstance(error, QuotaError):
            until = error.until if isinstance(error, KaggleQuotaError) else None
            if until is None or until <= now:
                until = self._refresh_at(now)
            self._refusal = _Refusal(f"{error.what}; it is refreshed at {until:%Y-%m-%d %H:%M} UTC", until)
        else:
            polls = _BUSY_POLLS if isinstance(error, BusyError) else 1.0
            until = now + timedelta(seconds=polls * self._settings.poll_every_s)
            self._refusal = _Refusal(f"{error.what}; the next try is at {until:%H:%M:%S} UTC", until)
        return NotLaunchedError(self._refusal.reason)

    def _ask_quota(self, now: datetime) -> Quota:
        try:
            told = self._api().quota()
        except TemporaryError as error:
            soon = now + timedelta(seconds=self._settings.poll_every_s)
            return Quota(available=False, reason=f"the weekly GPU quota cannot be read: {error.what}", until=soon)
        return weekly_quota(told, self._settings)

    def _refused(self, now: datetime) -> _Refusal | None:
        if self._refusal is not None and now >= self._refusal.until:
            self._refusal = None
        return self._refusal

    def _refresh_at(self, now: datetime) -> datetime:
        """Return when the weekly quota is refreshed; if Kaggle does not tell, the settle time from now, to ask again."""
        try:
            told = self._api().quota().refresh_at
        except GemmaOrchError:
            told = None
        return told if told is not None and told > now else now + timedelta(seconds=self._settings.settle_s)


def weekly_quota(told: AcceleratorQuota, settings: KaggleSettings) -> Quota:
    """Return whether the week's remaining GPU time is enough for a session to be worth its start."""
    if told.gpu_allowed_s is None:  # then Kaggle itself refuses the push, if it must
        return Quota(available=True, reason="Kaggle reports no GPU quota")
    taken_s = (told.gpu_used_s or 0.0) + (told.gpu_reserved_s or 0.0)
    left_s = told.gpu_allowed_s - taken_s - settings.gpu_reserve_s
    # Less than the session's limit is enough: Kaggle ends the session when the quota runs out, and its uploads are kept.
    if left_s > settings.settle_s:
        return Quota(available=True)
    reserve = f", {settings.gpu_reserve_s / 3600:.1f} h are reserved for you" if settings.gpu_reserve_s else ""
    used = f"{taken_s / 3600:.1f} of {told.gpu_allowed_s / 3600:.1f} h are used or reserved{reserve}"
    return Quota(available=False, reason=f"the weekly GPU quota is used up: {used}", until=told.refresh_at)
