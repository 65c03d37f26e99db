"""Which process this is, and whether that one still lives: a pid alone is not enough, for it is used again, and elsewhere too."""

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
    """A process, told apart from every other one that has had its pid: on this machine, on others, and in containers."""

    host: str
    pid: int
    started: str
    """When it started: clock ticks since boot on Linux, elsewhere seconds since 1970; empty where the system does not tell."""
    boot_id: str = ""
    """Of the kernel that runs it; empty where that does not tell, and in what earlier versions wrote."""
    pid_namespace: str = ""
    """The one that the pid counts in; empty as the boot id is."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class ProcessStatus:
    """What the system says of the process that has a pid now."""

    started: str = ""
    has_ended: bool = False
    """Whether no process has the pid, or only one that was killed and is not collected by its parent yet."""


Look = Callable[[int], ProcessStatus | None]
"""Asks the system for the process of a pid; None: the system does not tell."""


def look_at(pid: int) -> ProcessStatus | None:
    """Ask this system for the process of a pid."""
    return _look_into_proc(pid) if sys.platform == "linux" else _look_through_installed_psutil()(pid)


def identify(pid: int, look: Look = look_at) -> ProcessIdentity:
    """Return the identity of a process that lives now; the pid is one of this process's own namespace."""
    status = look(pid)
    return ProcessIdentity(
        host=socket.gethostname(),
        pid=pid,
        started="" if status is None or status.has_ended else status.started,
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


def certainly_dead(identity: ProcessIdentity, look: Look = look_at) -> bool:
    """Return whether a process is known to be gone: only one that could be seen from here, if it lived, ever is.

    Never one of another host, nor of another boot (two machines may have one name), nor of another PID namespace (there its pid
    means another process), nor one of which an earlier version wrote down neither.
    """
    if not _can_be_seen_from_here(identity):
        return False
    status = look(identity.pid)
    if status is None:
        return False
    return status.has_ended or (identity.started != "" and identity.started != status.started)


def certainly_alive(identity: ProcessIdentity, look: Look = look_at) -> bool:
    """Return whether the process that now has the pid is this very one: host, boot, PID namespace and start time are the same.

    What the system does not tell proves nothing: then it is False.
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
    # Only Linux has PID namespaces, and tells them and the boot; elsewhere the host's name is all that there is.
    return place == (socket.gethostname(), _boot_id(), _pid_namespace()) and (all(place) or sys.platform != "linux")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Return the kernel's name of this process's PID namespace; empty where /proc shows the processes of another one."""
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
    """Tell only whether there is a process: /proc does not show it, or is not there. On Windows signal 0 would be Ctrl-C."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # it is gone, or no process can have that pid
        return ProcessStatus(has_ended=True)
    except PermissionError:
        pass
    return None


@cache
def _look_through_installed_psutil() -> Look:
    import psutil  # here, for it is installed where /proc is absent: on macOS and Windows

    return look_through_psutil(psutil)


def look_through_psutil(psutil: Any) -> Look:
    """Return what asks psutil for the process of a pid.

    On macOS psutil shifts all start times once the system's clock was set since it was loaded (`adjust_proc_create_time` of
    psutil 7.2), by an amount that it does not tell. Then a process would look like another one. This process's own start time
    shows it: when that has moved, none is believed.

    Args:
        psutil: The module.
    """

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
