"""What polls showed of an attempt on Kaggle, and when to poll again; pure functions."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from state.document import Document
from state.kaggle.records import DatasetInfo, SessionStatus

JITTER = 0.1  # of the poll interval, added to it, so that many controllers do not ask at the same instant
_LOOKS_BEFORE_KERNEL = 6  # polls before the machine is asked for: no hurry, a worker on a wrong machine ends by itself
_SILENCE = 3.0  # poll intervals without a poll, after which everything is polled: the controller is new, or has slept


class Look(StrEnum):
    """The thing that one poll asks for."""

    STATUS = "status"
    """The status of the session."""
    DATASET = "dataset"
    """The versions of the attempt's dataset."""
    KERNEL = "kernel"
    """The machine that the session got; asked for once."""
    KERNELS = "kernels"
    """Whether the list of the account's kernels shows the kernel; asked for while reads of it are refused."""

    def after_refusal(self) -> Look:
        """Return the next poll while reads of the kernel are refused: status, list of kernels, dataset, in turn."""
        return {Look.STATUS: Look.KERNELS, Look.KERNELS: Look.DATASET}.get(self, Look.STATUS)


class VersionSeen(Document):
    """One version of an attempt's dataset."""

    number: int
    notes: str
    status: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether its files can be read; Kaggle may omit the status of a version that is ready."""
        return self.status.lower() in ("", "ready")


class DatasetSeen(Document):
    """An attempt's dataset. A stale read, which shows less than an earlier one, never replaces it."""

    current: int = Field(default=0, description="number of the newest processed version; 0: none")
    total_bytes: int = 0
    versions: tuple[VersionSeen, ...] = ()

    @property
    def readable(self) -> tuple[VersionSeen, ...]:
        """The versions that can be read, newest first."""
        ready = (version for version in self.versions if version.number <= self.current and version.is_ready)
        return tuple(sorted(ready, key=lambda version: version.number, reverse=True))

    @property
    def is_processing(self) -> bool:
        """Whether a version is shown that is not processed yet and may become the current one."""
        return any(v.number > self.current and v.status.lower() not in ("failed", "deleted") for v in self.versions)

    def has_lost(self, number: int) -> bool:
        """Return whether a version was deleted; one that is not processed yet does not count as deleted."""
        return number < self.current and all(v.number != number or v.status.lower() == "deleted" for v in self.versions)


class Seen(Document):
    """What polls showed of one attempt; stored in the run's folder."""

    schema_version: Literal[1] = 1
    looks: int = 0
    looked_at: datetime | None = None
    last: Look | None = None
    kernel: str | None = Field(default=None, description="slug of its kernel, once a poll has found it")
    status: SessionStatus | None = Field(default=None, description="status in the last answer; none: no answer yet")
    failure: str | None = Field(default=None, description="why the last poll of the status failed")
    alive_at: datetime | None = Field(default=None, description="when it was last seen queued or running")
    running_at: datetime | None = Field(default=None, description="when it was first seen running")
    missing_since: datetime | None = Field(default=None, description="since when its reads answer 403 or 404")
    missing_at: datetime | None = Field(default=None, description="when a read last answered so")
    listed_at: datetime | None = Field(default=None, description="when a list of the account's kernels last showed it")
    unlisted_since: datetime | None = Field(default=None, description="since when such lists and reads do not show it")
    unlisted_at: datetime | None = Field(default=None, description="when such a list last did not show it")
    ended: SessionStatus | None = Field(default=None, description="terminal status, once Kaggle has reported one")
    ended_at: datetime | None = None
    ended_again: bool = Field(default=False, description="a later poll confirmed the end")
    looks_after_end: int = Field(default=0, description="polls since everything that it left must be shown")
    shape: str | None = Field(default=None, description="the machine that it got")
    shape_asked: bool = False
    dataset: DatasetSeen | None = None
    dataset_at: datetime | None = None
    outputs_read: bool = Field(default=False, description="its output was read")
    report_at: datetime | None = Field(default=None, description="when its report was found")
    over: str | None = Field(default=None, description="how it ended; once set, its status is final")
    over_at: datetime | None = None


