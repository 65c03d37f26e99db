"""Waiting for other processes and threads, which take the time that they need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

PATIENCE_S = 600.0
"""More than anything here takes on a busy machine: it ends a test that hangs, and decides nothing else."""

_LOOK_S = 0.005

Seen = TypeVar("Seen")


def wait_until(look: Callable[[], Seen], what: str = "it happened", *, process: subprocess.Popen[Any] | None = None) -> Seen:
    """Look again and again until something true is seen; return it.

    Args:
        look: Looks once.
        what: What a failure says that did not come.
        process: A process without which it cannot come any more.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert process is None or process.poll() is None, f"the process ended with {process.returncode} before {what}"
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(_LOOK_S)
    return seen
