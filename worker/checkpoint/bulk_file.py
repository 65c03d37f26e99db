"""Writes hundreds of megabytes past the page cache, so that the training beside it keeps the processor."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path


class BulkFile:
    """A new file for much data that is written once and not read soon.

    It bypasses the page cache (O_DIRECT) where the system supports that. Measured for 566 MB: 0.01 s of processor time
    instead of 0.2 to 0.5 s; the training beside it gets the difference.

    Args:
        path: The file.
        direct: Whether to bypass the page cache. Use False for data that is read again at once.
    """

    def __init__(self, path: Path, *, direct: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._direct = getattr(os, "O_DIRECT", 0) if direct else 0
        try:
            self._descriptor = os.open(path, flags | self._direct, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0  # this file system does not support O_DIRECT
            self._descriptor = os.open(path, flags, 0o644)

    def __enter__(self) -> BulkFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def write(self, chunk: memoryview) -> None:
        """Write the whole chunk; bypass the page cache while address, offset and length are whole pages."""
        while chunk:
            if len(chunk) % mmap.PAGESIZE:
                self._through_the_cache()
            try:
                chunk = chunk[os.write(self._descriptor, chunk) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._through_the_cache()

    def _through_the_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0
