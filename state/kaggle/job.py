"""What a kernel is told: the session's spec, and where on the account its inputs and outputs are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from state.backend_settings import Accelerator
from state.document import Document
from state.spec import SessionSpec


class CheckpointPlace(Document):
    """Where on the account a checkpoint lies."""

    kind: Literal["dataset", "output"]
    owner: str
    slug: str
    version: int = Field(ge=1, description="of the dataset, or of the kernel whose output it is")


class KaggleJob(Document):
    """All that a kernel needs besides its code; no credential is in it."""

    schema_version: Literal[1] = 1
    spec: SessionSpec = Field(description="its folders are of the controller's machine: the kernel puts its own in their place")
    owner: str
    accelerator: Accelerator
    start: CheckpointPlace | None = Field(default=None, description="where the spec's start checkpoint lies; none: no start")
    dataset: str = Field(description="slug of this attempt's dataset, which exists and is READY before the push")
    control: str = Field(description="slug of the run's control dataset")
    upload_every_s: float = Field(gt=0.0)
    stop_poll_every_s: float = Field(gt=0.0)
    settle_s: float = Field(gt=0.0)
    processing_limit_s: float = Field(gt=0.0)
    most_versions: int = Field(ge=1, description="versions of the attempt's dataset that may stand; then older ones are deleted")
    token_dataset: str | None = None


class StopFlag(Document):
    """`stop.json` of the control dataset: which attempt is to save and end."""

    schema_version: Literal[1] = 1
    session: int | None = Field(default=None, description="none: no attempt is asked to stop")
    attempt: int | None = None
