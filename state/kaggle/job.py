"""The documents for a kernel: the session's spec, its inputs and outputs on the account, the stop flag."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from state.backend_settings import Accelerator
from state.document import Document
from state.spec import SessionSpec


class CheckpointPlace(Document):
    """Place of a checkpoint on the account."""

    kind: Literal["dataset", "output"]
    owner: str
    slug: str
    version: int = Field(ge=1, description="version of the dataset, or of the kernel whose output holds it")


class KaggleJob(Document):
    """Everything that a kernel needs besides its code; it holds no credentials."""

    schema_version: Literal[1] = 1
    spec: SessionSpec = Field(description="its folders are the controller's; the kernel replaces them by its own")
    owner: str
    accelerator: Accelerator
    start: CheckpointPlace | None = Field(default=None, description="place of the start checkpoint; none: no start checkpoint")
    dataset: str = Field(description="slug of this attempt's dataset, which is READY before the push")
    control: str = Field(description="slug of the run's control dataset")
    upload_every_s: float = Field(gt=0.0)
    stop_poll_every_s: float = Field(gt=0.0)
    settle_s: float = Field(gt=0.0)
    processing_limit_s: float = Field(gt=0.0)
    most_versions: int = Field(ge=1, description="most versions of the attempt's dataset to keep; then older ones are deleted")
    token_dataset: str | None = None


class StopFlag(Document):
    """`stop.json` of the control dataset: names the attempt that must save and end."""

    schema_version: Literal[1] = 1
    session: int | None = Field(default=None, description="none: no attempt is asked to stop")
    attempt: int | None = None
