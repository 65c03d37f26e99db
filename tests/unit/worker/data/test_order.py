import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import BLOCK_TOKENS
from state.errors import DataError, UserError
from worker.data.order import WINDOW_BLOCKS, BatchOrder, LanguageOrder, Samples
from worker.data.permutation import random_bits, round_keys

LANGUAGES = ("english", "hindi", "konkani")
LARGE_T = BLOCK_TOKENS // 8  # 8 sequences in a block, so that few sequences make many windows

shares = st.lists(st.integers(1, 1000), min_size=1, max_size=3).map(
    lambda parts: {name: part / sum(parts) for name, part in zip(LANGUAGES, parts, strict=False)}
)
sizes = st.lists(st.integers(1, 3000), min_size=3, max_size=3).map(lambda parts: dict(zip(LANGUAGES, parts, strict=True)))
lengths = st.sampled_from([16, 512, 700_000, LARGE_T, LARGE_T + 1, 3 * BLOCK_TOKENS])
seeds = st.integers(0, 2**63 - 1)


def order(**changes: object) -> BatchOrder:
    options: dict[str, object] = {
        "seed": 7,
        "batch_size": 8,
        "weights": {"english": 0.6, "hindi": 0.3, "konkani": 0.1},
        "num_sequences": {"english": 9000, "hindi": 700, "konkani": 11},
        "sequence_length": LARGE_T,
    }
    return BatchOrder(**{**options, **changes})  # type: ignore[arg-type]


def rows(samples: Samples) -> list[tuple[int, int, int]]:
    columns = (samples.language, samples.sequence, samples.epoch)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def counts(samples: Samples, num_languages: int) -> list[int]:
    found: list[int] = np.bincount(samples.language, minlength=num_languages).tolist()
    return found


# Which language


@settings(max_examples=40, deadline=None)
@given(seeds, shares, st.integers(0, 10**12))
def test_no_language_is_ever_further_than_a_sample_from_its_exact_share(seed: int, weights: dict[str, float], first: int):
    batches = order(seed=seed, weights=weights)
    begin = np.array(batches.drawn(first))
    exact = np.array([batches.shares[name] / 2**32 for name in batches.languages])
    language = batches.samples(first, 5000).language
    so_far = begin + np.cumsum(language[:, None] == np.arange(len(exact)), axis=0)
    # Where all languages are together t samples far, each has between w t - 1 and w t + 1 of them for one and the same t.
    lowest = ((so_far - 1) / exact).max(axis=1)
    highest = ((so_far + 1) / exact).min(axis=1)
    assert (lowest <= highest * (1 + 1e-9)).all()
    sums = so_far.sum(axis=1)
    assert (lowest - len(exact) <= sums + 1).all()
    assert (np.abs(so_far - exact * sums[:, None]) <= 1 + exact * len(exact) + 1e-3).all()


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(0, 10**12), st.sampled_from([0.01, 0.013, 0.05, 0.3]), st.integers(1, 20))
def test_in_any_window_of_100_000_samples_shares_are_exact_to_half_a_percent(
    seed: int, first: int, small: float, num_others: int
):
    weights = {"small": small} | {f"other {number}": (1.0 - small) / num_others for number in range(num_others)}
    batches = order(seed=seed, weights=weights, num_sequences=dict.fromkeys(weights, 1000))
    ends = zip(batches.languages, batches.drawn(first), batches.drawn(first + 100_000), strict=True)
    assert all(abs((end - begin) / (100_000 * weights[name]) - 1) < 0.005 for name, begin, end in ends)


@pytest.mark.parametrize("first", [0, 10**12])
def test_the_samples_come_in_the_order_of_their_keys(first: int):
    batches = order(weights={"english": 0.62, "hindi": 0.37, "konkani": 0.01})
    begins, ends = batches.drawn(first), batches.drawn(first + 6000)
    keyed = []
    for index, name in enumerate(batches.languages):
        key = round_keys(7, "mixture", name)[0]
        for drawn in range(begins[index], ends[index]):
            jitter = int(random_bits(np.array([drawn], dtype=np.uint64), key)[0]) >> 32
            keyed.append((Fraction(drawn * 2**32 + jitter, batches.shares[name]), index))
    assert batches.samples(first, 6000).language.tolist() == [index for _, index in sorted(keyed)]


def test_what_has_been_drawn_is_what_the_samples_say():
    batches = order()
    for first in (0, 4095, 4096, 4097, 12_345, 10**9 + 77):
        read = batches.samples(first, 9000)
        assert (np.array(batches.drawn(first)) + counts(read, 3)).tolist() == list(batches.drawn(first + 9000))
    assert counts(batches.samples(0, 12_345), 3) == list(batches.drawn(12_345))


