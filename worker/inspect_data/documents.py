"""Finds the documents of a range of a stream's tokens through the shards' index files."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import Shard, TokenStream
from state.errors import DataError

_COLUMNS = 3  # first token within the shard, number of the source, record within the source
_SHARDS_KEPT = 64  # indices in memory: a step reads from few shards; an index takes about 12 bytes a document

U32Array = NDArray[np.uint32]


@dataclass(frozen=True)
class Piece:
    """The part of one document that lies within a range of tokens."""

    source: int
    """Number of the source in `DataManifest.sources`."""
    record: int
    """Line, row or document of a text file within the source, from 1."""
    first_token: int
    """Its first token, counted from the begin of the range."""
    num_tokens: int
    document_offset: int
    """Tokens of the document before the range; 0 if the document begins within it."""


class DocumentIndex:
    """Finds the documents of a stream; each shard's index is read and verified at its first use."""

    def __init__(self, data_dir: Path, stream: TokenStream) -> None:
        self._data_dir = data_dir
        self._shards = stream.shards
        self._num_tokens = stream.num_tokens
        self._starts = np.cumsum([0, *(shard.num_tokens for shard in stream.shards)])
        self._index = functools.lru_cache(_SHARDS_KEPT)(self._read_index)

    def pieces(self, first: int, num_tokens: int) -> tuple[Piece, ...]:
        """Return the pieces of documents in tokens first to first + num_tokens - 1 of the stream, in order.

        Raises:
            DataError: an index is missing or has changed, or the range does not lie within the stream.
        """
        end = first + num_tokens
        if not (first >= 0 and num_tokens >= 1 and end <= self._num_tokens):
            raise DataError(f"there are no tokens {first} to {end - 1}", expected=f"0 to {self._num_tokens - 1}")
        shard = int(np.searchsorted(self._starts, first, side="right")) - 1
        starts = [self._document_at(first, shard)]
        while shard < len(self._shards) and self._starts[shard] < end:
            index = self._index(shard)
            positions = index[:, 0].astype(np.int64) + self._starts[shard]
            rows = range(int(np.searchsorted(positions, first, side="right")), int(np.searchsorted(positions, end)))
            starts += [(int(positions[row]), int(index[row, 1]), int(index[row, 2])) for row in rows]
            shard += 1
        ends = [*(start[0] for start in starts[1:]), end]
        return tuple(self._piece(start, its_end, first, end) for start, its_end in zip(starts, ends, strict=True))

    @staticmethod
    def _piece(start: tuple[int, int, int], its_end: int, first: int, end: int) -> Piece:
        begin = max(start[0], first)
        return Piece(
            source=start[1],
            record=start[2],
            first_token=begin - first,
            num_tokens=min(its_end, end) - begin,
            document_offset=max(0, first - start[0]),
        )

    def _document_at(self, token: int, shard: int) -> tuple[int, int, int]:
        """Return (first token, source, record) of the document that a token belongs to; it may begin shards before."""
        while shard >= 0:
            index = self._index(shard)
            row = int(np.searchsorted(index[:, 0].astype(np.int64) + self._starts[shard], token, side="right")) - 1
            if row >= 0:
                return int(self._starts[shard]) + int(index[row, 0]), int(index[row, 1]), int(index[row, 2])
            shard -= 1
        raise DataError(
            f"no document begins at or before token {token} of the stream of {self._shards[0].name}",
            remedy="prepare the data again",
        )

    def _read_index(self, number: int) -> U32Array:
        shard: Shard = self._shards[number]
        path = self._data_dir / shard.index.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the index {path} cannot be read ({error.strerror})", remedy="prepare the data again, or bring the file back"
            ) from error
        if hashlib.sha256(content).hexdigest() != shard.index.sha256 or len(content) != shard.index.num_documents * 4 * _COLUMNS:
            raise DataError(
                f"the index {path} has changed: its sha256 is not the one in the data's manifest",
                remedy="prepare the data again, or bring the file back",
            )
        return np.frombuffer(content, dtype="<u4").reshape(-1, _COLUMNS)
