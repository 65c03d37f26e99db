from __future__ import annotations

from pathlib import Path

from orchestrator.controller.checkpoints import collect
from state.manifest import Manifest
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint


def test_new_checkpoints_come_back_verified_and_known_ones_are_not_read(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    known, new = commit_checkpoint(store, 10), commit_checkpoint(store, 20)
    (store.folder(known.id) / "rank-0.safetensors").unlink()
    looks: list[int] = []
    found, corrupt = collect(store, {known.id}, lambda: looks.append(1))
    assert [one.manifest for one in found] == [new]
    assert found[0].manifest_sha256 == store.manifest(new.id)[1]
    assert corrupt == ()
    assert len(looks) == 1


def test_what_does_not_verify_comes_back_apart_with_what_is_wrong(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    good, bad = commit_checkpoint(store, 10), commit_checkpoint(store, 20)
    (store.folder(bad.id) / "rank-0.safetensors").write_bytes(b"")
    found, corrupt = collect(store, (), lambda: None)
    assert [one.manifest.id for one in found] == [good.id]
    assert [error.checkpoint_id for error in corrupt] == [bad.id]


def test_a_checkpoint_that_its_worker_prunes_while_it_is_read_is_no_corrupt_one(tmp_path: Path) -> None:
    class PrunedMeanwhile(DirectoryCheckpointStore):
        def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
            self.delete(checkpoint_id)
            return super().verify(checkpoint_id, expected)

    store = PrunedMeanwhile(tmp_path)
    commit_checkpoint(store, 10)
    assert collect(store, (), lambda: None) == ((), ())


def test_an_empty_store_has_nothing_to_collect(tmp_path: Path) -> None:
    assert collect(DirectoryCheckpointStore(tmp_path / "none"), (), lambda: None) == ((), ())
