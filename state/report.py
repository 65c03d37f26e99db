"""The documents that a session writes: a heartbeat while it runs, a report at its end."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from state.document import Document
from state.errors import ErrorClass
from state.layout import CheckpointId, RunName
from state.process import ProcessIdentity


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    """It trained and saved the run's last step."""
    BUDGET = "budget"
    """It used up the session's time or steps, and saved."""
    STOPPED = "stopped"
    """A signal or the stop file asked it to stop; it saved."""
    FAILED = "failed"
    """An error ended it; the report names the error."""
    HUNG = "hung"
    """No step ended within a learned multiple of the usual time."""
    LOST = "lost"
    """It ended without a report: it was killed, or its machine disappeared. Only the controller sets this outcome."""


class Phase(StrEnum):
    """The phase that a worker is in."""

    STARTING = "starting"
    VERIFYING = "verifying"
    RESTORING = "restoring"
    TRAINING = "training"
    SAVING = "saving"
    ENDING = "ending"


class Heartbeat(Document):
    """The current state of a running worker."""

    schema_version: Literal[1] = 1
    at: datetime
    pid: int
    process: ProcessIdentity | None = Field(default=None, description="owner of that pid; none: an earlier version wrote it")
    phase: Phase
    start_step: int
    step: int = Field(description="last step trained")
    loss: float | None = None
    tokens_per_s: float | None = None
    steps_per_s: float | None = None
    saved_step: int | None = Field(default=None, description="last step with a committed checkpoint of this attempt")
    left_s: float = Field(description="seconds left in the session")


class Seconds(Document):
    """A session's time by kind. The parts do not overlap and sum to the whole; only `saving_behind` runs beside them."""

    startup: float = 0.0
    restore: float = 0.0
    train: float = 0.0
    save: float = Field(default=0.0, description="seconds that saving kept the training waiting")
    saving_behind: float = Field(default=0.0, description="seconds of saving beside the training")
    whole: float = 0.0


class SessionReport(Document):
    """A session's result, written at its end."""

    schema_version: Literal[1] = 1
    run: RunName
    session: int
    attempt: int
    fence: int
    outcome: Outcome
    reason: str = Field(description="why it ended, in the user's words")
    error_class: ErrorClass | None = None
    error_fingerprint: str | None = Field(default=None, description="equal for equal errors")
    corrupt_checkpoint: CheckpointId | None = Field(default=None, description="the checkpoint that failed its verification")
    start_step: int
    end_step: int = Field(description="last step trained")
    saved_step: int | None = Field(description="last step with a committed checkpoint of this attempt")
    head: CheckpointId | None = Field(description="the last checkpoint that this attempt committed")
    started_at: datetime
    ended_at: datetime
    tokens: int = 0
    last_loss: float | None = None
    longest_save_s: float | None = Field(default=None, description="longest save that training waited for")
    seconds: Seconds = Seconds()
