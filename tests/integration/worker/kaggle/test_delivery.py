from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state.clock import ManualClock
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.names import VersionNote
from state.manifest import Manifest
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint, report, session_spec
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault, refused_reads
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_jobs import job_of
from tests.patience import wait_until
from tests.sessions import CountingClock
from worker.kaggle.delivery import Delivery, DeliveryPaths

LIMIT_S = 3600.0
UPLOAD_EVERY_S = 600.0
JOB = job_of(session_spec(limit_s=LIMIT_S), upload_every_s=UPLOAD_EVERY_S, settle_s=60.0, most_versions=3)
CREATE = "CreateDatasetVersion"


class SharedClock(ManualClock):
    """Ours and the emulator's: when one waits, the other's time passes too."""

    def __init__(self, emulator: KaggleEmulator) -> None:
        super().__init__()
        self._emulator = emulator

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._emulator.clock.advance(seconds)


class Bench:
    """A delivery between a store and an account."""

    def __init__(self, root: Path, kaggle: Sdk, **job: Any) -> None:
        self.kaggle = kaggle
        self.emulator = kaggle.emulator
        self.clock = SharedClock(kaggle.emulator)
        self.store = DirectoryCheckpointStore(root / "checkpoints")
        self.working = root / "working"
        self.working.mkdir()
        self.said: list[str] = []
        self.job = JOB.evolve(**job)
        self.root = root
        self.key = Credentials("key", user=USER, key=kaggle.emulator.settings.key)
        self.delivery = self.made(KaggleApi(self.key, clock=self.clock))

    def made(self, api: KaggleApi | None) -> Delivery:
        return Delivery(
            self.job,
            api,
            self.store,
            DeliveryPaths(outbox=self.root / "outbox", scratch=self.root / "uploads", working=self.working),
            clock=self.clock,
            ends_s=self.clock.monotonic() + LIMIT_S,
            say=self.said.append,
        )

    def commit(self, step: int, **values: Any) -> Manifest:
        manifest = commit_checkpoint(self.store, step, **values)
        self.delivery.committed(manifest.id)
        return manifest

    def report(self, head: str | None) -> None:
        (self.working / "report.json").write_bytes(report(1, head=head).to_json())

    def look_later(self, seconds: float = UPLOAD_EVERY_S) -> None:
        self.clock.advance(seconds)
        self.delivery.look()

    def notes(self) -> list[str]:
        """The checkpoints that the versions say to hold; of those that stand."""
        versions = self.kaggle.dataset(JOB.dataset).versions
        found = [VersionNote.parse(version.version_notes) for version in sorted(versions, key=lambda v: v.version_number)]
        return [note.checkpoint for note in found if note is not None]

    def files(self) -> dict[str, int]:
        return self.kaggle.files(JOB.dataset)

    @property
    def output(self) -> list[str]:
        folder = self.working / "checkpoint"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def num_creates(self) -> int:
        return len(self.emulator.journal.of(CREATE))


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[Sdk]:
    with connected(tmp_path, processing_s=10.0) as connection:
        connection.create_dataset(JOB.dataset, {"session.json": b"{}"})
        yield connection


