"""The checkpoint store: its port, and the adapter for a folder.

A checkpoint is staged under a hidden name, fsynced and renamed; its manifest is written last, and with it the checkpoint exists.
A process that is killed at any point leaves a whole checkpoint, or a folder that no reader takes for one.

Only a valid checkpoint id becomes part of a path here, and links to places outside are not followed.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from state import files
from state.errors import CorruptCheckpointError, DataError, TemporaryError
from state.layout import MANIFEST_NAME, attempt_of, check_checkpoint_id, is_checkpoint_id
from state.manifest import FileEntry, Manifest, first_difference, state_sha256
from state.spec import ExpectedCheckpoint
from state.tensor_files import tensor_entries

Reader = Callable[[Path, Manifest], Iterable[FileEntry]]
"""Reads the manifest's files in a checkpoint's folder; yields size and digest of the bytes read, in the manifest's order."""

_ANOTHER_WAS_FASTER = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)


class CheckpointStore(Protocol):
    """Keeps checkpoints durably."""

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all committed checkpoints, sorted."""
        ...

    def folder(self, checkpoint_id: str) -> Path:
        """Return the folder that holds a committed checkpoint's files."""
        ...

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a committed checkpoint's manifest and the manifest's own sha256."""
        ...

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Read every byte of a checkpoint, compare it with the manifest, and return the manifest."""
        ...

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Verify a checkpoint's files, and also the digest of each tensor in them."""
        ...

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder to write a checkpoint's files into."""
        ...

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable and visible; return the committed manifest."""
        ...

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Rename a checkpoint so that it no longer counts as one, and note the reason; delete nothing."""
        ...

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint; it stops existing before its files are removed."""
        ...

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove the half-written folders of attempts for whose name `is_over` returns True."""
        ...


