"""The emulator's time: real time, stretched, from a chosen start. Moments are POSIX seconds of emulator time."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

WEEK_S = 7 * 24 * 3600.0
_SATURDAY_MIDNIGHT = datetime(2026, 1, 3, tzinfo=UTC).timestamp()


class EmulatorClock:
    """Emulator seconds pass `timescale` times as fast as real ones; `advance` jumps ahead."""

    def __init__(self, start: datetime, timescale: float) -> None:
        self.timescale = timescale
        self._start = start.timestamp()
        self._real_start = time.monotonic()
        self._moved = threading.Condition()

    def now(self) -> float:
        return self._start + (time.monotonic() - self._real_start) * self.timescale

    def real(self, seconds: float) -> float:
        """Give the real seconds that this many emulator seconds last."""
        return seconds / self.timescale

    def advance(self, seconds: float) -> None:
        """Jump ahead; who waits for a moment on this clock looks again."""
        with self._moved:
            self._start += seconds
            self._moved.notify_all()

    def wait_until(self, moment: float, stop: threading.Event) -> bool:
        """Wait for the moment; False when `stop` was set first."""
        while not stop.is_set():
            with self._moved:
                left_s = self.real(moment - self.now())
                if left_s <= 0:
                    return True
                self._moved.wait(min(left_s, 0.05))
        return False


def week_start(moment: float) -> float:
    """Give the last refresh of the weekly quotas: Saturday 00:00 UTC."""
    return moment - (moment - _SATURDAY_MIDNIGHT) % WEEK_S


def iso(moment: float) -> str:
    """Write a moment as the API does: `2026-10-10T00:00:00.123Z`."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def http_date(moment: float) -> str:
    """Write a moment as HTTP does: `Sat, 10 Oct 2026 00:00:00 GMT`."""
    return formatdate(moment, usegmt=True)


def duration(seconds: float) -> str:
    """Write a duration as protobuf's JSON does: `6809.769267400s`, whole seconds without a fraction."""
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:.9f}s"


def parse_duration(text: str) -> timedelta:
    return timedelta(seconds=float(text.removesuffix("s")))