@pytest.fixture
def bench(kaggle: Sdk, tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", kaggle)


def flat(manifest: Manifest, *more: str) -> set[str]:
    return {f"{manifest.id}.{entry.name}" for entry in manifest.files} | {f"{manifest.id}.manifest.json", *more}


def test_nothing_is_sent_before_it_is_time(bench: Bench):
    bench.commit(10)
    bench.delivery.look()
    assert bench.num_creates() == 0
    assert "can be written to" in bench.said[0]


def test_the_newest_checkpoint_is_sent_when_it_is_time(bench: Bench):
    bench.commit(10)
    made = bench.commit(20)
    bench.look_later()
    bench.clock.advance(10.0)
    assert bench.notes() == [made.id]
    assert bench.files() == {name: bench.files()[name] for name in flat(made)}
    note = VersionNote.parse(bench.kaggle.dataset(JOB.dataset).versions[0].version_notes)
    assert note is not None
    assert (note.session, note.attempt, note.fence, note.step) == (1, 1, 1, 20)
    assert note.manifest_sha256 == bench.store.manifest(made.id)[1]


def test_a_checkpoint_is_sent_once(bench: Bench):
    bench.commit(10)
    for _ in range(5):
        bench.look_later()
    assert bench.num_creates() == 1


def test_a_checkpoint_that_is_pruned_meanwhile_is_sent_all_the_same(bench: Bench):
    made = bench.commit(10)
    bench.store.delete(made.id)
    bench.look_later()
    bench.clock.advance(10.0)
    assert bench.notes() == [made.id]


def test_only_what_waits_is_kept(bench: Bench):
    for step in (10, 20, 30):
        made = bench.commit(step)
    assert [path.name for path in (bench.root / "outbox").iterdir()] == [made.id]


def test_what_was_sent_is_looked_at_until_it_stands(bench: Bench):
    made = bench.commit(10)
    bench.look_later()
    bench.delivery.look()
    bench.look_later(20.0)
    assert bench.said[-1] == f"checkpoint {made.id} is published as version 2 of {JOB.dataset}"
    calls = len(bench.emulator.journal.of("GetDataset"))
    bench.look_later(20.0)
    assert len(bench.emulator.journal.of("GetDataset")) == calls


def test_old_versions_go_when_there_are_many_and_the_last_one_is_known_to_be_good(bench: Bench):
    made = []
    for step in (10, 20, 30, 40):
        made.append(bench.commit(step).id)
        bench.look_later()
        bench.look_later(20.0)
    assert [entry.effect is not None for entry in bench.emulator.journal.of(CREATE)] == [True] * 4
    assert bench.notes() == made[2:]


@pytest.mark.parametrize("later", ["a2", "s002a1"])
def test_a_session_that_was_given_up_deletes_nothing_that_a_later_one_may_start_from(bench: Bench, kaggle: Sdk, later: str):
    slug = JOB.dataset.removesuffix("a1") + later if later == "a2" else JOB.dataset.replace("s001a1", later)
    made = []
    for step in (10, 20, 30, 40):
        made.append(bench.commit(step).id)
        bench.look_later()
        bench.look_later(20.0)
        if step == 20:
            kaggle.create_dataset(slug, {"session.json": b"{}"})
    assert bench.notes() == made
    assert any(slug in line for line in bench.said)


@pytest.mark.parametrize("list_of_all", ["whole", "refused", "empty"])
def test_a_later_session_whose_dataset_is_refused_has_what_it_starts_from(bench: Bench, kaggle: Sdk, list_of_all: str):
    slug = JOB.dataset.removesuffix("a1") + "a2"
    kaggle.create_dataset(slug, {"session.json": b"{}"})
    bench.emulator.faults.add(*refused_reads(slug))
    if list_of_all == "refused":
        bench.emulator.faults.add(Fault("ListDatasets", "status", status=403))
    if list_of_all == "empty":
        bench.emulator.faults.add(Fault("ListDatasets", "rewrite", body={"datasets": []}))
    made = []
    for step in (10, 20, 30, 40):
        made.append(bench.commit(step).id)
        bench.look_later()
        bench.look_later(20.0)
    assert bench.notes() == made


def test_nothing_is_deleted_while_nobody_can_tell_whether_a_later_session_was_begun(bench: Bench):
    for step in (10, 20):
        bench.commit(step)
        bench.look_later()
        bench.look_later(20.0)
    bench.emulator.faults.add(Fault("GetDataset", "status", status=500, match={"datasetSlug": "*a2"}))
    bench.commit(30)
    bench.look_later()
    bench.look_later(20.0)
    assert len(bench.notes()) == 3


def test_no_old_version_goes_before_the_last_one_is_known_to_be_good(bench: Bench):
    made = []
    bench.emulator.faults.add(Fault(CREATE, "slow_processing", seconds=10_000.0, match={"body.versionNotes": "*step 20 *"}))
    for step in (10, 20, 30):
        made.append(bench.commit(step).id)
        bench.look_later()
        bench.look_later(20.0)
    assert bench.notes() == [made[0], made[2]]


def test_a_version_that_lost_a_file_is_sent_again(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "lose_file", calls={1}, files="*rank-1*"))
    bench.look_later()
    bench.look_later(20.0)
    assert bench.num_creates() == 2
    bench.clock.advance(20.0)
    assert set(bench.files()) == flat(made)
    bench.delivery.look()
    assert bench.said[-1] == f"checkpoint {made.id} is published as version 3 of {JOB.dataset}"


