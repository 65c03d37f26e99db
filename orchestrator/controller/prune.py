"""Selects the checkpoints of a run that may be deleted now; pure functions."""

from __future__ import annotations

from orchestrator.controller.decide import first_attempt_with_progress
from state.ledger import CheckpointState, RunRecord
from state.lineage import ancestors
from state.retention import PruneCandidate, checkpoints_to_prune


def prunable(record: RunRecord) -> tuple[str, ...]:
    """Return the ids in the head's lineage that may be deleted now, oldest first; branches are kept."""
    line = (record.checkpoints[known] for known in ancestors(record.header.head, record.parents))
    candidates = [
        PruneCandidate(checkpoint.id, checkpoint.step, verified=True)
        for checkpoint in line
        if checkpoint.state is CheckpointState.VERIFIED
    ]
    return checkpoints_to_prune(candidates, record.spec.retention, _protected(record))


def _protected(record: RunRecord) -> set[str]:
    """Return the ids to keep: the head, the starts of the last sessions, and the start of a requested rerun."""
    newest_first = [attempt.start_checkpoint for attempt in reversed(record.attempts)]
    starts = list(dict.fromkeys(start for start in newest_first if start is not None))
    protected = {record.header.head, *starts[: record.spec.retention.keep_session_starts]}
    if record.wishes.rerun is not None:
        protected.add(first_attempt_with_progress(record, record.wishes.rerun.session).start_checkpoint)
    return {checkpoint for checkpoint in protected if checkpoint is not None}
