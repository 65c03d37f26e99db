"""Reads a language's token stream from its shards; each block is verified when something is first read from it."""

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
"""Returns a file's bytes, given (path, offset, number of bytes); fewer at the file's end."""
Piece = tuple[int, int, int]
"""A range of tokens in one shard: (index of the shard, begin, end), counted within the shard."""


def read_at(path: Path, offset: int, num_bytes: int) -> bytes:
    """Return bytes of a file; fewer if the file ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        pieces = []
        while num_bytes and (piece := file.read(num_bytes)):
            pieces.append(piece)
            num_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def blocks_of(start: int, width: int) -> range:
    """Return the blocks that a row of `width` tokens (2 or more) needs.

    A block is read with the token after it, so a row whose last token alone lies in the next block does not need that one.
    """
    return range(start // BLOCK_TOKENS, (start + width - 2) // BLOCK_TOKENS + 1)


class BlockStream:
    """One language's tokens, as if its shards were a single array.

    A block's digest is verified when something is first read from it, in a thread beside the caller. So `fill` may return
    tokens that are not verified yet: call `Verification.settle` before you keep anything computed from them.

    Args:
        data_dir: The data folder.
        language: Its name, for messages.
        stream: The manifest's entry of the language.
        dtype: Type of a stored token.
        verification: Verifies the blocks that are read from.
        read: Reads the bytes of blocks that are not verified yet.

    Raises:
        DataError: a shard is missing, or its size differs from the manifest.
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
        """Fill `out` with the tokens from `start` on. Queue blocks for verification that are not verified yet.

        Raises:
            DataError: a shard is shorter than when it was prepared.
            TemporaryError: a shard cannot be read.
        """
        blocks = blocks_of(start, len(out))
        # If a mount fails, a read raises an error, but access to a memory mapping kills the process. So only blocks that have
        # been read once before, to verify them, are read through a mapping.
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
        """Return the bytes of a block and of the token after it, verified.

        Raises:
            DataError: the digest differs from the manifest.
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
        """Return the pieces of shards that hold the tokens `start` to `end`."""
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
        # Mapped at first use: there may be hundreds of shards, and a window reads from a few of them.
        if index not in self._mapped:
            self._mapped[index] = np.memmap(self._paths[index], dtype=self._dtype, mode="r").view(np.ndarray)
        return self._mapped[index][begin:end]

    def _changed(self, number: int, pieces: list[Piece]) -> DataError:
        first = number * BLOCK_TOKENS
        shards = " or ".join(str(self._paths[index]) for index, _, _ in pieces)
        return DataError(
            f"the shard {shards} has changed: block {number} of {self._language!r} (tokens {first} to "
            f"{min(first + BLOCK_TOKENS, self.num_tokens)}) does not match its sha256 in {DATA_MANIFEST_NAME}",
            expected="the bytes that were prepared",
            remedy=f"copy the shard again; if this run prepared the data itself, remove {self._data_dir} and repeat the "
            "gemma-orch start command, which prepares it again",
        )

    def _unreadable(self, what: str, error: OSError) -> TemporaryError:
        return TemporaryError(
            f"{what} of {self._language!r} cannot be read from {error.filename or self._data_dir} ({error.strerror})",
            remedy="make the folder readable again; the run then goes on from its last checkpoint",
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
