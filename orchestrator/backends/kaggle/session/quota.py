"""Whether Kaggle takes another session now: the week's quota, and for how long it has said no."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.ports import Quota
from state.backend_settings import KaggleSettings
from state.errors import GemmaOrchError, NotLaunchedError, QuotaError, TemporaryError
from state.kaggle.errors import BusyError, KaggleQuotaError
from state.kaggle.records import AcceleratorQuota

_BUSY_POLLS = 3.0  # poll intervals to wait when as many sessions run as the account may have: minutes


@dataclass(frozen=True)
class _Refusal:
    """Kaggle has said no to a push, and for how long that is to be remembered."""

    reason: str
    until: datetime


class Admission:
    """Whether sessions of one run are taken.

    Args:
        context: The run: its accelerator, what of the quota is kept, and how often to ask.
    """

    def __init__(self, context: KaggleContext) -> None:
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._refusal: _Refusal | None = None
        self._quota: tuple[datetime, Quota] | None = None

    def quota(self, now: datetime) -> Quota:
        """Return whether a session would be taken now; CPU sessions have no quota.

        A session is taken while more than the settling time is left, however much shorter than its limit that is: how a
        session ends whose quota runs out is Kaggle's to decide, and what it has uploaded by then is kept. A quota that Kaggle
        does not tell of is left to Kaggle as well; one that cannot be asked for is waited for.
        """
        if (refusal := self._refused(now)) is not None:
            return Quota(available=False, reason=refusal.reason, until=refusal.until)
        if self._settings.accelerator == "cpu":
            return Quota(available=True)
        if self._quota is None or now >= self._quota[0] + timedelta(seconds=self._settings.poll_every_s):
            self._quota = (now, self._ask_quota(now))
        return self._quota[1]

    def refusal(self, now: datetime) -> str | None:
        """Return why Kaggle has said no, while that is to be remembered."""
        refusal = self._refused(now)
        return refusal.reason if refusal is not None else None

    def not_now(self, error: TemporaryError) -> NotLaunchedError:
        """Remember for how long Kaggle has said no, and return what the controller is told."""
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
            return Quota(available=False, reason=f"the weekly GPU quota cannot be asked for: {error.what}", until=soon)
        return weekly_quota(told, self._settings)

    def _refused(self, now: datetime) -> _Refusal | None:
        if self._refusal is not None and now >= self._refusal.until:
            self._refusal = None
        return self._refusal

    def _refresh_at(self, now: datetime) -> datetime:
        """Return when the weekly quota is refreshed; when Kaggle does not tell, soon: then it is asked again."""
        try:
            told = self._api().quota().refresh_at
        except GemmaOrchError:
            told = None
        return told if told is not None and told > now else now + timedelta(seconds=self._settings.settle_s)


def weekly_quota(told: AcceleratorQuota, settings: KaggleSettings) -> Quota:
    """Return whether the week's GPU seconds are enough for a session that is worth its start."""
    if told.gpu_allowed_s is None:
        return Quota(available=True, reason="Kaggle tells of no GPU quota")
    taken_s = (told.gpu_used_s or 0.0) + (told.gpu_reserved_s or 0.0)
    left_s = told.gpu_allowed_s - taken_s - settings.gpu_reserve_s
    if left_s > settings.settle_s:
        return Quota(available=True)
    reserve = f", {settings.gpu_reserve_s / 3600:.1f} h are kept for you" if settings.gpu_reserve_s else ""
    used = f"{taken_s / 3600:.1f} of {told.gpu_allowed_s / 3600:.1f} h are used or reserved{reserve}"
    return Quota(available=False, reason=f"the weekly GPU quota is used up: {used}", until=told.refresh_at)
