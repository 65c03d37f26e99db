"""Show the progress of an upload: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from state.quantities import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from orchestrator.backends.kaggle.data.upload import ProgressReporter

_LINE_EVERY_S = 30.0


def talk_on(console: Console, say: Callable[[str], None]) -> ProgressReporter:
    """Return the progress display for a console: a bar on a terminal, else lines."""
    return Bars(console) if console.is_terminal else Lines(say)


class Lines:
    """Prints a line when an upload starts, every 30 seconds, and when it ends."""

    def __init__(self, say: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Create the display.

        Args:
            say: Prints a line.
            monotonic: Returns seconds of a monotonic clock.
        """
        self._say = say
        self._monotonic = monotonic
        self._whole = self._sent = 0
        self._began_s = self._said_s = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def begin(self, title: str, num_bytes: int) -> None:
        """Print the title and start counting."""
        self._whole, self._sent = num_bytes, 0
        self._began_s = self._said_s = self._monotonic()
        self._say(f"uploading {title}")

    def sent(self, num_bytes: int) -> None:
        """Count uploaded bytes, and print the progress if the last line is 30 seconds old."""
        self._sent += num_bytes
        if self._monotonic() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._monotonic()
            self._say(f"  {self._sent / max(self._whole, 1):.0%}, {self._amount()}")

    def end(self) -> None:
        """Print the amount and the rate."""
        self._say(f"  uploaded {self._amount()}")

    def _amount(self) -> str:
        seconds = self._monotonic() - self._began_s
        rate = f", {format_size(round(self._sent / seconds))}/s" if seconds >= 1.0 else ""
        return f"{format_size(self._sent)} of {format_size(self._whole)} in {format_duration(seconds)}{rate}"


class Bars:
    """Draws a bar for the current upload; messages go above it."""

    def __init__(self, console: Console) -> None:
        """Create the display on a console."""
        self._console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def begin(self, title: str, num_bytes: int) -> None:
        """Draw an empty bar."""
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        self.say(title)
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._task = self._bars.add_task("", total=num_bytes)
        self._bars.start()

    def sent(self, num_bytes: int) -> None:
        """Advance the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, num_bytes)

    def end(self) -> None:
        """Remove the bar."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
