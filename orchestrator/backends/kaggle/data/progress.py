"""How an upload looks: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from state.quantities import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from orchestrator.backends.kaggle.data.upload import Talk

_LINE_EVERY_S = 30.0


def talk_on(console: Console, say: Callable[[str], None]) -> Talk:
    """Return what shows an upload on a console: a bar when it is a terminal, else lines."""
    return Bars(console) if console.is_terminal else Lines(say)


class Lines:
    """A line when an upload begins and ends, and one now and then between."""

    def __init__(self, say: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Print lines.

        Args:
            say: Prints one.
            monotonic: Seconds.
        """
        self._say = say
        self._monotonic = monotonic
        self._whole = self._sent = 0
        self._began_s = self._said_s = 0.0

    def say(self, text: str) -> None:
        """Print it."""
        self._say(text)

    def begin(self, title: str, num_bytes: int) -> None:
        """Begin to count."""
        self._whole, self._sent = num_bytes, 0
        self._began_s = self._said_s = self._monotonic()
        self._say(f"sends {title}")

    def sent(self, num_bytes: int) -> None:
        """Count, and say how far it is when that was not said for a while."""
        self._sent += num_bytes
        if self._monotonic() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._monotonic()
            self._say(f"  {self._sent / max(self._whole, 1):.0%}, {self._amount()}")

    def end(self) -> None:
        """Say how much was sent."""
        self._say(f"  sent {self._amount()}")

    def _amount(self) -> str:
        seconds = self._monotonic() - self._began_s
        rate = f", {format_size(round(self._sent / seconds))}/s" if seconds >= 1.0 else ""
        return f"{format_size(self._sent)} of {format_size(self._whole)} in {format_duration(seconds)}{rate}"


class Bars:
    """A bar for what is being sent; what is said stands above it."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self._console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print it."""
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
        """Fill it a bit."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, num_bytes)

    def end(self) -> None:
        """Take it away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
