"""The emulator's time, from a chosen start. Moments are POSIX seconds of emulator time."""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

WEEK_S = 7 * 24 * 3600.0
_SATURDAY_MIDNIGHT = datetime(2026, 1, 3, tzinfo=UTC).timestamp()


class EmulatorClock:
    """Turned by hand: it moves when it is told to, however fast the machine is.

    With a `timescale` above zero, emulator seconds pass as well, so many times as fast as real ones: for clients in other
    processes, which wait in real time.
    """

    def __init__(self, start: datetime, timescale: float) -> None:
        self.timescale = timescale
        self._start = start.timestamp()
        self._real_start = time.monotonic()
        self._moved = threading.Condition()
        self._awaited: list[float] = []
        """The moments that threads wait for."""

    def now(self) -> float:
        return self._start + (time.monotonic() - self._real_start) * self.timescale

    def real(self, seconds: float) -> float:
        """Give the real seconds that this many emulator seconds last; infinitely many on a clock that does not run."""
        return seconds / self.timescale if self.timescale > 0 else math.inf

    def advance(self, seconds: float) -> None:
        """Jump ahead; who waits for a moment on this clock looks again."""
        with self._moved:
            self._start += seconds
            self._moved.notify_all()

    def wait_until(self, moment: float, stop: threading.Event) -> bool:
        """Wait for the moment; False when `stop` was set first."""
        with self._moved:
            self._awaited.append(moment)
            try:
                while not stop.is_set():
                    left = moment - self.now()
                    if left <= 0:
                        return True
                    self._moved.wait(min(self.real(left), 0.05))
                return False
            finally:
                self._awaited.remove(moment)

    def skip_to_next(self) -> None:
        """On a clock that does not run, jump to the next moment that a thread waits for, if there is one."""
        if self.timescale > 0:
            return
        with self._moved:
            next_at = min(self._awaited, default=math.inf)
            if self.now() < next_at < math.inf:
                self.advance(next_at - self.now())


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