def test_a_version_that_lost_a_file_stands_beside_the_next_one_for_a_while(bench: Bench):
    bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "lose_file", calls={1}, files="*rank-1*"))
    bench.emulator.faults.add(Fault(CREATE, "slow_processing", calls={2}, seconds=300.0))
    bench.look_later()
    for _ in range(4):
        bench.look_later(60.0)
    assert bench.num_creates() == 2
    bench.look_later(200.0)
    assert "is published as version 3" in bench.said[-1]


def test_a_version_that_kaggle_fails_to_process_is_sent_again_once(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "fail_processing", calls={1}))
    bench.look_later()
    note = VersionNote(
        session=1, attempt=1, fence=1, step=10, checkpoint=made.id, manifest_sha256=bench.store.manifest(made.id)[1]
    )
    listed = {"versionNumber": 2, "versionNotes": str(note), "status": "FAILED"}
    bench.emulator.faults.add(Fault("GetDataset", "rewrite", body={"versions": [listed]}))
    bench.look_later(20.0)
    bench.look_later(20.0)
    assert bench.num_creates() == 2
    bench.emulator.faults.remove()
    bench.look_later(20.0)
    assert bench.said[-1] == f"checkpoint {made.id} is published as version 3 of {JOB.dataset}"


def test_a_version_that_came_to_be_unheard_and_lost_a_file_is_no_version(bench: Bench):
    made = bench.commit(10)
    for kind in ("drop_after", "slow_processing", "lose_file"):
        bench.emulator.faults.add(Fault(CREATE, kind, calls={1, 2, 3}, seconds=500.0, files="*rank-1*"))
    bench.look_later()
    assert "whether making a version" in bench.said[-1]
    bench.look_later()
    bench.clock.advance(20.0)
    assert bench.num_creates() == 4
    assert set(bench.files()) == flat(made)


def test_a_version_that_came_to_be_unheard_is_taken_for_what_it_is(bench: Bench):
    bench.commit(10)
    for kind in ("drop_after", "slow_processing"):
        bench.emulator.faults.add(Fault(CREATE, kind, calls={1, 2, 3}, seconds=500.0))
    bench.look_later()
    bench.look_later()
    bench.look_later()
    assert bench.num_creates() == 3


def test_a_version_that_is_never_ready_is_sent_again(bench: Bench):
    bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "slow_processing", calls={1}, seconds=1e6))
    bench.look_later()
    bench.look_later(bench.job.processing_limit_s + 1.0)
    assert bench.num_creates() == 2
    assert any("is not processed after" in line for line in bench.said)


@pytest.mark.parametrize("kind", ["drop_after", "drop_before"])
def test_a_lost_answer_makes_no_second_version(bench: Bench, kind: str):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, kind, calls={1}))
    for _ in range(4):
        bench.look_later()
    assert bench.notes() == [made.id]


def test_what_fails_for_a_while_is_told_once_and_tried_again(bench: Bench):
    bench.commit(10)
    bench.emulator.faults.add(Fault("StartBlobUpload", "status", status=500))
    bench.delivery.look()
    bench.delivery.look()
    assert [line for line in bench.said if "nothing can be uploaded now" in line] == bench.said
    assert len(bench.said) == 1
    bench.emulator.faults.remove()
    bench.look_later()
    assert bench.num_creates() == 1


def test_an_account_that_may_not_be_written_to_leaves_the_output(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault("StartBlobUpload", "status", status=403))
    bench.delivery.look()
    assert "the account cannot be written to" in bench.said[0]
    bench.delivery.look()
    assert bench.delivery.reserve_s() < 1.0
    assert not bench.delivery.finish(made.id)
    assert set(bench.output) == flat(made)


def test_an_account_without_room_leaves_the_output_at_once(bench: Bench):
    bench.commit(10)
    bench.look_later()
    made = bench.commit(20)
    bench.look_later(20.0)
    bench.emulator.settings.private_quota_bytes = 1
    bench.look_later()
    assert "it exceeds the maximum of" in bench.said[-1]
    before_s = bench.clock.monotonic()
    assert not bench.delivery.finish(made.id)
    assert bench.clock.monotonic() == before_s
    assert set(bench.output) == flat(made)


