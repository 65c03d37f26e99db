"""What was read of an attempt's dataset, and when to read it again; pure functions.

A version is examined once. If it does not hold what its note says, it is only doubted at first, because lists may be stale; it
counts as corrupt when a read after the settle time shows the same. A deleted version is no longer doubted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field, field_serializer, model_validator

from orchestrator.backends.kaggle.sightings import DatasetSeen
from state.backend_settings import KaggleSettings
from state.document import Document

_WHOLE_DATASET = "0"  # stored files keep `hidden_since` under this key of `wrong`


class Known(Document):
    """What was read of the dataset of one attempt."""

    current: int = Field(default=0, description="the newest version that was examined")
    examined: tuple[int, ...] = Field(default=(), description="versions that need no further read")
    wrong: dict[int, datetime] = Field(default_factory=dict, description="since when a version is doubted")
    hidden_since: datetime | None = Field(default=None, exclude=True, description="since when reads of the dataset are refused")
    report_version: int | None = Field(default=None, description="the newest version that holds a report")
    total_bytes: int = 0
    looked_since: datetime | None = Field(default=None, description="when it was first read after the attempt ended")
    is_closed: bool = Field(default=False, description="nothing more can come from it")
    is_gone: bool = Field(default=False, description="the dataset was deleted")

    @model_validator(mode="before")
    @classmethod
    def _from_stored(cls, values: Any) -> Any:
        wrong = values.get("wrong") if isinstance(values, Mapping) else None
        if not isinstance(wrong, Mapping) or _WHOLE_DATASET not in wrong:
            return values
        versions = {number: since for number, since in wrong.items() if number != _WHOLE_DATASET}
        return {**values, "wrong": versions, "hidden_since": wrong[_WHOLE_DATASET]}

    @field_serializer("wrong")
    def _to_stored(self, wrong: dict[int, datetime]) -> dict[str, datetime]:
        whole = {_WHOLE_DATASET: self.hidden_since} if self.hidden_since is not None else {}
        return whole | {str(number): since for number, since in wrong.items()}


def with_examined(known: Known, version: int) -> Known:
    """Mark a version as examined; it is no longer doubted."""
    wrong = {number: since for number, since in known.wrong.items() if number != version}
    examined = known.examined if version in known.examined else (*known.examined, version)
    return known.evolve(examined=examined, wrong=wrong)


def with_doubt(known: Known, version: int, now: datetime) -> Known:
    """Mark a version as doubted; the time of the first such read is kept."""
    return known.evolve(wrong={version: now, **known.wrong})


def with_report(known: Known, version: int) -> Known:
    """Record that a version holds a report."""
    return known.evolve(report_version=max(version, known.report_version or 0))


def with_contents(known: Known, dataset: DatasetSeen) -> Known:
    """Record the state of a dataset after its readable versions were examined; forget doubts about deleted ones."""
    return known.evolve(
        current=dataset.current if dataset.current in known.examined else known.current,
        total_bytes=dataset.total_bytes,
        wrong={number: since for number, since in known.wrong.items() if not dataset.has_lost(number)},
    )


def with_look(known: Known, now: datetime, *, is_shown: bool) -> Known:
    """Record a read of an ended attempt's dataset, which Kaggle has shown or refused."""
    hidden_since = None if is_shown else known.hidden_since or now
    return known.evolve(looked_since=known.looked_since or now, hidden_since=hidden_since)


def made_anew(known: Known) -> Known:
    """Reset the record of a dataset that was deleted and created again: its versions count from 1 again."""
    return known.evolve(current=0, examined=(), wrong={}, hidden_since=None, is_gone=False)


def is_believed(known: Known, version: int, now: datetime, settle_s: float) -> bool:
    """Return whether a version that is found wrong now counts as corrupt: it was first doubted a settle time ago."""
    since = known.wrong.get(version)
    return since is not None and now >= since + timedelta(seconds=settle_s)


def next_look(known: Known, over_at: datetime, now: datetime, settings: KaggleSettings, *, newest: int) -> datetime | None:
    """Return when to read the dataset of an ended attempt again; None: nothing more can come from it.

    Args:
        known: What was read, including the read now.
        over_at: When the attempt ended.
        now: When the dataset was read.
        settings: The settle time, the limit of processing, and the poll interval.
        newest: The newest version that the read has shown, processed or not; 0: none.
    """
    soon, settle = now + timedelta(seconds=settings.poll_every_s), timedelta(seconds=settings.settle_s)
    if known.wrong.keys() - known.examined or (known.hidden_since is not None and now < known.hidden_since + settle):
        return soon
    settled_at = max(over_at, known.looked_since or now) + settle  # a first read may be stale, however long ago the attempt ended
    late_at = settled_at + timedelta(seconds=settings.processing_limit_s)  # Kaggle may show a version only after it is processed
    is_pending = newest > known.current
    is_complete = known.report_version is not None and not is_pending  # the report is a session's last upload
    if now >= (settled_at if is_complete else late_at):
        return None
    return soon if is_pending or now < settled_at else late_at
