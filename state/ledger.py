"""The records of a run, and the changes that may be made to them.

`RunRecord.with_changes` alone defines the effect of a change; the run store writes its result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from state.document import Document
from state.errors import ErrorClass
from state.layout import DataFolder, RunName, attempt_name, check_checkpoint_id
from state.process import ProcessIdentity
from state.report import Outcome
from state.session import LIVE_STATES, AttemptState, IllegalMoveError, RunState, check_attempt_move, check_run_move
from state.spec import ORDER_VERSION, ExpectedCheckpoint, RunSpec, SessionSpec

CEILING_GRACE_S = 120.0
"""Seconds after its limit, or after a stop request, until a worker is overdue; a healthy worker ends before its limit."""


class DataRecord(Document):
    """One version of a run's prepared data; a run has one, and another one for each time that data is added."""

    first_step: int = Field(default=0, ge=0, description="steps done before the version is first read; 0: from the beginning")
    folder: DataFolder = Field(default="data", description="name in the run's folder, or an absolute path of prepared data")
    corpus: tuple[str, ...] = Field(default=(), description="its source folders; none: the sample, or prepared data")
    sha256: str
    tokenizer_sha256: str | None = Field(default=None, description="none: recorded by an older version")
    order_version: int = Field(default=ORDER_VERSION, description="version of the order in which it is read")
    vocab_size: int
    tokens: dict[str, int] = Field(description="tokens by language")
    mixture: dict[str, float] = Field(description="weight by language, sum 1")

    @property
    def num_tokens(self) -> int:
        """Tokens of all languages."""
        return sum(self.tokens.values())


class AttemptRecord(Document):
    """One attempt of one session."""

    session: int
    attempt: int
    fence: int
    backend: str
    state: AttemptState
    branch: str | None = Field(default=None, description="set for a rerun, which saves its checkpoints on a branch")
    adopt: bool = Field(default=False, description="whether its last checkpoint becomes the head when it has ended")
    start_checkpoint: str | None
    start_step: int
    planned_at: datetime
    launched_at: datetime | None = None
    running_at: datetime | None = Field(default=None, description="when it was first observed running; none while it is queued")
    asked_at: datetime | None = Field(default=None, description="when it was first asked to save and end")
    ended_at: datetime | None = None
    limit_s: float
    grace_s: float = Field(default=CEILING_GRACE_S, description="seconds after its limit before it is overdue")
    handle: str | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    error_class: ErrorClass | None = None
    error_fingerprint: str | None = None
    saved_step: int | None = Field(default=None, description="step of its last verified checkpoint")
    head: str | None = Field(default=None, description="its last verified checkpoint")
    train_s: float = Field(default=0.0, description="seconds of training in its last verified checkpoint")
    longest_save_s: float | None = None
    comparison: str | None = Field(default=None, description="of a rerun: the comparison of its result with the original")

    @property
    def key(self) -> tuple[int, int]:
        """Session and attempt."""
        return self.session, self.attempt

    @property
    def is_live(self) -> bool:
        """Whether it is not over yet, so that no other attempt of the run may be launched."""
        return self.state in LIVE_STATES


class CheckpointState(StrEnum):
    """The state of a checkpoint's files."""

    VERIFIED = "verified"
    QUARANTINED = "quarantined"
    PRUNED = "pruned"


class CheckpointRecord(Document):
    """One checkpoint of a run; the record stays in the ledger when the files are pruned."""

    # The id is not validated here: earlier versions accepted any text, and their runs must stay readable. The store refuses an
    # invalid id as corrupt, and the run falls back.

    id: str
    step: int
    parent: str | None
    session: int
    attempt: int
    fence: int
    branch: str | None
    state: CheckpointState
    state_sha256: str
    manifest_sha256: str
    total_bytes: int
    created_at: datetime
    verified_at: datetime | None
    train_s: float
    note: str | None = None

    @property
    def place(self) -> tuple[int, int, str]:
        """The sort key of a run's checkpoints: step, then fence token, then id."""
        return self.step, self.fence, self.id

    def expected(self) -> ExpectedCheckpoint:
        """Return the part of a SessionSpec that makes a session start from this checkpoint.

        Raises:
            CorruptCheckpointError: its id is invalid.
        """
        return ExpectedCheckpoint(
            id=check_checkpoint_id(self.id),
            step=self.step,
            manifest_sha256=self.manifest_sha256,
            state_sha256=self.state_sha256,
        )


class Waiting(Document):
    """The reason why a run's next session is not launched yet."""

    reason: str
    until: datetime | None = Field(default=None, description="when the controller checks again; none: at the next tick")


class RunHeader(Document):
    """The part of a run's record that only the controller writes."""

    name: RunName
    created_at: datetime
    state: RunState = RunState.ACTIVE
    message: str | None = Field(default=None, description="why it is in this state")
    exit_code: int = 0
    resumed_at: datetime = Field(description="time of the user's last `start`; earlier failures do not count")
    data: tuple[DataRecord, ...] = Field(default=(), description="its versions, by first step; none: not prepared yet")
    newest_fence: int = 0
    head: str | None = None
    step_backs: int = Field(default=0, description="corrupt checkpoints since the last progress")
    waiting: Waiting | None = Field(default=None, description="what the next session waits for, as of the last tick")

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_none_as_it_was_written_before(cls, data: Any) -> Any:
        """Accept the form of earlier versions: null, or one data record without an order version, which means order 1."""
        if data is None:
            return ()
        return ({"order_version": 1, **data},) if isinstance(data, dict) else data


