"""What the controller remembers of a run: its records, the changes that may be made to them, and what each change does.

`RunRecord.with_changes` is the one place that says what a change does; the run store writes down what comes out of it.
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
"""A worker ends itself before its limit; one that is this late, or this slow to stop when asked, does not."""


class DataRecord(Document):
    """One version of a run's prepared data; a run has one, and more when data is added later."""

    first_step: int = Field(default=0, ge=0, description="steps that are done when it is first read; 0: from the beginning")
    folder: DataFolder = Field(default="data", description="within the run's folder; a path of its own when it was made already")
    corpus: tuple[str, ...] = Field(default=(), description="where its text came from; none: the sample, or made already")
    sha256: str
    tokenizer_sha256: str | None = Field(default=None, description="none: recorded by an older gemma-orch")
    order_version: int = Field(default=ORDER_VERSION, description="of the order in which it is read")
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
    branch: str | None = Field(default=None, description="set when it was launched beside the run's line")
    adopt: bool = Field(default=False, description="its last checkpoint becomes the head when it is done")
    start_checkpoint: str | None
    start_step: int
    planned_at: datetime
    launched_at: datetime | None = None
    running_at: datetime | None = Field(default=None, description="when it was first seen to run; none while it is queued")
    asked_at: datetime | None = Field(default=None, description="when it was first asked to save and end")
    ended_at: datetime | None = None
    limit_s: float
    grace_s: float = Field(default=CEILING_GRACE_S, description="seconds beyond its limit before it is late")
    handle: str | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    error_class: ErrorClass | None = None
    error_fingerprint: str | None = None
    saved_step: int | None = Field(default=None, description="step of its last verified checkpoint")
    head: str | None = Field(default=None, description="its last verified checkpoint")
    train_s: float = Field(default=0.0, description="seconds of training that its last verified checkpoint holds")
    longest_save_s: float | None = None
    comparison: str | None = Field(default=None, description="of a rerun: how its result compares with the original")

    @property
    def key(self) -> tuple[int, int]:
        """Session and attempt."""
        return self.session, self.attempt

    @property
    def is_live(self) -> bool:
        """Whether it forbids another attempt of the run."""
        return self.state in LIVE_STATES


class CheckpointState(StrEnum):
    """What is known of a checkpoint's bytes."""

    VERIFIED = "verified"
    QUARANTINED = "quarantined"
    PRUNED = "pruned"


class CheckpointRecord(Document):
    """One checkpoint of a run; it stays in the ledger when its files are pruned.

    Its id comes from documents that were checked. Here it is read unchecked: earlier versions took any text for one, and the
    run must stay readable. The store refuses such an id, and the run falls back.
    """

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
        """Where it comes among the checkpoints of its run: by step, then by fence token."""
        return self.step, self.fence, self.id

    def expected(self) -> ExpectedCheckpoint:
        """Return what a session is told to start from this checkpoint.

        Raises:
            CorruptCheckpointError: its id is none.
        """
        return ExpectedCheckpoint(
            id=check_checkpoint_id(self.id),
            step=self.step,
            manifest_sha256=self.manifest_sha256,
            state_sha256=self.state_sha256,
        )


class Waiting(Document):
    """What keeps a run from its next session."""

    reason: str
    until: datetime | None = Field(default=None, description="when to look again; none: soon")


class RunHeader(Document):
    """What the controller alone writes about a run."""

    name: RunName
    created_at: datetime
    state: RunState = RunState.ACTIVE
    message: str | None = Field(default=None, description="why it is in this state")
    exit_code: int = 0
    resumed_at: datetime = Field(description="when the user last said start; failures before it are forgiven")
    data: tuple[DataRecord, ...] = Field(default=(), description="its versions, by first step; none: not prepared yet")
    newest_fence: int = 0
    head: str | None = None
    step_backs: int = Field(default=0, description="corrupt checkpoints since the last progress")
    waiting: Waiting | None = Field(default=None, description="what the next session waits for, as the last tick found it")

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_none_as_it_was_written_before(cls, data: Any) -> Any:
        """Accept what a gemma-orch wrote that knew no versions and read in the first order."""
        if data is None:
            return ()
        return ({"order_version": 1, **data},) if isinstance(data, dict) else data


class StopWish(StrEnum):
    """How the user wants a run to stop."""

    CHECKPOINT = "checkpoint"
    """Save first."""
    NOW = "now"
    """At once: what is not saved is lost."""


class RerunWish(Document):
    """The user wants one session again."""

    session: int
    adopt: bool
    requested_at: datetime


class RunWishes(Document):
    """What the user alone writes about a run; a controller may be at work at the same time."""

    spec: RunSpec
    stop: StopWish | None = None
    rerun: RerunWish | None = None


class Event(Document):
    """One thing that happened, in the user's words."""

    at: datetime
    text: str


@dataclass(frozen=True)
class RunRecord:
    """All that is remembered of one run."""

    header: RunHeader
    wishes: RunWishes
    attempts: tuple[AttemptRecord, ...] = ()
    """In the order in which their fence tokens were given out."""
    checkpoints: dict[str, CheckpointRecord] = field(default_factory=dict)
    """By step, then by fence token."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.header.name

    @property
    def spec(self) -> RunSpec:
        """What the user asks for."""
        return self.wishes.spec

    @property
    def live_attempt(self) -> AttemptRecord | None:
        """The attempt that forbids another one, if any; there is never more than one."""
        return next((attempt for attempt in self.attempts if attempt.is_live), None)

    @property
    def head(self) -> CheckpointRecord | None:
        """The last committed and verified checkpoint of the run's line."""
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
        """Return the record after changes, as a run store that has made them loads it.

        Raises:
            IllegalMoveError: a change breaks the state tables, or changes an attempt that was never added.
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
                    return self  # the user has wished for something else meanwhile
                return replace(self, wishes=self.wishes.evolve(**{wish: None}))
            case Tell():
                return self  # the history is no part of the record

    def _with_attempt(self, attempt: AttemptRecord, *, is_new: bool) -> RunRecord:
        old = self.attempt(*attempt.key)
        if is_new != (old is None):
            verb = "added" if is_new else "changed"
            there = "there already" if is_new else "not there"
            raise IllegalMoveError(f"attempt {attempt_name(*attempt.key)} is {verb}, and it is {there}")
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
    """Record data that was prepared for a spec; not when the user asks for something else meanwhile."""

    data: tuple[DataRecord, ...]
    spec: RunSpec


@dataclass(frozen=True)
class PutAttempt:
    """Add an attempt, or replace it; a new one, and only that, comes with its SessionSpec."""

    attempt: AttemptRecord
    session_spec: SessionSpec | None = None


@dataclass(frozen=True)
class PutCheckpoint:
    """Add a checkpoint's record, or replace it."""

    checkpoint: CheckpointRecord


@dataclass(frozen=True)
class ClearWish:
    """A wish has been carried out; it stays when the user has wished for something else meanwhile."""

    wish: Literal["stop", "rerun"]
    seen: StopWish | RerunWish | None


@dataclass(frozen=True)
class Tell:
    """Write a line into the run's history."""

    event: Event


Change = SetHeader | SetData | PutAttempt | PutCheckpoint | ClearWish | Tell


@dataclass(frozen=True)
class Lease:
    """Who may write about a run, and until when."""

    owner: ProcessIdentity
    until: datetime
