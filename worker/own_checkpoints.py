"""The checkpoints that an attempt itself has committed: which of them to go on from, and which may go."""

from __future__ import annotations

from collections.abc import Callable

from state.checkpoint_store import CheckpointStore
from state.errors import CorruptCheckpointError
from state.layout import attempt_name
from state.manifest import Manifest
from state.retention import PruneCandidate, checkpoints_to_prune
from state.spec import SessionSpec


class OwnCheckpoints:
    """The checkpoints of one attempt in a store; the controller looks after all others.

    Args:
        spec: What the attempt is told.
        store: Where its checkpoints are.
        say: Takes a line for the user; called on the saving thread, too.
    """

    def __init__(self, spec: SessionSpec, store: CheckpointStore, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._store = store
        self._say = say
        self._attempt = attempt_name(spec.session, spec.attempt)
        self._start_step = spec.start.step if spec.start else 0
        self._kept: list[PruneCandidate] = []

    def sweep(self) -> None:
        """Remove what an earlier process of the attempt left half written."""
        self._store.sweep(lambda attempt: attempt == self._attempt)

    def newest_good(self) -> Manifest | None:
        """Return the last good one of an earlier process of the attempt, every byte of it read; what is corrupt is put aside."""
        for candidate in self._found():
            try:
                own = self._store.verify(candidate.id)
            except CorruptCheckpointError as error:
                self._say(f"{error}\nput aside; going back to the checkpoint before it")
                self._store.quarantine(candidate.id, str(error))
                continue
            self._kept = [older for older in self._kept if older.step <= candidate.step]
            return own
        return None

    def committed(self, checkpoint_id: str, step: int) -> None:
        """Count one more, and delete those that are not to be kept now."""
        self._kept.append(PruneCandidate(checkpoint_id, step, verified=True))
        start = self._spec.start
        protected = {checkpoint_id} | ({start.id} if start else set())
        for name in checkpoints_to_prune(self._kept, self._spec.retention, protected):
            try:
                self._store.delete(name)
            except OSError as error:
                self._say(f"checkpoint {name} could not be deleted: {error}")
            self._kept = [candidate for candidate in self._kept if candidate.id != name]

    def _found(self) -> list[PruneCandidate]:
        """Return those that earlier processes of the attempt have committed, newest first."""
        spec = self._spec
        for name in self._store.ids():
            if not name.endswith(f"-{self._attempt}"):
                continue
            try:
                manifest, _ = self._store.manifest(name)
            except CorruptCheckpointError as error:
                self._store.quarantine(name, str(error))
                continue
            mine = (manifest.run, manifest.fence) == (spec.run, spec.fence)
            if mine and manifest.step > self._start_step:
                self._kept.append(PruneCandidate(name, manifest.step, verified=True))
        return sorted(self._kept, key=lambda candidate: candidate.step, reverse=True)
