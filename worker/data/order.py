"""Computes which sequence of which language is the run's g-th sample: a pure function of (seed, g).

Step 10 000 000 costs as much as step 0, because nothing is stored and nothing before it is visited. The order does not
depend on the number of ranks or sessions, or on how the data is cut into shards. Comments below explain both halves:
which language (at `BatchOrder`) and which of its sequences (at `LanguageOrder`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from state.data_manifest import BLOCK_TOKENS
from state.errors import DataError, UserError
from state.manifest import DataPosition
from state.spec import ORDER_VERSION as ORDER_VERSION
from worker.data.permutation import I64Array, U64Array, numbered_keys, permute, random_bits, round_keys

WINDOW_BLOCKS = 64  # 128 MiB of 16-bit tokens: large enough to mix well, small enough for any scratch disk

_KEY_SPAN = 4096  # width of the span of keys that is sorted at a time; the order does not depend on it
_SHARE_BITS = 32
_ONE = 1 << _SHARE_BITS
_FIRST_NEEDS = 8192  # samples after which a window has, with rare exceptions, read from each of its blocks

_Number = TypeVar("_Number", int, I64Array)


@dataclass(frozen=True)
class Samples:
    """Consecutive samples: each one's language (index in name order), its sequence in that language, and the epoch."""

    language: I64Array
    sequence: I64Array
    epoch: I64Array


@dataclass(frozen=True)
class Window:
    """The part of a language's epoch that reads only from one set of blocks."""

    epoch: int
    number: int
    """Within the epoch, from 0."""
    first: int
    """The language's first sample in this window, counted from the language's begin (over all epochs)."""
    end: int
    """The first sample after this window, counted alike."""


@dataclass(frozen=True)
class _KeySpan:
    """The samples whose keys lie in one span; the first of them is the run's sample `first`."""

    first: int
    samples: Samples