class DirectoryCheckpointStore:
    """A folder that holds one folder per checkpoint.

    Args:
        root: The store's folder.
        may_link: Whether a checkpoint may consist of links to files elsewhere, such as a kernel's mounts.
    """

    def __init__(self, root: Path, *, may_link: bool = False) -> None:
        self._root = root
        self._may_link = may_link

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all committed checkpoints, sorted; links and folders with other names do not count."""
        if not self._root.is_dir():
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in self._root.iterdir()
                if is_checkpoint_id(entry.name) and not entry.is_symlink() and (entry / MANIFEST_NAME).is_file()
            )
        )

    def folder(self, checkpoint_id: str) -> Path:
        """Return the folder that holds a committed checkpoint's files.

        Raises:
            CorruptCheckpointError: it is not a checkpoint's id.
        """
        return self._root / check_checkpoint_id(checkpoint_id)

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a committed checkpoint's manifest and the manifest's own sha256.

        Raises:
            CorruptCheckpointError: the manifest is missing or invalid.
            TemporaryError: the disk failed to read it.
        """
        with self._missing_is_not_unknown(checkpoint_id, MANIFEST_NAME):
            data = (self.folder(checkpoint_id) / MANIFEST_NAME).read_bytes()
        try:
            manifest = Manifest.from_json(data, f"the manifest of {checkpoint_id}")
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, error.what) from error
        if manifest.id != checkpoint_id:
            raise CorruptCheckpointError(
                checkpoint_id, f"the manifest in {checkpoint_id} belongs to another checkpoint: {manifest.id}"
            )
        return manifest, hashlib.sha256(data).hexdigest()

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Read every byte of a checkpoint, compare it with the manifest, and return the manifest.

        Args:
            checkpoint_id: The checkpoint.
            expected: The digests that it must have; None: those of its own manifest.

        Raises:
            CorruptCheckpointError: a file differs or is missing; the message names the first one.
            TemporaryError: the disk failed to read a file.
        """
        return self.read(checkpoint_id, _digests, expected)

    def read(self, checkpoint_id: str, reader: Reader, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Read and verify a checkpoint's files in one pass, and return its manifest.

        The bytes that are used are the bytes that were verified: the files are read only once, so a change between verification
        and use cannot go unnoticed. The reader's result is valid only after this method has returned.

        Args:
            checkpoint_id: The checkpoint.
            reader: Reads the files, and digests the bytes that it uses.
            expected: The digests that the checkpoint must have; None: those of its own manifest.

        Raises:
            CorruptCheckpointError: a file differs or is missing; the message names the first one.
            DataError: the files match the manifest, but the reader cannot use them.
            TemporaryError: the disk failed to read a file.
        """
        manifest = self._consistent_manifest(checkpoint_id, expected)
        if not self._may_link:
            _refuse_links(self.folder(checkpoint_id), manifest)
        with self._missing_is_not_unknown(checkpoint_id):
            for entry in manifest.files:
                _compare(checkpoint_id, entry, (self.folder(checkpoint_id) / entry.name).stat().st_size)
            try:
                for entry, found in zip(manifest.files, reader(self.folder(checkpoint_id), manifest), strict=True):
                    _compare(checkpoint_id, entry, found.size_bytes, found.sha256)
            except CorruptCheckpointError:
                raise
            except DataError:
                self.verify(checkpoint_id, expected)  # if a file is damaged, report that: it is the cause of the reader's error
                raise
        return manifest

    def manifest_of(self, expected: ExpectedCheckpoint) -> Manifest:
        """Return the manifest of an expected checkpoint.

        Raises:
            CorruptCheckpointError: the manifest is missing, or not the one that was verified before.
            TemporaryError: the disk failed to read it.
        """
        manifest, manifest_sha256 = self.manifest(expected.id)
        if manifest_sha256 != expected.manifest_sha256:
            raise CorruptCheckpointError(
                expected.id,
                f"the manifest of {expected.id} has sha256 {manifest_sha256[:12]}",
                expected=f"{expected.manifest_sha256[:12]}, which is what was verified before",
            )
        return manifest

    def _consistent_manifest(self, checkpoint_id: str, expected: ExpectedCheckpoint | None) -> Manifest:
        """Return a checkpoint's manifest if it is the expected one and its state digest matches its tensors."""
        manifest = self.manifest(checkpoint_id)[0] if expected is None else self.manifest_of(expected)
        if state_sha256(manifest.tensors, manifest.step, manifest.data_position) != manifest.state_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} contradicts itself: its state digest does not match its tensors",
            )
        return manifest

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Verify a checkpoint's files, and also the digest of each tensor in them.

        Raises:
            CorruptCheckpointError: as `verify`, or a tensor differs from the manifest.
        """
        manifest = self.verify(checkpoint_id)
        try:
            found = tensor_entries(self.folder(checkpoint_id) / entry.name for entry in manifest.files)
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id}: {error.what}") from error
        stored = tuple(sorted(manifest.tensors, key=lambda tensor: tensor.name))
        for one, other in zip(found, stored, strict=False):
            if one != other:
                raise CorruptCheckpointError(checkpoint_id, f"tensor {one.name} of {checkpoint_id} differs from the manifest")
        if len(found) != len(stored):
            raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id} holds {len(found)} tensors", expected=f"{len(stored)}")
        return manifest

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder for the files of a checkpoint that this attempt saves.

        The folder's name depends on the checkpoint only: the attempt's lock lets one process at a time save it, and a later
        process finds and removes the folder of a killed one.
        """
        staged = self._root / f".staging-{self.folder(checkpoint_id).name}"
        if os.path.lexists(staged):
            files.remove_tree(staged)
        staged.mkdir(parents=True)
        return staged

    @contextmanager
    def staged_copy(self, checkpoint_id: str) -> Iterator[Path]:
        """Yield an empty folder for a copy of a checkpoint that exists elsewhere; remove it afterwards unless it was committed.

        Several processes may copy a checkpoint here at once, so each caller gets a folder of its own.
        """
        files.remove_abandoned(self._root)
        staged = files.temporary_beside(self._root / f"staging-{self.folder(checkpoint_id).name}")
        staged.mkdir(parents=True)
        try:
            yield staged
        finally:
            if staged.exists():
                files.remove_tree(staged)

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable and visible; return the committed manifest.

        An attempt may reach the same step twice, if its session is run again by hand. Then the first commit is kept.

        Raises:
            DataError: a checkpoint with this id exists and holds another state, which exact training cannot produce.
        """
        if manifest.id in self.ids():
            return self._standing(staged, manifest, remedy=f"compare the two: the new one is kept in {staged.name}")
        for entry in manifest.files:
            files.fsync_file(staged / entry.name)
        files.fsync_dir(staged)
        final = self.folder(manifest.id)
        if os.path.lexists(final):  # left by a commit that was killed between rename and manifest, or a link, which is replaced
            files.remove_tree(final)
        files.rename(staged, final)
        files.write_atomically(final / MANIFEST_NAME, manifest.to_json())
        return manifest

    def commit_copy(self, staged: Path, manifest: Manifest, original: bytes) -> Manifest:
        """Make a copied checkpoint durable and visible, as `commit` does; several processes may do so at once.

        Args:
            staged: The folder from `staged_copy`.
            manifest: The checkpoint's manifest.
            original: The manifest's original bytes, which are kept: another version of gemma-orch may have written other
                fields, and a rewritten manifest would have another digest.

        Raises:
            DataError: a checkpoint with this id exists and holds another state.
        """
        for entry in manifest.files:
            files.fsync_file(staged / entry.name)
        files.write_atomically(staged / MANIFEST_NAME, original)
        final = self.folder(manifest.id)
        if os.path.lexists(final) and manifest.id not in self.ids():  # a folder without a manifest, or a link
            files.remove_tree(final)
        try:
            files.rename(staged, final)  # the manifest is inside: one rename makes the whole checkpoint visible
        except OSError:
            if manifest.id not in self.ids():
                raise
            return self._standing(staged, manifest, remedy="gemma-orch verify checks it")  # another process was faster
        return manifest

    def _standing(self, staged: Path, manifest: Manifest, *, remedy: str) -> Manifest:
        """Return the manifest of the checkpoint that already has the id, and remove the staged one if both are equal."""
        standing, _ = self.manifest(manifest.id)
        difference = first_difference(standing, manifest)
        if difference is not None:
            raise DataError(
                f"{manifest.id} was trained twice with different results; first difference: {difference}",
                expected="equal bytes, if code, torch, device and threads are equal",
                remedy=remedy,
            )
        files.remove_tree(staged)
        return standing

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Rename a checkpoint so that it no longer counts as one, and note the reason; delete nothing."""
        folder = self.folder(checkpoint_id)
        for number in itertools.count(1):
            if not os.path.lexists(folder):
                return
            aside = self._root / f".quarantined-{checkpoint_id}-{number}"
            if not os.path.lexists(aside) and _moved(folder, aside):
                if not aside.is_symlink():
                    files.write_atomically(aside / "why.txt", (reason + "\n").encode())
                return

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint; it stops existing before its files are removed."""
        folder, trash = self.folder(checkpoint_id), self._root / f"trash-{checkpoint_id}"
        if os.path.lexists(folder) and _moved(folder, files.temporary_beside(trash)):
            for moved in self._root.glob(f".{trash.name}*"):  # also the leftovers of an earlier deletion that was killed
                files.remove_tree(moved)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove the staged and half-committed folders that ended attempts left behind.

        Args:
            is_over: Returns whether the attempt of a name has ended for certain; called for each attempt with such a folder.
        """
        if not self._root.is_dir():
            return
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith(".trash-"):
                files.remove_tree(entry)  # the checkpoint is deleted already; its process was killed before it removed the files
                continue
            attempt = attempt_of(entry.name.removeprefix(".staging-"))
            is_whole = is_checkpoint_id(entry.name) and (entry / MANIFEST_NAME).exists()
            if attempt is not None and not is_whole and is_over(attempt):
                files.remove_tree(entry)
        files.remove_abandoned(self._root)  # unfinished copies

    @contextmanager
    def _missing_is_not_unknown(self, checkpoint_id: str, name: str | None = None) -> Iterator[None]:
        """Translate OSError: a missing file makes its checkpoint corrupt; a failed read leaves its state unknown."""
        try:
            yield
        except OSError as error:
            name = name or Path(error.filename).name
            gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if gone and self._root.is_dir():
                raise CorruptCheckpointError(checkpoint_id, f"{name} of checkpoint {checkpoint_id} is missing") from error
            raise TemporaryError(
                f"{name} of checkpoint {checkpoint_id} cannot be read: {error.strerror}",
                remedy=f"check that {self._root} is mounted and that its disk works, then try again",
            ) from error


