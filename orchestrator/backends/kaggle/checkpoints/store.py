"""The checkpoint store of a run on Kaggle: datasets of attempts, outputs of kernels, and a folder on this machine.

A checkpoint in a dataset counts when its version is processed, every file is listed with the manifest's size, and the manifest
is the one that the version's note names. That needs no download of its files: the session that starts from them reads and
verifies every byte before it trains. `folder` downloads and verifies them for commands that need them on this machine.
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
    """The checkpoint store of a run on Kaggle.

    `local` holds the checkpoints that were committed on this machine or downloaded. `discovery` finds those on the account; the
    backend and `Promotion` pass their reads of datasets to it.

    Args:
        context: The run.
        local: The checkpoints on this machine.
        looks: Polls the run's attempts.
        known_attempts: Reads the run's attempts from the ledger.
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
        """Return the sorted ids of all checkpoints, on this machine and on the account; reads the datasets that are due."""
        self.discovery.discover()
        index = self._index.read()
        shown = {known.id for known in index.checkpoints.values() if known.state in (EntryState.SOUND, EntryState.CORRUPT)}
        # One that is quarantined or deleted on the account does not come back by its copy on this machine.
        hidden = index.checkpoints.keys() - shown
        return tuple(sorted(shown | (set(self._local.ids()) - hidden)))

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a checkpoint's manifest and the manifest's own sha256.

        Raises:
            CorruptCheckpointError: the manifest is missing or invalid.
            TemporaryError: it cannot be downloaded now.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.manifest(checkpoint_id)
        return self._fetching.manifest(entry)

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Return the manifest of a checkpoint that is complete, according to lists of files.

        The session that starts from it verifies the digest of every byte. With `expected`, the lists are read again, at most
        once a poll interval, because the checkpoint may have been deleted since.

        Raises:
            CorruptCheckpointError: files do not match the manifest, or the manifest is not the expected one.
            TemporaryError: Kaggle does not answer, or a later read must confirm the answer.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.verify(checkpoint_id, expected)
        if entry.state is not EntryState.SOUND:
            raise CorruptCheckpointError(checkpoint_id, entry.why or f"checkpoint {checkpoint_id} is quarantined")
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
        """Download a checkpoint and verify every tensor in it.

        Raises:
            CorruptCheckpointError: a file or tensor does not match the manifest.
            TemporaryError: it cannot be downloaded now.
        """
        self.folder(checkpoint_id)
        return self._local.verify_tensors(checkpoint_id)

    def folder(self, checkpoint_id: str) -> Path:
        """Return the folder of a checkpoint's files; downloads and verifies them if they are not on this machine.

        Raises:
            CorruptCheckpointError: a file does not match the manifest.
            TemporaryError: it cannot be downloaded now.
        """
        entry = self._index.entry(checkpoint_id)
        if checkpoint_id not in self._local.ids() and entry is not None and entry.state is EntryState.SOUND:
            self._fetching.fetch(entry, self._local)
        return self._local.folder(checkpoint_id)

    def copy_into(self, checkpoint_id: str, store: DirectoryCheckpointStore) -> None:
        """Copy a checkpoint into another store, from this machine or else from the account; every byte is verified.

        Raises:
            CorruptCheckpointError: a file does not match the manifest.
            TemporaryError: it cannot be downloaded now.
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
        """Return the place of a checkpoint on the account, or None when it is only on this machine."""
        entry = self._index.entry(checkpoint_id)
        return entry.place if entry is not None and entry.state is EntryState.SOUND else None

    def is_known(self, checkpoint_id: str) -> bool:
        """Return whether a checkpoint was discovered on the account, complete or corrupt: then nothing need wait for it."""
        return checkpoint_id in self._index.read().checkpoints

    @property
    def num_sound(self) -> int:
        """Number of complete checkpoints in datasets."""
        known = self._index.read().checkpoints.values()
        return sum(entry.state is EntryState.SOUND and entry.place.kind == "dataset" for entry in known)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the run's checkpoints in datasets, as far as the index knows."""
        return self._index.read().stored_bytes

    @property
    def is_over_budget(self) -> bool:
        """Whether the checkpoints take more than the run's share of the account's storage."""
        settings = self.context.settings
        return self.stored_bytes > settings.storage_quota_bytes * settings.storage_share

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder on this machine to write a checkpoint's files into."""
        return self._local.stage(checkpoint_id)

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable on this machine; return the committed manifest."""
        return self._local.commit(staged, manifest)

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Quarantine a checkpoint, with the reason: it no longer counts as one; nothing is deleted."""
        self._set_state(checkpoint_id, EntryState.QUARANTINED, reason)
        self._local.quarantine(checkpoint_id, reason)

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint; its files on the account are deleted later, when its attempt has no kept checkpoint."""
        self._set_state(checkpoint_id, EntryState.DELETED, None)
        self._local.delete(checkpoint_id)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove half-written folders of ended attempts, and garbage-collect the datasets without a kept checkpoint."""
        self._local.sweep(is_over)
        self._disposal.sweep()

    def bring_home(self, session: int, attempt: int) -> None:
        """Download the checkpoints in the output of an attempt's kernel, before that kernel is deleted.

        Raises:
            TemporaryError: they cannot be downloaded now.
        """
        index = self._index.read()
        for entry in index.checkpoints.values():
            mine = (entry.session, entry.attempt) == (session, attempt)
            if mine and entry.place.kind == "output" and entry.state is EntryState.SOUND:
                self.folder(entry.id)
                self._index.drop(entry.id)

    def _entry(self, checkpoint_id: str) -> Entry | None:
        """Return the entry of a checkpoint on the account, or None when only this machine can have it.

        Raises:
            CorruptCheckpointError: its attempt ran on Kaggle, and neither the account nor this machine has it.
            TemporaryError: it may still appear on the account.
        """
        entry = self._index.entry(checkpoint_id)
        if entry is not None or checkpoint_id in self._local.ids():
            return entry
        name = attempt_of(checkpoint_id)
        if name is None or not self.discovery.is_ours(name):
            return None
        known = self._index.attempt(name)
        if not known.is_closed:
            raise TemporaryError(f"the dataset of {name} may still show {checkpoint_id}: Kaggle's reads may be stale")
        raise CorruptCheckpointError(
            checkpoint_id, f"checkpoint {checkpoint_id} is missing: neither the dataset of {name} nor this machine has it"
        )

    def _set_state(self, checkpoint_id: str, state: EntryState, why: str | None) -> None:
        entry = self._index.entry(checkpoint_id)
        if entry is not None:
            self._index.put(entry.evolve(state=state, why=why or entry.why))
