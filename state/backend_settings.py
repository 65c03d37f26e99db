"""A run's settings for each backend; none of them changes the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from state.document import Document

Accelerator = Literal["t4x2", "cpu"]

MACHINE_SHAPES: dict[Accelerator, str] = {"t4x2": "NvidiaTeslaT4", "cpu": "None"}
"""Kaggle's name for each accelerator. Every push names it, because Kaggle's default has been another machine at other times."""


class KaggleSettings(Document):
    """How sessions run on a Kaggle account."""

    owner: str | None = Field(default=None, description="the account's user name; none: the credentials' user")
    accelerator: Accelerator = "t4x2"
    internet: bool = Field(default=True, description="without it, sessions use kernel-output mode")
    poll_every_s: float = Field(default=60.0, gt=0.0, description="seconds between two polls of a session")
    upload_every_s: float = Field(default=3600.0, gt=0.0, description="seconds between two uploads of a session")
    stop_poll_every_s: float = Field(default=180.0, gt=0.0, description="seconds between two polls of the stop flag")
    settle_s: float = Field(
        default=600.0,
        gt=0.0,
        description="seconds by which reads may lag behind writes; absence counts only after that",
    )
    processing_limit_s: float = Field(default=3600.0, gt=0.0, description="longest wait for a dataset version to be processed")
    gpu_reserve_s: float = Field(default=0.0, ge=0.0, description="weekly GPU seconds kept for the user's own notebooks")
    storage_quota_bytes: int = Field(default=200 * 1024**3, ge=1, description="the account's private storage")
    storage_share: float = Field(default=0.6, gt=0.0, le=1.0, description="share of the storage quota for this run's checkpoints")
    token_dataset: str | None = Field(
        default=None, description="OWNER/SLUG of a private dataset that holds a scoped token; docs/kaggle.md explains the risk"
    )

    @property
    def longest_lag_s(self) -> float:
        """Seconds after which Kaggle has processed everything that was sent, and shows it."""
        return max(self.settle_s, self.processing_limit_s)


BACKEND_SETTINGS: dict[str, type[Document]] = {"kaggle": KaggleSettings}
"""Settings class by backend name; each name is a field of the run's spec and a table of the config file."""
