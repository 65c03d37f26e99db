"""Our own values for the arguments and results of the calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

BlobType = Literal["DATASET", "MODEL"]
"""Kind of thing that an upload becomes part of, in kagglesdk's words."""


class SessionStatus(StrEnum):
    """Status of a kernel's session."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """Kaggle's word is not known here: the session counts neither as alive nor as dead."""

    @property
    def is_terminal(self) -> bool:
        """Whether the session has ended."""
        return self in (SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED)


@dataclass(frozen=True)
class KernelPush:
    """A script kernel to save and run; its title is its slug."""

    slug: str
    source: str
    machine_shape: str
    internet: bool
    timeout_s: int
    dataset_sources: tuple[str, ...]
    """Each `owner/slug`."""
    kernel_sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelInfo:
    """A kernel as Kaggle describes it."""

    slug: str
    version: int
    """The number of its newest version."""
    machine_shape: str | None
    """The machine that the last session got."""
    source: str | None
    """None if the kernel comes from a listing."""
    last_run_at: datetime | None


@dataclass(frozen=True)
class DatasetVersion:
    """One listed version of a dataset."""

    number: int
    notes: str
    status: str
    created_at: datetime | None


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset as Kaggle describes it."""

    slug: str
    current_version: int | None
    """None while the first version is processed."""
    total_bytes: int
    is_private: bool
    versions: tuple[DatasetVersion, ...]


@dataclass(frozen=True)
class ModelForm:
    """One instance of a model of this account: the weights in the form for one framework."""

    model: str
    """Slug of the model."""
    framework: str
    """A member of kagglesdk's ModelFramework."""
    slug: str

    def __str__(self) -> str:
        return f"{self.model}/{self.slug}"


@dataclass(frozen=True)
class OutputFile:
    """An output file of a session; its address opens it without credentials, so `repr` hides the address."""

    name: str
    url: str

    def __repr__(self) -> str:
        return f"OutputFile(name={self.name!r})"


@dataclass(frozen=True)
class AcceleratorQuota:
    """The week's GPU seconds; None: unknown."""

    refresh_at: datetime | None
    gpu_used_s: float | None
    gpu_reserved_s: float | None
    gpu_allowed_s: float | None
