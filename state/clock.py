"""Time as an argument: the system's clock, and one that tests turn by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """Return the current moment, UTC-aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back, from an arbitrary origin."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the current moment, UTC-aware."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to, or when somebody sleeps on it."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0

    def now(self) -> datetime:
        """Return the moment that the clock has been turned to."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        """Return the seconds that the clock has been turned by."""
        return self._elapsed_s

    def sleep(self, seconds: float) -> None:
        """Turn the clock on at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Turn the clock on by that many seconds."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back: {seconds} s")
        self._elapsed_s += seconds
