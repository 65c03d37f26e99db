"""Shows the progress of a preparation: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0
_MB = 1e6


class PrepareProgress(Protocol):
    """Receives the progress of a preparation."""

    def say(self, text: str) -> None:
        """Show a line."""

    def stage(self, name: str, total_bytes: int) -> None:
        """Begin a stage that processes `total_bytes`."""

    def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
        """Add finished work to the stage; work that an earlier process did counts 0 tokens."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def stage(self, name: str, total_bytes: int) -> None:
        """Do nothing."""

    def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
        """Do nothing."""


class Rate:
    """Computes speed and remaining time of a stage.

    Bytes without tokens were done by an earlier process: they reduce the remaining work, but do not count for the speed.
    """

    def __init__(self, total_bytes: int, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._started_s = monotonic()
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._worked_bytes = 0
        self._num_tokens = 0

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        """Add finished work."""
        if num_tokens == 0 and self._num_tokens == 0:
            self._started_s = self._monotonic()  # skipping finished work at the begin does not count for the speed
        else:
            self._worked_bytes += num_bytes
        self.done_bytes += num_bytes
        self._num_tokens += num_tokens

    def __str__(self) -> str:
        elapsed_s = self._monotonic() - self._started_s
        if not self._worked_bytes or elapsed_s <= 0.0:
            return ""
        bytes_per_s = self._worked_bytes / elapsed_s
        return f"{bytes_per_s / _MB:.1f} MB/s, {self._num_tokens / elapsed_s:,.0f} tokens/s"

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the end at the present speed; None: not known yet."""
        elapsed_s = self._monotonic() - self._started_s
        if not self._worked_bytes or elapsed_s <= 0.0:
            return None
        return max(0, self.total_bytes - self.done_bytes) * elapsed_s / self._worked_bytes


class LineProgress:
    """Writes a plain line at most every ten seconds."""

    def __init__(self, stream: TextIO, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._rate = Rate(0, monotonic)
        self._name = ""
        self._said_s = monotonic()

    def say(self, text: str) -> None:
        """Write the line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def stage(self, name: str, total_bytes: int) -> None:
        """Begin a stage."""
        self._name = name
        self._rate = Rate(total_bytes, self._monotonic)

    def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
        """Add finished work, and write a line if the last one is ten seconds old."""
        self._rate.advance(num_bytes, num_tokens)
        if self._monotonic() - self._said_s < _LINE_EVERY_S:
            return
        self._said_s = self._monotonic()
        done = self._rate.done_bytes / max(1, self._rate.total_bytes)
        parts = [f"{self._name}: {done:.0%} of {self._rate.total_bytes / _MB:,.0f} MB", str(self._rate)]
        if self._rate.remaining_s is not None:
            parts.append(f"{self._rate.remaining_s:.0f} s left")
        self.say(", ".join(part for part in parts if part))


class BarProgress:
    """Shows a bar."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._rate = Rate(0, time.monotonic)

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Write the line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def stage(self, name: str, total_bytes: int) -> None:
        """Begin a stage with a new bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._rate = Rate(total_bytes, time.monotonic)
        self._task = self._bar.add_task(name, total=max(1, total_bytes), speed="")

    def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
        """Move the bar."""
        self._rate.advance(num_bytes, num_tokens)
        if self._task is not None:
            self._bar.update(self._task, advance=num_bytes, speed=str(self._rate))


@contextlib.contextmanager
def terminal_progress() -> Iterator[PrepareProgress]:
    """Yield a progress display for standard error: a bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty():
        with BarProgress(Console(stderr=True)) as bar:
            yield bar
    else:
        yield LineProgress(sys.stderr)
