"""Stages for the local backend: a home, and stand-ins instead of workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.backends.local import LocalBackend
from orchestrator.ports import AttemptRef, AttemptStatus, Backend
from state.layout import HomeLayout
from tests.factories import RUN
from tests.patience import wait_until

_STAND_IN = Path(__file__).with_name("stand_in_worker.py")


def stand_in(mode: str) -> list[str]:
    """The command line of a worker that finishes, waits or vanishes."""
    return [sys.executable, "-S", str(_STAND_IN), mode]


def local_backend(root: Path, mode: str) -> LocalBackend:
    return LocalBackend(HomeLayout(root), dict(os.environ), stand_in(mode))


def ref(session: int = 1, attempt: int = 1) -> AttemptRef:
    return AttemptRef(RUN, session, attempt)


def wait_until_over(backend: Backend, which: AttemptRef | None = None) -> None:
    wait_until(lambda: backend.observe(which or ref()).sighting is AttemptStatus.ENDED)
