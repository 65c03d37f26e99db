"""The lock of a running session: its worker holds it as long as it is alive, even if the controller dies.

It comes from `flock`, for the launching process takes it and passes it to the worker; the library filelock cannot do that.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from state.errors import DataError, TemporaryError, UserError
from state.layout import AttemptLayout
from state.report import Heartbeat


class SessionRunsError(TemporaryError):
    """Another process is running this session."""


@contextmanager
def held_alive(layout: AttemptLayout, inherited: int | None) -> Iterator[None]:
    """Hold the attempt's lock.

    Args:
        layout: The attempt's folder.
        inherited: The descriptor of the lock file on which the launching process has taken the lock. Anything else (None, a
            closed descriptor, another file) means that this process was started by hand; then it takes the lock itself.

    Raises:
        SessionRunsError: another process holds it.
        UserError: the lock file cannot be created in this folder.
    """
    if inherited is not None and _is_lock(inherited, layout):
        descriptor = inherited
        os.set_inheritable(descriptor, False)
    else:
        descriptor = _take(layout)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_lock(descriptor: int, layout: AttemptLayout) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(layout.lock))
    except OSError:
        return False


def _take(layout: AttemptLayout) -> int:
    try:
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"the session's folder {layout.root} cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SessionRunsError(
            f"this session is running already{_who(layout)}",
            remedy=f"wait for it, or ask it to stop: touch {layout.stop}",
        ) from error
    return descriptor


def _who(layout: AttemptLayout) -> str:
    try:
        heartbeat = Heartbeat.from_json(layout.heartbeat.read_bytes(), str(layout.heartbeat))
    except (OSError, DataError):
        return ""
    who = heartbeat.process or f"pid {heartbeat.pid}"
    return f" ({who}, at step {heartbeat.step})"
