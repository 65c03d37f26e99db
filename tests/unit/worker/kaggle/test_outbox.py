from __future__ import annotations

from pathlib import Path

import pytest

from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint
from worker.kaggle.outbox import Outbox


@pytest.fixture
def store(tmp_path: Path) -> DirectoryCheckpointStore:
    return DirectoryCheckpointStore(tmp_path / "checkpoints")


def test_a_checkpoint_that_waits_takes_no_room_of_its_own(tmp_path: Path, store: DirectoryCheckpointStore):
    made = commit_checkpoint(store, 20)
    parcel = Outbox(tmp_path / "outbox", store).put(made.id)
    assert [file.name for file in parcel.files] == [
        f"{made.id}.rank-0.safetensors",
        f"{made.id}.rank-1.safetensors",
        f"{made.id}.manifest.json",
    ]
    assert parcel.files[0].path.samefile(store.folder(made.id) / "rank-0.safetensors")
    assert parcel.size_bytes == sum(path.stat().st_size for path in store.folder(made.id).iterdir())
    assert str(parcel.note).startswith(f"gemma-orch s001a1 fence 1 step 20 {made.id} ")


def test_one_more_file_goes_before_the_manifest(tmp_path: Path, store: DirectoryCheckpointStore):
    made = commit_checkpoint(store, 20)
    (tmp_path / "report.json").write_text("{}")
    parcel = Outbox(tmp_path / "outbox", store).put(made.id).with_file(tmp_path / "report.json")
    assert [file.name for file in parcel.files][-2:] == ["report.json", f"{made.id}.manifest.json"]


def test_what_waits_no_more_goes(tmp_path: Path, store: DirectoryCheckpointStore):
    outbox = Outbox(tmp_path / "outbox", store)
    outbox.keep_only(())
    for step in (10, 20):
        outbox.put(commit_checkpoint(store, step).id)
    outbox.keep_only({"step-00000020-s001a1"})
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["step-00000020-s001a1"]
    assert len(store.ids()) == 2
