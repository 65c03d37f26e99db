"""Durable home of checkpoints: the port, and its adapter for a folder.

A checkpoint is staged under a hidden name, fsynced, renamed, and exists from the moment when its manifest is written,
last of all. Whatever is killed on the way leaves either the checkpoint or nothing that anybody would take for one.

Only what has the form of a checkpoint's id becomes a path here, and no link is followed to a place outside.
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
"""Reads the files that a manifest names from a checkpoint's folder; tells of each, in the manifest's order, what it has read."""

_ANOTHER_WAS_FASTER = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)


class CheckpointStore(Protocol):
    """Durable home of checkpoints."""

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
        """Read every byte of a checkpoint and return its manifest when all is as it says."""
        ...

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Verify a checkpoint and, beyond its files, every tensor in them."""
        ...

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder to write a checkpoint's files into."""
        ...

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable and visible; return the manifest that stands."""
        ...

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Put a checkpoint aside, with the reason, so that nobody takes it for one; nothing is deleted."""
        ...

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint; it stops existing before its files go."""
        ...

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove what attempts that are over left behind half written; `is_over` is asked by attempt name."""
        ...


class DirectoryCheckpointStore:
    """Checkpoints as folders of one folder.

    Args:
        root: The folder.
        may_link: Whether a checkpoint may be made of links to files that lie elsewhere, such as a kernel's mounts.
    """

    def __init__(self, root: Path, *, may_link: bool = False) -> None:
        self._root = root
        self._may_link = may_link

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all committed checkpoints, sorted; a link is none, nor is a folder of another name."""
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
            CorruptCheckpointError: what is asked for is no checkpoint's id.
        """
        return self._root / check_checkpoint_id(checkpoint_id)

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a committed checkpoint's manifest and the manifest's own sha256.

        Raises:
            CorruptCheckpointError: there is none, or it makes no sense.
            TemporaryError: the disk does not give it.
        """
        with self._missing_is_not_unknown(checkpoint_id, MANIFEST_NAME):
            data = (self.folder(checkpoint_id) / MANIFEST_NAME).read_bytes()
        try:
            manifest = Manifest.from_json(data, f"the manifest of {checkpoint_id}")
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, error.what) from error
        if manifest.id != checkpoint_id:
            raise CorruptCheckpointError(
                checkpoint_id, f"the manifest in {checkpoint_id} is that of another checkpoint, {manifest.id}"
            )
        return manifest, hashlib.sha256(data).hexdigest()

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Read every byte of a checkpoint and return its manifest when all is as it says.

        Args:
            checkpoint_id: The checkpoint.
            expected: What the caller was told to find; its digests must be met exactly.

        Raises:
            CorruptCheckpointError: anything differs; the message names the first file or tensor that does.
            TemporaryError: the disk does not give a file.
        """
        return self.read(checkpoint_id, _digests, expected)

    def read(self, checkpoint_id: str, reader: Reader, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Have a checkpoint's files read, and return its manifest when what was read is what it says.

        What is used is what was verified: a file that changes after a first look at it cannot come in unnoticed, since there is
        only one look. What the reader has made of the files is worthless until this returns.

        Args:
            checkpoint_id: The checkpoint.
            reader: Reads the files, and digests the very bytes that it takes.
            expected: What the caller was told to find; its digests must be met exactly.

        Raises:
            CorruptCheckpointError: anything differs; the message names the first file that does.
            DataError: the files are what the manifest says, and the reader cannot use them.
            TemporaryError: the disk does not give a file.
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
                self.verify(checkpoint_id, expected)  # damage explains more than what it has led to
                raise
        return manifest

    def manifest_of(self, expected: ExpectedCheckpoint) -> Manifest:
        """Return the manifest of an expected checkpoint.

        Raises:
            CorruptCheckpointError: there is none, or another one than was verified before.
            TemporaryError: the disk does not give it.
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
        """Return a checkpoint's manifest when it is the expected one and does not contradict itself."""
        manifest = self.manifest(checkpoint_id)[0] if expected is None else self.manifest_of(expected)
        if state_sha256(manifest.tensors, manifest.step, manifest.data_position) != manifest.state_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} contradicts itself: its state digest is not that of its tensors",
            )
        return manifest

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Verify a checkpoint and, beyond its files, every tensor in them.

        Raises:
            CorruptCheckpointError: as `verify`, or a tensor is not the manifest's.
        """
        manifest = self.verify(checkpoint_id)
        try:
            found = tensor_entries(self.folder(checkpoint_id) / entry.name for entry in manifest.files)
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id}: {error.what}") from error
        stored = tuple(sorted(manifest.tensors, key=lambda tensor: tensor.name))
        for one, other in zip(found, stored, strict=False):
            if one != other:
                raise CorruptCheckpointError(checkpoint_id, f"tensor {one.name} of {checkpoint_id} is not the manifest's")
        if len(found) != len(stored):
            raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id} holds {len(found)} tensors", expected=f"{len(stored)}")
        return manifest

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder to write a checkpoint's files into; for the attempt that saves it.

        Its name is always the same: the attempt's lock lets one process at a time save this checkpoint, and what a killed one
        has left is found by its name.
        """
        staged = self._root / f".staging-{self.folder(checkpoint_id).name}"
        if os.path.lexists(staged):
            files.remove_tree(staged)
        staged.mkdir(parents=True)
        return staged

    @contextmanager
    def staged_copy(self, checkpoint_id: str) -> Iterator[Path]:
        """Give an empty folder for the files of a checkpoint that exists elsewhere; what is not committed is removed.

        Any process may bring a checkpoint here, at any time, so the folder is this caller's alone.
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
        """Make a staged checkpoint durable and visible; return the manifest that stands.

        The same attempt may come to the same step twice (a session run again by hand): the first commit stands.

        Raises:
            DataError: a checkpoint of this id stands already and holds another state, which exact training cannot do.
        """
        if manifest.id in self.ids():
            return self._standing(staged, manifest, remedy=f"compare the two: the new one is kept in {staged.name}")
        for entry in manifest.files:
            files.fsync_file(staged / entry.name)
        files.fsync_dir(staged)
        final = self.folder(manifest.id)
        if os.path.lexists(final):  # a commit that was killed between its rename and its manifest; or a link, which is replaced
            files.remove_tree(final)
        files.rename(staged, final)
        files.write_atomically(final / MANIFEST_NAME, manifest.to_json())
        return manifest

    def commit_copy(self, staged: Path, manifest: Manifest, original: bytes) -> Manifest:
        """Make a checkpoint that was brought here visible, as `commit` does; several processes may do so at once.

        Args:
            staged: Its folder, of `staged_copy`.
            manifest: Its manifest.
            original: The manifest's bytes, which stay what they were: that of another gemma-orch may say less.

        Raises:
            DataError: a checkpoint of this id stands already and holds another state.
        """
        for entry in manifest.files:
            files.fsync_file(staged / entry.name)
        files.write_atomically(staged / MANIFEST_NAME, original)
        final = self.folder(manifest.id)
        if os.path.lexists(final) and manifest.id not in self.ids():  # it has no manifest, or is a link
            files.remove_tree(final)
        try:
            files.rename(staged, final)  # with its manifest in it: it is there whole, or not at all
        except OSError:
            if manifest.id not in self.ids():
                raise
            return self._standing(staged, manifest, remedy="gemma-orch verify looks at it")  # another process has brought it
        return manifest

    def _standing(self, staged: Path, manifest: Manifest, *, remedy: str) -> Manifest:
        """Return the manifest of the checkpoint that has the id already, and remove what was staged for it."""
        standing, _ = self.manifest(manifest.id)
        difference = first_difference(standing, manifest)
        if difference is not None:
            raise DataError(
                f"{manifest.id} was trained twice with different results; first difference: {difference}",
                expected="the same bytes, as long as code, torch, device and threads are the same",
                remedy=remedy,
            )
        files.remove_tree(staged)
        return standing

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Put a checkpoint aside, with the reason, so that nobody takes it for one; nothing is deleted."""
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
        """Delete a checkpoint; it stops existing before its files go."""
        folder, trash = self.folder(checkpoint_id), self._root / f"trash-{checkpoint_id}"
        if os.path.lexists(folder) and _moved(folder, files.temporary_beside(trash)):
            for moved in self._root.glob(f".{trash.name}*"):  # with what an earlier deletion has left
                files.remove_tree(moved)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove the staged and half-committed folders that attempts left behind.

        Args:
            is_over: Whether an attempt, by its name, can write no more; asked about those that left something.
        """
        if not self._root.is_dir():
            return
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith(".trash-"):
                files.remove_tree(entry)  # its checkpoint is deleted, whatever became of the process that did it
                continue
            attempt = attempt_of(entry.name.removeprefix(".staging-"))
            is_whole = is_checkpoint_id(entry.name) and (entry / MANIFEST_NAME).exists()
            if attempt is not None and not is_whole and is_over(attempt):
                files.remove_tree(entry)
        files.remove_abandoned(self._root)  # of copies that were being brought here

    @contextmanager
    def _missing_is_not_unknown(self, checkpoint_id: str, name: str | None = None) -> Iterator[None]:
        """A file that is gone makes its checkpoint corrupt; one that the disk does not give may be there and right."""
        try:
            yield
        except OSError as error:
            name = name or Path(error.filename).name
            gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if gone and self._root.is_dir():
                raise CorruptCheckpointError(checkpoint_id, f"checkpoint {checkpoint_id} has lost its file {name}") from error
            raise TemporaryError(
                f"{name} of checkpoint {checkpoint_id} cannot be read: {error.strerror}",
                remedy=f"check the disk of {self._root}, and that it is mounted, then try again",
            ) from error


def _digests(folder: Path, manifest: Manifest) -> Iterator[FileEntry]:
    """Read the files of a checkpoint for their digests alone."""
    for entry in manifest.files:
        sha256 = files.sha256_of_file(folder / entry.name)
        yield FileEntry(name=entry.name, size_bytes=entry.size_bytes, sha256=sha256)


def _compare(checkpoint_id: str, entry: FileEntry, size_bytes: int, sha256: str | None = None) -> None:
    """Compare a file with what the manifest says of it, as far as it is known.

    Raises:
        CorruptCheckpointError: it differs.
    """
    if size_bytes != entry.size_bytes:
        raise CorruptCheckpointError(
            checkpoint_id,
            f"{entry.name} of checkpoint {checkpoint_id} has {size_bytes} bytes",
            expected=f"{entry.size_bytes} bytes",
        )
    if sha256 is not None and sha256 != entry.sha256:
        raise CorruptCheckpointError(
            checkpoint_id, f"{entry.name} of checkpoint {checkpoint_id} has changed: its sha256 is not the manifest's"
        )


def _refuse_links(folder: Path, manifest: Manifest) -> None:
    """Check that a checkpoint holds its bytes itself: behind a link they can change, or be gone, at any moment.

    Raises:
        CorruptCheckpointError: it does not.
    """
    for path in (folder, folder / MANIFEST_NAME, *(folder / entry.name for entry in manifest.files)):
        if path.is_symlink():
            raise CorruptCheckpointError(
                manifest.id, f"{path.name} of checkpoint {manifest.id} is a link", expected="a file of the checkpoint's own"
            )


def _moved(folder: Path, target: Path) -> bool:
    """Move a checkpoint's folder out of the way; return False when another process was faster."""
    try:
        files.rename(folder, target)
    except OSError as error:
        if error.errno not in _ANOTHER_WAS_FASTER:
            raise
        return False
    return True