# Which language is next? Sample j of a language with the share w gets the key (j + u) / w, where the jitter u in [0, 1) is
# a hash of (seed, language, j). All languages' samples, sorted by key, are the run's samples.
#
# Example: three languages with the shares a 0.5, b 0.3, c 0.2, and the jitters of seed 1:
#
#              j = 0                   1      2      3      4
#     a keys   (0 + 0.57) / 0.5 = 1.14   3.30   4.96   6.28   9.08
#     b keys   (0 + 0.64) / 0.3 = 2.12   5.67   9.95  10.35  15.59
#     c keys   (0 + 0.05) / 0.2 = 0.25   7.27  11.71  17.53  24.68
#
#     sorted   0.25  1.14  2.12  3.30  4.96  5.67  6.28  7.27  9.08  9.95  ...
#     order    c     a     b     a     a     b     a     c     a     b     ...
#
# Below any key t, a language has floor(w t) samples or one more: here, below t = 10, a has 5, b 3 and c 2. So at any
# time a language is at most one sample away from its exact share. And only the jitter of one sample a language decides
# between the two counts, so we can count the samples below any t without visiting them. That makes seeking fast: keys are
# cut into spans, the counts below a span say which samples it holds, and only those few thousand keys are sorted.
#
# All of this is done in integers (shares and jitters in units of 2**-32), so that every machine gets the same order.
class BatchOrder:
    """Computes which sequences a step reads.

    Args:
        seed: Seed of the run.
        batch_size: Sequences in a step, over all ranks.
        weights: Share of each language, summing to 1.
        num_sequences: Number of sequences of each language.
        sequence_length: T, tokens from one sequence's begin to the next one's.

    Raises:
        DataError: a language has a weight, but not one whole sequence.
        UserError: a weight names a language that has no data, or the weights do not sum to 1.
    """

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        weights: Mapping[str, float],
        num_sequences: Mapping[str, int],
        sequence_length: int,
    ) -> None:
        self.seed = seed
        self.batch_size = batch_size
        self.languages = tuple(sorted(weights))
        self.shares = _shares(weights)
        for name in self.languages:
            if name not in num_sequences:
                raise UserError(
                    f"the mixture names {name!r}, which is not in the data", expected=f"one of {', '.join(num_sequences)}"
                )
            if self.shares[name] and num_sequences[name] < 1:
                raise DataError(f"{name!r} has a weight in the mixture, but its data is shorter than one sequence")
        self._orders = tuple(LanguageOrder(seed, name, num_sequences[name], sequence_length) for name in self.languages)
        self._jitter_keys = np.stack([round_keys(seed, "mixture", name)[0] for name in self.languages])
        self._span = functools.lru_cache(maxsize=4)(self._make_span)  # consecutive steps read from the same span
        self._drawn_before = functools.lru_cache(maxsize=8)(self._count_before)

    def step(self, step: int, *, rank: int = 0, world_size: int = 1) -> Samples:
        """Return the samples of a step, or the part of them that a rank reads.

        The parts are contiguous: joined in rank order they are the whole step.

        Raises:
            UserError: the number of ranks does not divide the batch size.
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
        number = self._span_of(first)
        spans = [self._span(number)]
        while spans[-1].first + len(spans[-1].samples.language) < first + count:
            spans.append(self._span(number + len(spans)))
        within = slice(first - spans[0].first, first - spans[0].first + count)
        if len(spans) == 1:
            only = spans[0].samples
            return Samples(only.language[within], only.sequence[within], only.epoch[within])
        return Samples(
            np.concatenate([span.samples.language for span in spans])[within],
            np.concatenate([span.samples.sequence for span in spans])[within],
            np.concatenate([span.samples.epoch for span in spans])[within],
        )

    def position(self, step: int) -> DataPosition:
        """Return how far the data has been read after `step` steps."""
        samples = step * self.batch_size
        drawn = self.drawn(samples)
        return DataPosition(samples=samples, samples_by_language=dict(zip(self.languages, drawn, strict=True)))

    def drawn(self, sample: int) -> tuple[int, ...]:
        """Return how many of the run's first `sample` samples belong to each language."""
        number = self._span_of(sample)
        span = self._span(number)
        counts = np.bincount(span.samples.language[: sample - span.first], minlength=len(self.languages))
        return tuple(before + int(count) for before, count in zip(self._drawn_before(number), counts, strict=True))

    def language_order(self, name: str) -> LanguageOrder:
        """Return the order in which one language is read."""
        return self._orders[self.languages.index(name)]

    def _span_of(self, sample: int) -> int:
        # There are about t samples below key t, so this guess is off by at most one sample a language: a step or two away.
        number = sample // _KEY_SPAN
        while sum(self._drawn_before(number)) > sample:
            number -= 1
        while sum(self._drawn_before(number + 1)) <= sample:
            number += 1
        return number

    def _count_before(self, span: int) -> tuple[int, ...]:
        """Return how many samples of each language have a key below the span's begin t."""
        # floor(w t) samples lie below t for sure. Sample number floor(w t) does if its jitter is less than the rest of w t.
        reached = [divmod(span * _KEY_SPAN * self.shares[name], _ONE) for name in self.languages]
        jitter = _jitter(np.array([whole for whole, _ in reached], dtype=np.int64), self._jitter_keys)
        return tuple(whole + (late < part) for (whole, part), late in zip(reached, jitter.tolist(), strict=True))

    def _make_span(self, span: int) -> _KeySpan:
        begins, ends = self._drawn_before(span), self._drawn_before(span + 1)
        keys = [self._keys(index, span, begin, end) for index, (begin, end) in enumerate(zip(begins, ends, strict=True))]
        in_order = np.argsort(np.concatenate(keys), kind="stable")
        language = np.repeat(np.arange(len(keys)), [len(each) for each in keys])
        read = [
            order.sequences(np.arange(*drawn)) for order, drawn in zip(self._orders, zip(begins, ends, strict=True), strict=True)
        ]
        epoch, sequence = (np.concatenate([each[column] for each in read])[in_order] for column in (0, 1))
        return _KeySpan(sum(begins), Samples(language[in_order], sequence, epoch))

    def _keys(self, index: int, span: int, begin: int, end: int) -> I64Array:
        """Return the keys of a language's samples `begin` to `end`, in units of 2**-31 above the span's begin."""
        share = self.shares[self.languages[index]]
        offset = begin * _ONE - span * _KEY_SPAN * share  # below 2**33; its two parts may exceed 64 bits
        jitter = _jitter(np.arange(begin, end), self._jitter_keys[index])
        whole, part = np.divmod(np.arange(end - begin) * _ONE + jitter + offset, max(share, 1))
        return (whole << 31) + (part << 31) // max(share, 1)


