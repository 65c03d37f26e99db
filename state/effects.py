"""One place that hears of every durable side effect, so that a test can stop the world after any of them.

A file written, a rename, a removal, a database commit, a launch: each calls `done` when it has happened. Normally nobody
listens. The crash tests observe it and kill the process after the n-th effect, for every n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

EffectKind = Literal["write", "rename", "remove", "commit", "launch", "signal"]
Observer = Callable[[EffectKind, str], None]

_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Call `observer(kind, what)` after every durable side effect of this process; `None` stops it."""
    global _observer
    _observer = observer


def done(kind: EffectKind, what: str) -> None:
    """Tell that a side effect has just become visible outside this process."""
    if _observer is not None:
        _observer(kind, what)
