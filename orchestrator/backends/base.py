"""The port to a place where sessions run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from state.report import Heartbeat, SessionReport
from state.spec import SessionSpec


@dataclass(frozen=True)
class AttemptRef:
    """Which attempt is meant: enough to find it on a backend even when the answer to its launch was lost."""

    run: str
    session: int
    attempt: int
    handle: str | None = None
    """The backend's own id, once known."""


class Sighting(StrEnum):
    """What a backend says about an attempt."""

    MISSING = "missing"
    """It does not exist: it was never launched."""
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The backend could not be asked, or its answer means nothing to us: never an error, never "failed"."""


@dataclass(frozen=True)
class Observation:
    """What a backend says about an attempt now."""

    sighting: Sighting
    detail: str = ""
    ended_at: datetime | None = None
    """When it ended, as far as the backend can tell."""


@dataclass(frozen=True)
class Quota:
    """Whether a backend takes another session now."""

    available: bool
    reason: str = ""
    until: datetime | None = None
    """When to ask again; none: soon."""


class Backend(Protocol):
    """A place where sessions run.

    Every method may raise TemporaryError (ask again later); a launch also AmbiguousError (look first), QuotaError and UserError.
    """

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    def quota(self, now: datetime) -> Quota:
        """Return whether another session would be taken now."""
        ...

    def launch(self, spec: SessionSpec) -> str:
        """Start an attempt and return the backend's id for it; launching the same attempt twice starts it once."""
        ...

    def observe(self, ref: AttemptRef) -> Observation:
        """Return what is known of an attempt; failures to find out are UNKNOWN."""
        ...

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once there is one."""
        ...

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return what a running attempt last said, if it can be read."""
        ...

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Ask an attempt to save at its next step boundary and end."""
        ...

    def kill(self, ref: AttemptRef) -> None:
        """End an attempt at once; what it has not saved is lost."""
        ...

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, and the offset after it."""
        ...
