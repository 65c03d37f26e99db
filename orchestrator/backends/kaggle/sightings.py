"""What was seen of an attempt on Kaggle, and when to look again: pure."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from state.document import Document
from state.kaggle.records import DatasetInfo, SessionStatus

JITTER = 0.1  # of the poll interval, added to it, so that many controllers do not ask at the same instant
_LOOKS_BEFORE_KERNEL = 6  # the worker itself leaves another machine at once: of one that stays it can be asked later
_SILENCE = 3.0  # poll intervals without a look, after which everything is looked at: the controller is new, or has slept


class Look(StrEnum):
    """What one look asks for."""

    STATUS = "status"
    """How the session is."""
    DATASET = "dataset"
    """Which versions the attempt's dataset has."""
    KERNEL = "kernel"
    """Which machine it really got; asked for once."""
    KERNELS = "kernels"
    """Whether the list of the account's kernels shows it; asked for while reads of it are refused."""

    def after_refusal(self) -> Look:
        """Return what to ask for next while reads of the kernel are refused: each thing in turn."""
        return {Look.STATUS: Look.KERNELS, Look.KERNELS: Look.DATASET}.get(self, Look.STATUS)


class VersionSeen(Document):
    """One version of an attempt's dataset."""

    number: int
    notes: str
    status: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether its files can be read, as far as the list says; Kaggle may leave the word out."""
        return self.status.lower() in ("", "ready")


class DatasetSeen(Document):
    """An attempt's dataset; of a look that shows less than an earlier one nothing is believed."""

    current: int = Field(default=0, description="number of the newest version that is processed; 0: none is")
    total_bytes: int = 0
    versions: tuple[VersionSeen, ...] = ()

    @property
    def readable(self) -> tuple[VersionSeen, ...]:
        """The versions that can be read, newest first."""
        ready = (version for version in self.versions if version.number <= self.current and version.is_ready)
        return tuple(sorted(ready, key=lambda version: version.number, reverse=True))

    @property
    def is_processing(self) -> bool:
        """Whether a version is shown that may still come to be the current one."""
        return any(v.number > self.current and v.status.lower() not in ("failed", "deleted") for v in self.versions)

    def has_lost(self, number: int) -> bool:
        """Return whether a version was deleted; one that is not processed yet was not."""
        return number < self.current and all(v.number != number or v.status.lower() == "deleted" for v in self.versions)


class Seen(Document):
    """What is known of an attempt from looking."""

    schema_version: Literal[1] = 1
    looks: int = 0
    looked_at: datetime | None = None
    last: Look | None = None
    kernel: str | None = Field(default=None, description="slug of its kernel, once a look has found it")
    status: SessionStatus | None = Field(default=None, description="what the last answer said; none: no answer yet, or missing")
    failure: str | None = Field(default=None, description="why the last look at the status told nothing")
    alive_at: datetime | None = Field(default=None, description="when it was last seen queued or running")
    running_at: datetime | None = Field(default=None, description="when it was first seen running")
    missing_since: datetime | None = Field(default=None, description="reads of it answer 403 or 404 since then")
    missing_at: datetime | None = Field(default=None, description="when one did, the last time")
    listed_at: datetime | None = Field(default=None, description="when a list of the account's kernels showed it, the last time")
    unlisted_since: datetime | None = Field(default=None, description="such lists do not show it since then, nor do reads")
    unlisted_at: datetime | None = Field(default=None, description="when such a list did not show it, the last time")
    ended: SessionStatus | None = Field(default=None, description="with what word it was first said to be over")
    ended_at: datetime | None = None
    ended_again: bool = Field(default=False, description="a later look said so as well")
    looks_after_end: int = Field(default=0, description="looks since all that it left must be shown")
    shape: str | None = Field(default=None, description="the machine that it got")
    shape_asked: bool = False
    dataset: DatasetSeen | None = None
    dataset_at: datetime | None = None
    outputs_read: bool = Field(default=False, description="what it left in its working folder has been looked through")
    report_at: datetime | None = Field(default=None, description="when its report was found")
    over: str | None = Field(default=None, description="how it ended; once this is said, nothing more is asked")
    over_at: datetime | None = None


def due_looks(seen: Seen, now: datetime, every_s: float, seed: str) -> tuple[Look, ...]:
    """Return what to ask for now: everything at first and after a long silence, else one thing a poll interval.

    The jitter comes from the seed and the number of the look, so that the pace can be replayed.

    Args:
        seen: What is known.
        now: The current moment.
        every_s: The poll interval.
        seed: Names the attempt.
    """
    if seen.looked_at is None:
        return (Look.STATUS, Look.DATASET)
    since_s = (now - seen.looked_at).total_seconds()
    if 0.0 <= since_s < every_s * (1.0 + JITTER * _share(f"{seed} {seen.looks}")):
        return ()
    if seen.over is not None:
        return (Look.DATASET,)
    if since_s >= _SILENCE * every_s or since_s < 0.0:  # the clock was set back: nobody knows how long ago it was
        return (Look.STATUS, Look.DATASET)
    if seen.missing_since is not None and seen.last is not None:
        return (seen.last.after_refusal(),)
    if seen.status is SessionStatus.RUNNING and not seen.shape_asked and seen.looks >= _LOOKS_BEFORE_KERNEL:
        return (Look.KERNEL,)
    return (Look.STATUS,) if seen.last is Look.DATASET else (Look.DATASET,)


def _share(seed: str) -> float:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) / 2**32


def with_status(seen: Seen, status: SessionStatus, now: datetime) -> Seen:
    """Return what is known after the status was answered."""
    known: dict[str, object] = {"status": status, "failure": None, "missing_since": None, "missing_at": None}
    known |= {"unlisted_since": None, "unlisted_at": None}
    if status in (SessionStatus.QUEUED, SessionStatus.RUNNING):  # whoever said that it was over was wrong
        known |= {"alive_at": now, "ended": None, "ended_at": None, "ended_again": False, "outputs_read": False}
        known |= {"looks_after_end": 0}
        known |= {"running_at": (seen.running_at or now) if status is SessionStatus.RUNNING else None}
    elif status.is_terminal and seen.ended is not None:
        known |= {"ended": status, "ended_again": True}
    elif status.is_terminal:
        known |= {"ended": status, "ended_at": now, "looks_after_end": 0}
    else:
        known |= {"failure": "Kaggle says a word about its session that is not known here"}
    return seen.evolve(**known)


def with_refusal(seen: Seen, now: datetime) -> Seen:
    """Return what is known after a read answered 403 or 404, as Kaggle does of what is not there and of what lives."""
    return seen.evolve(failure=None, missing_since=seen.missing_since or now, missing_at=now)


def with_list(seen: Seen, now: datetime, *, kernel: str | None) -> Seen:
    """Return what is known after a whole list of the account's kernels, which shows this one of the attempt, or none."""
    if kernel is not None:
        return seen.evolve(kernel=kernel, listed_at=now, unlisted_since=None, unlisted_at=None)
    return seen.evolve(unlisted_since=seen.unlisted_since or now, unlisted_at=now)


def with_dataset(seen: Seen, info: DatasetInfo | None, now: datetime) -> Seen:
    """Return what is known after the dataset was answered; an answer that is older than what is known changes nothing."""
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