def due_looks(seen: Seen, now: datetime, every_s: float, seed: str) -> tuple[Look, ...]:
    """Return the polls that are due: all at first and after a long silence, else one thing per poll interval.

    The jitter is a function of the seed and the number of polls, so that the pace can be replayed.

    Args:
        seen: What earlier polls showed.
        now: The current moment.
        every_s: The poll interval in seconds.
        seed: The attempt's name, to give each attempt another jitter.
    """
    if seen.looked_at is None:
        return (Look.STATUS, Look.DATASET)
    since_s = (now - seen.looked_at).total_seconds()
    if 0.0 <= since_s < every_s * (1.0 + JITTER * _share(f"{seed} {seen.looks}")):
        return ()
    if seen.over is not None:
        return (Look.DATASET,)
    if since_s >= _SILENCE * every_s or since_s < 0.0:  # the clock was set back, so the time since is unknown
        # While reads are refused only lists tell that it is gone, however seldom the controller polls.
        return (Look.STATUS, Look.DATASET) if seen.missing_since is None else (Look.STATUS, Look.KERNELS, Look.DATASET)
    if seen.missing_since is not None and seen.last is not None:
        return (seen.last.after_refusal(),)
    if seen.status is SessionStatus.RUNNING and not seen.shape_asked and seen.looks >= _LOOKS_BEFORE_KERNEL:
        return (Look.KERNEL,)
    return (Look.STATUS,) if seen.last is Look.DATASET else (Look.DATASET,)


def _share(seed: str) -> float:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) / 2**32


def with_status(seen: Seen, status: SessionStatus, now: datetime) -> Seen:
    """Return what is known after a poll answered the status."""
    known: dict[str, object] = {"status": status, "failure": None, "missing_since": None, "missing_at": None}
    known |= {"unlisted_since": None, "unlisted_at": None}
    if status in (SessionStatus.QUEUED, SessionStatus.RUNNING):  # an earlier terminal status was wrong
        known |= {"alive_at": now, "ended": None, "ended_at": None, "ended_again": False, "outputs_read": False}
        known |= {"looks_after_end": 0}
        known |= {"running_at": (seen.running_at or now) if status is SessionStatus.RUNNING else None}
    elif status.is_terminal and seen.ended is not None:
        known |= {"ended": status, "ended_again": True}
    elif status.is_terminal:
        known |= {"ended": status, "ended_at": now, "looks_after_end": 0}
    else:
        known |= {"failure": "Kaggle reports a session status that this version does not know"}
    return seen.evolve(**known)


def with_refusal(seen: Seen, now: datetime) -> Seen:
    """Return what is known after a read answered 403 or 404, as Kaggle does for missing and at times for running kernels."""
    return seen.evolve(failure=None, missing_since=seen.missing_since or now, missing_at=now)


def with_list(seen: Seen, now: datetime, *, kernel: str | None) -> Seen:
    """Return what is known after a whole list of the account's kernels; `kernel` is the attempt's, if the list shows it."""
    if kernel is not None:
        return seen.evolve(kernel=kernel, listed_at=now, unlisted_since=None, unlisted_at=None)
    return seen.evolve(unlisted_since=seen.unlisted_since or now, unlisted_at=now)


def with_dataset(seen: Seen, info: DatasetInfo | None, now: datetime) -> Seen:
    """Return what is known after a poll of the dataset; a stale answer changes nothing."""
    if info is None or (seen.dataset is not None and (info.current_version or 0) < seen.dataset.current):
        return seen
    shown = DatasetSeen(
        current=info.current_version or 0,
        total_bytes=info.total_bytes,
        versions=tuple(
            VersionSeen(number=version.number, notes=version.notes, status=version.status) for version in info.versions
        ),
    )
    return seen.evolve(dataset=shown, dataset_at=now)
