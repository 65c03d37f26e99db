"""Writes a stream of documents as shards of raw little-endian tokens, each with an index, and computes the blocks' digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import BLOCK_TOKENS, Shard, ShardIndex, TokenStream
from state.files import fsync_file


class ShardWriter:
    """Writes documents in order and cuts their tokens into shards of one size; the last shard may be shorter.

    Args:
        folder: The folder for the shards.
        name: The stream's name; file names begin with it.
        token_bytes: 2 or 4.
        shard_bytes: Size of a full shard.
    """

    def __init__(self, folder: Path, name: str, *, token_bytes: int, shard_bytes: int) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(f"<u{token_bytes}")
        self._shard_tokens = max(1, shard_bytes // token_bytes)
        self._shards: list[Shard] = []
        self._open: _OpenShard | None = None
        self._blocks = BlockDigests()
        self._num_documents = 0
        self._num_tokens = 0
        self._num_bytes_text = 0

    def append(
        self,
        tokens: NDArray[np.unsignedinteger],
        lengths: NDArray[np.integer],
        sources: NDArray[np.integer],
        records: NDArray[np.integer],
        num_bytes_text: int,
    ) -> None:
        """Write documents at the end of the stream.

        Args:
            tokens: [sum(lengths)] of all documents, joined.
            lengths: [D] tokens of each document, at least one.
            sources: [D] number of each document's source.
            records: [D] number of each document's record within its source.
            num_bytes_text: Size of their text in UTF-8.
        """
        rest = tokens.astype(self._dtype, copy=False)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        rows = np.column_stack([starts, sources, records])
        while len(rest):
            shard = self._open = self._open or _OpenShard(self._folder, f"{self._name}-{len(self._shards):05d}")
            piece = rest[: self._shard_tokens - shard.num_tokens]
            begin_here = int(np.searchsorted(rows[:, 0], len(piece)))
            shard.append(piece, rows[:begin_here])
            self._blocks.update(piece)
            rest = rest[len(piece) :]
            rows = rows[begin_here:] - np.array([len(piece), 0, 0])
            if shard.num_tokens == self._shard_tokens:
                self._end_shard(shard)
        self._num_documents += len(lengths)
        self._num_tokens += len(tokens)
        self._num_bytes_text += num_bytes_text

    def finish(self) -> TokenStream | None:
        """Make all shards durable and return the stream; None if there were no documents."""
        if self._open is not None:
            self._end_shard(self._open)
        if not self._num_tokens:
            return None
        return TokenStream(
            num_documents=self._num_documents,
            num_tokens=self._num_tokens,
            num_bytes_text=self._num_bytes_text,
            shards=tuple(self._shards),
            blocks=self._blocks.finish(),
        )

    def _end_shard(self, shard: _OpenShard) -> None:
        self._shards.append(shard.finish())
        self._open = None


class BlockDigests:
    """Computes the digests of a stream's blocks, each over the block and the token after it (`TokenStream.blocks`)."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self._block = hashlib.sha256()
        self._num_tokens = 0

    def update(self, tokens: NDArray[np.unsignedinteger]) -> None:
        """Append tokens to the stream."""
        while len(tokens):
            if self._num_tokens == BLOCK_TOKENS:
                self._block.update(tokens[:1].tobytes())
                self._end_block()
            piece = tokens[: BLOCK_TOKENS - self._num_tokens]
            self._block.update(piece.tobytes())
            self._num_tokens += len(piece)
            tokens = tokens[len(piece) :]

    def finish(self) -> tuple[str, ...]:
        """Return the digests, hex."""
        if self._num_tokens:
            self._end_block()
        return tuple(self._digests)

    def _end_block(self) -> None:
        self._digests.append(self._block.hexdigest())
        self._block = hashlib.sha256()
        self._num_tokens = 0


class _OpenShard:
    """A shard and its index, being written."""

    def __init__(self, folder: Path, name: str) -> None:
        self._tokens = _HashedFile(folder / f"{name}.tokens")
        self._index = _HashedFile(folder / f"{name}.documents")
        self.num_tokens = 0
        self._num_documents = 0

    def append(self, tokens: NDArray[np.unsignedinteger], rows: NDArray[np.int64]) -> None:
        self._tokens.write(tokens.tobytes())
        if len(rows):
            placed = rows + np.array([self.num_tokens, 0, 0])
            self._index.write(placed.astype("<u4").tobytes())
        self.num_tokens += len(tokens)
        self._num_documents += len(rows)

    def finish(self) -> Shard:
        return Shard(
            name=self._tokens.path.name,
            num_tokens=self.num_tokens,
            sha256=self._tokens.finish(),
            index=ShardIndex(name=self._index.path.name, num_documents=self._num_documents, sha256=self._index.finish()),
        )


class _HashedFile:
    """A file that is written once, from begin to end, and hashed on the way.

    It is open only during a write, because a corpus of 300 languages has more shards than a process may have open files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(exist_ok=False)
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(data)
        self._digest.update(data)

    def finish(self) -> str:
        fsync_file(self.path)
        return self._digest.hexdigest()
