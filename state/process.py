"""Which process this is, and whether that one still lives: a pid alone is not enough, for it is used again."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from state.document import Document


class ProcessIdentity(Document):
    """A process of one machine, told apart from every other one that has had its pid."""

    host: str
    pid: int
    started: str
    """The kernel's start time of the process (clock ticks since boot), empty where the kernel does not tell."""


def identify(pid: int) -> ProcessIdentity:
    """Return the identity of a process of this machine that lives now."""
    return ProcessIdentity(host=socket.gethostname(), pid=pid, started=_started(pid))


def certainly_dead(identity: ProcessIdentity) -> bool:
    """Return whether a process is known to be gone; a process of another machine never is."""
    if identity.host != socket.gethostname():
        return False
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _started(identity.pid) != identity.started


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A killed process whose parent has not collected it yet does nothing any more.
    return "" if fields[0] == "Z" else fields[19]