def test_the_languages_do_not_take_turns_in_a_pattern():
    language = order(weights={"english": 0.5, "hindi": 0.5}).samples(0, 40_000).language
    changes = (language[1:] != language[:-1]).mean()
    assert 0.73 < changes < 0.77  # 0.5 by coin, 1 in strict turns; each pair of places has one of either: 3/4
    triples = np.bincount(language[:-2] * 4 + language[1:-1] * 2 + language[2:], minlength=8) / 40_000
    assert (triples[1:7] > 0.05).all()


def test_the_rarest_language_is_never_left_out_and_a_weight_of_zero_always_is():
    weights = {"a": 1.0 - 1e-12, "b": 1e-12, "c": 0.0}
    batches = order(weights=weights, num_sequences={"a": 10, "b": 10, "c": 0})
    assert batches.shares == {"a": 2**32 - 1, "b": 1, "c": 0}
    assert batches.drawn(10**10)[1] in (1, 2, 3)
    assert batches.drawn(10**10)[2] == 0


@pytest.mark.parametrize("weights", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}, {"a": math.nan}])
def test_weights_that_are_no_shares_are_refused(weights: dict[str, float]):
    with pytest.raises(UserError, match="the mixture is invalid"):
        order(weights=weights)


def test_a_hundred_languages_share_the_samples():
    weights = {f"{number:03d}": 0.01 for number in range(100)}
    batches = order(weights=weights, num_sequences=dict.fromkeys(weights, 3))
    assert max(abs(count - 100) for count in counts(batches.samples(77, 10_000), 100)) <= 3


# Which sequence


def test_a_language_begins_an_epoch_only_when_it_has_ended_the_one_before():
    read = order(num_sequences={"english": 90, "hindi": 70, "konkani": 11}).samples(0, 8192)
    for index in range(3):
        assert (np.diff(read.epoch[read.language == index]) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seeds, shares, sizes, lengths)
def test_an_epoch_of_a_language_holds_every_sequence_exactly_once(
    seed: int, weights: dict[str, float], num_sequences: dict[str, int], sequence_length: int
):
    batches = order(seed=seed, weights=weights, num_sequences=num_sequences, sequence_length=sequence_length)
    read = batches.samples(0, 12_288)
    for index, name in enumerate(batches.languages):
        mine = read.language == index
        whole_epochs = int(mine.sum()) // num_sequences[name]
        for epoch in range(min(whole_epochs, 3)):
            assert sorted(read.sequence[mine & (read.epoch == epoch)].tolist()) == list(range(num_sequences[name]))


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 5000), lengths, st.integers(0, 10**9))
def test_a_far_epoch_holds_every_sequence_exactly_once_too(seed: int, size: int, sequence_length: int, epoch: int):
    epochs, read = LanguageOrder(seed, "hindi", size, sequence_length).sequences(np.arange(size) + epoch * size)
    assert set(epochs.tolist()) == {epoch}
    assert sorted(read.tolist()) == list(range(size))


