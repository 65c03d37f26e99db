"""Writes one language's token stream as shards of raw little-endian integers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import Shard
from state.files import fsync_dir, fsync_file

DEFAULT_SHARD_BYTES = 256 * 1024 * 1024


class ShardWriter:
    """Takes tokens in order and cuts them into shards of one size, the last one shorter.

    Args:
        data_dir: The data folder that is being made.
        language: Names the folder of the shards.
        token_bytes: 2 or 4.
        shard_bytes: Size of a full shard.
    """

    def __init__(self, data_dir: Path, language: str, *, token_bytes: int, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        self._dtype = np.dtype("<u2" if token_bytes == 2 else "<u4")
        self._shard_tokens = max(1, shard_bytes // token_bytes)
        self._data_dir = data_dir
        self._language = language
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._num_tokens = 0
        self._digest = hashlib.sha256()
        (data_dir / language).mkdir()

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Write tokens at the end of the stream."""
        rest = tokens.astype(self._dtype)
        while len(rest):
            if self._file is None:
                self._file = open(self._data_dir / self._name, "xb")  # noqa: SIM115 (stays open across calls)
            piece = rest[: self._shard_tokens - self._num_tokens]
            data = piece.tobytes()
            self._file.write(data)
            self._digest.update(data)
            self._num_tokens += len(piece)
            rest = rest[len(piece) :]
            if self._num_tokens == self._shard_tokens:
                self._end_shard()

    def finish(self) -> tuple[Shard, ...]:
        """Make all shards durable and return them in order."""
        self._end_shard()
        fsync_dir(self._data_dir / self._language)
        return tuple(self._shards)

    def close(self) -> None:
        """Let go of the file, whatever state it is in."""
        if self._file is not None:
            self._file.close()

    @property
    def _name(self) -> str:
        return f"{self._language}/{len(self._shards):05d}.tokens"

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        fsync_file(self._data_dir / self._name)
        self._shards.append(Shard(name=self._name, num_tokens=self._num_tokens, sha256=self._digest.hexdigest()))
        self._num_tokens = 0
        self._digest = hashlib.sha256()
