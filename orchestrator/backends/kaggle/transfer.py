"""Limits of uploads to Kaggle: what does not fit into one tick resumes at a later one."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from orchestrator.backends.kaggle.context import KaggleContext
from state.clock import Clock

TICK_LIMIT_S = 25.0
"""Longest time that sending something may take within a tick: the controller's lease is prolonged between ticks only."""


class Sending(TypedDict):
    """How something is sent to Kaggle."""

    resume_dir: Path
    deadline_s: float
    clock: Clock
    settle_s: float


def sending(context: KaggleContext, folder: Path, *, limit_s: float = TICK_LIMIT_S) -> Sending:
    """Return how something is sent, within a tick unless said otherwise: what does not get done goes on at a later call.

    Args:
        context: The run.
        folder: Where it is noted how far each file is.
        limit_s: Longest time that it may take now.
    """
    return Sending(
        resume_dir=folder / "uploads",
        deadline_s=context.clock.monotonic() + limit_s,
        clock=context.clock,
        settle_s=min(context.settings.settle_s, limit_s),
    )