def test_an_epoch_reads_in_another_order_than_the_one_before():
    _, read = LanguageOrder(7, "hindi", 700, LARGE_T).sequences(np.arange(1400))
    assert (read[:700] != read[700:]).mean() > 0.9


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 5000), lengths, st.data())
def test_within_a_window_only_its_blocks_are_read_and_they_are_foretold(
    seed: int, size: int, sequence_length: int, data: st.DataObject
):
    one = LanguageOrder(seed, "hindi", size, sequence_length)
    drawn = data.draw(st.integers(0, 5 * size))
    window = one.window(drawn)
    assert window.first <= drawn < window.end
    assert window.epoch == drawn // size
    assert one.window(window.first) == window == one.window(window.end - 1)
    assert one.window(window.end) != window
    needs = one.needs(drawn)
    _, read = one.sequences(np.arange(drawn, window.end))
    order_blocks = read // max(1, BLOCK_TOKENS // sequence_length)
    assert len(np.unique(order_blocks)) <= WINDOW_BLOCKS
    touched: dict[int, int] = {}
    for number, sequence in enumerate(read.tolist(), start=drawn):
        begin, end = sequence * sequence_length, (sequence + 1) * sequence_length
        for block in range(begin // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
            touched.setdefault(block, number)
    assert needs.keys() >= touched.keys()
    assert list(needs.values()) == sorted(needs.values())
    if window.end - drawn <= 8192:
        assert needs == touched


def test_a_windows_blocks_are_listed_in_full_when_it_is_too_long_to_be_walked():
    one = LanguageOrder(1, "english", 100 * BLOCK_TOKENS // 64, 64)  # 2 windows of 50 blocks, 819 200 samples each
    window = one.window(0)
    _, read = one.sequences(np.arange(window.end))
    needs = one.needs(0)
    assert sorted(needs) == np.unique(read * 64 // BLOCK_TOKENS).tolist()
    assert len(needs) == 50
    assert max(needs.values()) <= 8192


def test_a_window_mixes_its_blocks_and_windows_of_two_epochs_share_few():
    per_block, num_blocks = 8, 640
    one = LanguageOrder(3, "english", per_block * num_blocks, LARGE_T)
    first_epoch, second_epoch = (
        one.sequences(np.arange(512) + epoch * per_block * num_blocks)[1] // per_block for epoch in (0, 1)
    )
    assert len(np.unique(first_epoch)) == WINDOW_BLOCKS
    assert len(np.unique(first_epoch[:64])) > 30  # 64 draws from 64 blocks: 41 different ones on average
    assert (np.diff(first_epoch) == 0).mean() < 0.08
    assert len(np.intersect1d(first_epoch, second_epoch)) < 20  # 6.4 by chance


def test_a_shuffle_leaves_few_sequences_in_place_and_few_neighbours_together():
    _, read = LanguageOrder(11, "english", 4096, 512).sequences(np.arange(8 * 4096))
    for epoch in read.reshape(8, 4096):
        assert (epoch == np.arange(4096)).sum() < 8  # 1 on average
        assert (np.diff(epoch) == 1).sum() < 8
    assert abs(np.corrcoef(read[:4096], np.arange(4096))[0, 1]) < 0.06


# The run's order


@given(seeds, st.integers(0, 10**9), st.sampled_from([8, 16, 24, 5000 * 8]))
@settings(max_examples=20, deadline=None)
def test_the_ranks_parts_joined_are_the_whole_batch(seed: int, step: int, batch_size: int):
    batches = order(seed=seed, batch_size=batch_size)
    whole = rows(batches.step(step))
    assert len(whole) == batch_size
    for world_size in (1, 2, 4, 8):
        parts = [batches.step(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [row for part in parts for row in rows(part)] == whole


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared by 3 ranks"):
        order().step(0, rank=0, world_size=3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(0, 10**12), st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_any_split_into_sessions_and_any_seek_give_what_walking_gives(seed: int, first: int, pieces: list[int]):
    walked = rows(order(seed=seed).samples(first, sum(pieces)))
    sought, at = [], first
    for piece in pieces:
        sought += rows(order(seed=seed).samples(at, piece))
        at += piece
    assert sought == walked


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(st.integers(0, 10**7), min_size=1, max_size=4))
def test_a_step_does_not_depend_on_the_steps_that_were_read_before(seed: int, steps: list[int]):
    used = order(seed=seed)
    assert [rows(used.step(step)) for step in steps] == [rows(order(seed=seed).step(step)) for step in steps]


def test_another_seed_gives_another_order():
    assert rows(order(seed=1).samples(0, 100)) != rows(order(seed=2).samples(0, 100))


def test_a_language_keeps_its_own_order_when_the_mixture_changes():
    def hindi(weights: dict[str, float]) -> list[int]:
        read = order(weights=weights).samples(0, 10_000)
        found: list[int] = read.sequence[read.language == sorted(weights).index("hindi")][:1000].tolist()
        return found

    assert hindi({"hindi": 1.0}) == hindi({"english": 0.5, "hindi": 0.5})


def test_the_order_is_the_same_forever():
    # A run that started with another version of this code must read on in the same order.
    assert rows(order().step(123_456)) == GOLDEN
    digest = hashlib.sha256()
    for sequence_length, first in ((LARGE_T, 0), (512, 10**6), (700_000, 10**12)):
        read = order(sequence_length=sequence_length).samples(first, 20_000)
        for column in (read.language, read.sequence, read.epoch):
            digest.update(column.astype("<i8").tobytes())
    assert digest.hexdigest() == GOLDEN_SHA256


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2000))
def test_the_position_counts_what_has_been_read(step: int):
    batches = order()
    position = batches.position(step)
    assert position.samples == step * 8
    assert position.samples_by_language == dict(zip(batches.languages, counts(batches.samples(0, step * 8), 3), strict=True))


def test_a_language_with_a_weight_and_no_sequence_is_refused():
    with pytest.raises(DataError, match="'hindi' has a weight"):
        order(num_sequences={"english": 5, "hindi": 0, "konkani": 5})


def test_a_weight_for_a_language_without_data_is_refused():
    with pytest.raises(UserError, match="'konkani', which is not in the data"):
        order(num_sequences={"english": 5, "hindi": 5})


GOLDEN = [(0, 372, 65), (0, 4575, 65), (0, 6287, 65), (0, 223, 65), (1, 112, 423), (1, 577, 423), (2, 4, 8978), (0, 8923, 65)]
GOLDEN_SHA256 = "77874a2b51104c7819bd5c2eeea005ee61f16ddc15da11e1b92af115e5546b9e"
