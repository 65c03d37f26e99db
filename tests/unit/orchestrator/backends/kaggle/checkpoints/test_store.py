from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.checkpoints.index import Index, IndexFile
from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.local import LocalBackend
from state.backend_settings import KaggleSettings
from state.errors import CorruptCheckpointError, TemporaryError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import attempt_dataset_slug, control_slug
from state.kaggle.records import OutputFile
from state.layout import MANIFEST_NAME
from state.ledger import AttemptRecord
from state.manifest import Manifest
from state.session import AttemptState
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import RUN, after, attempt, commit_checkpoint, run_record, session_spec
from tests.fake_kaggle import OWNER, FakeKaggle
from tests.kaggle_stage import DATASET, SETTINGS, Stage, checkpoint_files, note_of, upload_checkpoint


class Shelf:
    """A store over an account on which attempts that are over have left checkpoints."""

    def __init__(self, root: Path, settings: KaggleSettings = SETTINGS) -> None:
        self.stage = Stage(root, settings)
        self.account: FakeKaggle = self.stage.account
        self.account.add_version(control_slug(RUN), "", {})
        self.know(over(1))

    @property
    def store(self) -> KaggleCheckpoints:
        return self.stage.run.checkpoints

    def know(self, *attempts: AttemptRecord) -> None:
        self.stage.record = run_record(attempts)

    def deliver(self, step: int, session: int = 1, **values: Any) -> Manifest:
        folder = self.stage.root / f"worker-{session}"
        return upload_checkpoint(self.account, folder, step, session=session, **values)

    def pass_by(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    def settle(self) -> None:
        """Let everything be looked at as often as it takes."""
        for _ in range(15):
            self.store.ids()
            self.pass_by(61.0)
        self.pass_by(SETTINGS.settle_s + SETTINGS.processing_limit_s)
        self.store.ids()


def over(session: int, **values: Any) -> AttemptRecord:
    return attempt(session, **{"backend": "kaggle", "ended_at": after(0), **values})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def expectation(shelf: Shelf, manifest: Manifest) -> Any:
    return manifest.expected(shelf.store.manifest(manifest.id)[1])


def test_what_stands_whole_is_there_and_none_of_its_bytes_are_brought_here(shelf: Shelf) -> None:
    first, second = shelf.deliver(10), shelf.deliver(20)
    assert shelf.store.ids() == (first.id, second.id)
    assert shelf.store.verify(second.id) == second
    assert shelf.store.place(second.id) == CheckpointPlace(kind="dataset", owner=OWNER, slug=DATASET, version=2)
    fetched = [name for _, call, name in shelf.account.calls if call == "download"]
    assert fetched == [f"{DATASET}/{second.id}.{MANIFEST_NAME}", f"{DATASET}/{first.id}.{MANIFEST_NAME}"]


def test_what_is_known_is_not_read_again_not_even_by_a_controller_that_starts_anew(shelf: Shelf) -> None:
    shelf.deliver(10)
    shelf.settle()
    before = shelf.account.count()
    shelf.stage.open()
    shelf.settle()
    assert shelf.store.ids() != ()
    assert shelf.account.count() == before


def test_an_index_that_is_lost_is_made_again_newest_attempts_first(shelf: Shelf) -> None:
    shelf.know(*(over(session) for session in range(1, 8)))
    made = [shelf.deliver(10 * session, session) for session in range(1, 8)]
    first_look = shelf.store.ids()
    assert first_look == tuple(manifest.id for manifest in made[3:])
    shelf.settle()
    assert shelf.store.ids() == tuple(manifest.id for manifest in made)


def test_a_version_that_is_being_processed_is_not_there_yet(shelf: Shelf) -> None:
    shelf.deliver(10)
    late = shelf.deliver(20, status="Blobs_Received")
    assert late.id not in shelf.store.ids()
    shelf.account.process()
    shelf.pass_by(61.0)
    assert late.id in shelf.store.ids()


def test_a_version_that_lost_a_file_is_corrupt_when_lists_cannot_lag_any_more(shelf: Shelf) -> None:
    manifest = shelf.deliver(10, lose="rank-1.safetensors")
    assert shelf.store.ids() == ()
    shelf.settle()
    assert shelf.store.ids() == (manifest.id,)
    with pytest.raises(CorruptCheckpointError, match=r"rank-1\.safetensors is missing in version 1 of") as caught:
        shelf.store.verify(manifest.id)
    assert caught.value.checkpoint_id == manifest.id
    shelf.store.quarantine(manifest.id, "lost a file")
    assert shelf.store.ids() == ()
    shelf.settle()
    assert shelf.store.ids() == ()


def test_a_list_that_lagged_makes_nothing_corrupt(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    files = shelf.account.dataset_table[DATASET][0].files
    missing = files.pop(f"{manifest.id}.rank-1.safetensors")
    assert shelf.store.ids() == ()
    files[f"{manifest.id}.rank-1.safetensors"] = missing
    shelf.pass_by(61.0)
    assert shelf.store.verify(shelf.store.ids()[0]) == manifest


def test_a_checkpoint_that_was_uploaded_again_lies_in_the_newer_version(shelf: Shelf) -> None:
    manifest = shelf.deliver(10, lose="rank-1.safetensors")
    whole = checkpoint_files(DirectoryCheckpointStore(shelf.stage.root / "worker-1"), manifest)
    shelf.account.add_version(DATASET, shelf.account.dataset_table[DATASET][0].notes, whole)
    shelf.settle()
    assert shelf.store.ids() == (manifest.id,)
    assert shelf.store.verify(manifest.id) == manifest
    place = shelf.store.place(manifest.id)
    assert place is not None
    assert place.version == 2


def test_a_version_that_is_younger_than_the_first_look_is_not_read_more_often_than_once_a_poll(shelf: Shelf) -> None:
    shelf.deliver(10, lose="rank-1.safetensors")
    shelf.store.ids()
    before = shelf.account.count()
    for _ in range(30):
        shelf.pass_by(1.0)
        shelf.store.ids()
    assert shelf.account.count() == before


@pytest.mark.parametrize("damage", ["another manifest", "a manifest of another checkpoint", "no manifest"])
def test_a_manifest_that_is_not_the_one_of_the_note_makes_the_checkpoint_corrupt(shelf: Shelf, damage: str) -> None:
    manifest, other = shelf.deliver(10), shelf.deliver(20)
    version = shelf.account.dataset_table[DATASET][0]
    name = f"{manifest.id}.{MANIFEST_NAME}"
    if damage == "no manifest":
        del version.files[name]
    else:
        version.files[name] = b"{}" if damage == "another manifest" else _manifest_bytes(shelf, other)
    shelf.settle()
    assert shelf.store.ids() == (manifest.id, other.id)
    with pytest.raises(CorruptCheckpointError):
        shelf.store.verify(manifest.id)
    assert shelf.store.verify(other.id) == other


def _manifest_bytes(shelf: Shelf, manifest: Manifest) -> bytes:
    return shelf.account.dataset_table[DATASET][1].files[f"{manifest.id}.{MANIFEST_NAME}"]


def test_versions_of_others_are_not_ours(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    stray = shelf.deliver(20, session=2)
    shelf.account.dataset_table[DATASET].extend(shelf.account.dataset_table.pop(attempt_dataset_slug(RUN, 2, 1)))
    shelf.account.add_version(DATASET, "by hand", {"readme.md": b"hello"})
    shelf.settle()
    assert shelf.store.ids() == (manifest.id,)
    assert stray.id not in shelf.store.ids()


def test_another_manifest_than_was_verified_before_is_refused(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.store.ids()
    with pytest.raises(CorruptCheckpointError, match="which is what was verified before"):
        shelf.store.verify(manifest.id, manifest.expected("0" * 64))


def test_what_is_about_to_be_used_is_looked_at_again_at_most_once_a_poll(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    expected = expectation(shelf, manifest)
    before = shelf.account.count()
    for _ in range(5):
        shelf.store.verify(manifest.id, expected)
        shelf.pass_by(1.0)
    assert shelf.account.count() - before == 2
    shelf.account.broken = {"dataset"}
    shelf.pass_by(61.0)
    for _ in range(5):
        with pytest.raises(TemporaryError, match="it is unknown whether"):
            shelf.store.verify(manifest.id, expected)
    assert shelf.account.count() - before == 3


def test_what_is_gone_from_the_account_is_believed_to_be_gone_when_reads_cannot_lag_any_more(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    expected = expectation(shelf, manifest)
    del shelf.account.dataset_table[DATASET]
    with pytest.raises(TemporaryError, match="is gone; a read after 600 s must confirm that"):
        shelf.store.verify(manifest.id, expected)
    shelf.pass_by(601.0)
    with pytest.raises(CorruptCheckpointError, match="is gone"):
        shelf.store.verify(manifest.id, expected)


@pytest.mark.parametrize("read", ["dataset", "dataset_files"])
def test_what_was_found_whole_is_not_gone_because_reads_of_it_are_refused(shelf: Shelf, read: str) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    expected = expectation(shelf, manifest)
    shelf.account.refused = {read}
    for _ in range(10):
        with pytest.raises(TemporaryError, match=r"it is unknown whether .*: Kaggle .*refuses to show"):
            shelf.store.verify(manifest.id, expected)
        shelf.pass_by(601.0)
    shelf.account.refused.clear()
    assert shelf.store.verify(manifest.id, expected) == manifest


@pytest.mark.parametrize("list_of_all", ["broken", "empty"])
def test_a_list_that_fails_or_is_empty_does_not_prove_that_a_dataset_is_gone(shelf: Shelf, list_of_all: str) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    expected = expectation(shelf, manifest)
    if list_of_all == "broken":
        shelf.account.refused, shelf.account.broken = {"dataset"}, {"datasets"}
    else:
        shelf.account.dataset_table.clear()
    for _ in range(10):
        with pytest.raises(TemporaryError, match="it is unknown whether"):
            shelf.store.verify(manifest.id, expected)
        shelf.pass_by(601.0)


def test_an_attempt_whose_dataset_is_refused_is_looked_at_until_it_is_shown(shelf: Shelf) -> None:
    shelf.account.add_version(DATASET, "Initial release", {"session.json": b"{}"})
    late = shelf.deliver(10)
    shelf.account.refused = {"dataset"}
    for _ in range(40):
        assert shelf.store.ids() == ()
        shelf.pass_by(601.0)
    with pytest.raises(TemporaryError, match="may still show"):
        shelf.store.verify(late.id)
    shelf.account.refused.clear()
    assert shelf.store.ids() == (late.id,)


def test_a_dataset_that_is_refused_is_not_deleted_unseen(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    shelf.store.delete(manifest.id)
    shelf.account.refused = {"dataset"}
    shelf.store.sweep(lambda _name: True)
    assert DATASET in shelf.account.dataset_table
    shelf.account.refused.clear()
    shelf.pass_by(61.0)
    shelf.store.sweep(lambda _name: True)
    assert DATASET not in shelf.account.dataset_table


def test_what_is_gone_from_the_account_and_is_here_stands_here(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    expected = expectation(shelf, manifest)
    shelf.store.folder(manifest.id)
    del shelf.account.dataset_table[DATASET]
    with pytest.raises(TemporaryError):
        shelf.store.verify(manifest.id, expected)
    shelf.pass_by(601.0)
    assert shelf.store.verify(manifest.id, expected) == manifest
    assert shelf.store.place(manifest.id) is None
    assert shelf.store.ids() == (manifest.id,)


def test_what_nobody_has_looked_at_yet_is_unknown_and_what_is_in_no_version_is_not_there(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    with pytest.raises(TemporaryError, match="may still show"):
        shelf.store.verify(manifest.id)
    shelf.settle()
    with pytest.raises(CorruptCheckpointError):
        shelf.store.verify("step-00000099-s001a1")


def test_a_checkpoint_is_brought_here_when_somebody_wants_its_files(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.store.ids()
    folder = shelf.store.folder(manifest.id)
    assert {path.name for path in folder.iterdir()} == {MANIFEST_NAME, *(entry.name for entry in manifest.files)}
    assert shelf.store.verify_tensors(manifest.id) == manifest
    before = shelf.account.count()
    assert shelf.store.folder(manifest.id) == folder
    assert shelf.account.count() == before


def test_a_run_that_goes_on_here_has_what_it_starts_from_brought_here_first(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.store.ids()
    local = LocalBackend(shelf.stage.home, {}, ["true"], lambda _run, checkpoint_id: shelf.store.folder(checkpoint_id))
    local.make_ready(session_spec(2, start=expectation(shelf, manifest)))
    here = DirectoryCheckpointStore(shelf.stage.home.run(RUN).checkpoints)
    assert here.verify(manifest.id, expectation(shelf, manifest)) == manifest


def test_what_was_fetched_wrong_or_in_part_leaves_nothing(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.store.ids()
    files = shelf.account.dataset_table[DATASET][0].files
    name = f"{manifest.id}.rank-1.safetensors"
    right = files[name]
    files[name] = right[:-1] + b"!"
    with pytest.raises(CorruptCheckpointError, match="does not have the manifest's sha256"):
        shelf.store.folder(manifest.id)
    del files[name]
    with pytest.raises(TemporaryError):
        shelf.store.folder(manifest.id)
    assert list((shelf.stage.home.run(RUN).checkpoints).iterdir()) == []
    files[name] = right
    assert shelf.store.verify_tensors(manifest.id) == manifest


def test_a_manifest_that_says_less_than_ours_would_stays_byte_for_byte(shelf: Shelf) -> None:
    store = DirectoryCheckpointStore(shelf.stage.root / "old")
    manifest = commit_checkpoint(store, 10)
    path = store.folder(manifest.id) / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'\n "order_version": 1,', b""))
    from tests.kaggle_stage import note_of

    shelf.account.add_version(DATASET, str(note_of(store, manifest)), checkpoint_files(store, manifest))
    shelf.store.ids()
    assert (shelf.store.folder(manifest.id) / MANIFEST_NAME).read_bytes() == path.read_bytes()


def test_versions_that_a_worker_has_had_deleted_are_gone(shelf: Shelf) -> None:
    old = shelf.deliver(10)
    shelf.store.ids()
    new = shelf.deliver(20)
    shelf.account.dataset_table[DATASET][0].status = "Deleted"
    shelf.pass_by(61.0)
    assert shelf.store.ids() == (new.id,)
    assert old.id not in shelf.store.ids()


def test_a_look_that_is_older_than_the_last_one_makes_nothing_gone(shelf: Shelf) -> None:
    manifests = [shelf.deliver(10), shelf.deliver(20)]
    shelf.store.ids()
    newest = shelf.account.dataset_table[DATASET].pop()
    shelf.pass_by(61.0)
    assert shelf.store.ids() == tuple(manifest.id for manifest in manifests)
    shelf.account.dataset_table[DATASET].append(newest)


def test_an_attempt_that_is_over_for_long_is_not_looked_at_any_more(shelf: Shelf) -> None:
    shelf.deliver(10)
    shelf.settle()
    late = shelf.deliver(20)
    before = shelf.account.count()
    shelf.settle()
    assert shelf.account.count() == before
    assert late.id not in shelf.store.ids()


def test_the_dataset_of_a_live_attempt_is_the_backends_to_look_at(shelf: Shelf) -> None:
    shelf.know(over(1, state=AttemptState.RUNNING))
    shelf.deliver(10)
    shelf.settle()
    assert shelf.account.count() == 0


def test_attempts_that_ran_elsewhere_cost_nothing(shelf: Shelf) -> None:
    shelf.know(attempt(1, backend="local"))
    shelf.settle()
    assert shelf.account.count() == 0


def test_an_account_that_does_not_answer_leaves_what_is_known(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.store.ids()
    shelf.account.broken = {"dataset", "dataset_files", "download", "dataset_is_ready"}
    for _ in range(20):
        shelf.pass_by(61.0)
        assert shelf.store.ids() == (manifest.id,)
    assert shelf.store.verify(manifest.id) == manifest


def test_what_kaggle_shows_only_once_it_is_processed_is_found_when_it_took_longer_than_reads_lag(shelf: Shelf) -> None:
    for _ in range(30):
        shelf.store.ids()
        shelf.pass_by(61.0)
    seen_at = shelf.account.count()
    assert seen_at < 15, "it is looked at often only as long as reads may lag"
    late = shelf.deliver(20)
    shelf.pass_by(SETTINGS.processing_limit_s)
    assert shelf.store.ids() == (late.id,)


def test_a_newer_version_that_failed_says_nothing_about_an_older_one(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.deliver(20, status="Failed")
    shelf.account.dataset_statuses[DATASET] = "FAILED"
    assert shelf.store.ids() == (manifest.id,)
    expected = expectation(shelf, manifest)
    for _ in range(20):
        shelf.pass_by(61.0)
        assert shelf.store.verify(manifest.id, expected) == manifest


def test_a_dataset_goes_when_none_of_its_checkpoints_is_needed(shelf: Shelf) -> None:
    first, second = shelf.deliver(10), shelf.deliver(20)
    shelf.settle()
    shelf.store.delete(first.id)
    shelf.store.sweep(lambda _name: True)
    assert DATASET in shelf.account.dataset_table
    shelf.store.delete(second.id)
    assert shelf.store.ids() == ()
    shelf.store.sweep(lambda _name: True)
    assert DATASET not in shelf.account.dataset_table
    assert shelf.store.stored_bytes == 0
    before = shelf.account.count()
    shelf.pass_by(61.0)
    shelf.store.sweep(lambda _name: True)
    assert shelf.account.count() == before


def test_a_dataset_that_holds_something_nobody_knows_stays(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    shelf.deliver(20)  # by a session that was given up, long after
    shelf.store.delete(manifest.id)
    shelf.store.sweep(lambda _name: True)
    assert DATASET in shelf.account.dataset_table


def test_what_is_only_quarantined_is_kept(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    shelf.store.quarantine(manifest.id, "why")
    shelf.store.sweep(lambda _name: True)
    assert DATASET in shelf.account.dataset_table


def test_a_dataset_that_cannot_be_deleted_now_is_deleted_later(shelf: Shelf) -> None:
    manifest = shelf.deliver(10)
    shelf.settle()
    shelf.store.delete(manifest.id)
    shelf.account.failures["delete_dataset"] = [TemporaryError("not now")]
    for _ in range(30):
        shelf.store.sweep(lambda _name: True)
        shelf.pass_by(3.0)
    assert DATASET not in shelf.account.dataset_table
    assert shelf.account.count("delete_dataset") == 2


def test_what_is_only_here_has_no_place(shelf: Shelf) -> None:
    manifest = commit_checkpoint(shelf.store, 10)
    assert shelf.store.ids() == (manifest.id,)
    assert shelf.store.place(manifest.id) is None
    assert shelf.store.verify(manifest.id) == manifest


def test_more_than_the_share_of_the_storage_is_over_budget(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, SETTINGS.evolve(storage_quota_bytes=400, storage_share=0.5))
    assert not shelf.store.is_over_budget
    manifest = shelf.deliver(10)
    shelf.store.ids()
    assert shelf.store.stored_bytes == manifest.total_bytes
    assert shelf.store.is_over_budget == (manifest.total_bytes > 200)


def test_an_attempt_is_done_with_when_a_version_that_was_spoiled_was_made_up_for_by_a_later_one(shelf: Shelf) -> None:
    made = shelf.deliver(10, lose="rank-1.safetensors")
    shelf.store.ids()
    shelf.pass_by(61.0)
    worker = DirectoryCheckpointStore(shelf.stage.root / "worker-1")
    shelf.account.add_version(DATASET, str(note_of(worker, made)), checkpoint_files(worker, made), "Ready")
    assert shelf.store.ids() == (made.id,)
    assert_nothing_more_is_asked(shelf)
    assert shelf.store.verify(made.id) == made


def test_an_attempt_is_done_with_when_a_version_that_was_spoiled_was_deleted(shelf: Shelf) -> None:
    shelf.deliver(10, lose="rank-1.safetensors")
    shelf.store.ids()
    shelf.pass_by(61.0)
    kept = shelf.deliver(20)
    shelf.account.dataset_table[DATASET][0].status = "Deleted"
    assert shelf.store.ids() == (kept.id,)
    assert_nothing_more_is_asked(shelf)


def test_a_doubt_that_an_earlier_gemma_orch_never_gave_up_does_not_keep_an_attempt_from_being_done_with(shelf: Shelf) -> None:
    made = shelf.deliver(10)
    shelf.store.ids()
    [path] = shelf.stage.root.rglob("kaggle/checkpoints.json")
    stored = json.loads(path.read_bytes())
    since = stored["attempts"]["s001a1"]["looked_since"]
    stored["attempts"]["s001a1"]["wrong"] = {"0": since, "1": since}
    path.write_text(json.dumps(stored))
    shelf.stage.open()
    assert shelf.store.ids() == (made.id,)
    assert_nothing_more_is_asked(shelf)


def assert_nothing_more_is_asked(shelf: Shelf) -> None:
    shelf.settle()
    shelf.settle()
    before = shelf.account.count()
    shelf.settle()
    assert shelf.account.count() == before


def test_an_index_of_another_gemma_orch_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.json"
    path.write_text('{"schema_version": 9}')
    assert IndexFile(path).read() == Index()


@pytest.mark.parametrize("named", ["/precious", "../precious", "precious", "step-00000010-s009a1"])
def test_a_note_that_names_something_else_than_its_attempts_checkpoint_is_told_and_brings_nothing_here(
    tmp_path: Path, named: str
) -> None:
    shelf = Shelf(tmp_path)
    evil = f"{tmp_path}/precious" if named.startswith("/") else named
    precious = tmp_path / f"precious.{MANIFEST_NAME}"
    precious.write_text("precious")
    made = commit_checkpoint(DirectoryCheckpointStore(tmp_path / "worker"), 10)
    files = checkpoint_files(DirectoryCheckpointStore(tmp_path / "worker"), made)
    content = {name.replace(made.id, evil): data.replace(made.id.encode(), evil.encode()) for name, data in files.items()}
    sha256 = hashlib.sha256(content[f"{evil}.{MANIFEST_NAME}"]).hexdigest()
    shelf.account.add_version(DATASET, f"gemma-orch s001a1 fence 1 step 10 {evil} {sha256}", content)
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    shelf.settle()
    assert shelf.store.ids() == (made.id,)
    with pytest.raises(CorruptCheckpointError, match=f"version 1 of {DATASET} says .* not a checkpoint of this run"):
        shelf.store.verify(made.id)
    shelf.store.quarantine(made.id, "as the controller does")
    shelf.store.sweep(lambda _name: True)
    assert shelf.store.ids() == ()
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == before
    assert precious.read_text() == "precious"
    assert shelf.account.count("download") == 0


def test_a_note_that_names_something_else_takes_nothing_from_the_checkpoint_that_stands(shelf: Shelf) -> None:
    made = shelf.deliver(10)
    shelf.settle()
    shelf.account.add_version(DATASET, f"gemma-orch s001a1 fence 1 step 10 ../x {'a' * 64}", {"x": b"x"})
    shelf.settle()
    assert shelf.store.verify(made.id) == made


def test_what_lies_among_a_kernels_outputs_under_another_name_is_no_checkpoint(shelf: Shelf) -> None:
    names = ("..", "../x", "step-10-s001a1", "step-0000001०-s001a1", "x-s001a1", "step-00000010-s002a1", "\n")
    outputs = [OutputFile(f"checkpoint/{name}.{MANIFEST_NAME}", "an address") for name in names]
    shelf.store.discovery.take_outputs(1, 1, 1, outputs)
    assert shelf.store.ids() == ()
    assert shelf.account.count("download_output") == 0


def test_an_index_with_an_id_that_is_none_is_made_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    made = shelf.deliver(10)
    shelf.settle()
    [path] = tmp_path.rglob("kaggle/checkpoints.json")
    path.write_text(path.read_text().replace(made.id, "../x"))
    shelf.stage.open()
    shelf.settle()
    assert shelf.store.ids() == (made.id,)
