"""A worker that is killed right after it has written a file of a given name: `python -m tests.dying_worker SPEC NAME`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from state import crash_points
from worker.__main__ import main


def die_after(name: str) -> None:
    def observe(kind: crash_points.EffectKind, what: str) -> None:
        if kind == "write" and what == name:
            die()

    crash_points.observe(observe)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process went on")


if __name__ == "__main__":
    die_after(sys.argv[2])
    sys.exit(main(sys.argv[1:2]))
