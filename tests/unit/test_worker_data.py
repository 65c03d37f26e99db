import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import DataManifest, LanguageData, mixture_weights, token_bytes_for
from state.errors import DataError
from state.files import write_atomically
from worker.corpus.shards import ShardWriter
from worker.data import Batches, TokenData, read_data_manifest, verify_shards

WEIGHTS = {"english": 0.5, "hindi": 0.3, "konkani": 0.2}
NUM_TOKENS = {"english": 2500, "hindi": 1203, "konkani": 90}
T = 16


def make_data(folder: Path, *, vocab_size: int = 50_000, shard_bytes: int = 1_000_000) -> DataManifest:
    """Write a data folder in which every token tells its language and its place."""
    folder.mkdir()
    languages = {}
    for number, (name, num_tokens) in enumerate(NUM_TOKENS.items()):
        writer = ShardWriter(folder, name, token_bytes=token_bytes_for(vocab_size), shard_bytes=shard_bytes)
        writer.append(stream(number, num_tokens))
        languages[name] = LanguageData(num_documents=1, num_tokens=num_tokens, num_bytes_text=1, shards=writer.finish())
    manifest = DataManifest.sealed(
        token_bytes=token_bytes_for(vocab_size),
        vocab_size=vocab_size,
        bos_id=2,
        eos_id=1,
        pad_id=0,
        unk_id=3,
        tokenizer_sha256=hashlib.sha256(b"tokenizer").hexdigest(),
        languages=languages,
    )
    write_atomically(folder / "data.json", manifest.to_json())
    return manifest


def stream(number: int, num_tokens: int) -> np.ndarray:
    return np.arange(num_tokens) + 10_000 * number


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
    make_data(root / "many", shard_bytes=2 * shard_tokens)
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
    shard = folder / "hindi" / "00000.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"00000\.tokens has 2404 bytes"):
        batches(folder)


def test_a_missing_shard_is_named(folder: Path):
    (folder / "hindi" / "00000.tokens").unlink()
    with pytest.raises(DataError, match=r"hindi/00000\.tokens cannot be read"):
        batches(folder)


def test_a_folder_without_a_manifest_is_no_data_folder(tmp_path: Path):
    with pytest.raises(DataError, match="is no data folder"):
        read_data_manifest(tmp_path)


def test_a_shard_whose_bytes_have_changed_is_named_before_anything_is_trained(folder: Path):
    manifest = read_data_manifest(folder)
    verify_shards(folder, manifest)
    shard = manifest.languages["hindi"].shards[0]
    damaged = bytearray((folder / shard.name).read_bytes())
    damaged[-1] ^= 1
    (folder / shard.name).write_bytes(damaged)
    with pytest.raises(DataError, match="has changed") as error:
        verify_shards(folder, manifest)
    assert shard.name in str(error.value)
