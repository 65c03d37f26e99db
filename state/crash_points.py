"""Crash points: every durable side effect is reported here, so that a test can kill the process after any of them.

A file written, a rename, a removal, a database commit, a launch, a signal: each calls `done` after it has happened. Only the
crash tests set an observer; it kills the process after the n-th effect, for every n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

EffectKind = Literal["write", "rename", "remove", "commit", "launch", "signal"]
Observer = Callable[[EffectKind, str], None]

_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Set the function to call as `observer(kind, what)` after each durable side effect; None removes it."""
    global _observer
    _observer = observer


def done(kind: EffectKind, what: str) -> None:
    """Report a side effect that has just become visible outside this process."""
    if _observer is not None:
        _observer(kind, what)
