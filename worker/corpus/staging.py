"""A folder that is made beside its final place, by one process at a time, and moved there when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from state.errors import TemporaryError
from state.files import remove_tree, rename


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well, it becomes `out`.

    A process that is killed leaves the folder behind, and the next one empties it. The folder itself carries the lock,
    which the kernel lets go when its holder dies.

    Raises:
        TemporaryError: another process is making the same folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.staging")
    lock = _locked(staging, out)
    try:
        for leftover in sorted(staging.iterdir()):
            remove_tree(leftover)
        yield staging
        rename(staging, out)
    except BaseException:
        remove_tree(staging)
        raise
    finally:
        os.close(lock)


def _locked(staging: Path, out: Path) -> int:
    while True:
        staging.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process finished and moved it: make a new one
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
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