def _digests(folder: Path, manifest: Manifest) -> Iterator[FileEntry]:
    """Read the files of a checkpoint and yield their digests."""
    for entry in manifest.files:
        sha256 = files.sha256_of_file(folder / entry.name)
        yield FileEntry(name=entry.name, size_bytes=entry.size_bytes, sha256=sha256)


def _compare(checkpoint_id: str, entry: FileEntry, size_bytes: int, sha256: str | None = None) -> None:
    """Compare a file's size, and its digest if given, with the manifest's entry.

    Raises:
        CorruptCheckpointError: the file differs.
    """
    if size_bytes != entry.size_bytes:
        raise CorruptCheckpointError(
            checkpoint_id,
            f"{entry.name} of checkpoint {checkpoint_id} has {size_bytes} bytes",
            expected=f"{entry.size_bytes} bytes",
        )
    if sha256 is not None and sha256 != entry.sha256:
        raise CorruptCheckpointError(
            checkpoint_id, f"{entry.name} of checkpoint {checkpoint_id} has changed: its sha256 differs from the manifest"
        )


def _refuse_links(folder: Path, manifest: Manifest) -> None:
    """Check that a checkpoint consists of files, not links: a link's target can change or disappear at any moment.

    Raises:
        CorruptCheckpointError: a file or the folder is a link.
    """
    for path in (folder, folder / MANIFEST_NAME, *(folder / entry.name for entry in manifest.files)):
        if path.is_symlink():
            raise CorruptCheckpointError(
                manifest.id, f"{path.name} of checkpoint {manifest.id} is a link", expected="a file, not a link"
            )


def _moved(folder: Path, target: Path) -> bool:
    """Rename a checkpoint's folder; return False if another process was faster."""
    try:
        files.rename(folder, target)
    except OSError as error:
        if error.errno not in _ANOTHER_WAS_FASTER:
            raise
        return False
    return True
