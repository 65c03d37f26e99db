"""The process that a session runs in: since when it lives, who asks it to stop, and that its threads are good neighbours."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path
from types import FrameType

_LOWEST_PRIORITY = 19


class StopRequest:
    """Remembers the signal that asked the session to stop; nothing else happens in the handler."""

    def __init__(self) -> None:
        self._name: str | None = None

    def __call__(self) -> str | None:
        """Return the signal's name, or None when none came."""
        return self._name

    def install(self) -> None:
        """Listen to SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name


def process_started_s(stat: Path = Path("/proc/self/stat")) -> float:
    """Return when this process started, on the monotonic clock; now, where the kernel does not tell."""
    now_s = time.monotonic()
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return now_s
    return now_s - max(0.0, age_s)


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Make threads that wait for one another spin for a moment only; before torch, and OpenMP with it, is loaded.

    OpenMP's own default lets them spin for some milliseconds, which is right while they have the machine to themselves: beside
    anything else that computes, spinning threads take the processor from the one that they wait for. Measured on 2 cores
    with the `tiny` model (the bits are the same): alone 39 ms a step by default, 45 ms so; beside one busy process 1090 ms
    by default, 270 ms so. Larger models make no difference when alone. A user's own setting stands.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")


def lower_priority() -> None:
    """Give the calling thread, and it alone, the lowest priority; on Linux, where threads have one of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
