"""What a session is: one run of one kernel version, and what it says at any moment."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kaggle_emulator.machines import Pool, pool

NEVER = float("inf")


@dataclass(frozen=True)
class OutputFile:
    """One file that a session left in its working folder."""

    name: str
    path: Path
    size: int


@dataclass
class Session:
    """One accepted push that runs. Moments are emulator time; `NEVER` until they come."""

    id: int
    owner: str
    slug: str
    version: int
    shape: str
    """The machine that it got."""
    limit_s: float
    internet: bool
    sources: dict[str, list[str]]
    folder: Path
    pushed_at: float
    turn_at: float = NEVER
    """When it has been queued for long enough."""
    started_at: float = NEVER
    ended_at: float = NEVER
    outcome: str = ""
    failure_message: str = ""
    zombie_until: float = 0.0
    """A wedged kernel's session holds its slot until here, whatever its process does."""
    token: str = ""
    secrets_token: str = ""
    process_id: int | None = None
    mounted: dict[str, int] = field(default_factory=dict)
    """Which version of each source it saw."""
    log: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[OutputFile] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the session has to end before its time: its kernel was deleted, or the emulator stops."""
    looked_at: float = 0.0
    """When it was last looked whether its time is up."""
    num_signals: int = 0
    """Those that it was sent."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when nothing of it runs any more."""

    @property
    def ref(self) -> str:
        return f"{self.owner}/{self.slug}"

    @property
    def pool(self) -> Pool:
        return pool(self.shape)

    @property
    def working(self) -> Path:
        return self.folder / "working"

    def status(self, now: float) -> str:
        if now < self.started_at and now < self.ended_at:
            return "QUEUED"
        return "RUNNING" if now < self.ended_at else self.outcome

    def is_live(self, now: float) -> bool:
        """Queued or running."""
        return self.pushed_at <= now < max(self.ended_at, self.zombie_until)

    def has_ended(self, now: float) -> bool:
        return now >= self.ended_at

    def log_json(self, now: float) -> list[dict[str, Any]]:
        """Give the stored log: nothing before the end."""
        return list(self.log) if self.has_ended(now) else []

    def output_files(self, now: float) -> list[OutputFile]:
        """Give what the session left: nothing unless it completed."""
        return self.outputs if self.has_ended(now) else []

    def used_s(self, start: float, end: float) -> float:
        """Give the seconds that its machine ran between two moments."""
        return max(min(self.ended_at, end) - max(self.started_at, start), 0.0)
