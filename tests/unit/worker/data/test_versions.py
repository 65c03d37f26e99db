from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import DataError, UserError
from state.spec import Reading, SessionData
from tests.sessions import VOCAB, SmallRun, make_data
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData
from worker.data.versions import VersionedBatches, open_version, open_versions, version_seed

FIRST_STEP = 5


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path)


def second(run: SmallRun, **values: object) -> SessionData:
    """A version with other text, from step 5 on."""
    folder = run.layout.root / "data-2"
    data = make_data(folder, seed=2)
    fields = {"first_step": FIRST_STEP, "data_dir": str(folder), "data_sha256": data.data_sha256, **values}
    return run.version(**fields)


def versioned(run: SmallRun, **values: object) -> VersionedBatches:
    return open_versions(run.spec(data=(run.version(), second(run)), **values))


def tokens(batches: Batches | VersionedBatches, step: int) -> list[list[int]]:
    return batches.batch(step)[0].tolist()


def test_a_run_with_one_version_reads_it_in_the_plain_order(run: SmallRun):
    spec = run.spec()
    plain = Batches(
        TokenData.open(run.layout.data, run.data, spec.sequence_length),
        seed=spec.training.seed,
        batch_size=spec.training.batch_size,
        weights=spec.data[0].mixture,
    )
    batches = open_versions(spec)
    for step in (0, 1, 7, 100):
        assert tokens(batches, step) == tokens(plain, step)
        assert batches.batch_languages(step) == plain.batch_languages(step)
        assert batches.data_position(step) == plain.data_position(step)


def test_each_step_reads_the_version_in_force_from_its_own_beginning(run: SmallRun):
    spec = run.spec(data=(run.version(), second(run)))
    batches, old, new = open_versions(spec), open_version(spec, spec.data[0]), open_version(spec, spec.data[1])
    for step in (0, 4):
        assert tokens(batches, step) == tokens(old, step)
        assert batches.batch_languages(step) == old.batch_languages(step)
    for step in (5, 6, 40):
        assert tokens(batches, step) == tokens(new, step - FIRST_STEP)
        assert batches.batch_languages(step) == new.batch_languages(step - FIRST_STEP)


def test_a_version_that_comes_later_changes_nothing_before_it(run: SmallRun):
    alone, with_second = open_versions(run.spec()), versioned(run)
    for step in range(FIRST_STEP):
        assert tokens(alone, step) == tokens(with_second, step)
    assert alone.data_position(FIRST_STEP) == with_second.data_position(FIRST_STEP)


def test_the_position_counts_on_over_the_versions(run: SmallRun):
    batches = versioned(run)
    for step in (0, 1, 5, 6, 20):
        position = batches.data_position(step)
        read = [name for before in range(step) for name in batches.batch_languages(before)]
        assert position.samples == len(read) == step * 4
        assert {name: count for name, count in position.samples_by_language.items() if count} == {
            name: read.count(name) for name in sorted(set(read))
        }


@settings(max_examples=30, deadline=None, derandomize=True)
@given(later=st.sets(st.integers(1, 30), max_size=4), step=st.integers(0, 40))
def test_however_versions_follow_each_other_every_step_counts_what_it_reads(later: set[int], step: int):
    batches = over_one_folder(tuple(sorted(later)))
    before, after = batches.data_position(step), batches.data_position(step + 1)
    read = batches.batch_languages(step)
    assert after.samples - before.samples == len(read)
    assert {name: after.samples_by_language[name] - before.samples_by_language[name] for name in sorted(set(read))} == {
        name: read.count(name) for name in sorted(set(read))
    }


@functools.cache
def over_one_folder(later: tuple[int, ...]) -> VersionedBatches:
    with tempfile.TemporaryDirectory() as folder:
        run = SmallRun(Path(folder))
        return open_versions(run.spec(data=tuple(run.version(first_step=first) for first in (0, *later))))


def test_a_language_is_in_the_position_once_its_version_is_read(run: SmallRun):
    folder = run.layout.root / "data-2"
    data = write_data(folder, {"hindi": np.arange(500) % VOCAB}, vocab_size=VOCAB)
    later = run.version(first_step=5, data_dir=str(folder), data_sha256=data.data_sha256, mixture={"hindi": 1.0})
    batches = open_versions(run.spec(data=(run.version(), later)))
    assert "hindi" not in batches.data_position(5).samples_by_language
    assert batches.data_position(6).samples_by_language["hindi"] == 4


def test_ranks_share_a_step_of_a_later_version_as_any_other(run: SmallRun):
    batches = versioned(run)
    whole = batches.batch(7)[0]
    parts = [batches.batch(7, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_same_data_read_again_as_a_later_version_comes_in_another_order(run: SmallRun):
    first, again, later = run.version(), run.version(first_step=5), run.version(first_step=6)
    seeds = {version_seed(3, version) for version in (first, again, later)}
    assert len(seeds) == 3
    assert version_seed(3, first) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_scratch_changes_nothing_that_is_read_and_past_versions_leave_it(run: SmallRun):
    scratch = run.layout.root / "scratch"
    plain, copied = versioned(run), versioned(run, reading=Reading(scratch_dir=str(scratch)))
    for step in (0, 4, 5, 9, 3):
        assert tokens(plain, step) == tokens(copied, step)
    copied.close()
    assert list(scratch.iterdir()) == []
    assert tokens(plain, 1) == tokens(copied, 1)


def test_a_version_of_another_tokenizer_is_refused(run: SmallRun):
    folder = run.layout.root / "data-2"
    data = write_data(
        folder,
        {"english": np.arange(500) % VOCAB, "konkani": np.arange(500) % VOCAB},
        vocab_size=VOCAB,
        tokenizer_sha256="f" * 64,
    )
    other = run.version(first_step=5, data_dir=str(folder), data_sha256=data.data_sha256)
    with pytest.raises(UserError, match="another tokenizer"):
        open_versions(run.spec(data=(run.version(), other)))


def test_a_version_of_another_vocabulary_is_refused(run: SmallRun):
    data = make_data(run.layout.root / "data-2", vocab_size=40)
    other = run.version(first_step=5, data_dir=str(run.layout.root / "data-2"), data_sha256=data.data_sha256)
    with pytest.raises(UserError, match="was encoded with 40 pieces"):
        open_versions(run.spec(data=(run.version(), other)))


def test_a_version_whose_folder_holds_other_data_is_refused(run: SmallRun):
    with pytest.raises(UserError, match="the data that this run is trained on"):
        open_versions(run.spec(data=(run.version(), second(run, data_sha256="0" * 64))))


def test_a_version_whose_folder_is_gone_is_refused_before_the_first_step(run: SmallRun):
    with pytest.raises(DataError, match="is no data folder"):
        open_versions(run.spec(data=(run.version(), run.version(first_step=5, data_dir="nowhere"))))
