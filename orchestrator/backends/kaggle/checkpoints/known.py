"""What is known of an attempt's dataset from looking into it, and when to look again: pure.

A version is examined once: it is what its note says, or it is believed not to be. Lists lag, so that this is only doubted at
first, and believed when a look after the settling time says the same. A version that was deleted is not doubted any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field, field_serializer, model_validator

from orchestrator.backends.kaggle.sightings import DatasetSeen
from state.backend_settings import KaggleSettings
from state.document import Document

_WHOLE_DATASET = "0"  # a key of `wrong` in the stored form, which has `hidden_since` there


class Known(Document):
    """What is known of the dataset of one attempt."""

    current: int = Field(default=0, description="the newest version that was looked into")
    examined: tuple[int, ...] = Field(default=(), description="versions that need no further look")
    wrong: dict[int, datetime] = Field(default_factory=dict, description="since when a version is not what its note says")
    hidden_since: datetime | None = Field(default=None, exclude=True, description="looks do not show the dataset since then")
    report_version: int | None = Field(default=None, description="the newest version that holds a report")
    total_bytes: int = 0
    looked_since: datetime | None = Field(default=None, description="when it was first looked at, as far as this index goes")
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
    """Return what is known when a version needs no further look, whatever was doubted of it."""
    wrong = {number: since for number, since in known.wrong.items() if number != version}
    examined = known.examined if version in known.examined else (*known.examined, version)
    return known.evolve(examined=examined, wrong=wrong)


def with_doubt(known: Known, version: int, now: datetime) -> Known:
    """Return what is known after a look into a version that is not what its note says; the first such look counts."""
    return known.evolve(wrong={version: now, **known.wrong})


def with_report(known: Known, version: int) -> Known:
    """Return what is known after a report was found in a version."""
    return known.evolve(report_version=max(version, known.report_version or 0))


def with_contents(known: Known, dataset: DatasetSeen) -> Known:
    """Return what is known after the versions that a look has shown were looked into, as far as they could be."""
    return known.evolve(
        current=dataset.current if dataset.current in known.examined else known.current,
        total_bytes=dataset.total_bytes,
        wrong={number: since for number, since in known.wrong.items() if not dataset.has_lost(number)},
    )


def with_look(known: Known, now: datetime, *, is_shown: bool) -> Known:
    """Return what is known after a look at the dataset of an attempt that is over, which Kaggle has shown or not."""
    hidden_since = None if is_shown else known.hidden_since or now
    return known.evolve(looked_since=known.looked_since or now, hidden_since=hidden_since)


def made_anew(known: Known) -> Known:
    """Return what is known of a dataset that was deleted and made anew: it counts its versions from 1 again."""
    return known.evolve(current=0, examined=(), wrong={}, hidden_since=None, is_gone=False)


def is_believed(known: Known, version: int, now: datetime, settle_s: float) -> bool:
    """Return whether it is believed when a look finds now that a version is not what its note says."""
    since = known.wrong.get(version)
    return since is not None and now >= since + timedelta(seconds=settle_s)


def next_look(known: Known, over_at: datetime, now: datetime, settings: KaggleSettings, *, newest: int) -> datetime | None:
    """Return when to look again at the dataset of an attempt that is over; None: nothing more can come from it.

    Args:
        known: What is known, with what the look now has shown.
        over_at: When the attempt was over.
        now: When the look was made.
        settings: How long reads may lag, how long processing may take, and how often to look.
        newest: The newest version that the look has shown, processed or not; 0: none.
    """
    soon, settle = now + timedelta(seconds=settings.poll_every_s), timedelta(seconds=settings.settle_s)
    if known.wrong.keys() - known.examined or (known.hidden_since is not None and now < known.hidden_since + settle):
        return soon
    settled_at = max(over_at, known.looked_since or now) + settle  # one look may lag, however long the attempt is over
    late_at = settled_at + timedelta(seconds=settings.processing_limit_s)  # a version may be shown only once it is processed
    is_pending = newest > known.current
    is_complete = known.report_version is not None and not is_pending  # after its report a session uploads nothing
    if now >= (settled_at if is_complete else late_at):
        return None
    return soon if is_pending or now < settled_at else late_at
