"""The order of the samples: which sequence of which language is a run's g-th sample, as a pure function of (seed, g).

Samples come in blocks of 4096. In each block every language has the same whole number of places (its quota), so its
share is exact in every block. A seeded permutation of the block says which place belongs to which language; another,
made anew for every epoch, says in which order a language's sequences are read. Nothing is stored and nothing is walked:
step 10 000 000 costs what step 0 costs, and the order does not know how many ranks or sessions there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from state.errors import DataError, UserError
from state.manifest import DataPosition
from worker.permutation import NUM_ROUNDS, U64Array, permute, round_keys

BLOCK_SAMPLES = 4096  # shares are exact to 1/4096, and small enough that a run of a few hundred steps sees whole blocks

I64Array = NDArray[np.int64]


def quotas(weights: Mapping[str, float], block_samples: int = BLOCK_SAMPLES) -> dict[str, int]:
    """Return how many of a block's samples each language gets, in name order, by the largest remainder.

    A language with a positive weight gets at least one sample, so that a rare language is never left out silently; the
    languages that were rounded up most give it back.

    Args:
        weights: Shares that sum to 1.
        block_samples: Samples in a block.

    Raises:
        UserError: the weights do not sum to 1, or more languages have one than a block has samples.
    """
    names = sorted(weights)
    if not math.isclose(math.fsum(weights.values()), 1.0, abs_tol=1e-6) or min(weights.values()) < 0.0:
        raise UserError(f"the weights {dict(weights)} are no shares", expected="numbers from 0 to 1 that sum to 1")
    exact = {name: weights[name] * block_samples for name in names}
    least = {name: 1 if weights[name] > 0.0 else 0 for name in names}
    if sum(least.values()) > block_samples:
        raise UserError(f"{sum(least.values())} languages have a weight", expected=f"at most {block_samples}")
    quota = {name: max(math.floor(exact[name]), least[name]) for name in names}
    while (missing := block_samples - sum(quota.values())) > 0:
        wanting = sorted((name for name in names if least[name]), key=lambda name: (quota[name] - exact[name], name))
        for name in wanting[:missing]:
            quota[name] += 1
    while (excess := sum(quota.values()) - block_samples) > 0:
        giving = sorted((name for name in names if quota[name] > 1), key=lambda name: (exact[name] - quota[name], name))
        for name in giving[:excess]:
            quota[name] -= 1
    return quota


@dataclass(frozen=True)
class _Block:
    """A block's samples: the language of each, and how many samples that language had before it in the whole run."""

    language: I64Array
    drawn: I64Array


@dataclass(frozen=True)
class Samples:
    """Consecutive samples: the language of each (index in name order), which of its sequences, in which epoch."""

    language: I64Array
    sequence: I64Array
    epoch: I64Array


class BatchOrder:
    """Which sequences a step reads.

    Args:
        seed: Seed of the run.
        batch_size: Sequences in a step, over all ranks.
        weights: Share of each language, summing to 1.
        num_sequences: Sequences that each language has.

    Raises:
        DataError: a language has a weight, but no whole sequence.
        UserError: a weight names a language that has no data.
    """

    def __init__(self, *, seed: int, batch_size: int, weights: Mapping[str, float], num_sequences: Mapping[str, int]) -> None:
        self.seed = seed
        self.batch_size = batch_size
        self.languages = tuple(sorted(weights))
        self.quotas = quotas(weights)
        for name in self.languages:
            if name not in num_sequences:
                raise UserError(
                    f"the mixture names {name!r}, which is not in the data", expected=f"only {', '.join(num_sequences)}"
                )
            if self.quotas[name] and num_sequences[name] < 1:
                raise DataError(f"{name!r} has a weight in the mixture, but not one whole sequence")
        self._num_sequences = tuple(num_sequences[name] for name in self.languages)
        self._quota = np.array([self.quotas[name] for name in self.languages], dtype=np.int64)
        self._block = functools.lru_cache(maxsize=2)(self._make_block)  # the steps of a walk share their blocks

    def step(self, step: int, *, rank: int = 0, world_size: int = 1) -> Samples:
        """Return the samples of a step, or the part of it that a rank reads.

        The parts are contiguous: joined in rank order they are the whole step.

        Raises:
            UserError: the ranks cannot share the batch evenly.
        """
        if self.batch_size % world_size:
            raise UserError(
                f"a batch of {self.batch_size} sequences cannot be shared by {world_size} ranks",
                expected="a batch size that the number of ranks divides",
            )
        share = self.batch_size // world_size
        return self.samples(step * self.batch_size + rank * share, share)

    def samples(self, first: int, count: int) -> Samples:
        """Return the samples `first` to `first + count` of the run."""
        first_block, within = divmod(first, BLOCK_SAMPLES)
        num_blocks = max(1, -(-(within + count) // BLOCK_SAMPLES))
        blocks = [self._block(first_block + number) for number in range(num_blocks)]
        language = np.concatenate([block.language for block in blocks])[within : within + count]
        drawn = np.concatenate([block.drawn for block in blocks])[within : within + count]
        epoch, sequence = np.empty_like(drawn), np.empty_like(drawn)
        for index in np.unique(language):
            mine = np.flatnonzero(language == index)
            epoch[mine], sequence[mine] = self._sequences(int(index), drawn[mine])
        return Samples(language, sequence, epoch)

    def position(self, step: int) -> DataPosition:
        """Return how far the data has been read when `step` steps are done."""
        samples = step * self.batch_size
        block, within = divmod(samples, BLOCK_SAMPLES)
        counts = np.bincount(self._block(block).language[:within], minlength=len(self.languages))
        drawn = block * self._quota + counts
        return DataPosition(
            samples=samples,
            samples_by_language={name: int(count) for name, count in zip(self.languages, drawn, strict=True)},
        )

    def _make_block(self, block: int) -> _Block:
        places = np.arange(BLOCK_SAMPLES, dtype=np.uint64)
        shuffled = permute(places, BLOCK_SAMPLES, round_keys(self.seed, "block", block))
        ends = np.cumsum(self._quota)
        language = np.searchsorted(ends, shuffled.astype(np.int64), side="right").astype(np.int64)
        by_language = np.argsort(language, kind="stable")
        rank = np.empty(BLOCK_SAMPLES, dtype=np.int64)
        rank[by_language] = np.arange(BLOCK_SAMPLES) - (ends - self._quota)[language[by_language]]
        return _Block(language, block * self._quota[language] + rank)

    def _sequences(self, index: int, drawn: I64Array) -> tuple[I64Array, I64Array]:
        """Return (epoch, sequence) of the samples that a language has drawn, [K] each."""
        num_sequences = self._num_sequences[index]
        epoch, position = np.divmod(drawn, num_sequences)
        keys = _keys_for_each(epoch, self.seed, "epoch", self.languages[index])
        sequence = permute(position.astype(np.uint64), num_sequences, keys)
        return epoch, sequence.astype(np.int64)


def _keys_for_each(values: I64Array, *name: int | str) -> U64Array:
    """Return the keys of the permutation named (*name, value) for each value, [K, NUM_ROUNDS]."""
    distinct, which = np.unique(values, return_inverse=True)  # a batch meets few blocks and epochs, so few hashes
    keys = np.array([round_keys(*name, value) for value in distinct.tolist()], dtype=np.uint64)
    return keys.reshape(-1, NUM_ROUNDS)[which]