def test_an_account_that_takes_uploads_and_no_version_leaves_the_output(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "status", status=403))
    bench.look_later()
    assert "the account cannot be written to" in bench.said[-1]
    assert not bench.delivery.finish(made.id)
    assert set(bench.output) == flat(made)


def test_a_refusal_while_a_version_is_processed_is_no_refusal(tmp_path: Path):
    (tmp_path / "bench").mkdir()
    with connected(tmp_path, processing_s=1000.0, refuse_parallel_versions=True) as kaggle:
        kaggle.create_dataset(JOB.dataset, {"session.json": b"{}"})
        bench = Bench(tmp_path / "bench", kaggle)
        first = bench.commit(10)
        bench.look_later()
        second = bench.commit(20)
        bench.look_later(1.0)
        bench.look_later(UPLOAD_EVERY_S)
        assert "nothing can be uploaded now" in bench.said[-1]
        assert bench.delivery.finish(second.id)
        bench.clock.advance(1000.0)
        assert bench.notes() == [first.id, second.id]


def test_the_last_checkpoint_is_sent_with_the_report(bench: Bench):
    made = bench.commit(10)
    bench.report(made.id)
    assert bench.delivery.finish(made.id)
    bench.clock.advance(10.0)
    assert set(bench.files()) == flat(made, "report.json")
    assert bench.output == []


def test_the_end_does_not_wait_for_the_processing(bench: Bench):
    made = bench.commit(10)
    before_s = bench.clock.monotonic()
    assert bench.delivery.finish(made.id)
    assert bench.clock.monotonic() - before_s < 10.0


def test_a_last_checkpoint_that_was_sent_before_needs_no_further_version(bench: Bench):
    made = bench.commit(10)
    bench.look_later()
    bench.clock.advance(20.0)
    assert bench.delivery.finish(made.id)
    assert bench.num_creates() == 1


def test_a_last_checkpoint_whose_version_lost_a_file_is_sent_again(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "lose_file", calls={1}, files="*rank-1*"))
    bench.look_later()
    bench.clock.advance(20.0)
    assert bench.delivery.finish(made.id)
    bench.clock.advance(20.0)
    assert set(bench.files()) == flat(made)


def test_the_end_tries_until_its_time_is_over_and_leaves_the_output_then(bench: Bench):
    bench.delivery.look()
    made = bench.commit(10)
    bench.emulator.faults.add(Fault(CREATE, "status", status=500))
    assert not bench.delivery.finish(made.id)
    assert set(bench.output) == flat(made)
    assert LIMIT_S - 60.0 < bench.clock.monotonic() <= LIMIT_S


def test_what_fails_at_the_end_for_a_while_is_tried_again(bench: Bench):
    bench.delivery.look()
    made = bench.commit(10)
    bench.emulator.faults.add(Fault("StartBlobUpload", "status", for_s=100.0, status=500))
    assert bench.delivery.finish(made.id)
    bench.clock.advance(20.0)
    assert bench.notes() == [made.id]


def test_without_a_network_the_end_does_not_wait(bench: Bench):
    made = bench.commit(10)
    bench.emulator.faults.add(Fault("*", "drop_before"))
    bench.delivery.look()
    before_s = bench.clock.monotonic()
    assert not bench.delivery.finish(made.id)
    assert bench.clock.monotonic() - before_s <= 61.0
    assert set(bench.output) == flat(made)


def test_without_an_account_the_last_checkpoint_is_left_in_the_output(bench: Bench):
    delivery = bench.made(None)
    made = commit_checkpoint(bench.store, 10)
    delivery.committed(made.id)
    delivery.look()
    assert delivery.reserve_s() < 1.0
    assert not delivery.finish(made.id)
    assert set(bench.output) == flat(made)


def test_a_session_without_a_checkpoint_delivers_nothing(bench: Bench):
    assert not bench.delivery.finish(None)
    assert bench.output == []


def test_a_checkpoint_of_an_earlier_process_is_delivered_at_the_end(bench: Bench):
    made = commit_checkpoint(bench.store, 10)
    assert bench.delivery.finish(made.id)
    bench.clock.advance(10.0)
    assert bench.notes() == [made.id]


def test_a_checkpoint_that_is_gone_is_told(bench: Bench):
    bench.delivery.committed("step-00000010-s001a1")
    assert not bench.delivery.finish("step-00000010-s001a1")
    assert len([line for line in bench.said if "cannot be delivered" in line]) == 2


