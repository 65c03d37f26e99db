"""Which process this is, and whether that one still lives: a pid alone is not enough, for it is used again, and elsewhere too."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from state.document import Document


class ProcessIdentity(Document):
    """A process, told apart from every other one that has had its pid: on this machine, on others, and in containers."""

    host: str
    pid: int
    started: str
    """The kernel's start time of the process (clock ticks since boot), empty where the kernel does not tell."""
    boot_id: str = ""
    """Of the kernel that runs it; empty where that does not tell, and in what earlier versions wrote."""
    pid_namespace: str = ""
    """The one that the pid counts in; empty as the boot id is."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _Status:
    """What the kernel says of a process."""

    state: str
    started: str

    @property
    def has_ended(self) -> bool:
        """Whether it is a zombie: killed, and not collected by its parent yet; it does nothing any more."""
        return self.state == "Z"


def identify(pid: int) -> ProcessIdentity:
    """Return the identity of a process that lives now; the pid is one of this process's own namespace."""
    status = _status(pid)
    return ProcessIdentity(
        host=socket.gethostname(),
        pid=pid,
        started="" if status is None or status.has_ended else status.started,
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


def certainly_dead(identity: ProcessIdentity) -> bool:
    """Return whether a process is known to be gone: only one that could be seen from here, if it lived, ever is.

    Never one of another host, nor of another boot (two machines may have one name), nor of another PID namespace (there its pid
    means another process), nor one of which an earlier version wrote down neither.
    """
    if not _can_be_seen_from_here(identity):
        return False
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    status = _status(identity.pid)
    if status is None:
        return False
    return status.has_ended or (identity.started != "" and identity.started != status.started)


def certainly_alive(identity: ProcessIdentity) -> bool:
    """Return whether the process that now has the pid is this very one: host, boot, PID namespace and start time are the same.

    What the kernel does not tell proves nothing: then it is False.
    """
    status = _status(identity.pid)
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


def _status(pid: int) -> _Status | None:
    """Return what the kernel says of a process; None where it says nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return _Status(state=fields[0], started=fields[19])
