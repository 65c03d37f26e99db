"""The only module that renames, removes and fsyncs: a file is there whole, or not at all."""

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

from state import effects
from state.errors import DataError, UserError

_HASH_CHUNK_BYTES = 4 * 1024 * 1024  # large enough that hashlib releases the interpreter lock for most of the time
_LONGEST_NAME_BYTES = 255
_TEMPORARY = re.compile(r"\..*\.[0-9]+-[0-9a-f]{16}\.part", re.DOTALL)
_ON_WINDOWS = not hasattr(os, "O_DIRECTORY")  # it opens no folders
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 1.0) if _ON_WINDOWS else ()
_ABANDONED_S = 3600.0  # a writer that lives writes more often: every network call has a timeout


def temporary_beside(path: Path) -> Path:
    """Return a hidden name beside a path that no other thread, process or machine uses, such as `.data.json.41-9f...e2.part`.

    The process id alone is not enough: threads share it, and so do containers that share a home.
    """
    ending = f".{os.getpid()}-{os.urandom(8).hex()}.part"
    room = _LONGEST_NAME_BYTES - len(ending) - 1
    return path.with_name(f".{os.fsencode(path.name)[:room].decode(errors='ignore')}{ending}")


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Give a name of `temporary_beside` for a file; what has that name at the end is removed."""
    part = temporary_beside(path)
    try:
        yield part
    finally:  # a part that stays would fill the disk that is full already
        part.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder under names of `temporary_beside`.

    Whether its process lives cannot be seen from another machine. So only what has not changed for an hour is removed, by the
    clock of the disk, which is one for all.
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
    """Return when a file, or anything in a folder, was last changed; of what is gone meanwhile, that it never was."""
    try:
        inside = _entries(path) if not path.is_symlink() else []
        return max([path.lstat().st_mtime, *map(_changed_s, inside)])
    except FileNotFoundError:
        return 0.0


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that every reader sees the old content or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        data: The whole content.
        durable: Whether it must survive a power cut (fsync of file and folder); not for heartbeats.
    """
    with temporary_file(path) as part:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _replace(part, path)  # a link that has the name is replaced, and never followed
    if durable:
        fsync_dir(path.parent)
    effects.done("write", path.name)


def create_exclusively(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; return False, and change nothing, when it does.

    The content is complete at the moment when the name appears.
    """
    with temporary_file(path) as part:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            # On Windows a rename never replaces a file, and needs no disk that knows second names.
            (os.rename if _ON_WINDOWS else os.link)(part, path)
        except FileExistsError:
            return False
    fsync_dir(path.parent)
    effects.done("write", path.name)
    return True


def fsync_file(path: Path) -> None:
    """Force a finished file's bytes to the disk."""
    # Windows flushes only what is open for writing; elsewhere a file may be one that we cannot write.
    descriptor = os.open(path, os.O_RDWR if _ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    effects.done("write", path.name)


def fsync_dir(path: Path) -> None:
    """Force a folder's names to the disk; on Windows, which opens no folders, NTFS keeps its own journal of them."""
    if _ON_WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Move a file or folder to its final name, durably, in place of a file that has it; the target's folder must exist."""
    _replace(source, target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)
    effects.done("rename", target.name)


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
    """Give a file a second name, in place of what has that name; where it would be another disk's, a copy."""
    with temporary_file(target) as part:
        try:
            os.link(source, part)
        except OSError:  # another disk, or one that knows no second names; a real problem shows in the copy as well
            shutil.copyfile(source, part)
        _replace(part, target)
    effects.done("write", target.name)


def make_folder(path: Path) -> None:
    """Make a folder of ours, and those above it, unless it is there; a link in its place is not followed.

    Raises:
        UserError: something else has its name.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True)
    if path.is_symlink() or path.is_file():
        raise UserError(
            f"{path} is a link, or a file",
            expected="a folder that gemma-orch has made, or nothing",
            remedy="move it away, and the same command again",
        )


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; of a link, the link. Nothing happens when it is not there."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=_unless_gone)
    else:
        shutil.rmtree(path, onerror=lambda function, inner, info: _unless_gone(function, inner, info[1]))
    effects.done("remove", path.name)


def _unless_gone(_function: object, _path: object, error: BaseException) -> None:
    """Go on where something is gone already: another process removes the same folder."""
    if not isinstance(error, FileNotFoundError):
        raise error


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with DigestedFile(path) as file:
        return file.sha256()


class DigestedFile:
    """A file that is read once, from its beginning to its end, and digested on the way in.

    What was used of it and what the digest says are the same bytes, whatever happens to the file meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self.size_bytes = 0
        """Bytes that have been read."""

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
        """Fill a buffer of bytes with what comes next; errors as `read`."""
        while target:
            # In pieces that stay in the processor's cache between the read and the digest.
            piece = target[:_HASH_CHUNK_BYTES]
            num_bytes = self._read_some(piece)
            if not num_bytes:
                raise DataError(f"{self._path.name} ends after {self.size_bytes} bytes", expected=f"{len(target)} more")
            target = target[num_bytes:]

    def skip(self, num_bytes: int) -> None:
        """Read over what comes next; errors as `read`."""
        scratch = memoryview(bytearray(min(num_bytes, _HASH_CHUNK_BYTES)))
        while num_bytes:
            self.read_into(scratch[:num_bytes])
            num_bytes -= min(num_bytes, len(scratch))

    def sha256(self) -> str:
        """Read what is left, and return the sha256 of the whole file, 64 hex digits."""
        scratch = memoryview(bytearray(_HASH_CHUNK_BYTES))
        while self._read_some(scratch):
            pass
        return self._digest.hexdigest()

    def _read_some(self, target: memoryview) -> int:
        """Read and digest at most as much as the buffer takes; return how many bytes, 0 at the end."""
        try:
            num_bytes = self._file.readinto(target) or 0
        except OSError as error:
            error.filename = str(self._path)  # only an error of opening says which file it is about
            raise
        self._digest.update(target[:num_bytes])
        self.size_bytes += num_bytes
        return num_bytes


def free_bytes(path: Path) -> int:
    """Return how many bytes an ordinary user may still write on the disk that holds the path, there yet or not."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
