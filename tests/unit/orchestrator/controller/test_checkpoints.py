from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller.checkpoints import collect, compare
from state.ledger import CheckpointRecord, RunRecord
from state.manifest import Manifest
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import attempt, checkpoint, commit_checkpoint, run_record


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


def recorded(manifest: Manifest) -> CheckpointRecord:
    return checkpoint(
        manifest.step,
        manifest.session,
        manifest.attempt,
        fence=manifest.fence,
        branch=manifest.branch,
        state_sha256=manifest.state_sha256,
    )


@pytest.fixture
def store(tmp_path: Path) -> DirectoryCheckpointStore:
    return DirectoryCheckpointStore(tmp_path)


def a_rerun(store: DirectoryCheckpointStore, *, content: bytes = b"", step: int = 20) -> RunRecord:
    """A run of two sessions, the first of which was run again."""
    original = commit_checkpoint(store, 20, session=1)
    later = commit_checkpoint(store, 40, session=2)
    again = commit_checkpoint(store, step, session=1, number=2, fence=3, branch="rerun-s001a2", content=content)
    return run_record(
        [
            attempt(1, saved_step=20, head=original.id),
            attempt(2, saved_step=40, head=later.id),
            attempt(1, 2, fence=3, branch="rerun-s001a2", saved_step=step, head=again.id),
        ],
        [recorded(original), recorded(later), recorded(again)],
        head=later.id,
    )


def test_an_equal_result_is_identical(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store)
    digest = record.checkpoints["step-00000020-s001a1"].state_sha256
    assert compare(record, record.attempts[-1], store) == f"identical to step-00000020-s001a1: state sha256 {digest}"


def test_another_result_names_the_first_tensor_that_differs(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, content=b"other")
    assert compare(record, record.attempts[-1], store) == ("differs from step-00000020-s001a1; first difference: tensor model.a")


def test_what_differs_cannot_be_told_when_the_originals_files_are_gone(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, content=b"other")
    store.delete("step-00000020-s001a1")
    assert compare(record, record.attempts[-1], store) == (
        "differs from step-00000020-s001a1; first difference: not known, for the files of one of the two are gone"
    )


def test_identity_is_known_even_when_the_originals_files_are_gone(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store)
    store.delete("step-00000020-s001a1")
    assert compare(record, record.attempts[-1], store).startswith("identical to step-00000020-s001a1")


def test_a_rerun_that_ended_at_another_step_has_nothing_to_be_compared_with(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, step=17)
    assert compare(record, record.attempts[-1], store) == (
        "nothing else has reached step 17 from there: there is nothing to compare"
    )


def test_a_rerun_that_saved_nothing_has_nothing_to_compare(store: DirectoryCheckpointStore) -> None:
    again = attempt(1, 2, fence=2, branch="rerun-s001a2")
    record = run_record([attempt(1, saved_step=20), again])
    assert compare(record, again, store) == "the rerun saved nothing to compare"
