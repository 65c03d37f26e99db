"""Checkpoints that wait for their delivery: their files have a second name here, so that no pruning takes them away."""

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
    """A checkpoint, ready for its delivery."""

    manifest: Manifest
    note: VersionNote
    files: tuple[LocalFile, ...]
    """The manifest last: where it is, all is."""

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
    """A folder of checkpoints that wait.

    Args:
        folder: On the disk of the store, so that a second name costs nothing.
        store: Where checkpoints are committed.
    """

    def __init__(self, folder: Path, store: CheckpointStore) -> None:
        self._folder = folder
        self._store = store

    def put(self, checkpoint_id: str) -> Parcel:
        """Give a committed checkpoint's files a second name, and return it ready for delivery.

        Raises:
            CorruptCheckpointError: there is no such checkpoint.
            OSError: the disk does not take it.
            UserError: there is something else in its place.
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
        """Drop all others; their files go when the store has dropped them, too."""
        if self._folder.is_dir():
            for entry in self._folder.iterdir():
                if entry.name not in checkpoint_ids:
                    files.remove_tree(entry)


def _local_file(path: Path) -> LocalFile:
    """Return a file as what is delivered: under its own name, as large as it is now."""
    return LocalFile(path=path, name=path.name, size_bytes=path.stat().st_size)
