import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.corpus.duplicates import UNIQUE, find_duplicates
from worker.corpus.units import DOCUMENT, write_unit


def write_units(folder: Path, *texts: list[int]) -> tuple[list[Path], list[int]]:
    """Write units whose documents have these numbers for hashes."""
    paths = []
    for number, hashes in enumerate(texts):
        documents = np.zeros(len(hashes), dtype=DOCUMENT)
        documents["hash_high"] = [each // 7 for each in hashes]
        documents["hash_low"] = [each % 7 for each in hashes]
        paths.append(folder / f"{number}.unit")
        write_unit(paths[-1], [], [], documents, np.empty(0, dtype="<u2"))
    return paths, [len(hashes) for hashes in texts]


def test_every_document_but_the_first_of_its_text_is_a_duplicate_of_the_first(tmp_path: Path):
    units, counts = write_units(tmp_path, [5, 6, 5], [], [6, 9, 5])
    found = find_duplicates(units, counts, tmp_path / "first.bin")
    assert found.tolist() == [UNIQUE, UNIQUE, 0, 1, UNIQUE, 0]


def test_no_document_is_no_duplicate(tmp_path: Path):
    assert find_duplicates(*write_units(tmp_path, []), tmp_path / "first.bin").tolist() == []


def test_texts_that_share_half_a_hash_are_not_the_same(tmp_path: Path):
    units, counts = write_units(tmp_path, [7, 8, 14])  # (1, 0), (1, 1), (2, 0)
    assert find_duplicates(units, counts, tmp_path / "first.bin").tolist() == [UNIQUE] * 3


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@settings(deadline=None)  # it waits for the disk
@given(texts=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4))
def test_however_few_are_compared_at_once_the_duplicates_are_the_same(
    texts: list[list[int]], at_once: int, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("units")
    units, counts = write_units(folder, *texts)
    found = find_duplicates(units, counts, folder / "first.bin", max_bucket_documents=at_once).tolist()
    joined = [each for unit in texts for each in unit]
    assert found == [UNIQUE if joined.index(each) == number else joined.index(each) for number, each in enumerate(joined)]


def test_a_disk_that_has_no_room_for_the_result_is_an_error_and_not_the_end_of_the_process(tmp_path: Path):
    units, counts = write_units(tmp_path, list(range(4000)))
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))  # a file that cannot grow: what a full disk is to its writer
    try:
        with pytest.raises(OSError, match="too large"):
            find_duplicates(units, counts, tmp_path / "first.bin", max_bucket_documents=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


def test_every_page_of_the_result_has_its_room_on_the_disk_before_it_is_mapped(tmp_path: Path):
    units, counts = write_units(tmp_path, list(range(4000)))
    find_duplicates(units, counts, tmp_path / "first.bin", max_bucket_documents=1000)
    assert (tmp_path / "first.bin").stat().st_blocks * 512 >= 4000 * 8
