"""A language's token stream, read from its memory-mapped shards in blocks that are verified before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import BLOCK_TOKENS, TokenStream
from state.errors import DataError, TemporaryError
from state.layout import DATA_MANIFEST_NAME
from worker.permutation import I64Array

Tokens = NDArray[np.unsignedinteger]
ReadAt = Callable[[Path, int, int], bytes]
"""Returns a file's bytes, given where they begin and how many they are; fewer at the file's end."""

_VERIFIED_AT_ONCE = 4  # a first batch touches many blocks, and hashing lets go of the interpreter's lock


def read_at(path: Path, offset: int, num_bytes: int) -> bytes:
    """Return bytes of a file; fewer when it ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        pieces = []
        while num_bytes and (piece := file.read(num_bytes)):
            pieces.append(piece)
            num_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def blocks_of(starts: I64Array, width: int) -> tuple[I64Array, I64Array]:
    """Return the first and the last block that rows of `width` tokens need, [K] each.

    A block brings the token after it along, so a row's last token alone asks for no further block.
    """
    return starts // BLOCK_TOKENS, (starts + width - 2) // BLOCK_TOKENS


class BlockStream:
    """One language's tokens, as if its shards were a single array.

    A block's digest is compared when it is first touched, and the block is trusted from then on.

    Args:
        data_dir: The data folder.
        language: Its name, for messages.
        stream: What the manifest says of it.
        dtype: Of a stored token.
        width: Tokens in a row that is read, 2 or more.
        read: How bytes are read that are to be verified.

    Raises:
        DataError: a shard is missing, or has another size than the manifest says.
    """

    def __init__(
        self,
        data_dir: Path,
        language: str,
        stream: TokenStream,
        dtype: np.dtype[np.unsignedinteger],
        *,
        width: int,
        read: ReadAt = read_at,
    ) -> None:
        self.num_tokens = stream.num_tokens
        self.num_blocks = len(stream.blocks)
        self._data_dir = data_dir
        self._language = language
        self._digests = stream.blocks
        self._paths = tuple(data_dir / shard.name for shard in stream.shards)
        self._ends = np.cumsum([shard.num_tokens for shard in stream.shards])
        self._begins = np.concatenate([[0], self._ends[:-1]])
        self._dtype = dtype
        self._width = width
        self._read = read
        self._is_verified = np.zeros(self.num_blocks, dtype=np.bool_)
        self._mapped: dict[int, Tokens] = {}
        self._rows: dict[int, Tokens] = {}
        for path, shard in zip(self._paths, stream.shards, strict=True):
            _check_size(path, shard.num_tokens * dtype.itemsize)

    def fill(self, starts: I64Array, out: Tokens) -> None:
        """Fill each row of `out`, [K, width], with the tokens from its start on.

        Raises:
            DataError: a block is not what was prepared.
            TemporaryError: a shard cannot be read.
        """
        self._verify(starts)
        shard = np.searchsorted(self._ends, starts, side="right")
        in_one = starts + self._width <= self._ends[shard]
        for index in np.unique(shard[in_one]).tolist():
            mine = np.flatnonzero(in_one & (shard == index))
            out[mine] = self._rows_of(index)[starts[mine] - self._begins[index]]
        for row in np.flatnonzero(~in_one).tolist():
            start = int(starts[row])
            pieces = [self._shard(index)[begin:end] for index, begin, end in self._pieces(start, start + self._width)]
            out[row] = np.concatenate(pieces)

    def block(self, number: int) -> bytes:
        """Return a block and the token after it, verified.

        Raises:
            DataError: it is not what was prepared.
            OSError: a shard cannot be read.
        """
        first = number * BLOCK_TOKENS
        pieces = list(self._pieces(first, min(first + BLOCK_TOKENS + 1, self.num_tokens)))
        size = self._dtype.itemsize
        data = b"".join(self._read(self._paths[index], begin * size, (end - begin) * size) for index, begin, end in pieces)
        if hashlib.sha256(data).hexdigest() != self._digests[number]:
            shards = " or ".join(str(self._paths[index]) for index, _, _ in pieces)
            raise DataError(
                f"the shard {shards} has changed: block {number} of {self._language!r} (tokens {first} to "
                f"{min(first + BLOCK_TOKENS, self.num_tokens)}) has not the sha256 that {DATA_MANIFEST_NAME} says",
                expected="the bytes that were prepared",
                remedy=f"copy the shard again; or, where the run has prepared it for itself, remove {self._data_dir}: the same "
                "gemma-orch start command prepares it again",
            )
        return data

    def _verify(self, starts: I64Array) -> None:
        first, last = blocks_of(starts, self._width)
        most = int((last - first).max(initial=0)) + 1
        touched = np.minimum(first[:, None] + np.arange(most), last[:, None])
        new = np.unique(touched[~self._is_verified[touched]]).tolist()
        if len(new) > 1:
            with ThreadPoolExecutor(_VERIFIED_AT_ONCE) as threads:
                list(threads.map(self._verify_one, new))
        elif new:
            self._verify_one(new[0])

    def _verify_one(self, number: int) -> None:
        try:
            self.block(number)
        except OSError as error:
            raise TemporaryError(
                f"block {number} of {self._language!r} cannot be read from {error.filename or self._data_dir} ({error.strerror})",
                remedy="once the folder can be read again, the run goes on from its last checkpoint",
            ) from error
        self._is_verified[number] = True

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the shards that the tokens `start` to `end` lie in: (shard, begin, end), both within the shard."""
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < end:
            begin, shard_end = int(self._begins[index]), int(self._ends[index])
            yield index, start - begin, min(end, shard_end) - begin
            start, index = shard_end, index + 1

    def _rows_of(self, index: int) -> Tokens:
        """Return every row that lies within a shard, by its start: a view."""
        if index not in self._rows:
            self._rows[index] = np.lib.stride_tricks.sliding_window_view(self._shard(index), self._width)
        return self._rows[index]

    def _shard(self, index: int) -> Tokens:
        # Mapped at first use: a first batch touches a few of what may be hundreds of shards.
        if index not in self._mapped:
            self._mapped[index] = np.memmap(self._paths[index], dtype=self._dtype, mode="r").view(np.ndarray)
        return self._mapped[index]


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"the shard {path} cannot be read ({error.strerror})",
            remedy="bring it back; what a run has prepared for itself, the same gemma-orch start command prepares again",
        ) from error
    if size_bytes != expected_bytes:
        raise DataError(
            f"the shard {path} has {size_bytes} bytes",
            expected=f"{expected_bytes} bytes, as {DATA_MANIFEST_NAME} says",
            remedy="bring it back; what a run has prepared for itself, the same gemma-orch start command prepares again",
        )
