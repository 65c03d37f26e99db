"""Identifies a process and tells whether it is still alive.

A pid alone does not identify it: a system reuses pids, and other machines and containers have the same ones.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from state.document import Document


class ProcessIdentity(Document):
    """The identity of a process, unique among all processes that ever had its pid, here, on other machines and in containers."""

    host: str
    pid: int
    started: str
    """Start time: clock ticks since boot on Linux, elsewhere seconds since 1970; empty if the system does not give it."""
    boot_id: str = ""
    """Id of the boot of its kernel; empty if the system does not give it, and in documents of earlier versions."""
    pid_namespace: str = ""
    """Namespace of the pid; empty in the same cases as the boot id."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class ProcessStatus:
    """What the system reports about the process that has a pid now."""

    started: str = ""
    has_ended: bool = False
    """Whether no process has the pid, or only a zombie: one that has ended and that its parent has not reaped yet."""


Look = Callable[[int], ProcessStatus | None]
"""Queries the process of a pid; None: the system gives no answer."""


def look_at(pid: int) -> ProcessStatus | None:
    """Query this system for the process of a pid; None: the system gives no answer."""
    return _look_into_proc(pid) if sys.platform == "linux" else _look_through_installed_psutil()(pid)


def identify(pid: int, look: Look = look_at) -> ProcessIdentity:
    """Return the identity of a process that is alive now; the pid is of this process's own namespace."""
    status = look(pid)
    return ProcessIdentity(
        host=socket.gethostname(),
        pid=pid,
        started="" if status is None or status.has_ended else status.started,
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


def certainly_dead(identity: ProcessIdentity, look: Look = look_at) -> bool:
    """Return whether a process has certainly ended; False unless it would be visible from here if it were alive.

    So it is False for a process of another host, of another boot (two machines may have one name) or of another PID namespace
    (there its pid means another process), and for one whose boot and namespace an earlier version did not record.
    """
    if not _can_be_seen_from_here(identity):
        return False
    status = look(identity.pid)
    if status is None:
        return False
    return status.has_ended or (identity.started != "" and identity.started != status.started)


def certainly_alive(identity: ProcessIdentity, look: Look = look_at) -> bool:
    """Return whether the process that has the pid now is this one: host, boot, PID namespace and start time are equal.

    It is False if the system does not give one of them.
    """
    status = look(identity.pid)
    return (
        _can_be_seen_from_here(identity)
        and identity.started != ""
        and status is not None
        and not status.has_ended
        and status.started == identity.started
    )


def _can_be_seen_from_here(identity: ProcessIdentity) -> bool:
    place = (identity.host, identity.boot_id, identity.pid_namespace)
    # Only Linux has PID namespaces and gives a boot id; elsewhere only the host's name is known.
    return place == (socket.gethostname(), _boot_id(), _pid_namespace()) and (all(place) or sys.platform != "linux")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Return the kernel's name of this process's PID namespace; empty if /proc belongs to another namespace, or is missing."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _look_into_proc(pid: int) -> ProcessStatus | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _look_by_signal(pid)
    fields = stat.rpartition(")")[2].split()
    return ProcessStatus(started=fields[19], has_ended=fields[0] == "Z")


def _look_by_signal(pid: int) -> ProcessStatus | None:
    """Check only whether the process exists, as /proc does not show it. Not for Windows: there signal 0 is Ctrl-C."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the process is gone, or the pid is too large for any process
        return ProcessStatus(has_ended=True)
    except PermissionError:
        pass
    return None


@cache
def _look_through_installed_psutil() -> Look:
    import psutil  # not at the top: it is installed only where /proc is absent, on macOS and Windows

    return look_through_psutil(psutil)


def look_through_psutil(psutil: Any) -> Look:
    """Return a `Look` that uses psutil.

    Args:
        psutil: The module.
    """
    # On macOS psutil shifts all start times after the system's clock was set (`adjust_proc_create_time` of psutil 7.2), by an
    # amount that it does not tell. Then a process would look like another one. If the start time of this process has moved, no
    # start time is used.

    def started(process: Any) -> str:
        return f"{process.create_time():.3f}"

    own_start = started(psutil.Process())

    def look(pid: int) -> ProcessStatus | None:
        try:
            process = psutil.Process(pid)
            status = ProcessStatus(started(process), has_ended=process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return ProcessStatus(has_ended=True)
        except psutil.Error:  # it belongs to another user
            return None
        return status if started(psutil.Process()) == own_start else None

    return look
