"""How the result of a session that was run again compares with what the run has."""

from __future__ import annotations

from orchestrator.controller.decide import first_attempt_with_progress
from state.errors import CorruptCheckpointError
from state.ledger import AttemptRecord, CheckpointRecord, RunRecord
from state.manifest import first_difference
from state.stores.checkpoint_store import CheckpointStore


def compare(record: RunRecord, rerun: AttemptRecord, store: CheckpointStore) -> str:
    """Return, in words, whether a rerun's last checkpoint equals the original at the same step."""
    if rerun.head is None:
        return "the rerun saved nothing to compare"
    result = record.checkpoints[rerun.head]
    original = _original(record, rerun, result.step)
    if original is None:
        return f"nothing else has reached step {result.step} from there: there is nothing to compare"
    if original.state_sha256 == result.state_sha256:
        return f"identical to {original.id}: state sha256 {result.state_sha256}"
    try:
        difference = first_difference(store.manifest(original.id)[0], store.manifest(result.id)[0])
    except CorruptCheckpointError:
        difference = "not known, for the files of one of the two are gone"
    return f"differs from {original.id}; first difference: {difference}"


def _original(record: RunRecord, rerun: AttemptRecord, step: int) -> CheckpointRecord | None:
    same_session = first_attempt_with_progress(record, rerun.session)
    candidates = [
        checkpoint
        for checkpoint in record.checkpoints.values()
        if checkpoint.step == step and checkpoint.branch is None and checkpoint.session >= same_session.session
    ]
    return candidates[0] if candidates else None