# Which sequence is next? A language's sequences lie in blocks of BLOCK_TOKENS tokens. Each epoch shuffles the blocks, cuts
# that order of blocks into windows of up to WINDOW_BLOCKS, and shuffles the sequences within each window.
#
# Example: 5 blocks of 2 sequences (block 0 holds the sequences 0 and 1, ...), windows of up to 3 blocks:
#
#     blocks in this epoch's order   3  0 | 4  1  2
#     sequences of each window       6  7  0  1 | 8  9  2  3  4  5
#     shuffled within the window     7  0  1  6 | 4  9  3  8  5  2
#
# So every sequence is read once an epoch, and for a long time a language reads from one window's blocks only: few enough
# to be copied to scratch. The numbers come from `permute`, which gives any place of a shuffled order directly.
class LanguageOrder:
    """Computes in which order one language's sequences are read, epoch after epoch.

    Args:
        seed: Seed of the run.
        name: The language.
        num_sequences: Its number of sequences.
        sequence_length: T, tokens from one sequence's begin to the next one's.
    """

    def __init__(self, seed: int, name: str, num_sequences: int, sequence_length: int) -> None:
        self._seed = seed
        self._name = name
        self._num_sequences = num_sequences
        self._sequence_length = sequence_length
        self._per_block = max(1, BLOCK_TOKENS // sequence_length)
        self._num_blocks = -(-num_sequences // self._per_block)
        self._num_windows = -(-self._num_blocks // WINDOW_BLOCKS)

    @property
    def most_window_blocks(self) -> int:
        """The largest number of blocks of the token stream that a window reads."""
        tokens = self._per_block * self._sequence_length
        straddles = tokens % BLOCK_TOKENS != 0
        return min(self._num_blocks, WINDOW_BLOCKS) * (-(-tokens // BLOCK_TOKENS) + straddles)

    def sequences(self, drawn: I64Array) -> tuple[I64Array, I64Array]:
        """Return (epoch, sequence) of the language's samples with the numbers `drawn`, [K] each."""
        if not len(drawn):
            return drawn, drawn
        epoch, position = np.divmod(drawn, self._num_sequences)
        window = ((position // self._per_block + 1) * self._num_windows - 1) // self._num_blocks
        first_place, end_place = self._places(window), self._places(window + 1)
        first = first_place * self._per_block
        size = np.minimum(end_place * self._per_block, self._num_sequences) - first
        keys = numbered_keys(epoch * self._num_windows + window, self._seed, "window", self._name)
        shuffled = np.empty_like(position)
        for each in set(size.tolist()):  # windows have very few sizes; the first call of numpy's `unique` would import for 7 ms
            mine = np.flatnonzero(size == each)
            shuffled[mine] = permute((position - first)[mine].astype(np.uint64), each, keys[mine])
        block = self._block(epoch, first_place + shuffled // self._per_block)
        return epoch, block * self._per_block + shuffled % self._per_block

    def window(self, drawn: int) -> Window:
        """Return the window of the language's sample number `drawn`."""
        epoch, position = divmod(drawn, self._num_sequences)
        number = ((position // self._per_block + 1) * self._num_windows - 1) // self._num_blocks
        before = epoch * self._num_sequences
        end = self._places(number + 1) * self._per_block
        return Window(
            epoch=epoch,
            number=number,
            first=before + self._places(number) * self._per_block,
            end=before + min(end, self._num_sequences),
        )

    def needs(self, drawn: int) -> dict[int, int]:
        """Return the blocks of the token stream that the rest of a window reads, in the order of their first use.

        Args:
            drawn: Number of samples drawn so far; the next sample's window is meant.

        Returns:
            For each block, the number of the sample that reads it first. Exact for the next few thousand samples; blocks
            that none of them reads are listed after them.
        """
        window = self.window(drawn)
        looked = np.arange(drawn, min(drawn + _FIRST_NEEDS, window.end))
        _, sequence = self.sequences(looked)
        block, row = self._stream_blocks(sequence, sequence)
        touched, at = np.unique(block, return_index=True)
        in_order = np.argsort(at)
        needs = dict(zip(touched[in_order].tolist(), (drawn + row[at[in_order]]).tolist(), strict=True))
        if drawn + len(looked) < window.end:
            for other in self._window_blocks(window):
                needs.setdefault(other, drawn + _FIRST_NEEDS)
        return needs

    def _window_blocks(self, window: Window) -> list[int]:
        """Return every block of the token stream that a window reads, in number order."""
        places = np.arange(self._places(window.number), self._places(window.number + 1))
        first = self._block(np.full_like(places, window.epoch), places) * self._per_block
        last = np.minimum(first + self._per_block, self._num_sequences) - 1
        found: list[int] = np.unique(self._stream_blocks(first, last)[0]).tolist()
        return found

    def _stream_blocks(self, first: I64Array, last: I64Array) -> tuple[I64Array, I64Array]:
        """Return the blocks of the token stream that hold the sequences `first` to `last`, and the row of each block."""
        # A block is stored with the token after it, so the last target of a sequence needs no further block.
        begin = first * self._sequence_length // BLOCK_TOKENS
        end = ((last + 1) * self._sequence_length - 1) // BLOCK_TOKENS
        most = int((end - begin).max()) + 1
        blocks = np.minimum(begin[:, None] + np.arange(most), end[:, None])
        return blocks.ravel(), np.repeat(np.arange(len(first)), most)

    def _places(self, window: _Number) -> _Number:
        """Return the place in the epoch's order of blocks where a window begins."""
        return window * self._num_blocks // self._num_windows

    def _block(self, epoch: I64Array, place: I64Array) -> I64Array:
        """Return the block at each place of the epoch's order; a shorter last block is always last."""
        num_whole = self._num_sequences // self._per_block
        block = place.copy()
        whole = np.flatnonzero(place < num_whole)
        if len(whole):
            keys = numbered_keys(epoch[whole], self._seed, "blocks", self._name)
            block[whole] = permute(place[whole].astype(np.uint64), num_whole, keys)
        return block


def _shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Return each language's share in units of 2**-32, in name order; a positive weight is never rounded to zero.

    Raises:
        UserError: a weight is negative, or they do not sum to 1.
    """
    total = math.fsum(weights.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6) or min(weights.values()) < 0.0:
        raise UserError(f"the mixture is invalid: {dict(weights)}", expected="weights from 0 to 1 that sum to 1")
    shares = {name: max(1, round(weight / total * _ONE)) if weight else 0 for name, weight in sorted(weights.items())}
    largest = max(shares, key=lambda name: shares[name])
    shares[largest] += _ONE - sum(shares.values())
    return shares


def _jitter(samples: I64Array, keys: U64Array) -> I64Array:
    """Return each sample's jitter u (0 to 1), in units of 2**-32."""
    return (random_bits(samples.astype(np.uint64), keys) >> np.uint64(64 - _SHARE_BITS)).astype(np.int64)
