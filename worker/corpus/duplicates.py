"""Finds exact duplicates over all units by the hashes of their texts, in bounded memory.

The hashes are compared in buckets of about MAX_BUCKET_DOCUMENTS, and the units are read once for each bucket. So the memory
does not grow with the corpus.
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
    """Return for each document the number of the document with the same text that is kept; UNIQUE if it is kept itself.

    Documents are numbered through all units. The first one with a text is kept; but if one is held out (languages can hold
    out different shares), the first held-out one is kept. Otherwise a text of one language's validation set could be
    trained on in another language.

    Args:
        units: The units in reading order.
        counts: Number of documents of each unit.
        scratch: A file for the result; it is overwritten, and mapped instead of held in memory.
        max_bucket_documents: Documents that are compared at a time, on average.

    Returns:
        [sum(counts)].

    Raises:
        OSError: the disk is full.
    """
    total = sum(counts)
    if not total:
        return np.empty(0, dtype=np.int64)
    with open(scratch, "wb") as file:  # not through a mapping: there, a full disk would kill the process instead of raising
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
    """Return (high half of the hash, low half, held out, number) of a bucket's documents, [K] each."""
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
    """Return the numbers of the repeated documents, and for each the number of the kept one."""
    order = np.lexsort((number, ~held_out, low, high))
    high, low, number = high[order], low[order], number[order]
    repeats = np.zeros(len(number), dtype=bool)
    repeats[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    firsts = number[~repeats]
    return number[repeats], firsts[np.cumsum(~repeats) - 1][repeats]