def test_a_checkpoint_of_another_attempt_is_not_delivered(bench: Bench):
    made = bench.commit(10, fence=9)
    bench.look_later()
    assert "it is not this attempt's" in bench.said[0]
    assert bench.num_creates() == 0
    assert not bench.delivery.finish(made.id)


def test_an_outbox_that_takes_nothing_disturbs_nobody(bench: Bench):
    made = commit_checkpoint(bench.store, 10)
    (bench.root / "outbox").mkdir()
    (bench.root / "outbox" / made.id).write_text("in the way")
    bench.delivery.committed(made.id)
    assert "cannot be delivered now" in bench.said[0]


def test_an_output_that_takes_nothing_is_told(bench: Bench):
    made = commit_checkpoint(bench.store, 10)
    delivery = bench.made(None)
    delivery.committed(made.id)
    for path in (bench.root / "outbox" / made.id).iterdir():
        path.unlink()
    assert not delivery.finish(made.id)
    assert f"checkpoint {made.id} cannot be left in" in bench.said[-1]


def test_the_reserve_is_a_guess_first_and_a_measurement_then(bench: Bench):
    assert bench.delivery.reserve_s() == 60.0
    bench.clock = CountingClock(0.001)
    delivery = bench.made(KaggleApi(bench.key))
    delivery.committed(commit_checkpoint(bench.store, 10).id)
    bench.clock.sleep(UPLOAD_EVERY_S)
    delivery.look()
    assert bench.num_creates() == 1
    assert 5.0 < delivery.reserve_s() < 6.0


def test_an_outbox_that_cannot_be_tidied_up_is_told(bench: Bench):
    bench.commit(10)
    older = bench.root / "outbox" / "step-00000010-s001a1"
    next(older.iterdir()).unlink()
    bench.delivery = bench.made(None)
    (bench.root / "outbox" / "x").symlink_to(bench.root / "nowhere")
    bench.commit(20)
    assert [path.name for path in (bench.root / "outbox").iterdir()] == ["step-00000020-s001a1"]


def test_the_thread_delivers_by_itself(bench: Bench):
    bench.job = bench.job.evolve(upload_every_s=0.01, settle_s=0.01)
    delivery = bench.made(KaggleApi(bench.key))
    others = set(threading.enumerate())  # one of another test may still be there
    delivery.start()
    made = commit_checkpoint(bench.store, 10)
    delivery.committed(made.id)
    bench.clock.advance(1.0)
    bench.emulator.wait(lambda: bench.num_creates() == 1)
    assert delivery.finish(made.id)
    wait_until(lambda: "delivery" not in {thread.name for thread in set(threading.enumerate()) - others}, "the thread to end")
    assert bench.num_creates() == 1


def test_an_upload_of_an_older_checkpoint_is_given_up_for_the_last_one(bench: Bench):
    bench.job = bench.job.evolve(upload_every_s=0.01, settle_s=0.01)
    delivery = bench.made(KaggleApi(bench.key))
    delivery.look()
    older, last = (commit_checkpoint(bench.store, step) for step in (10, 20))
    bench.emulator.faults.add(Fault("BlobPut", "delay", seconds=0.3))
    delivery.committed(older.id)
    bench.clock.advance(1.0)
    delivery.start()
    bench.emulator.wait(lambda: len(bench.emulator.journal.of("StartBlobUpload")) >= 2)
    delivery.committed(last.id)
    assert delivery.finish(last.id)
    bench.clock.advance(20.0)
    assert bench.notes() == [last.id]


def test_an_upload_of_the_last_checkpoint_is_waited_for(bench: Bench):
    bench.job = bench.job.evolve(upload_every_s=0.01, settle_s=0.01)
    delivery = bench.made(KaggleApi(bench.key))
    delivery.look()
    last = commit_checkpoint(bench.store, 20)
    bench.emulator.faults.add(Fault("BlobPut", "delay", seconds=0.1))
    delivery.committed(last.id)
    bench.clock.advance(1.0)
    delivery.start()
    bench.emulator.wait(lambda: len(bench.emulator.journal.of("StartBlobUpload")) >= 2)
    assert delivery.finish(last.id)
    assert bench.num_creates() == 1
