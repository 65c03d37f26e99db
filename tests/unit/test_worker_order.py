import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import DataError, UserError
from worker.order import BLOCK_SAMPLES, BatchOrder, Samples, quotas

LANGUAGES = ("english", "hindi", "konkani")

shares = st.lists(st.integers(1, 1000), min_size=1, max_size=3).map(
    lambda parts: {name: part / sum(parts) for name, part in zip(LANGUAGES, parts, strict=False)}
)
sizes = st.lists(st.integers(1, 3000), min_size=3, max_size=3).map(lambda parts: dict(zip(LANGUAGES, parts, strict=True)))
seeds = st.integers(0, 2**63 - 1)


def order(**changes: object) -> BatchOrder:
    options: dict[str, object] = {
        "seed": 7,
        "batch_size": 8,
        "weights": {"english": 0.6, "hindi": 0.3, "konkani": 0.1},
        "num_sequences": {"english": 9000, "hindi": 700, "konkani": 11},
    }
    return BatchOrder(**{**options, **changes})  # type: ignore[arg-type]


def rows(samples: Samples) -> list[tuple[int, int, int]]:
    columns = (samples.language, samples.sequence, samples.epoch)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(shares)
def test_quotas_fill_a_block_and_miss_no_share_by_more_than_one_sample(weights: dict[str, float]):
    quota = quotas(weights)
    assert sum(quota.values()) == BLOCK_SAMPLES
    assert all(quota[name] >= 1 for name in weights)
    if min(weights.values()) >= 1 / BLOCK_SAMPLES:
        assert all(abs(quota[name] / BLOCK_SAMPLES - weights[name]) < 1 / BLOCK_SAMPLES for name in weights)


def test_the_rarest_language_is_never_left_out_and_a_weight_of_zero_always_is():
    assert quotas({"a": 1.0 - 1e-9, "b": 1e-9, "c": 0.0}) == {"a": BLOCK_SAMPLES - 1, "b": 1, "c": 0}


@pytest.mark.parametrize("weights", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}])
def test_weights_that_are_no_shares_are_refused(weights: dict[str, float]):
    with pytest.raises(UserError, match="no shares"):
        quotas(weights)


def test_more_languages_than_samples_in_a_block_are_refused():
    with pytest.raises(UserError, match="at most 4"):
        quotas({str(number): 0.2 for number in range(5)}, 4)


@settings(max_examples=25, deadline=None)
@given(seeds, shares, st.integers(0, 10**9))
def test_every_block_holds_each_language_exactly_as_often_as_its_quota(seed: int, weights: dict[str, float], block: int):
    batches = order(seed=seed, weights=weights)
    counts = np.bincount(batches.samples(block * BLOCK_SAMPLES, BLOCK_SAMPLES).language, minlength=len(weights))
    assert dict(zip(batches.languages, counts.tolist(), strict=True)) == quotas(weights)


def test_a_language_begins_an_epoch_only_when_it_has_ended_the_one_before():
    read = order(num_sequences={"english": 90, "hindi": 70, "konkani": 11}).samples(0, 2 * BLOCK_SAMPLES)
    for index in range(3):
        assert (np.diff(read.epoch[read.language == index]) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seeds, shares, sizes)
def test_an_epoch_of_a_language_holds_every_sequence_exactly_once(
    seed: int, weights: dict[str, float], num_sequences: dict[str, int]
):
    batches = order(seed=seed, weights=weights, num_sequences=num_sequences)
    read = batches.samples(0, 3 * BLOCK_SAMPLES)
    for index, name in enumerate(batches.languages):
        mine = read.language == index
        whole_epochs = int(mine.sum()) // num_sequences[name]
        for epoch in range(min(whole_epochs, 3)):
            assert sorted(read.sequence[mine & (read.epoch == epoch)].tolist()) == list(range(num_sequences[name]))


def test_an_epoch_reads_in_another_order_than_the_one_before():
    read = order(weights={"hindi": 1.0}).samples(0, 1400)
    assert read.sequence[:700].tolist() != read.sequence[700:].tolist()


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
@given(seeds, st.integers(0, 10**10), st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_seeking_to_a_step_gives_what_walking_there_gives(seed: int, first: int, pieces: list[int]):
    batches = order(seed=seed)
    walked = rows(batches.samples(first, sum(pieces)))
    sought, at = [], first
    for piece in pieces:
        sought += rows(order(seed=seed).samples(at, piece))
        at += piece
    assert sought == walked


def test_another_seed_gives_another_order():
    assert rows(order(seed=1).samples(0, 100)) != rows(order(seed=2).samples(0, 100))


def test_the_order_is_the_same_forever():
    # A run that started with another version of this code must read on in the same order.
    assert rows(order().step(123_456)) == GOLDEN


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2000))
def test_the_position_counts_what_has_been_read(step: int):
    batches = order()
    position = batches.position(step)
    counts = np.bincount(batches.samples(0, step * 8).language, minlength=3).tolist()
    assert position.samples == step * 8
    assert position.samples_by_language == dict(zip(batches.languages, counts, strict=True))


def test_a_language_with_a_weight_and_no_sequence_is_refused():
    with pytest.raises(DataError, match="'hindi' has a weight"):
        order(num_sequences={"english": 5, "hindi": 0, "konkani": 5})


def test_a_weight_for_a_language_without_data_is_refused():
    with pytest.raises(UserError, match="'konkani', which is not in the data"):
        order(num_sequences={"english": 5, "hindi": 5})


GOLDEN = [(1, 461, 423), (0, 4761, 65), (1, 368, 423), (0, 5477, 65), (0, 1666, 65), (0, 7526, 65), (0, 7372, 65), (0, 2398, 65)]
