"""Turns the decision to launch into an attempt's record and its SessionSpec.

Both are complete before anything is sent to a backend.
"""

from __future__ import annotations

from datetime import datetime

from orchestrator.controller.decide import Launch
from orchestrator.ports import AttemptRef
from state.architecture import resolve_architecture
from state.errors import UserError
from state.fence import next_fence
from state.layout import HomeLayout
from state.ledger import AttemptRecord, RunRecord
from state.session import AttemptState
from state.spec import SessionData, SessionSpec

_SAVES_REMEMBERED = 5  # attempts whose longest saves set the time that the next one reserves for saving


def plan_attempt(record: RunRecord, decision: Launch, home: HomeLayout, now: datetime) -> tuple[AttemptRecord, SessionSpec]:
    """Return the record and the spec of a new attempt, with the run's next fence token.

    Raises:
        UserError: the run's data is not prepared.
    """
    versions = record.header.data
    if not versions:
        raise UserError(f"the data of run {record.name} is not prepared", remedy="gemma-orch start prepares it")
    spec, run = record.spec, home.run(record.name)
    start = record.checkpoints[decision.start_checkpoint] if decision.start_checkpoint is not None else None
    fence = next_fence(record.header.newest_fence)
    attempt = AttemptRecord(
        session=decision.session,
        attempt=decision.attempt,
        fence=fence,
        backend=spec.backend,
        state=AttemptState.PLANNED,
        branch=decision.branch,
        adopt=decision.adopt,
        start_checkpoint=decision.start_checkpoint,
        start_step=start.step if start is not None else 0,
        planned_at=now,
        limit_s=spec.limits.session_limit_s,
    )
    session_spec = SessionSpec(
        run=record.name,
        session=decision.session,
        attempt=decision.attempt,
        fence=fence,
        branch=decision.branch,
        architecture=resolve_architecture(spec.model, versions[0].vocab_size),
        training=spec.training,
        sequence_length=spec.data.sequence_length,
        data=tuple(
            SessionData(
                first_step=version.first_step,
                data_dir=str(run.data_folder(version.folder)),
                data_sha256=version.sha256,
                mixture=version.mixture,
            )
            for version in versions
        ),
        reading=spec.reading,
        checkpoints_dir=str(run.checkpoints),
        cache_dir=str(home.cache),
        start=start.expected() if start is not None else None,
        total_steps=spec.total_steps,
        max_steps=decision.max_steps,
        limit_s=spec.limits.session_limit_s,
        checkpoint_every_s=spec.limits.checkpoint_every_s,
        save_estimate_s=_longest_recent_save_s(record),
        retention=spec.retention,
    )
    return attempt, session_spec


def _longest_recent_save_s(record: RunRecord) -> float | None:
    measured = [attempt.longest_save_s for attempt in record.attempts if attempt.longest_save_s is not None]
    return max(measured[-_SAVES_REMEMBERED:], default=None)


def ref_of(record: RunRecord, attempt: AttemptRecord) -> AttemptRef:
    """Return the reference by which a backend finds an attempt."""
    return AttemptRef(record.name, attempt.session, attempt.attempt, attempt.handle, attempt.launched_at, attempt.limit_s)
