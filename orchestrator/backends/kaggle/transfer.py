"""Limits of uploads to Kaggle within a tick: a later tick resumes an unfinished upload."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from orchestrator.backends.kaggle.context import KaggleContext
from state.clock import Clock

TICK_LIMIT_S = 25.0
"""Longest time for an upload within a tick: the controller renews its lease between ticks only."""


class Sending(TypedDict):
    """Keyword arguments of an upload to Kaggle."""

    resume_dir: Path
    deadline_s: float
    clock: Clock
    settle_s: float


def sending(context: KaggleContext, folder: Path, *, limit_s: float = TICK_LIMIT_S) -> Sending:
    """Return the keyword arguments of an upload that ends within a tick, or within `limit_s`; a later call resumes it.

    Args:
        context: The run.
        folder: The folder for the state of unfinished uploads.
        limit_s: Longest time in seconds for this call.
    """
    return Sending(
        resume_dir=folder / "uploads",
        deadline_s=context.clock.monotonic() + limit_s,
        clock=context.clock,
        settle_s=min(context.settings.settle_s, limit_s),
    )
