from __future__ import annotations

import errno
import mmap
import resource
from pathlib import Path

import pytest

from worker.checkpoint.bulk_file import BulkFile

PAGE = mmap.PAGESIZE


def pages(number: int, extra: int = 0) -> mmap.mmap:
    buffer = mmap.mmap(-1, number * PAGE + extra)
    buffer[:] = bytes(index % 251 for index in range(len(buffer)))
    return buffer


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("extra", [0, 1, PAGE - 1])
def test_all_bytes_arrive(tmp_path: Path, direct: bool, extra: int):
    buffer = pages(8, extra)
    memory = memoryview(buffer)
    with BulkFile(tmp_path / "file", direct=direct) as file:
        file.write(memory[: 4 * PAGE])
        file.write(memory[4 * PAGE :])
    assert (tmp_path / "file").read_bytes() == buffer[:]


def test_memory_that_is_not_aligned_goes_through_the_cache(tmp_path: Path):
    buffer = pages(3)
    with BulkFile(tmp_path / "file", direct=True) as file:
        file.write(memoryview(buffer)[1 : 1 + PAGE])  # whole pages long, but beginning within one
        file.write(memoryview(buffer)[1 + PAGE : 1 + 2 * PAGE])
    assert (tmp_path / "file").read_bytes() == buffer[1 : 1 + 2 * PAGE]


def test_a_file_system_without_direct_writing_is_written_as_usual():
    # /proc knows no direct writing, and takes a write to this file.
    with BulkFile(Path("/proc/self/clear_refs"), direct=True) as file:
        file.write(memoryview(b"1\n"))


@pytest.mark.parametrize("direct", [False, True])
def test_a_limit_on_file_sizes_is_told(tmp_path: Path, direct: bool):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PAGE + 100, old[1]))
    try:
        with BulkFile(tmp_path / "file", direct=direct) as file, pytest.raises(OSError) as caught:
            file.write(memoryview(pages(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.errno == errno.EFBIG


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        BulkFile(tmp_path / "missing" / "file", direct=True)
