"""Writes, renames and removes files atomically and durably; no other module renames, removes or calls fsync."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from state import crash_points
from state.errors import DataError, UserError

_HASH_CHUNK_BYTES = 4 * 1024 * 1024  # large enough that hashlib releases the interpreter lock for most of the time
_LONGEST_NAME_BYTES = 255
_TEMPORARY = re.compile(r"\..*\.[0-9]+-[0-9a-f]{16}\.part", re.DOTALL)
_ON_WINDOWS = not hasattr(os, "O_DIRECTORY")  # Windows cannot open folders
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 1.0) if _ON_WINDOWS else ()
_ABANDONED_S = 3600.0  # a live writer writes more often, for every network call has a timeout


def temporary_beside(path: Path) -> Path:
    """Return a hidden, unique temporary name beside a path, such as `.data.json.41-9f...e2.part`.

    No other thread, process or machine uses it. A process id alone is not unique: threads share it, and containers that share a
    home may have equal ones.
    """
    ending = f".{os.getpid()}-{os.urandom(8).hex()}.part"
    room = _LONGEST_NAME_BYTES - len(ending) - 1
    return path.with_name(f".{os.fsencode(path.name)[:room].decode(errors='ignore')}{ending}")


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a name from `temporary_beside`; remove the file of that name at the end, if it still exists."""
    part = temporary_beside(path)
    try:
        yield part
    finally:  # a leftover would keep a full disk full
        part.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Another machine may share the folder, and its processes are not visible here. So only files that have not changed for an hour
    are removed, measured by the clock of the disk, which all machines share.
    """
    leftovers = [entry for entry in _entries(folder) if _TEMPORARY.fullmatch(entry.name)]
    if not leftovers:
        return
    with temporary_file(folder / "now") as probe:
        probe.touch()
        now_s = probe.lstat().st_mtime
    for leftover in leftovers:
        if _changed_s(leftover) < now_s - _ABANDONED_S:
            remove_tree(leftover)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _changed_s(path: Path) -> float:
    """Return the time of the last change of a file, or of anything in a folder; 0 if it no longer exists."""
    try:
        inside = _entries(path) if not path.is_symlink() else []
        return max([path.lstat().st_mtime, *map(_changed_s, inside)])
    except FileNotFoundError:
        return 0.0


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new content, never a part.

    Args:
        path: The file; its folder must exist.
        data: The whole content.
        durable: Whether it must survive a power cut (fsync of file and folder); False for heartbeats.
    """
    with temporary_file(path) as part:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _replace(part, path)  # a link at this path is replaced, not followed
    if durable:
        fsync_dir(path.parent)
    crash_points.done("write", path.name)


def create_exclusively(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; return False, and change nothing, if it exists.

    The content is complete when the name appears.
    """
    with temporary_file(path) as part:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            # On Windows a rename never replaces a file, and works on disks without hard links.
            (os.rename if _ON_WINDOWS else os.link)(part, path)
        except FileExistsError:
            return False
    fsync_dir(path.parent)
    crash_points.done("write", path.name)
    return True


def fsync_file(path: Path) -> None:
    """Flush a finished file to the disk."""
    # Windows flushes only files open for writing; elsewhere the file may be read-only for this user.
    descriptor = os.open(path, os.O_RDWR if _ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    crash_points.done("write", path.name)


def fsync_dir(path: Path) -> None:
    """Flush a folder's names to the disk; nothing on Windows, which cannot open folders: there NTFS has a journal of names."""
    if _ON_WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder durably, and replace a file at the target; the target's folder must exist."""
    _replace(source, target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)
    crash_points.done("rename", target.name)


def _replace(source: Path, target: Path) -> None:
    """Move, in place of a file that has the name; os.rename would refuse that on Windows."""
    insist(lambda: os.replace(source, target))


def insist(act: Callable[[], None], pauses_s: Sequence[float] = _PAUSES_S, sleep: Callable[[float], None] = time.sleep) -> None:
    """Do what Windows refuses for as long as another process reads the file: a virus scanner, or a second command of ours.

    Args:
        act: What is done, or raises PermissionError.
        pauses_s: How long to wait before each further try; on other systems nothing is tried twice.
        sleep: Waits.
    """
    for pause_s in pauses_s:
        try:
            return act()
        except PermissionError:
            sleep(pause_s)
    return act()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file to a second name, and replace a file there; copy it where a link is not possible."""
    with temporary_file(target) as part:
        try:
            os.link(source, part)
        except OSError:  # another disk, or one without hard links; any other error appears in the copy again
            shutil.copyfile(source, part)
        _replace(part, target)
    crash_points.done("write", target.name)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if missing; a link in its place is not followed.

    Raises:
        UserError: a link or a file has its name.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True)
    if path.is_symlink() or path.is_file():
        raise UserError(
            f"{path} is a link, or a file",
            expected="a folder that gemma-orch has made, or nothing",
            remedy="move it away, then repeat the command",
        )


def remove_tree(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder with its content; nothing if it is missing."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=_unless_gone)
    else:
        shutil.rmtree(path, onerror=lambda function, inner, info: _unless_gone(function, inner, info[1]))
    crash_points.done("remove", path.name)


def _unless_gone(_function: object, _path: object, error: BaseException) -> None:
    """Ignore missing files: another process may remove the same folder."""
    if not isinstance(error, FileNotFoundError):
        raise error


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with DigestedFile(path) as file:
        return file.sha256()


class DigestedFile:
    """A file that is read once, from beginning to end, and digested while it is read.

    The digest covers exactly the bytes that were used, even if the file changes in the meantime.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self.size_bytes = 0
        """Number of bytes read so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes.

        Raises:
            DataError: the file has fewer.
        """
        data = bytearray(num_bytes)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, target: memoryview) -> None:
        """Fill a buffer with the next bytes; errors as `read`."""
        while target:
            # Pieces small enough to stay in the processor's cache between read and digest.
            piece = target[:_HASH_CHUNK_BYTES]
            num_bytes = self._read_some(piece)
            if not num_bytes:
                raise DataError(f"{self._path.name} ends after {self.size_bytes} bytes", expected=f"{len(target)} more")
            target = target[num_bytes:]

    def skip(self, num_bytes: int) -> None:
        """Read and digest the next bytes without returning them; errors as `read`."""
        scratch = memoryview(bytearray(min(num_bytes, _HASH_CHUNK_BYTES)))
        while num_bytes:
            self.read_into(scratch[:num_bytes])
            num_bytes -= min(num_bytes, len(scratch))

    def sha256(self) -> str:
        """Read the rest, and return the sha256 of the whole file, 64 hex digits."""
        scratch = memoryview(bytearray(_HASH_CHUNK_BYTES))
        while self._read_some(scratch):
            pass
        return self._digest.hexdigest()

    def _read_some(self, target: memoryview) -> int:
        """Read and digest at most as many bytes as the buffer holds; return how many, 0 at the end."""
        try:
            num_bytes = self._file.readinto(target) or 0
        except OSError as error:
            error.filename = str(self._path)  # a read error does not name its file, unlike an error of open
            raise
        self._digest.update(target[:num_bytes])
        self.size_bytes += num_bytes
        return num_bytes


def free_bytes(path: Path) -> int:
    """Return the free bytes for an ordinary user on the disk of a path; the path need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
