"""The worker's process: stop signals, start time, OpenMP settings, thread priority, and children that end with their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Container, Iterator, MutableMapping
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

from state.errors import UserError

_LOWEST_PRIORITY = 19
_NOT_DYNAMIC = "FALSE"


class StopRequest:
    """Signal handler that only remembers the signal; the session polls it and stops."""

    def __init__(self) -> None:
        self._name: str | None = None

    def __call__(self) -> str | None:
        """Return the signal's name, or None if none has arrived."""
        return self._name

    def install(self) -> None:
        """Handle SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name


def process_started_s(stat: Path = Path("/proc/self/stat")) -> float:
    """Return when this process started, on the monotonic clock; the current time if the kernel does not give it."""
    now_s = time.monotonic()
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return now_s
    return now_s - max(0.0, age_s)


def settle_threads(environment: MutableMapping[str, str], loaded: Container[str] = ()) -> str:
    """Set the OpenMP variables that sessions need, before torch loads OpenMP.

    Args:
        environment: The process's environment variables.
        loaded: The names of the modules that are loaded already.

    Returns:
        A line for the user if OMP_DYNAMIC was overridden; else an empty text.

    Raises:
        UserError: torch is loaded already, so OMP_DYNAMIC can no longer be overridden.
    """
    # With OMP_DYNAMIC=TRUE, which some clusters set, OpenMP starts fewer threads than requested on a busy machine. oneDNN has
    # divided the work among all of them before, so the share of the missing threads is never written: 50 of 50 products were
    # wrong. MKL_DYNAMIC made no difference: torch turns it off itself.
    dynamic = environment.get("OMP_DYNAMIC", _NOT_DYNAMIC)
    overridden = dynamic.strip().upper() not in ("", _NOT_DYNAMIC)
    if overridden and "torch" in loaded:
        raise UserError(
            f"OMP_DYNAMIC={dynamic} makes products of matrices wrong, and torch is loaded already",
            remedy="unset OMP_DYNAMIC, or set it to FALSE, before torch is imported",
        )
    environment["OMP_DYNAMIC"] = _NOT_DYNAMIC
    # GOMP_SPINCOUNT: threads that wait for one another spin only briefly. By default they spin for some milliseconds, which is
    # faster only while nothing else computes: otherwise they take the processor from the thread that they wait for. Measured on
    # 2 cores with the `tiny` model (the bits are equal): alone 39 ms a step by default, 45 ms with this value; beside one busy
    # process 1090 ms by default, 270 ms with it. Larger models, alone, showed no difference. A user's own value is kept.
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    return f"OMP_DYNAMIC={dynamic} makes products of matrices wrong: it is set to {_NOT_DYNAMIC} here" if overridden else ""


def lower_priority() -> None:
    """Give the calling thread the lowest priority; on Linux only, where each thread has its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Block Ctrl-C while a child process is started in this block; this process receives it at the end."""
    resource_tracker.ensure_running()  # start it now, for its start would unblock Ctrl-C
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def belong_to_the_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end this process when the parent has ended for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
