from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import BLOCK_TOKENS, DataManifest
from state.errors import DataError
from state.mixture import mixture_weights
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData, read_data_manifest

WEIGHTS = {"english": 0.5, "hindi": 0.3, "konkani": 0.2}
NUM_TOKENS = {"english": 2500, "hindi": 1203, "konkani": 90}
T = 16


def make_data(folder: Path, *, vocab_size: int = 50_000, shard_tokens: int = 100_000) -> DataManifest:
    """Write a data folder in which every token tells its language and its place."""
    streams = {name: np.arange(num_tokens) + 10_000 * number for number, (name, num_tokens) in enumerate(NUM_TOKENS.items())}
    return write_data(folder, streams, vocab_size=vocab_size, shard_tokens=shard_tokens)


def batches(folder: Path, *, sequence_length: int = T, batch_size: int = 8, seed: int = 3) -> Batches:
    data = TokenData.open(folder, read_data_manifest(folder), sequence_length)
    return Batches(data, seed=seed, batch_size=batch_size, weights=WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_data(tmp_path / "data")
    return tmp_path / "data"


def test_a_batch_holds_inputs_and_the_tokens_that_follow_them(folder: Path):
    inputs, targets = batches(folder).batch(0)
    assert inputs.shape == targets.shape == (8, T)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert (targets == inputs + 1).all()


def test_a_sequence_starts_where_the_one_before_has_its_last_target(folder: Path):
    data = TokenData.open(folder, read_data_manifest(folder), T)
    sequences = data.sequences("hindi", np.array([0, 1, 74]))
    assert sequences[:, 0].tolist() == [10_000, 10_000 + T, 10_000 + 74 * T]
    assert sequences[0, -1] == sequences[1, 0]
    assert data.num_sequences == {"english": 156, "hindi": 75, "konkani": 5}


def test_a_batch_says_which_language_each_sequence_is_in(folder: Path):
    made = batches(folder, batch_size=64)
    inputs, _ = made.batch(5)
    assert made.batch_languages(5) == [list(NUM_TOKENS)[number] for number in (inputs[:, 0] // 10_000).tolist()]


def test_an_epoch_trains_on_every_whole_sequence_of_a_language_once(folder: Path):
    data = TokenData.open(folder, read_data_manifest(folder), T)
    made = Batches(data, seed=0, batch_size=75, weights={"hindi": 1.0})
    _, targets = made.batch(0)
    assert sorted(targets.ravel().tolist()) == list(range(10_001, 10_001 + 75 * T))


@settings(max_examples=10, deadline=None)
@given(shard_tokens=st.integers(30, 300), sequence_length=st.integers(1, 80), step=st.integers(0, 10**7))
def test_how_the_stream_is_cut_into_shards_changes_no_batch(
    tmp_path_factory: pytest.TempPathFactory, shard_tokens: int, sequence_length: int, step: int
):
    root = tmp_path_factory.mktemp("cuts")
    make_data(root / "one")
    make_data(root / "many", shard_tokens=shard_tokens)
    one = batches(root / "one", sequence_length=sequence_length).batch(step)
    many = batches(root / "many", sequence_length=sequence_length).batch(step)
    assert (one[0] == many[0]).all()
    assert (one[1] == many[1]).all()


def test_tokens_of_32_bits_give_the_batches_of_16_bits(tmp_path: Path):
    assert make_data(tmp_path / "small").token_bytes == 2
    assert make_data(tmp_path / "large", vocab_size=70_000).token_bytes == 4
    small, large = batches(tmp_path / "small"), batches(tmp_path / "large")
    for step in range(5):
        assert (small.batch(step)[0] == large.batch(step)[0]).all()


def test_the_ranks_batches_joined_are_the_whole_batch(folder: Path):
    made = batches(folder)
    inputs, targets = made.batch(11)
    for world_size in (1, 2, 4, 8):
        parts = [made.batch(11, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert (np.concatenate([part[0] for part in parts]) == inputs).all()
        assert (np.concatenate([part[1] for part in parts]) == targets).all()


def test_a_new_process_at_any_step_reads_what_the_old_one_would_have_read(folder: Path):
    walking = batches(folder)
    for step in range(40):
        walked = walking.batch(step)
        assert (batches(folder).batch(step)[0] == walked[0]).all()


def test_the_data_position_is_a_pure_function_of_the_step(folder: Path):
    made = batches(folder)
    assert made.data_position(0).samples_by_language == {"english": 0, "hindi": 0, "konkani": 0}
    position = made.data_position(1000)
    assert position.samples == 8000
    assert sum(position.samples_by_language.values()) == 8000
    assert batches(folder).data_position(1000) == position


def test_a_language_with_too_few_tokens_for_one_sequence_says_what_to_do(folder: Path):
    with pytest.raises(DataError, match="'konkani' has 90 tokens") as caught:
        batches(folder, sequence_length=90)
    assert "at least 91" in caught.value.expected
    assert "sequence_length" in caught.value.remedy
    assert batches(folder, sequence_length=89).batch(0)[0].shape == (8, 89)


def test_a_short_language_is_no_trouble_when_its_weight_is_zero(folder: Path):
    manifest = read_data_manifest(folder)
    weights = mixture_weights(manifest.tokens_by_language, given={"english": 1.0})
    made = Batches(TokenData.open(folder, manifest, 90), seed=0, batch_size=4, weights=weights)
    assert set(made.batch_languages(0)) == {"english"}


def test_a_truncated_shard_is_named(folder: Path):
    shard = folder / "hindi.train-00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"hindi.train-00000\.tokens has 2404 bytes"):
        batches(folder)


def test_a_missing_shard_is_named(folder: Path):
    (folder / "hindi.train-00000.tokens").unlink()
    with pytest.raises(DataError, match=r"hindi.train-00000\.tokens cannot be read"):
        batches(folder)


def test_a_folder_without_a_manifest_is_no_data_folder(tmp_path: Path):
    with pytest.raises(DataError, match="is no data folder"):
        read_data_manifest(tmp_path)


def test_a_shard_whose_bytes_have_changed_is_named_before_what_came_of_it_may_be_kept(folder: Path):
    shard = folder / "hindi.train-00000.tokens"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    made = batches(folder, batch_size=1)
    languages = [made.batch_languages(step)[0] for step in range(20)]
    for step in range(languages.index("hindi")):
        made.batch(step)
    made.settle()
    made.batch(languages.index("hindi"))
    for look in (made.settle, made.settle, lambda: made.batch(0)):
        with pytest.raises(DataError, match=r"hindi.train-00000\.tokens has changed: block 0 of 'hindi'") as caught:
            look()
    assert f"remove {folder}" in caught.value.remedy


def test_sequences_are_verified_before_they_are_returned(folder: Path):
    shard = folder / "hindi.train-00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="has changed: block 0 of 'hindi'"):
        TokenData.open(folder, read_data_manifest(folder), T).sequences("hindi", np.array([0]))


def test_a_batch_is_the_callers_to_keep_and_to_change(folder: Path):
    made = batches(folder)
    inputs, targets = made.batch(3)
    kept = inputs.copy(), targets.copy()
    inputs[:], targets[:] = -1, -1
    assert all((again == before).all() for again, before in zip(made.batch(3), kept, strict=True))


def test_an_epoch_over_blocks_and_shards_reads_every_token_once(tmp_path: Path):
    tokens = np.random.default_rng(5).integers(0, 65_536, 2 * BLOCK_TOKENS + 4321)
    write_data(tmp_path, {"english": tokens}, vocab_size=65_536, shard_tokens=700_001)
    data = TokenData.open(tmp_path, read_data_manifest(tmp_path), 1000)
    inputs, targets = Batches(data, seed=1, batch_size=len(tokens) // 1000, weights={"english": 1.0}).batch(0)
    in_order = Batches(data, seed=1, batch_size=len(tokens) // 1000, weights={"english": 1.0}).order.step(0).sequence.argsort()
    num_read = len(inputs) * 1000
    assert (inputs[in_order].ravel() == tokens[:num_read]).all()
    assert (targets[in_order].ravel() == tokens[1 : num_read + 1]).all()


def test_sequences_are_returned_as_they_are_stored(folder: Path):
    data = TokenData.open(folder, read_data_manifest(folder), T)
    assert data.sequences("english", np.array([0])).dtype == np.uint16
    assert data.sequences("english", np.array([], dtype=np.int64)).shape == (0, T + 1)
