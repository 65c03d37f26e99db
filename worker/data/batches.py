"""Makes batches of token sequences from the shards of a data folder; a batch is a pure function of (seed, step).

Legend: B sequences in a batch, T positions in a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from state.data_manifest import DataManifest
from state.errors import DataError
from state.layout import DATA_MANIFEST_NAME
from state.manifest import DataPosition
from worker.data.blocks import BlockStream, ReadAt, Tokens, read_at
from worker.data.order import BatchOrder, Samples
from worker.data.permutation import I64Array
from worker.data.scratch import Copier, Scratch, Slots, slot_bytes
from worker.data.verification import Verification


def read_data_manifest(data_dir: Path) -> DataManifest:
    """Return the manifest of a data folder.

    Raises:
        DataError: it is missing (so the folder was never finished), unreadable or invalid.
    """
    path = data_dir / DATA_MANIFEST_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{data_dir} is no data folder: {DATA_MANIFEST_NAME} cannot be read ({error.strerror})",
            remedy="restore the folder; if this run prepared it itself, the same gemma-orch start command prepares it again",
        ) from error
    return DataManifest.from_json(text, str(path))


class TokenData:
    """A data folder's languages, each cut into sequences of T + 1 tokens at stride T.

    Sequence i of a language is tokens i * T to i * T + T, both included. Its last token is the next sequence's first, so
    that every token but the first is a target exactly once.

    Args:
        data_dir: The data folder.
        manifest: The folder's manifest.
        sequence_length: T.
        scratch: Where copies of the next blocks may lie on a fast disk; None if the data folder itself is fast.
        read: Reads bytes of shards: to verify or copy a block, and until it is verified.
    """

    def __init__(
        self,
        data_dir: Path,
        manifest: DataManifest,
        sequence_length: int,
        scratch: Scratch | None = None,
        *,
        read: ReadAt = read_at,
    ) -> None:
        self.manifest = manifest
        self.sequence_length = sequence_length
        self.scratch = scratch
        self.width = sequence_length + 1
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype("<u2" if manifest.token_bytes == 2 else "<u4")
        self.num_sequences = {
            name: max(0, (num_tokens - 1) // sequence_length) for name, num_tokens in manifest.tokens_by_language.items()
        }
        self.verification = Verification()
        self.streams = {
            name: BlockStream(data_dir, name, manifest.languages[name], self.dtype, self.verification, read=read)
            for name in self.num_sequences
        }

    @classmethod
    def open(cls, data_dir: Path, manifest: DataManifest, sequence_length: int, scratch: Scratch | None = None) -> TokenData:
        """Open a data folder; no token is read yet.

        Raises:
            DataError: a shard is missing, or its size differs from the manifest.
        """
        return cls(data_dir, manifest, sequence_length, scratch)

    def check_mixture(self, weights: Mapping[str, float]) -> None:
        """Check that every language with a weight has at least one sequence.

        Raises:
            DataError: a language has fewer than T + 1 tokens.
        """
        for name, weight in sorted(weights.items()):
            if weight > 0.0 and self.num_sequences.get(name) == 0:
                raise DataError(
                    f"{name!r} has {self.manifest.languages[name].num_tokens} tokens, too few for one sequence",
                    expected=f"at least {self.sequence_length + 1} (sequence_length + 1)",
                    remedy=f"add text in {name!r}, set a smaller sequence_length, or give {name!r} the weight 0",
                )

    def sequences(self, language: str, indices: I64Array) -> Tokens:
        """Return sequences of a language by index, [len(indices), T + 1], as stored and verified.

        Raises:
            DataError: a block's digest differs from the manifest.
            TemporaryError: a shard cannot be read.
        """
        out = np.empty((len(indices), self.width), dtype=self.dtype)
        for row, index in enumerate(indices.tolist()):
            self.streams[language].fill(index * self.sequence_length, out[row])
        self.verification.settle()
        return out


class Batches:
    """The run's batches: what each step trains on.

    Args:
        data: The sequences. If it has scratch, call `close` at the end to stop the copying thread.
        seed: Seed of the run.
        batch_size: Sequences in a step, over all ranks.
        weights: Share of each language, summing to 1.
        say: Called with a line for the user if scratch cannot be used; may be called on another thread.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        seed: int,
        batch_size: int,
        weights: Mapping[str, float],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        data.check_mixture(weights)
        self.data = data
        self.order = BatchOrder(
            seed=seed,
            batch_size=batch_size,
            weights=weights,
            num_sequences=data.num_sequences,
            sequence_length=data.sequence_length,
        )
        self._copier = _copier(data, self.order, say)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[I64Array, I64Array]:
        """Return (inputs, targets) of a step, [B / world_size, T] each: a rank's contiguous part of the batch.

        Blocks that are read for the first time are verified while the step is trained. Call `settle` before you keep
        anything computed from the batch.

        Raises:
            DataError: a block's digest, of this step or an earlier one, differs from the manifest.
            TemporaryError: a shard cannot be read.
        """
        if self._copier:
            self._copier.at(step * self.order.batch_size)
        self.data.verification.check()
        tokens = self._tokens(self.order.step(step, rank=rank, world_size=world_size))
        return tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)

    def settle(self) -> None:
        """Wait until everything returned so far is verified. Raises the same errors as `batch`."""
        self.data.verification.settle()

    def batch_languages(self, step: int) -> list[str]:
        """Return the language of each of a step's sequences, in the order of the batch."""
        return [self.order.languages[index] for index in self.order.step(step).language.tolist()]

    def data_position(self, step: int) -> DataPosition:
        """Return how far the data has been read after `step` steps."""
        return self.order.position(step)

    def close(self) -> None:
        """Free scratch and end the threads; batches can still be read, from the data folder."""
        if self._copier:
            self._copier.close()
            self._copier = None
        self.data.verification.close()

    def _tokens(self, samples: Samples) -> Tokens:
        out = np.empty((len(samples.language), self.data.width), dtype=self.data.dtype)
        # Row by row: rows are long and a batch has few, so a loop is faster than numpy's gathering with its start-up cost.
        for row, index, sequence in zip(out, samples.language.tolist(), samples.sequence.tolist(), strict=True):
            language, start = self.order.languages[index], sequence * self.data.sequence_length
            if not (self._copier and self._copier.fill(language, start, row)):
                self.data.streams[language].fill(start, row)
        return out


def _copier(data: TokenData, order: BatchOrder, say: Callable[[str], None]) -> Copier | None:
    if data.scratch is None:
        return None
    num_blocks = {name: data.streams[name].num_blocks for name in order.languages if order.shares[name]}
    num_slots = data.scratch.num_slots(order, num_blocks, slot_bytes(data.dtype))
    if not num_slots:
        say(
            f"scratch is too small: {data.scratch.budget_bytes} bytes, one block needs {slot_bytes(data.dtype)}; "
            "reading without scratch, slower"
        )
        return None
    try:
        slots = Slots(data.scratch.dir, num_slots, num_blocks, data.dtype)
    except OSError as error:
        say(f"scratch cannot be made in {data.scratch.dir} ({error.strerror}); reading without scratch, slower")
        return None
    return Copier(slots, order, data.streams, say)