class StopWish(StrEnum):
    """How the user wants a run to stop."""

    CHECKPOINT = "checkpoint"
    """Save a checkpoint first."""
    NOW = "now"
    """Kill the session at once; unsaved steps are lost."""


class RerunWish(Document):
    """A request to rerun one session."""

    session: int
    adopt: bool
    requested_at: datetime


class RunWishes(Document):
    """The part of a run's record that only the user writes: the spec and pending requests.

    It may change while a controller holds the run.
    """

    spec: RunSpec
    stop: StopWish | None = None
    rerun: RerunWish | None = None


class Event(Document):
    """One line of a run's history, for the user."""

    at: datetime
    text: str


@dataclass(frozen=True)
class RunRecord:
    """All records of one run."""

    header: RunHeader
    wishes: RunWishes
    attempts: tuple[AttemptRecord, ...] = ()
    """Sorted by fence token."""
    checkpoints: dict[str, CheckpointRecord] = field(default_factory=dict)
    """By id, sorted by step, then by fence token."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.header.name

    @property
    def spec(self) -> RunSpec:
        """The spec that the user requests."""
        return self.wishes.spec

    @property
    def live_attempt(self) -> AttemptRecord | None:
        """The attempt that is not over yet, if any; there is never more than one."""
        return next((attempt for attempt in self.attempts if attempt.is_live), None)

    @property
    def head(self) -> CheckpointRecord | None:
        """The last committed and verified checkpoint of the lineage."""
        return self.checkpoints[self.header.head] if self.header.head is not None else None

    @property
    def head_step(self) -> int:
        """The head's step; 0 when there is none."""
        return self.head.step if self.head is not None else 0

    @property
    def parents(self) -> dict[str, str | None]:
        """The lineage: parent by checkpoint id."""
        return {checkpoint.id: checkpoint.parent for checkpoint in self.checkpoints.values()}

    def attempt(self, session: int, attempt: int) -> AttemptRecord | None:
        """Return an attempt, if the run has it."""
        return next((known for known in self.attempts if known.key == (session, attempt)), None)

    def with_changes(self, changes: Iterable[Change]) -> RunRecord:
        """Return the record after changes, as a run store loads it after it has applied them.

        Raises:
            IllegalMoveError: a change breaks the state tables, adds an attempt twice, or changes one that was never added.
        """
        record = self
        for change in changes:
            record = record._with_change(change)
        return record

    def _with_change(self, change: Change) -> RunRecord:
        match change:
            case SetHeader(header):
                check_run_move(self.header.state, header.state)
                return replace(self, header=header)
            case SetData(data, spec):
                return replace(self, header=self.header.evolve(data=data)) if self.spec == spec else self
            case PutAttempt(attempt, session_spec):
                return self._with_attempt(attempt, is_new=session_spec is not None)
            case PutCheckpoint(checkpoint):
                known = {**self.checkpoints, checkpoint.id: checkpoint}
                return replace(self, checkpoints=dict(sorted(known.items(), key=lambda item: item[1].place)))
            case ClearWish(wish, seen):
                if getattr(self.wishes, wish) != seen:
                    return self  # the user has made another request since
                return replace(self, wishes=self.wishes.evolve(**{wish: None}))
            case AddEvent():
                return self  # the history is not part of the record

    def _with_attempt(self, attempt: AttemptRecord, *, is_new: bool) -> RunRecord:
        old = self.attempt(*attempt.key)
        if is_new != (old is None):
            problem = "cannot be added: it exists already" if is_new else "cannot be changed: it does not exist"
            raise IllegalMoveError(f"attempt {attempt_name(*attempt.key)} {problem}")
        if old is not None:
            check_attempt_move(old.state, attempt.state)
        others = (known for known in self.attempts if known is not old)
        return replace(self, attempts=tuple(sorted((*others, attempt), key=lambda known: known.fence)))


@dataclass(frozen=True)
class SetHeader:
    """Replace the run's header."""

    header: RunHeader


@dataclass(frozen=True)
class SetData:
    """Record data that was prepared for a spec; no effect if the user has changed the spec since."""

    data: tuple[DataRecord, ...]
    spec: RunSpec


@dataclass(frozen=True)
class PutAttempt:
    """Add an attempt, or replace its record; `session_spec` is given for a new attempt only."""

    attempt: AttemptRecord
    session_spec: SessionSpec | None = None


@dataclass(frozen=True)
class PutCheckpoint:
    """Add or replace a checkpoint's record."""

    checkpoint: CheckpointRecord


@dataclass(frozen=True)
class ClearWish:
    """Clear a request that was carried out; no effect if the user has replaced it since."""

    wish: Literal["stop", "rerun"]
    seen: StopWish | RerunWish | None


@dataclass(frozen=True)
class AddEvent:
    """Add a line to the run's history."""

    event: Event


Change = SetHeader | SetData | PutAttempt | PutCheckpoint | ClearWish | AddEvent


@dataclass(frozen=True)
class Lease:
    """The process that may write a run's records, and the time until which it may."""

    owner: ProcessIdentity
    until: datetime
