"""A language's token stream, read from its shards in blocks that are verified when they are first read from."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import BLOCK_TOKENS, TokenStream
from state.errors import DataError, TemporaryError
from state.layout import DATA_MANIFEST_NAME
from worker.data.verification import Verification

Tokens = NDArray[np.unsignedinteger]
ReadAt = Callable[[Path, int, int], bytes]
"""Returns a file's bytes, given where they begin and how many they are; fewer at the file's end."""
Piece = tuple[int, int, int]
"""Where tokens lie: (shard, begin, end), both within the shard."""


def read_at(path: Path, offset: int, num_bytes: int) -> bytes:
    """Return bytes of a file; fewer when it ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        pieces = []
        while num_bytes and (piece := file.read(num_bytes)):
            pieces.append(piece)
            num_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def blocks_of(start: int, width: int) -> range:
    """Return the blocks that a row of `width` tokens, 2 or more, needs.

    A block brings the token after it along, so a row's last token alone asks for no further block.
    """
    return range(start // BLOCK_TOKENS, (start + width - 2) // BLOCK_TOKENS + 1)


class BlockStream:
    """One language's tokens, as if its shards were a single array.

    A block's digest is compared when it is first read from, beside whatever goes on then, and the block is trusted from
    then on: whoever keeps what came of a row must have asked the verification before.

    Args:
        data_dir: The data folder.
        language: Its name, for messages.
        stream: What the manifest says of it.
        dtype: Of a stored token.
        verification: Verifies the blocks that are read from.
        read: How bytes are read of blocks that are not verified yet.

    Raises:
        DataError: a shard is missing, or has another size than the manifest says.
    """

    def __init__(
        self,
        data_dir: Path,
        language: str,
        stream: TokenStream,
        dtype: np.dtype[np.unsignedinteger],
        verification: Verification,
        *,
        read: ReadAt = read_at,
    ) -> None:
        self.num_tokens = stream.num_tokens
        self.num_blocks = len(stream.blocks)
        self._data_dir = data_dir
        self._language = language
        self._digests = stream.blocks
        self._paths = tuple(data_dir / shard.name for shard in stream.shards)
        self._ends = list(itertools.accumulate(shard.num_tokens for shard in stream.shards))
        self._dtype = dtype
        self._verification = verification
        self._read = read
        self._asked = bytearray(self.num_blocks)
        self._is_verified = bytearray(self.num_blocks)
        self._mapped: dict[int, Tokens] = {}
        for path, shard in zip(self._paths, stream.shards, strict=True):
            _check_size(path, shard.num_tokens * dtype.itemsize)

    def fill(self, start: int, out: Tokens) -> None:
        """Fill `out` with the tokens from `start` on; those of a block that is not verified yet are only promised.

        Raises:
            DataError: a shard is shorter than what was prepared.
            TemporaryError: a shard cannot be read.
        """
        blocks = blocks_of(start, len(out))
        # Where a mount fails, reading says so; a mapping would end the process. What is verified has been read before.
        tokens = self._mapped_tokens if all(self._is_verified[blocks.start : blocks.stop]) else self._read_tokens
        filled = 0
        for index, begin, end in self._pieces(start, start + len(out)):
            out[filled : filled + end - begin] = tokens(index, begin, end)
            filled += end - begin
        for number in blocks:
            if not self._asked[number]:
                self._asked[number] = True
                self._verification.add(functools.partial(self._verify, number))

    def block(self, number: int) -> bytes:
        """Return a block and the token after it, verified.

        Raises:
            DataError: it is not what was prepared.
            OSError: a shard cannot be read.
        """
        first = number * BLOCK_TOKENS
        pieces = self._pieces(first, min(first + BLOCK_TOKENS + 1, self.num_tokens))
        size = self._dtype.itemsize
        data = b"".join(self._read(self._paths[index], begin * size, (end - begin) * size) for index, begin, end in pieces)
        if hashlib.sha256(data).hexdigest() != self._digests[number]:
            raise self._changed(number, pieces)
        return data

    def _verify(self, number: int) -> None:
        try:
            self.block(number)
        except OSError as error:
            raise self._unreadable(f"block {number}", error) from error
        self._is_verified[number] = True

    def _pieces(self, start: int, end: int) -> list[Piece]:
        """Return where the tokens `start` to `end` lie."""
        pieces = []
        index = bisect.bisect_right(self._ends, start)
        while start < end:
            shard_begin, shard_end = self._ends[index - 1] if index else 0, self._ends[index]
            pieces.append((index, start - shard_begin, min(end, shard_end) - shard_begin))
            start, index = shard_end, index + 1
        return pieces

    def _read_tokens(self, index: int, begin: int, end: int) -> Tokens:
        size = self._dtype.itemsize
        try:
            data = self._read(self._paths[index], begin * size, (end - begin) * size)
        except OSError as error:
            raise self._unreadable("a sequence", error) from error
        if len(data) < (end - begin) * size:
            first = (self._ends[index - 1] if index else 0) + begin
            raise self._changed(first // BLOCK_TOKENS, [(index, begin, end)])
        return np.frombuffer(data, self._dtype)

    def _mapped_tokens(self, index: int, begin: int, end: int) -> Tokens:
        # Mapped at first use: of what may be hundreds of shards, a window reads a few.
        if index not in self._mapped:
            self._mapped[index] = np.memmap(self._paths[index], dtype=self._dtype, mode="r").view(np.ndarray)
        return self._mapped[index][begin:end]

    def _changed(self, number: int, pieces: list[Piece]) -> DataError:
        first = number * BLOCK_TOKENS
        shards = " or ".join(str(self._paths[index]) for index, _, _ in pieces)
        return DataError(
            f"the shard {shards} has changed: block {number} of {self._language!r} (tokens {first} to "
            f"{min(first + BLOCK_TOKENS, self.num_tokens)}) has not the sha256 that {DATA_MANIFEST_NAME} says",
            expected="the bytes that were prepared",
            remedy=f"copy the shard again; or, where the run has prepared it for itself, remove {self._data_dir}: the same "
            "gemma-orch start command prepares it again",
        )

    def _unreadable(self, what: str, error: OSError) -> TemporaryError:
        return TemporaryError(
            f"{what} of {self._language!r} cannot be read from {error.filename or self._data_dir} ({error.strerror})",
            remedy="once the folder can be read again, the run goes on from its last checkpoint",
        )


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
