"""Ends a session that hangs, so that it is reported and retried instead of using up its time limit."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable

from state.clock import Clock
from state.quantities import format_duration

FIRST_STEP_S = 30 * 60.0  # time to compile a large model's layers on a slow machine
PHASE_S = 30 * 60.0  # time to read or write tens of gigabytes on a slow disk
LEAST_STEP_S = 60.0  # a machine that sleeps or swaps for a moment does not hang
STEP_MULTIPLE = 20
_STEPS_REMEMBERED = 50


class Watchdog:
    """Detects that a step or phase takes too long. The training notes what it begins; a thread compares that with the clock.

    Args:
        clock: The clock.
        on_hang: Called once, on the watchdog's thread, with a text that names what takes too long.
    """

    def __init__(self, clock: Clock, on_hang: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_hang = on_hang
        self._recent_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._note = (clock.monotonic(), "starting", PHASE_S)
        self._over = threading.Event()

    def watch(self, *, every_s: float = 1.0) -> None:
        """Start the watchdog's thread, which checks every `every_s` seconds."""
        threading.Thread(target=self._look, args=(every_s,), name="watchdog", daemon=True).start()

    def phase(self, what: str, allowed_s: float = PHASE_S) -> None:
        """Note that a phase (anything but a step) begins, and how long it may take."""
        self._note = (self._clock.monotonic(), what, allowed_s)

    def step_begins(self, number: int) -> None:
        """Note that a step begins."""
        self._note = (self._clock.monotonic(), f"step {number}", self.allowed_step_s())

    def step_done(self, seconds: float) -> None:
        """Note how long a step took."""
        self._recent_s.append(seconds)

    def allowed_step_s(self) -> float:
        """Return how long the next step may take."""
        if not self._recent_s:
            return FIRST_STEP_S
        return max(LEAST_STEP_S, STEP_MULTIPLE * statistics.median(self._recent_s))

    def problem(self) -> str | None:
        """Return a text that names the step or phase that takes too long, or None."""
        begun_s, what, allowed_s = self._note
        passed_s = self._clock.monotonic() - begun_s
        if passed_s <= allowed_s:
            return None
        usual = f"; a step usually takes {format_duration(statistics.median(self._recent_s))}" if self._recent_s else ""
        return f"{what} has not ended for {format_duration(passed_s)}, {format_duration(allowed_s)} are allowed{usual}"

    def close(self) -> None:
        """Stop the thread."""
        self._over.set()

    def _look(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            problem = self.problem()
            if problem is not None and not self._over.is_set():
                self._on_hang(problem)
                return
