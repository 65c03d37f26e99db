"""Exact duplicates over all units, found by the texts' hashes in bounded memory.

The hashes are looked at in buckets, each of about MAX_BUCKET_DOCUMENTS, and the units are read once for each bucket: what is
in memory at one time does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.corpus.units import read_documents

MAX_BUCKET_DOCUMENTS = 2**20  # about 100 MB while they are sorted
UNIQUE = -1

I64Array = NDArray[np.int64]


def find_duplicates(
    units: Sequence[Path], counts: Sequence[int], scratch: Path, *, max_bucket_documents: int = MAX_BUCKET_DOCUMENTS
) -> I64Array:
    """Return for each document, counted through all units, which one of its text stays; UNIQUE where it is the one.

    The first stays; but where languages hold out different shares, the first that is held out: else a text that is in the
    validation set of one language could be trained on in another, and would be as soon as that other language is added.

    Args:
        units: The units in reading order.
        counts: Documents of each unit.
        scratch: A file for the result, which is mapped, not held in memory; it is overwritten.
        max_bucket_documents: Documents that are compared at one time, on average.

    Returns:
        [sum(counts)].

    Raises:
        OSError: the disk is full.
    """
    total = sum(counts)
    if not total:
        return np.empty(0, dtype=np.int64)
    with open(scratch, "wb") as file:  # written, not mapped: a page that a full disk has no room for would kill the process
        for start in range(0, total, max_bucket_documents):
            file.write(np.full(min(max_bucket_documents, total - start), UNIQUE, dtype=np.int64).tobytes())
    first = np.memmap(scratch, dtype=np.int64, mode="r+", shape=(total,))
    num_buckets = -(-total // max_bucket_documents)
    for bucket in range(num_buckets):
        repeats, stays = _repeated(*_bucket(units, counts, bucket, num_buckets))
        first[repeats] = stays
    return first


def _bucket(
    units: Sequence[Path], counts: Sequence[int], bucket: int, num_buckets: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_], I64Array]:
    """Return (high half, low half, held out, number) of the documents whose hashes fall into a bucket, [K] each."""
    high, low, held_out, number = [], [], [], []
    start = 0
    for unit, count in zip(units, counts, strict=True):
        documents = read_documents(unit)
        mine = np.flatnonzero(documents["hash_high"] % np.uint64(num_buckets) == bucket)
        high.append(documents["hash_high"][mine])
        low.append(documents["hash_low"][mine])
        held_out.append(documents["held_out"][mine])
        number.append(mine + start)
        start += count
    return np.concatenate(high), np.concatenate(low), np.concatenate(held_out), np.concatenate(number)


def _repeated(
    high: NDArray[np.uint64], low: NDArray[np.uint64], held_out: NDArray[np.bool_], number: I64Array
) -> tuple[I64Array, I64Array]:
    """Return the numbers of the documents that repeat one, and of those that they repeat."""
    order = np.lexsort((number, ~held_out, low, high))
    high, low, number = high[order], low[order], number[order]
    repeats = np.zeros(len(number), dtype=bool)
    repeats[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    firsts = number[~repeats]
    return number[repeats], firsts[np.cumsum(~repeats) - 1][repeats]
