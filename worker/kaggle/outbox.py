"""Keeps checkpoints until they are delivered: hard links to their files, so that pruning the store does not delete them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from state import files
from state.kaggle.datasets import LocalFile
from state.kaggle.names import VersionNote, checkpoint_file_names
from state.layout import MANIFEST_NAME
from state.manifest import Manifest
from state.stores.checkpoint_store import CheckpointStore


@dataclass(frozen=True)
class Parcel:
    """A checkpoint that is ready for delivery."""

    manifest: Manifest
    note: VersionNote
    files: tuple[LocalFile, ...]
    """In the order of sending, the manifest last: if it is there, all files are."""

    @property
    def id(self) -> str:
        """The checkpoint's id."""
        return self.manifest.id

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def with_file(self, path: Path) -> Parcel:
        """Return the parcel with one more file, before the manifest."""
        return replace(self, files=(*self.files[:-1], _local_file(path), self.files[-1]))


class Outbox:
    """A folder of checkpoints that wait for delivery.

    Args:
        folder: The folder. On the disk of the store, so that files can be linked instead of copied.
        store: The store of the committed checkpoints.
    """

    def __init__(self, folder: Path, store: CheckpointStore) -> None:
        self._folder = folder
        self._store = store

    def put(self, checkpoint_id: str) -> Parcel:
        """Link (or copy) a committed checkpoint's files into the outbox, and return it ready for delivery.

        Raises:
            CorruptCheckpointError: the checkpoint is missing or its manifest is invalid.
            OSError: the disk refuses the files.
            UserError: the checkpoint's folder in the outbox is not a folder.
        """
        manifest, manifest_sha256 = self._store.manifest(checkpoint_id)
        source, target = self._store.folder(checkpoint_id), self._folder / checkpoint_id
        flat = checkpoint_file_names(checkpoint_id, (*(entry.name for entry in manifest.files), MANIFEST_NAME))
        files.make_folder(target)
        for name, public in flat.items():
            files.link_or_copy(source / name, target / public)
        return Parcel(
            manifest=manifest,
            note=VersionNote(
                session=manifest.session,
                attempt=manifest.attempt,
                fence=manifest.fence,
                step=manifest.step,
                checkpoint=checkpoint_id,
                manifest_sha256=manifest_sha256,
            ),
            files=tuple(_local_file(target / public) for public in flat.values()),
        )

    def keep_only(self, checkpoint_ids: Collection[str]) -> None:
        """Drop all other checkpoints; their bytes are freed once the store has pruned them, too."""
        if self._folder.is_dir():
            for entry in self._folder.iterdir():
                if entry.name not in checkpoint_ids:
                    files.remove_tree(entry)


def _local_file(path: Path) -> LocalFile:
    """Return a file for delivery under its own name, with its current size."""
    return LocalFile(path=path, name=path.name, size_bytes=path.stat().st_size)
