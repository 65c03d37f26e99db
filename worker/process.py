"""Processes: start time, stop requests, thread priority, and children that end with their parent."""

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


def settle_threads(environment: MutableMapping[str, str], loaded: Container[str] = ()) -> str:
    """Give OpenMP the settings that sessions need; before torch, and OpenMP with it, is loaded.

    As many threads as are asked for: with OMP_DYNAMIC=TRUE, which some clusters set, OpenMP gives fewer on a busy machine. oneDNN
    has cut the work for all of them by then, and what the missing ones should have written stays as the memory was:
    50 of 50 products were wrong. That setting is overridden. MKL_DYNAMIC made no difference: torch turns it off itself.

    Threads that wait for one another spin for a moment only. OpenMP's own default lets them spin for some milliseconds, which is
    right while they have the machine to themselves: beside anything else that computes, spinning threads take the processor from
    the one that they wait for. Measured on 2 cores with the `tiny` model (the bits are the same): alone 39 ms a step by default,
    45 ms so; beside one busy process 1090 ms by default, 270 ms so. Larger models make no difference when alone. A user's own
    setting of this stands.

    Args:
        environment: The process's variables.
        loaded: The modules that are loaded already.

    Returns:
        What is to be said about a setting of the user's that was overridden; else nothing.

    Raises:
        UserError: it is too late to override it.
    """
    dynamic = environment.get("OMP_DYNAMIC", _NOT_DYNAMIC)
    overridden = dynamic.strip().upper() not in ("", _NOT_DYNAMIC)
    if overridden and "torch" in loaded:
        raise UserError(
            f"OMP_DYNAMIC={dynamic} is set, with which products of matrices come out wrong, and torch is loaded already",
            remedy="unset OMP_DYNAMIC, or set it to FALSE, before torch is imported",
        )
    environment["OMP_DYNAMIC"] = _NOT_DYNAMIC
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    return f"OMP_DYNAMIC={dynamic} makes products of matrices wrong: it is set to {_NOT_DYNAMIC} here" if overridden else ""


def lower_priority() -> None:
    """Give the calling thread, and it alone, the lowest priority; on Linux, where threads have one of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start a child process in this block: Ctrl-C reaches it only after it has begun, and this process a moment later."""
    resource_tracker.ensure_running()  # its own start lets Ctrl-C through again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def belong_to_the_parent() -> None:
    """Ignore Ctrl-C, which the parent answers, and end when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
