"""The checkpoints of a run that trains on Kaggle: in the datasets of its attempts, in outputs of kernels, and in a folder here.

A checkpoint counts when its version is listed, processed and current or older, every file is listed with the manifest's
size, and the manifest is the one that the version's note names. Its bytes are not brought here for that: the session that
starts from them reads and verifies every one before it trains, and `folder` does for whoever wants them here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.backends.kaggle.checkpoints.cleanup import Disposal
from orchestrator.backends.kaggle.checkpoints.discover import Discovery
from orchestrator.backends.kaggle.checkpoints.fetch import Fetching
from orchestrator.backends.kaggle.checkpoints.index import Entry, EntryState, IndexFile
from orchestrator.backends.kaggle.checkpoints.recheck import Standing
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.poll import Looks
from state import files
from state.errors import CorruptCheckpointError, TemporaryError
from state.kaggle.job import CheckpointPlace
from state.layout import MANIFEST_NAME, attempt_of
from state.ledger import AttemptRecord
from state.manifest import Manifest
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore


class KaggleCheckpoints:
    """The checkpoint store of a run's controller.

    What is staged and committed here, and what was fetched, lies in the folder `local`; the rest is on the account, where
    `discovery` finds it: the backend and promotions tell that what they see.

    Args:
        context: The run.
        local: The checkpoints that are here.
        looks: What was seen of the attempts' datasets.
        known_attempts: The attempts that the ledger knows.
    """

    def __init__(
        self,
        context: KaggleContext,
        local: DirectoryCheckpointStore,
        looks: Looks,
        known_attempts: Callable[[], Sequence[AttemptRecord]],
    ) -> None:
        self.context = context
        self._local = local
        self._index = IndexFile(context.folder / "checkpoints.json")
        self._fetching = Fetching(context)
        self._standing = Standing(context, self._index, local, known_attempts)
        self._disposal = Disposal(context, self._index)
        self.discovery = Discovery(context, self._index, self._fetching, looks, known_attempts)

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all checkpoints that are known here or on the account, sorted; asks for what is due."""
        self.discovery.discover()
        index = self._index.read()
        shown = {known.id for known in index.checkpoints.values() if known.state in (EntryState.SOUND, EntryState.CORRUPT)}
        hidden = index.checkpoints.keys() - shown
        return tuple(sorted(shown | (set(self._local.ids()) - hidden)))

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a checkpoint's manifest and the manifest's own sha256.

        Raises:
            CorruptCheckpointError: there is none, or it makes no sense.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.manifest(checkpoint_id)
        return self._fetching.manifest(entry)

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Return the manifest of a checkpoint that stands whole, as far as lists can tell.

        Every byte's digest is verified by the session that starts from it. With an expectation the account is asked again,
        at most once a poll interval: what stood an hour ago may be gone.

        Raises:
            CorruptCheckpointError: the list of its files is not the manifest's, or the manifest is not the expected one.
            TemporaryError: that cannot be told now.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.verify(checkpoint_id, expected)
        if entry.state is not EntryState.SOUND:
            raise CorruptCheckpointError(checkpoint_id, entry.why or f"checkpoint {checkpoint_id} was put aside")
        manifest, manifest_sha256 = self._fetching.manifest(entry)
        if expected is not None and manifest_sha256 != expected.manifest_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} has sha256 {manifest_sha256[:12]}",
                expected=f"{expected.manifest_sha256[:12]}, which is what was verified before",
            )
        if expected is not None:
            self._standing.look_again(entry, manifest)
        return manifest

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Bring a checkpoint here and verify every tensor in it.

        Raises:
            CorruptCheckpointError: a file or tensor is not the manifest's.
            TemporaryError: it cannot be fetched now.
        """
        self.folder(checkpoint_id)
        return self._local.verify_tensors(checkpoint_id)

    def folder(self, checkpoint_id: str) -> Path:
        """Return the folder that holds a checkpoint's files, fetched and verified now when they are not here.

        Raises:
            CorruptCheckpointError: what was fetched is not what the manifest says.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._index.entry(checkpoint_id)
        if checkpoint_id not in self._local.ids() and entry is not None and entry.state is EntryState.SOUND:
            self._fetching.fetch(entry, self._local)
        return self._local.folder(checkpoint_id)

    def copy_into(self, checkpoint_id: str, store: DirectoryCheckpointStore) -> None:
        """Bring a checkpoint into another folder, from here when it is here, else from the account; every byte is verified.

        Raises:
            CorruptCheckpointError: what was found is not what the manifest says.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._index.entry(checkpoint_id)
        if checkpoint_id not in self._local.ids() and entry is not None and entry.state is EntryState.SOUND:
            self._fetching.fetch(entry, store)
            return
        manifest, folder = self._local.verify(checkpoint_id), self._local.folder(checkpoint_id)
        with store.staged_copy(checkpoint_id) as staged:
            for file in manifest.files:
                files.link_or_copy(folder / file.name, staged / file.name)
            store.commit_copy(staged, manifest, (folder / MANIFEST_NAME).read_bytes())

    def place(self, checkpoint_id: str) -> CheckpointPlace | None:
        """Return where on the account a checkpoint lies, or None when it is only here."""
        entry = self._index.entry(checkpoint_id)
        return entry.place if entry is not None and entry.state is EntryState.SOUND else None

    def is_known(self, checkpoint_id: str) -> bool:
        """Return whether a checkpoint was found on the account, whole or not: then none of its name is waited for."""
        return checkpoint_id in self._index.read().checkpoints

    @property
    def num_sound(self) -> int:
        """How many checkpoints stand whole in datasets."""
        known = self._index.read().checkpoints.values()
        return sum(entry.state is EntryState.SOUND and entry.place.kind == "dataset" for entry in known)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the run's checkpoints on the account, as far as they are known."""
        return self._index.read().stored_bytes

    @property
    def is_over_budget(self) -> bool:
        """Whether they take more than the run's share of the account's storage."""
        settings = self.context.settings
        return self.stored_bytes > settings.storage_quota_bytes * settings.storage_share

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder here to write a checkpoint's files into."""
        return self._local.stage(checkpoint_id)

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable and visible here; return the manifest that stands."""
        return self._local.commit(staged, manifest)

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Put a checkpoint aside, with the reason, so that nobody takes it for one; nothing is deleted."""
        self._set_state(checkpoint_id, EntryState.QUARANTINED, reason)
        self._local.quarantine(checkpoint_id, reason)

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint: it stops existing now; on the account its files go with the last one of its attempt."""
        self._set_state(checkpoint_id, EntryState.DELETED, None)
        self._local.delete(checkpoint_id)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove what attempts that are over left half written here, and the datasets that hold nothing that is needed."""
        self._local.sweep(is_over)
        self._disposal.sweep()

    def bring_home(self, session: int, attempt: int) -> None:
        """Fetch what an attempt left in its kernel's output, because that is about to be deleted.

        Raises:
            TemporaryError: it cannot be fetched now.
        """
        index = self._index.read()
        for entry in index.checkpoints.values():
            mine = (entry.session, entry.attempt) == (session, attempt)
            if mine and entry.place.kind == "output" and entry.state is EntryState.SOUND:
                self.folder(entry.id)
                self._index.drop(entry.id)

    def _entry(self, checkpoint_id: str) -> Entry | None:
        """Return what is known of a checkpoint on the account, or None when it is one that is, or would be, here.

        Raises:
            CorruptCheckpointError: it was on the account, and is not any more.
            TemporaryError: it may be on the account, and that was not looked at yet.
        """
        entry = self._index.entry(checkpoint_id)
        if entry is not None or checkpoint_id in self._local.ids():
            return entry
        name = attempt_of(checkpoint_id)
        if name is None or not self.discovery.is_ours(name):
            return None
        known = self._index.attempt(name)
        if not known.is_closed:
            raise TemporaryError(f"the dataset of {name}, where {checkpoint_id} may lie, was not looked at for long enough yet")
        raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id} is in no version of the dataset of {name}, nor is it here")

    def _set_state(self, checkpoint_id: str, state: EntryState, why: str | None) -> None:
        entry = self._index.entry(checkpoint_id)
        if entry is not None:
            self._index.put(entry.evolve(state=state, why=why or entry.why))
