"""Seconds of accelerators: what a week allows, what is used, what running sessions may still use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.kaggle_emulator.calls import Answer, Call, Handler
from tests.kaggle_emulator.clock import WEEK_S, duration, iso, week_start
from tests.kaggle_emulator.machines import Pool
from tests.kaggle_emulator.session_model import Session
from tests.kaggle_emulator.settings import HOUR_S, Settings


class Quota:
    """The weekly quotas of every user, computed from the sessions that ran."""

    def __init__(self, settings: Settings, sessions: Callable[[], list[Session]]) -> None:
        self._settings = settings
        self._sessions = sessions
        self._noted: list[tuple[float, Pool, float]] = []

    def routes(self) -> dict[str, Handler]:
        return {"GetAcceleratorQuotaStatistics": self.statistics}

    def note(self, moment: float, pool: Pool, seconds: float) -> None:
        """Count seconds of a session elsewhere, for example of the user's own notebooks."""
        self._noted.append((moment, pool, seconds))

    def used_s(self, user: str, pool: Pool, now: float) -> float:
        """Give the seconds used since the last refresh."""
        start = week_start(now)
        noted = sum(seconds for moment, which, seconds in self._noted if which == pool and start <= moment <= now)
        return noted + sum(session.used_s(start, now) for session in self._mine(user, pool))

    def reserved_s(self, user: str, pool: Pool, now: float) -> float:
        """Give the seconds that live sessions may still use."""
        live = [session for session in self._mine(user, pool) if session.pushed_at <= now < session.ended_at]
        return sum(session.limit_s - session.used_s(session.pushed_at, now) for session in live)

    def refusal(self, user: str, pool: Pool, now: float) -> str:
        """Say why a push to this pool is refused; nothing when it is not."""
        if pool == "CPU":
            return ""
        allowed_s = self._allowed_s(pool)
        if self.used_s(user, pool, now) < allowed_s:
            return ""
        return f"Maximum weekly {pool} quota of {allowed_s / HOUR_S:.2f} hours reached."

    def statistics(self, call: Call) -> Answer:
        return {
            "quotaRefreshTime": iso(week_start(call.now) + WEEK_S),
            "gpuQuota": self._statistics(call, "GPU"),
            "tpuQuota": self._statistics(call, "TPU"),
        }

    def _statistics(self, call: Call, pool: Pool) -> dict[str, Any]:
        user, now = call.actor.user, call.now
        return {
            "timeUsed": duration(self.used_s(user, pool, now)),
            "timeReserved": duration(self.reserved_s(user, pool, now)),
            "totalTimeAllowed": duration(self._allowed_s(pool)),
            "hasEverRun": any(session.has_ended(now) for session in self._mine(user, pool)),
        }

    def _allowed_s(self, pool: Pool) -> float:
        return self._settings.tpu_quota_s if pool == "TPU" else self._settings.gpu_quota_s

    def _mine(self, user: str, pool: Pool) -> list[Session]:
        return [session for session in self._sessions() if session.owner == user and session.pool == pool]
