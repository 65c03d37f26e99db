"""What a verb says on stdout."""

from __future__ import annotations

import contextlib
import sys


def write_out(text: str) -> None:
    """Write to stdout; a reader that has gone away, as `head` does, has had all that it wants."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()
