"""The staging folder: a data folder is made beside its final place, by one process at a time, and moved there when complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from state.errors import TemporaryError, UserError
from state.files import remove_tree, rename


@dataclass(frozen=True)
class Staging:
    """The folder beside `out` where `out` is made. If a process is killed, the next one resumes from its contents."""

    root: Path
    out: Path

    @property
    def units(self) -> Path:
        """Finished work that a later process can reuse."""
        return self.root / "units"

    @property
    def data(self) -> Path:
        """The folder that becomes `out`."""
        return self.root / "data"

    def publish(self) -> None:
        """Move `data` to `out`, replacing an existing folder, and remove the staging folder."""
        if self.out.exists():
            replaced = self.root / "replaced"  # moved away before it is removed: a kill must not leave a half of it in `out`
            remove_tree(replaced)
            rename(self.out, replaced)
        rename(self.data, self.out)
        remove_tree(self.root)


def staging_of(out: Path) -> Path:
    """Return the staging folder of `out`: always the same one, so that the next process can resume. It is locked in use."""
    return out.with_name(f".{out.name}.staging")


@contextlib.contextmanager
def staging_beside(out: Path) -> Iterator[Staging]:
    """Give the staging folder of `out` to one process at a time.

    The lock is on the folder; the operating system releases it when its holder dies. The library filelock would need a file of
    its own beside the folder, for good. The folder stays if the block raises.

    Raises:
        TemporaryError: another process is making the same folder.
        UserError: a file or a link has the staging folder's name.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Staging(staging_of(out), out)
    lock = _locked(staging.root, out)
    try:
        yield staging
    finally:
        os.close(lock)


def remove_leftovers(out: Path) -> None:
    """Remove the staging folder of a process that was killed after it had published `out`."""
    root = staging_of(out)
    if root.exists():
        with staging_beside(out):
            remove_tree(root)


def _opened(staging: Path) -> int:
    try:
        return os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise UserError(
            f"{staging} is a link or a file", expected="a folder that gemma-orch has made, or nothing", remedy="move it away"
        ) from error


def _locked(staging: Path, out: Path) -> int:
    while True:
        staging.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process finished and moved it: make a new one
            descriptor = _opened(staging)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), staging.stat()):
                    return descriptor
            except BlockingIOError as error:
                os.close(descriptor)
                raise TemporaryError(
                    f"another process is preparing {out}", remedy="wait for it, or choose another --out"
                ) from error
            os.close(descriptor)
