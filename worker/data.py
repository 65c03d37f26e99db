"""Batches of token sequences from memory-mapped shards; a batch is a pure function of (seed, step).

Legend: B sequences in a batch, T positions in a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import DataManifest, Shard
from state.errors import DataError
from state.files import sha256_of_file
from state.layout import DATA_MANIFEST_NAME
from state.manifest import DataPosition
from worker.order import BatchOrder, I64Array, Samples


def read_data_manifest(data_dir: Path) -> DataManifest:
    """Return the manifest of a data folder.

    Raises:
        DataError: there is none, so this is no finished data folder, or it is not valid.
    """
    path = data_dir / DATA_MANIFEST_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{data_dir} is no data folder: {DATA_MANIFEST_NAME} cannot be read ({error.strerror})",
            remedy="the same gemma-orch start command prepares it again",
        ) from error
    return DataManifest.from_json(text, str(path))


def verify_shards(data_dir: Path, manifest: DataManifest) -> None:
    """Read every shard through and compare its digest: about 0.7 s per GB.

    Raises:
        DataError: a shard is not what was prepared; the message names it.
    """
    for language in manifest.languages.values():
        for shard in language.shards:
            path = data_dir / shard.name
            _check_size(path, shard.num_tokens * manifest.token_bytes)
            if sha256_of_file(path) != shard.sha256:
                raise DataError(
                    f"the shard {path} has changed: its sha256 is not the one in {DATA_MANIFEST_NAME}",
                    remedy=f"remove {data_dir}; the same gemma-orch start command prepares it again",
                )


class _TokenStream:
    """One language's shards, read as if they were a single array of tokens."""

    def __init__(self, data_dir: Path, shards: tuple[Shard, ...], dtype: np.dtype[np.unsignedinteger]) -> None:
        self._paths = tuple(data_dir / shard.name for shard in shards)
        self._ends = np.cumsum([shard.num_tokens for shard in shards])
        self._dtype = dtype
        self._open: dict[int, NDArray[np.unsignedinteger]] = {}
        for path, shard in zip(self._paths, shards, strict=True):
            _check_size(path, shard.num_tokens * dtype.itemsize)

    def read(self, start: int, out: I64Array) -> None:
        """Fill `out` with the tokens from `start` on, across shards where they meet."""
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(out):
            shard = self._shard(index)
            offset = start + filled - (int(self._ends[index]) - len(shard))
            piece = shard[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1

    def _shard(self, index: int) -> NDArray[np.unsignedinteger]:
        # Mapped at first use: a first batch touches a few of what may be hundreds of shards.
        if index not in self._open:
            self._open[index] = np.memmap(self._paths[index], dtype=self._dtype, mode="r")
        return self._open[index]


class TokenData:
    """A data folder's languages, each cut into sequences of T + 1 tokens at stride T.

    Sequence i of a language is tokens i * T to i * T + T, both included: its last token is the next one's first, so
    that every token but the first is a target exactly once.
    """

    def __init__(self, data_dir: Path, manifest: DataManifest, sequence_length: int) -> None:
        dtype = np.dtype("<u2" if manifest.token_bytes == 2 else "<u4")
        self.manifest = manifest
        self.sequence_length = sequence_length
        self.num_sequences = {
            name: max(0, (num_tokens - 1) // sequence_length) for name, num_tokens in manifest.tokens_by_language.items()
        }
        self._streams = {name: _TokenStream(data_dir, manifest.languages[name].shards, dtype) for name in self.num_sequences}

    @classmethod
    def open(cls, data_dir: Path, manifest: DataManifest, sequence_length: int) -> TokenData:
        """Open a data folder.

        Raises:
            DataError: a shard is missing, or has another size than the manifest says.
        """
        return cls(data_dir, manifest, sequence_length)

    def check_mixture(self, weights: Mapping[str, float]) -> None:
        """Check that every language that is to be trained on has at least one sequence.

        Raises:
            DataError: one has fewer tokens than a sequence and its target need.
        """
        for name, weight in sorted(weights.items()):
            if weight > 0.0 and self.num_sequences.get(name) == 0:
                raise DataError(
                    f"{name!r} has {self.manifest.languages[name].num_tokens} tokens, too few for one sequence",
                    expected=f"at least {self.sequence_length + 1} (sequence_length + 1)",
                    remedy=f"add text in {name!r}, set a smaller sequence_length, or give {name!r} the weight 0",
                )

    def sequences(self, language: str, indices: I64Array) -> I64Array:
        """Return sequences of a language by index, [len(indices), T + 1]."""
        out = np.empty((len(indices), self.sequence_length + 1), dtype=np.int64)
        stream = self._streams[language]
        for row, index in zip(out, indices.tolist(), strict=True):
            stream.read(index * self.sequence_length, row)
        return out


class Batches:
    """The run's batches: what each step trains on."""

    def __init__(self, data: TokenData, *, seed: int, batch_size: int, weights: Mapping[str, float]) -> None:
        data.check_mixture(weights)
        self.data = data
        self.order = BatchOrder(seed=seed, batch_size=batch_size, weights=weights, num_sequences=data.num_sequences)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[I64Array, I64Array]:
        """Return (inputs, targets) of a step, [B / world_size, T] each: a rank's contiguous part of the batch."""
        tokens = self._tokens(self.order.step(step, rank=rank, world_size=world_size))
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])

    def batch_languages(self, step: int) -> list[str]:
        """Return the language of each of a step's sequences, in the order of the batch."""
        return [self.order.languages[index] for index in self.order.step(step).language.tolist()]

    def data_position(self, step: int) -> DataPosition:
        """Return how far the data has been read when `step` steps are done."""
        return self.order.position(step)

    def _tokens(self, samples: Samples) -> I64Array:
        out = np.empty((len(samples.language), self.data.sequence_length + 1), dtype=np.int64)
        for index in np.unique(samples.language):
            mine = np.flatnonzero(samples.language == index)
            out[mine] = self.data.sequences(self.order.languages[index], samples.sequence[mine])
        return out


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"the shard {path} cannot be read ({error.strerror})", remedy="the same gemma-orch start command prepares it again"
        ) from error
    if size_bytes != expected_bytes:
        raise DataError(
            f"the shard {path} has {size_bytes} bytes",
            expected=f"{expected_bytes} bytes, as {DATA_MANIFEST_NAME} says",
            remedy="the same gemma-orch start command prepares it again",
        )
