"""The checkpoints that an attempt has committed itself: which one to resume from, and which to prune."""

from __future__ import annotations

from collections.abc import Callable

from state.errors import CorruptCheckpointError
from state.layout import attempt_name
from state.manifest import Manifest
from state.retention import PruneCandidate, checkpoints_to_prune
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore, Reader


class OwnCheckpoints:
    """The checkpoints of one attempt in a store; the controller manages all others.

    Args:
        spec: The attempt's session spec.
        store: The store that holds its checkpoints.
        say: Called with log lines, also on the saving thread.
    """

    def __init__(self, spec: SessionSpec, store: DirectoryCheckpointStore, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._store = store
        self._say = say
        self._attempt = attempt_name(spec.session, spec.attempt)
        self._start_step = spec.start.step if spec.start else 0
        self._kept: list[PruneCandidate] = []

    def find(self) -> Manifest | None:
        """Find the checkpoints that earlier processes of the attempt committed, and remove their unfinished files.

        Returns:
            The manifest of the newest one (its files have not been read yet), or None if there is none.
        """
        spec = self._spec
        self._store.sweep(lambda attempt: attempt == self._attempt)
        found: list[Manifest] = []
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
                found.append(manifest)
        found.sort(key=lambda manifest: manifest.step)
        self._kept = [PruneCandidate(manifest.id, manifest.step, verified=True) for manifest in found]
        return found[-1] if found else None

    def read_newest_good(self, reader: Reader) -> Manifest | None:
        """Read the newest checkpoint that was found; if it is corrupt, quarantine it and fall back to the one before it.

        Returns:
            The manifest of the checkpoint that was read. None if none is good; then the state that the reader filled is
            undefined.
        """
        while self._kept:
            newest = self._kept[-1].id
            try:
                return self._store.read(newest, reader)
            except CorruptCheckpointError as error:
                self._say(f"{error}\nquarantined; falling back to the checkpoint before it")
                self._store.quarantine(newest, str(error))
                self._kept.pop()
        return None

    def committed(self, checkpoint_id: str, step: int) -> None:
        """Record a committed checkpoint, and prune those that the retention rule does not keep any more."""
        self._kept.append(PruneCandidate(checkpoint_id, step, verified=True))
        start = self._spec.start
        protected = {checkpoint_id} | ({start.id} if start else set())
        for name in checkpoints_to_prune(self._kept, self._spec.retention, protected):
            try:
                self._store.delete(name)
            except OSError as error:
                self._say(f"checkpoint {name} cannot be deleted: {error}")
            self._kept = [candidate for candidate in self._kept if candidate.id != name]
