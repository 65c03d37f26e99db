import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.permutation import NUM_ROUNDS, numbered_keys, permute, round_keys


def whole(num_positions: int, *name: int | str) -> list[int]:
    positions = np.arange(num_positions, dtype=np.uint64)
    placed: list[int] = permute(positions, num_positions, round_keys(*name)).tolist()
    return placed


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1))
def test_every_position_is_taken_exactly_once(num_positions: int, seed: int):
    assert sorted(whole(num_positions, seed)) == list(range(num_positions))


@given(st.integers(1, 2**62), st.integers(0, 2**32), st.data())
def test_a_huge_range_is_permuted_within_itself(num_positions: int, seed: int, data: st.DataObject):
    few = data.draw(st.lists(st.integers(0, num_positions - 1), min_size=1, max_size=20, unique=True))
    placed = permute(np.array(few, dtype=np.uint64), num_positions, round_keys(seed)).tolist()
    assert len(set(placed)) == len(few)
    assert all(0 <= place < num_positions for place in placed)


def test_each_position_can_have_a_permutation_of_its_own():
    names = [("epoch", 0), ("epoch", 1), ("epoch", 2)]
    keys = np.stack([round_keys(*name) for name in names])
    assert keys.shape == (3, NUM_ROUNDS)
    together = permute(np.array([5, 5, 7], dtype=np.uint64), 100, keys).tolist()
    assert together == [whole(100, *names[0])[5], whole(100, *names[1])[5], whole(100, *names[2])[7]]


def test_every_number_has_a_permutation_of_its_own():
    keys = numbered_keys(np.arange(200), 7, "window", "hindi")
    assert keys.shape == (200, NUM_ROUNDS)
    assert len(np.unique(keys)) == keys.size
    seen = {tuple(permute(np.arange(50, dtype=np.uint64), 50, row).tolist()) for row in keys}
    assert len(seen) == 200
    assert (numbered_keys(np.array([5]), 7, "window", "hindi")[0] == keys[5]).all()
    assert (numbered_keys(np.array([5]), 7, "window", "konkani")[0] != keys[5]).all()


def test_where_a_position_goes_is_spread_evenly_over_the_numbers():
    num_positions, num_numbers = 12, 3000
    counts = np.zeros((num_positions, num_positions))
    for keys in numbered_keys(np.arange(num_numbers), 0, "blocks"):
        counts[np.arange(num_positions), permute(np.arange(num_positions, dtype=np.uint64), num_positions, keys)] += 1
    expected = num_numbers / num_positions
    assert ((counts - expected) ** 2 / expected).sum() < 190  # as below


def test_other_names_give_other_permutations():
    seen = {tuple(whole(50, *name)) for name in [(0,), (1,), ("0",), (0, "a"), ("a", 0), (0, 0)]}
    assert len(seen) == 6


def test_where_a_position_goes_is_spread_evenly_over_the_seeds():
    num_positions, num_seeds = 12, 3000
    counts = np.zeros((num_positions, num_positions))
    for seed in range(num_seeds):
        counts[np.arange(num_positions), whole(num_positions, seed)] += 1
    expected = num_seeds / num_positions
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 190  # 121 degrees of freedom: 1 in 20 000 of true shuffles would be above


def test_the_permutation_is_the_same_forever():
    # A run that started with another version of this code must read on in the same order.
    assert whole(10, 0, "epoch", "hindi", 3) == GOLDEN


@pytest.mark.parametrize("num_positions", [0, -1, 2**62 + 1])
def test_a_range_that_cannot_be_permuted_is_refused(num_positions: int):
    with pytest.raises(ValueError, match="cannot permute"):
        permute(np.zeros(1, dtype=np.uint64), num_positions, round_keys(0))


GOLDEN = [3, 9, 8, 1, 2, 6, 0, 4, 7, 5]
