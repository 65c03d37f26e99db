"""The lock that says that a session runs: held by its worker as long as that lives, whatever becomes of the controller.

It is flock's own lock, for the process that launches the session takes it and hands it on; the library filelock cannot do that.
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
        inherited: A descriptor of the lock file on which the launching process took the lock already; anything else
            (none, a closed number, another file) means that this process was started by hand and takes the lock itself.

    Raises:
        SessionRunsError: another process holds it.
        UserError: there can be no lock in this folder.
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
