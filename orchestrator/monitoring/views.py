"""The documents that `--json` prints: a versioned contract, described in docs/json.md. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from orchestrator.monitoring.speed import billed_seconds, eta, goodput, steps_per_second
from state.document import Document
from state.ledger import AttemptRecord, CheckpointState, RunRecord
from state.report import Heartbeat
from state.session import RunState


class SessionView(Document):
    """One attempt of one session."""

    number: int
    attempt: int
    backend: str
    state: str
    outcome: str | None
    reason: str | None
    start_step: int
    end_step: int
    """The last saved step; while the attempt runs, the last trained step."""
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    start_checkpoint: str | None
    branch: str | None
    comparison: str | None


class DataView(Document):
    """One data version of a run."""

    version: int
    from_step: int
    """The first step that reads it, counted from 1."""
    folder: str
    sha256: str
    tokens: dict[str, int]
    mixture: dict[str, float]


class StatusView(Document):
    """The status of one run."""

    schema_version: Literal[1] = 1
    run: str
    state: str
    message: str | None
    exit_code: int
    backend: str
    step: int
    """The head's step: the progress that is saved and verified."""
    total_steps: int
    head: str | None
    state_sha256: str | None
    waiting_for: str | None
    goodput: float | None
    steps_per_s: float | None
    eta: datetime | None
    live: Heartbeat | None
    data: tuple[DataView, ...] = ()
    sessions: tuple[SessionView, ...]


class CheckpointView(Document):
    """One checkpoint."""

    id: str
    step: int
    parent: str | None
    session: int
    attempt: int
    fence: int
    branch: str | None
    head: bool
    verified: bool
    state: str
    note: str | None
    state_sha256: str
    total_bytes: int
    created_at: datetime


def session_view(attempt: AttemptRecord, heartbeat: Heartbeat | None, now: datetime) -> SessionView:
    """Return the view of an attempt."""
    end_step = attempt.saved_step if attempt.saved_step is not None else attempt.start_step
    if attempt.is_live and heartbeat is not None:
        end_step = max(end_step, heartbeat.step)
    return SessionView(
        number=attempt.session,
        attempt=attempt.attempt,
        backend=attempt.backend,
        state=attempt.state,
        outcome=attempt.outcome,
        reason=attempt.reason,
        start_step=attempt.start_step,
        end_step=end_step,
        started_at=attempt.launched_at,
        ended_at=attempt.ended_at,
        duration_s=billed_seconds(attempt, now) if attempt.launched_at is not None else None,
        start_checkpoint=attempt.start_checkpoint,
        branch=attempt.branch,
        comparison=attempt.comparison,
    )


def status_view(record: RunRecord, heartbeat: Heartbeat | None, waiting_for: str | None, now: datetime) -> StatusView:
    """Return the view of a run."""
    live = record.live_attempt
    step = max(record.head_step, heartbeat.step) if heartbeat is not None and live is not None else record.head_step
    live_rate = heartbeat.steps_per_s if heartbeat is not None else None
    active = record.header.state is RunState.ACTIVE
    return StatusView(
        run=record.name,
        state=record.header.state,
        message=record.header.message,
        exit_code=record.header.exit_code,
        backend=record.spec.backend,
        step=record.head_step,
        total_steps=record.spec.total_steps,
        head=record.header.head,
        state_sha256=record.head.state_sha256 if record.head is not None else None,
        waiting_for=waiting_for,
        goodput=goodput(record, now),
        steps_per_s=live_rate or steps_per_second(record),
        eta=eta(record, now, step=step, live_steps_per_s=live_rate) if active else None,
        live=heartbeat if live is not None else None,
        data=data_views(record),
        sessions=tuple(session_view(attempt, heartbeat if attempt is live else None, now) for attempt in record.attempts),
    )


def data_views(record: RunRecord) -> tuple[DataView, ...]:
    """Return the views of a run's data versions; empty until the first version is prepared."""
    return tuple(
        DataView(
            version=number,
            from_step=data.first_step + 1,
            folder=data.folder,
            sha256=data.sha256,
            tokens=data.tokens,
            mixture=data.mixture,
        )
        for number, data in enumerate(record.header.data, start=1)
    )


def checkpoint_views(record: RunRecord) -> tuple[CheckpointView, ...]:
    """Return the views of a run's checkpoints, by step."""
    return tuple(
        CheckpointView(
            id=checkpoint.id,
            step=checkpoint.step,
            parent=checkpoint.parent,
            session=checkpoint.session,
            attempt=checkpoint.attempt,
            fence=checkpoint.fence,
            branch=checkpoint.branch,
            head=checkpoint.id == record.header.head,
            verified=checkpoint.state is CheckpointState.VERIFIED,
            state=checkpoint.state,
            note=checkpoint.note,
            state_sha256=checkpoint.state_sha256,
            total_bytes=checkpoint.total_bytes,
            created_at=checkpoint.created_at,
        )
        for checkpoint in record.checkpoints.values()
    )
