"""Verifies a run's new checkpoints before they are recorded; compares reruns, prunes and quarantines."""

from __future__ import annotations

from collections.abc import Callable, Collection

from orchestrator.controller.attempt import ref_of
from orchestrator.controller.decide import Launch, first_attempt_with_progress
from orchestrator.controller.lease import Leases
from orchestrator.controller.prune import prunable
from orchestrator.controller.reconcile import Draft, Found, call_off, step_back
from orchestrator.ports import AttemptStatus, Ports
from state.errors import CorruptCheckpointError
from state.layout import attempt_name
from state.ledger import AttemptRecord, CheckpointRecord, CheckpointState, RunRecord
from state.manifest import first_difference
from state.stores.checkpoint_store import CheckpointStore


def collect(
    store: CheckpointStore, known: Collection[str], before_each: Callable[[], None]
) -> tuple[tuple[Found, ...], tuple[CorruptCheckpointError, ...]]:
    """Verify the checkpoints that the record does not have yet; return the sound ones and the errors of the corrupt ones.

    Args:
        store: The run's checkpoint store.
        known: Ids that are in the record; they are not read again.
        before_each: Called before each checkpoint is read, for reading may take long.
    """
    found, corrupt = [], []
    for checkpoint_id in store.ids():
        if checkpoint_id in known:
            continue
        before_each()
        try:
            manifest = store.verify(checkpoint_id)
            found.append(Found(manifest, store.manifest(checkpoint_id)[1]))
        except CorruptCheckpointError as error:
            if checkpoint_id in store.ids():  # otherwise its worker pruned it during the read
                corrupt.append(error)
    return tuple(found), tuple(corrupt)


class Checkpoints:
    """Verifies, compares and prunes the checkpoints of runs."""

    def __init__(self, ports: Ports, leases: Leases) -> None:
        self._ports = ports
        self._leases = leases

    def tidied(self, record: RunRecord) -> RunRecord:
        """Compare reruns, prune, and make the store match the record; do nothing while an attempt is live."""
        if record.live_attempt is not None:
            return record
        store = self._ports.checkpoints(record.name)
        draft = Draft(record, self._ports.clock.now())
        for attempt in record.attempts:
            if attempt.branch is not None and attempt.comparison is None:
                verdict = compare(record, attempt, store)
                draft.put_attempt(attempt, comparison=verdict)
                draft.tell(f"session {attempt.session} attempt {attempt.attempt}: {verdict}")
        for checkpoint_id in prunable(record):
            draft.put_checkpoint(record.checkpoints[checkpoint_id], state=CheckpointState.PRUNED)
        record = self._leases.changed(record, draft.changes)
        for checkpoint_id in store.ids():
            checkpoint = record.checkpoints.get(checkpoint_id)
            if checkpoint is not None and checkpoint.state is CheckpointState.QUARANTINED:
                store.quarantine(checkpoint_id, checkpoint.note or "")
            elif checkpoint is not None and checkpoint.state is CheckpointState.PRUNED:
                store.delete(checkpoint_id)
        store.sweep(lambda name: self._is_over(record, name))
        return record

    def _is_over(self, record: RunRecord, name: str) -> bool:
        """Return whether an attempt of this run has ended, so that it cannot write any more.

        An attempt that the user runs again by hand has not ended.
        """
        attempt = next((each for each in record.attempts if attempt_name(each.session, each.attempt) == name), None)
        if attempt is None:
            return False
        seen = self._ports.backend(attempt.backend, record.name).observe(ref_of(record, attempt))
        return seen.sighting in (AttemptStatus.ENDED, AttemptStatus.MISSING)

    def is_sound(self, record: RunRecord, checkpoint_id: str, decision: Launch | None = None) -> bool:
        """Verify a checkpoint and return whether it is sound.

        If it is corrupt: quarantine it, fall back if it is the head, and cancel the rerun that starts from it.
        """
        try:
            self._ports.checkpoints(record.name).verify(checkpoint_id, record.checkpoints[checkpoint_id].expected())
        except CorruptCheckpointError as error:
            draft = Draft(record, self._ports.clock.now())
            step_back(draft, checkpoint_id, error.what)
            if decision is not None and decision.branch is not None:
                call_off(draft, decision.session, error.what)
            self._leases.apply(record, draft.changes)
            return False
        return True


def compare(record: RunRecord, rerun: AttemptRecord, store: CheckpointStore) -> str:
    """Compare a rerun's last checkpoint with the original at the same step; return the result as text."""
    if rerun.head is None:
        return "nothing to compare: the rerun saved no checkpoint"
    result = record.checkpoints[rerun.head]
    original = _original(record, rerun, result.step)
    if original is None:
        return f"nothing to compare: the run has no other checkpoint of step {result.step}"
    if original.state_sha256 == result.state_sha256:
        return f"identical to {original.id}: state sha256 {result.state_sha256}"
    try:
        difference = first_difference(store.manifest(original.id)[0], store.manifest(result.id)[0])
    except CorruptCheckpointError:
        difference = "unknown, for the files of one of the two are missing"
    return f"differs from {original.id}; first difference: {difference}"


def _original(record: RunRecord, rerun: AttemptRecord, step: int) -> CheckpointRecord | None:
    same_session = first_attempt_with_progress(record, rerun.session)
    candidates = [
        checkpoint
        for checkpoint in record.checkpoints.values()
        if checkpoint.step == step and checkpoint.branch is None and checkpoint.session >= same_session.session
    ]
    return candidates[0] if candidates else None
