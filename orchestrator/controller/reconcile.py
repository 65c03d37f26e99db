"""Reconciles the record of a run with what a tick observed; pure: record and observations in, changes out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.ports import AttemptStatus, Observation
from state.errors import CorruptCheckpointError, ExitCode
from state.fence import Commit, judge_commit
from state.ledger import (
    AddEvent,
    AttemptRecord,
    Change,
    CheckpointRecord,
    CheckpointState,
    ClearWish,
    Event,
    PutAttempt,
    PutCheckpoint,
    RunRecord,
    SetHeader,
)
from state.lineage import ancestors
from state.manifest import Manifest
from state.report import Outcome, SessionReport
from state.session import AttemptState, RunState


@dataclass(frozen=True)
class Found:
    """A new checkpoint that is not in the record yet; every byte of it is verified."""

    manifest: Manifest
    manifest_sha256: str


@dataclass(frozen=True)
class Observed:
    """What a tick observed."""

    observation: Observation | None = None
    """The polled state of the live attempt."""
    report: SessionReport | None = None
    """The live attempt's report, if it has written one."""
    found: tuple[Found, ...] = ()
    """New verified checkpoints. They are listed after the poll: once the poll says "ended", no later checkpoint can appear."""
    corrupt: tuple[CorruptCheckpointError, ...] = ()
    """Errors of new corrupt checkpoints; those are quarantined and never enter the record."""
    present: frozenset[str] | None = None
    """Ids of all checkpoints in the store; None if the store was not listed."""


class Draft:
    """A run's record while it is being changed, with the list of the changes."""

    def __init__(self, record: RunRecord, now: datetime) -> None:
        self.record = record
        self.changes: list[Change] = []
        self._now = now

    def change(self, change: Change) -> None:
        """Make a change."""
        self.record = self.record.with_changes([change])
        self.changes.append(change)

    def set_header(self, **values: object) -> None:
        """Change fields of the header."""
        self.change(SetHeader(self.record.header.evolve(**values)))

    def put_attempt(self, attempt: AttemptRecord, **values: object) -> AttemptRecord:
        """Change fields of an attempt and return the new record of it."""
        changed = attempt.evolve(**values)
        self.change(PutAttempt(changed))
        return changed

    def put_checkpoint(self, checkpoint: CheckpointRecord, **values: object) -> CheckpointRecord:
        """Add a checkpoint or change fields of it, and return the new record of it."""
        changed = checkpoint.evolve(**values)
        self.change(PutCheckpoint(changed))
        return changed

    def tell(self, text: str) -> None:
        """Add a line to the run's history."""
        self.change(AddEvent(Event(at=self._now, text=text)))

    @property
    def lost_step(self) -> int:
        """The highest step among the quarantined checkpoints; only a step beyond it counts as progress."""
        lost = (known.step for known in self.record.checkpoints.values() if known.state is CheckpointState.QUARANTINED)
        return max(lost, default=0)


def reconcile(record: RunRecord, world: Observed, now: datetime) -> tuple[Change, ...]:
    """Return the changes that bring the record in line with the observations."""
    draft = Draft(record, now)
    for found in sorted(world.found, key=lambda found: (found.manifest.step, found.manifest.fence)):
        _take_in(draft, found, now)
    for error in world.corrupt:
        draft.tell(f"new checkpoint {error.checkpoint_id} is corrupt and quarantined: {error.what}")
    live = record.live_attempt
    if live is not None and world.present is not None:
        _forget_pruned(draft, live, world.present)
    if live is not None and world.observation is not None:
        current = draft.record.attempt(live.session, live.attempt) or live
        _follow(draft, current, world.observation, world.report, now)
    return tuple(draft.changes)


def _forget_pruned(draft: Draft, live: AttemptRecord, present: frozenset[str]) -> None:
    """Record which of its own checkpoints the live worker has pruned: missing ones that are older than one in the store."""
    # Other missing checkpoints may reappear, for example when a disk is mounted again. Recorded as pruned, they would be deleted.
    own = [known for known in draft.record.checkpoints.values() if (known.session, known.attempt) == (live.session, live.attempt)]
    newest_present = max((known.step for known in own if known.id in present), default=0)
    for checkpoint in own:
        gone = checkpoint.id not in present and checkpoint.step < newest_present
        if gone and checkpoint.state is CheckpointState.VERIFIED:
            draft.put_checkpoint(checkpoint, state=CheckpointState.PRUNED)


def _take_in(draft: Draft, found: Found, now: datetime) -> None:
    manifest = found.manifest
    attempt = draft.record.attempt(manifest.session, manifest.attempt)
    parent = manifest.parent
    if parent not in draft.record.checkpoints and attempt is not None:
        parent = attempt.start_checkpoint  # the worker pruned its earlier checkpoints before they were recorded
    checkpoint = draft.put_checkpoint(
        CheckpointRecord(
            id=manifest.id,
            step=manifest.step,
            parent=parent,
            session=manifest.session,
            attempt=manifest.attempt,
            fence=manifest.fence,
            branch=manifest.branch,
            state=CheckpointState.VERIFIED,
            state_sha256=manifest.state_sha256,
            manifest_sha256=found.manifest_sha256,
            total_bytes=manifest.total_bytes,
            created_at=manifest.created_at,
            verified_at=now,
            train_s=manifest.train_s,
        )
    )
    if attempt is not None and (attempt.saved_step or 0) < manifest.step:
        draft.put_attempt(attempt, saved_step=manifest.step, head=manifest.id, train_s=manifest.train_s)
    commit = Commit.BRANCH  # no recorded attempt saved it, so its fence token proves nothing
    if attempt is not None:
        commit = judge_commit(
            fence=manifest.fence,
            newest_fence=draft.record.header.newest_fence,
            branch=manifest.branch,
            step=manifest.step,
            head_step=draft.record.head_step,
        )
    if commit is Commit.HEAD:
        progress = manifest.step > draft.lost_step
        draft.set_header(head=checkpoint.id, step_backs=0 if progress else draft.record.header.step_backs)
    elif manifest.branch is None:
        draft.tell(f"checkpoint {manifest.id} cannot become the head (fence token {manifest.fence}): kept as a branch")


