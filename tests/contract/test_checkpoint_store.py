"""What every checkpoint store promises: one suite, every adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from state.errors import CorruptCheckpointError, DataError, TemporaryError
from state.layout import MANIFEST_NAME
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import CheckpointStore, DirectoryCheckpointStore
from tests.factories import commit_checkpoint, stage_checkpoint
from tests.kaggle_stage import Stage

ID = "step-00000010-s001a1"


Open = Callable[[Path], CheckpointStore]
"""Opens the adapter over a folder."""


def on_kaggle(root: Path) -> CheckpointStore:
    """A store whose account is empty: what is committed here stays here."""
    return Stage(root.parent, local=DirectoryCheckpointStore(root)).run.checkpoints


@pytest.fixture(params=[DirectoryCheckpointStore, on_kaggle], ids=["directory", "kaggle"])
def open_store(request: pytest.FixtureRequest) -> Open:
    opener: Open = request.param
    return opener


@pytest.fixture
def store(open_store: Open, tmp_path: Path) -> CheckpointStore:
    return open_store(tmp_path / "checkpoints")


def expectation(store: CheckpointStore) -> ExpectedCheckpoint:
    manifest, manifest_sha256 = store.manifest(ID)
    return manifest.expected(manifest_sha256)


def test_a_new_store_holds_nothing(store: CheckpointStore) -> None:
    assert store.ids() == ()
    store.sweep(lambda _name: True)
    store.delete(ID)
    store.quarantine(ID, "why")
    assert store.ids() == ()


def test_what_is_committed_is_there_and_verifies(store: CheckpointStore) -> None:
    manifest = commit_checkpoint(store, 10)
    commit_checkpoint(store, 5)
    assert store.ids() == ("step-00000005-s001a1", ID)
    assert store.verify(ID) == manifest
    assert store.verify(ID, expectation(store)) == manifest
    assert {path.name for path in store.folder(ID).iterdir()} == {MANIFEST_NAME, *(entry.name for entry in manifest.files)}


def test_what_is_only_staged_does_not_exist(store: CheckpointStore) -> None:
    stage_checkpoint(store, 10)
    assert store.ids() == ()
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json of checkpoint .* is missing") as caught:
        store.verify(ID)
    assert caught.value.checkpoint_id == ID


def test_staging_begins_with_an_empty_folder(store: CheckpointStore) -> None:
    (store.stage(ID) / "left over").write_text("from a killed attempt")
    assert list(store.stage(ID).iterdir()) == []


def test_the_same_state_committed_twice_leaves_the_first_one_standing(store: CheckpointStore) -> None:
    first = commit_checkpoint(store, 10)
    staged, second = stage_checkpoint(store, 10, train_s=99.0)
    assert store.commit(staged, second) == first
    assert not staged.exists()
    assert store.verify(ID) == first


def test_another_state_under_the_same_id_is_refused_and_kept_aside(store: CheckpointStore) -> None:
    first = commit_checkpoint(store, 10)
    staged, second = stage_checkpoint(store, 10, content=b"other")
    with pytest.raises(DataError, match=r"trained twice with different results; first difference: tensor model\.a"):
        store.commit(staged, second)
    assert store.verify(ID) == first
    assert staged.exists()


def test_a_missing_file_is_named(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    (store.folder(ID) / "rank-1.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"rank-1\.safetensors of checkpoint .* is missing"):
        store.verify(ID)


def test_a_store_that_is_not_there_is_unknown_and_makes_nothing_corrupt(store: CheckpointStore, tmp_path: Path) -> None:
    commit_checkpoint(store, 10)
    (tmp_path / "checkpoints").rename(tmp_path / "unmounted")
    with pytest.raises(TemporaryError, match="cannot be read"):
        store.verify(ID)
    assert store.ids() == ()


def test_a_truncated_file_is_named(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    path = store.folder(ID) / "rank-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match=r"rank-1\.safetensors of checkpoint .* bytes"):
        store.verify(ID)


def test_every_single_flipped_bit_is_found(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    path = store.folder(ID) / "rank-0.safetensors"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CorruptCheckpointError, match=r"rank-0\.safetensors of checkpoint .* has changed"):
            store.verify(ID)


def test_a_manifest_of_another_checkpoint_is_refused(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    other = commit_checkpoint(store, 20)
    (store.folder(ID) / MANIFEST_NAME).write_bytes((store.folder(other.id) / MANIFEST_NAME).read_bytes())
    with pytest.raises(CorruptCheckpointError, match=f"belongs to another checkpoint: {other.id}"):
        store.verify(ID)


def test_a_manifest_that_is_right_but_not_the_one_that_was_verified_before_is_refused(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    before = expectation(store)
    path = store.folder(ID) / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"train_s": 1.0', b'"train_s": 2.0'))
    store.verify(ID)
    with pytest.raises(CorruptCheckpointError, match="which is what was verified before"):
        store.verify(ID, before)


def test_a_manifest_that_contradicts_itself_is_refused(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    path = store.folder(ID) / MANIFEST_NAME
    manifest = json.loads(path.read_bytes())
    manifest["step"] = 11
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpointError, match="contradicts itself"):
        store.verify(ID)


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_manifest_that_makes_no_sense_makes_the_checkpoint_corrupt(store: CheckpointStore, damage: bytes) -> None:
    commit_checkpoint(store, 10)
    (store.folder(ID) / MANIFEST_NAME).write_bytes(damage)
    with pytest.raises(CorruptCheckpointError, match=f"the manifest of {ID} is not a valid Manifest"):
        store.manifest(ID)


def test_what_is_quarantined_does_not_exist_and_nothing_is_deleted(store: CheckpointStore, tmp_path: Path) -> None:
    for number in (1, 2):
        commit_checkpoint(store, 10)
        store.quarantine(ID, f"reason {number}")
        assert store.ids() == ()
        aside = tmp_path / "checkpoints" / f".quarantined-{ID}-{number}"
        assert (aside / "why.txt").read_text() == f"reason {number}\n"
        assert (aside / "rank-0.safetensors").exists()
    store.sweep(lambda _name: True)
    assert (tmp_path / "checkpoints" / f".quarantined-{ID}-1").exists()


def test_what_is_deleted_is_gone_and_leaves_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    commit_checkpoint(store, 10)
    store.delete(ID)
    assert store.ids() == ()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_sweeping_removes_what_attempts_that_are_over_left_and_nothing_else(store: CheckpointStore) -> None:
    commit_checkpoint(store, 10)
    over, alive = store.stage("step-00000011-s001a1"), store.stage("step-00000012-s002a1")
    half_committed = store.folder("step-00000013-s001a1")
    half_committed.mkdir()
    asked: list[str] = []

    def is_over(name: str) -> bool:
        asked.append(name)
        return name == "s001a1"

    store.sweep(is_over)
    assert (over.exists(), alive.exists(), half_committed.exists()) == (False, True, False)
    assert sorted(asked) == ["s001a1", "s001a1", "s002a1"]
    assert store.ids() == (ID,)


def test_two_stores_over_one_place_see_the_same(store: CheckpointStore, open_store: Open, tmp_path: Path) -> None:
    commit_checkpoint(store, 10)
    assert open_store(tmp_path / "checkpoints").ids() == (ID,)