def _follow(
    draft: Draft,
    attempt: AttemptRecord,
    observation: Observation,
    report: SessionReport | None,
    now: datetime,
) -> None:
    match attempt.state, observation.sighting:
        case (_, AttemptStatus.UNKNOWN) | (AttemptState.PLANNED, AttemptStatus.MISSING):
            return
        case AttemptState.LAUNCHING, AttemptStatus.MISSING:
            draft.put_attempt(attempt, state=AttemptState.PLANNED)
        case AttemptState.LAUNCHING | AttemptState.RUNNING, AttemptStatus.QUEUED:
            draft.put_attempt(attempt, state=AttemptState.QUEUED, running_at=None)
        case AttemptState.LAUNCHING | AttemptState.QUEUED, AttemptStatus.RUNNING:
            draft.put_attempt(attempt, state=AttemptState.RUNNING, running_at=now)
        case AttemptState.ENDED, _:
            _collect(draft, attempt, observation, report, now)
        case _, AttemptStatus.ENDED | AttemptStatus.MISSING:
            ended_at = report.ended_at if report is not None else observation.ended_at
            ended = draft.put_attempt(attempt, state=AttemptState.ENDED, ended_at=ended_at or now)
            _collect(draft, ended, observation, report, now)
        case _:
            return


def _collect(
    draft: Draft,
    attempt: AttemptRecord,
    observation: Observation,
    report: SessionReport | None,
    now: datetime,
) -> None:
    if report is None:
        collected = draft.put_attempt(
            attempt,
            state=AttemptState.LOST,
            outcome=Outcome.LOST,
            reason=attempt.reason or observation.detail or "the session ended without a report",
        )
    else:
        collected = draft.put_attempt(
            attempt,
            state=AttemptState.DONE,
            outcome=report.outcome,
            reason=report.reason,
            error_class=report.error_class,
            # A second corrupt checkpoint is not a repeat of the same error: `step_backs` counts corrupt checkpoints.
            error_fingerprint=report.error_fingerprint if report.corrupt_checkpoint is None else None,
            longest_save_s=report.longest_save_s,
        )
        if report.corrupt_checkpoint is not None:
            step_back(draft, report.corrupt_checkpoint, report.reason)
    draft.tell(f"session {collected.session} attempt {collected.attempt} {collected.outcome}: {collected.reason}")
    if collected.branch is not None:
        _finish_rerun(draft, collected, now)


def _finish_rerun(draft: Draft, attempt: AttemptRecord, now: datetime) -> None:
    if not attempt.adopt or attempt.head is None:
        return
    draft.set_header(head=attempt.head)
    draft.tell(f"the run continues from {attempt.head}, the result of {attempt.branch}")
    unfinished = draft.record.head_step < draft.record.spec.total_steps
    if unfinished and draft.record.header.state in (RunState.FINISHED, RunState.FAILED):
        # As after a `start` by the user: earlier failures came from another head and do not count.
        draft.set_header(state=RunState.ACTIVE, message=None, exit_code=ExitCode.DONE, resumed_at=now, step_backs=0)


def step_back(draft: Draft, corrupt: str, why: str) -> None:
    """Quarantine a checkpoint; if it is the head, fall back to its nearest verified ancestor."""
    checkpoint = draft.record.checkpoints.get(corrupt)
    if checkpoint is None or checkpoint.state is not CheckpointState.VERIFIED:
        return
    draft.put_checkpoint(checkpoint, state=CheckpointState.QUARANTINED, note=why)
    if corrupt != draft.record.header.head:
        draft.tell(f"checkpoint {corrupt} is quarantined: {why}")
        return
    checkpoints = draft.record.checkpoints
    line = ancestors(corrupt, draft.record.parents)
    good = next((known for known in line if checkpoints[known].state is CheckpointState.VERIFIED), None)
    lost_steps = checkpoint.step - (checkpoints[good].step if good is not None else 0)
    draft.set_header(head=good, step_backs=draft.record.header.step_backs + 1)
    draft.tell(
        f"checkpoint {corrupt} is quarantined: {why}; the run falls back to {good or 'its beginning'}, "
        f"which costs {lost_steps} steps"
    )


def call_off(draft: Draft, session: int, why: str) -> None:
    """Cancel the rerun of a session and record the reason in the history."""
    draft.change(ClearWish("rerun", draft.record.wishes.rerun))
    draft.tell(f"the rerun of session {session} is cancelled: {why}")


def settled(record: RunRecord, state: RunState, message: str, exit_code: int) -> list[Change]:
    """Return the changes that end a run and clear its stop request."""
    changes: list[Change] = []
    if record.header.state is RunState.ACTIVE:  # a run that has ended keeps its state
        header = record.header.evolve(state=state, message=message, exit_code=exit_code)
        changes.append(SetHeader(header))
    if record.wishes.stop is not None:
        changes.append(ClearWish("stop", record.wishes.stop))
    return changes
