from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ports import AttemptStatus
from state.errors import AmbiguousError, TemporaryError
from state.kaggle.job import CheckpointPlace, StopFlag
from state.kaggle.names import control_slug
from state.kaggle.records import SessionStatus
from state.report import Outcome
from tests.factories import RUN, after, attempt, commit_checkpoint, report, run_record, session_spec
from tests.fake_kaggle import OWNER
from tests.kaggle_stage import DATASET, SETTINGS, SLUG, Stage, ref

GPU = SETTINGS.evolve(accelerator="t4x2")
HOUR_S = 3600.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def gpu_stage(root: Path, **values: Any) -> Stage:
    return Stage(root, GPU.evolve(**values))


def test_a_session_is_queued_for_hours_and_then_runs(stage: Stage) -> None:
    stage.running(SessionStatus.QUEUED)
    for _ in range(60):
        assert stage.look().sighting is AttemptStatus.QUEUED
    stage.kernel.status = SessionStatus.RUNNING
    stage.look()
    assert stage.look().sighting is AttemptStatus.RUNNING


def test_a_session_that_runs_shows_its_checkpoints_while_it_runs(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(10)
    stage.look()
    stage.look()
    assert stage.run.checkpoints.ids() == (manifest.id,)
    assert stage.run.checkpoints.verify(manifest.id) == manifest


def test_a_session_costs_at_most_one_call_a_minute_in_all(stage: Stage) -> None:
    stage.running()
    stage.look()
    for _ in range(9):
        stage.look()
    before, begun_s = stage.account.count(), stage.clock.monotonic()
    for _ in range(2000):
        stage.clock.advance(6.0)
        stage.backend.observe(ref())
        stage.run.checkpoints.ids()
        stage.backend.report(ref())
    assert stage.account.count() - before <= (stage.clock.monotonic() - begun_s) / SETTINGS.poll_every_s


def test_a_session_ends_with_its_report_and_its_last_checkpoint(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(20, last=True)
    stage.kernel.status = SessionStatus.COMPLETE
    over = [stage.look() for _ in range(2)][-1]
    assert over.sighting is AttemptStatus.ENDED
    said = stage.backend.report(ref())
    assert said is not None
    assert (said.head, said.outcome) == (manifest.id, Outcome.BUDGET)
    assert stage.run.checkpoints.ids() == (manifest.id,)
    before = stage.account.count()
    for _ in range(20):
        assert stage.look().sighting is AttemptStatus.ENDED
    assert stage.account.count() == before


def test_the_next_look_finds_a_session_that_is_over_whatever_it_looks_at(tmp_path: Path) -> None:
    for looks_before in (1, 2, 3, 4):
        stage = Stage(tmp_path / str(looks_before)).running()
        for _ in range(looks_before):
            stage.look()
        stage.deliver(20, last=True)
        stage.kernel.status = SessionStatus.COMPLETE
        assert stage.look().sighting is AttemptStatus.ENDED


def test_a_report_that_comes_before_the_word_that_it_is_over_ends_nothing(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.deliver(20, last=True)
    for _ in range(30):
        assert stage.look().sighting is AttemptStatus.RUNNING


def test_one_lying_answer_that_it_is_over_ends_nothing(stage: Stage) -> None:
    stage.running()
    stage.look()
    for wrong in (SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED):
        stage.kernel.status = wrong
        assert {stage.look().sighting for _ in range(2)} <= {AttemptStatus.RUNNING, AttemptStatus.UNKNOWN}
        stage.kernel.status = SessionStatus.RUNNING
        for _ in range(4):
            stage.look()
        assert stage.look().sighting is AttemptStatus.RUNNING


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (SessionStatus.CANCELLED, "at its limit, or it was cancelled"),
        (SessionStatus.ERROR, "failed without a report"),
        (SessionStatus.COMPLETE, "completed without a report"),
    ],
)
def test_what_is_over_without_a_report_keeps_what_it_had_delivered(stage: Stage, status: SessionStatus, words: str) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(10)
    stage.kernel.status = status
    sightings = []
    while not sightings or sightings[-1].sighting is not AttemptStatus.ENDED:
        sightings.append(stage.look())
        assert len(sightings) < 30
    assert {seen.sighting for seen in sightings[2:-1]} == {AttemptStatus.UNKNOWN}
    assert len(sightings) * 66 > SETTINGS.settle_s
    assert words in sightings[-1].detail
    assert stage.backend.report(ref()) is None
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_a_version_that_shows_late_is_waited_for_before_the_session_counts_as_over(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(20, last=True, status="Blobs_Received")
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json()}
    stage.kernel.status = SessionStatus.COMPLETE
    for _ in range(4):
        assert stage.look().sighting is not AttemptStatus.ENDED
    stage.account.process()
    assert [stage.look() for _ in range(2)][-1].sighting is AttemptStatus.ENDED
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_a_session_that_could_not_upload_leaves_report_and_checkpoint_in_its_output(stage: Stage) -> None:
    from state.stores.checkpoint_store import DirectoryCheckpointStore
    from tests.kaggle_stage import checkpoint_files

    stage.running()
    stage.look()
    worker = DirectoryCheckpointStore(stage.root / "worker")
    manifest = commit_checkpoint(worker, 20)
    outputs = {f"checkpoint/{name}": content for name, content in checkpoint_files(worker, manifest).items()}
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json(), **outputs}
    stage.kernel.log = "it could not upload\n"
    stage.kernel.status = SessionStatus.COMPLETE
    assert [stage.look() for _ in range(2)][-1].sighting is AttemptStatus.ENDED
    store = stage.run.checkpoints
    assert store.ids() == (manifest.id,)
    assert store.place(manifest.id) == CheckpointPlace(kind="output", owner=OWNER, slug=SLUG, version=1)
    assert store.verify(manifest.id, manifest.expected(store.manifest(manifest.id)[1])) == manifest
    stage.record = run_record([attempt(1, backend="kaggle", ended_at=stage.clock.now())])
    stage.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))
    assert stage.account.kernel_table["gemma-orch-tamil-s002a1-k"].push.kernel_sources == (f"{OWNER}/{SLUG}",)
    assert store.verify_tensors(manifest.id) == manifest
    assert stage.backend.read_log(ref(), 0) == ("it could not upload\n", 20)


def test_an_outage_of_hours_is_unknown_and_progress_is_read_from_the_dataset(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status"}
    manifest = stage.deliver(10)
    for _ in range(200):
        seen = stage.look()
    assert seen.sighting is AttemptStatus.UNKNOWN
    assert "session_status does not answer; last seen running" in seen.detail
    assert stage.run.checkpoints.ids() == (manifest.id,)
    stage.account.broken.clear()
    stage.look()
    assert stage.look().sighting is AttemptStatus.RUNNING


def test_a_whole_outage_leaves_everything_as_it_was(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status", "dataset", "kernel", "dataset_files", "download", "session_outputs"}
    sightings = [stage.look(launched_at=after(0)).sighting for _ in range(200)]
    assert set(sightings[2:]) == {AttemptStatus.UNKNOWN}


def test_a_session_whose_report_is_there_is_over_though_its_status_cannot_be_had_for_days(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status"}
    stage.deliver(20, last=True)
    sightings = [stage.look().sighting for _ in range(15)]
    assert sightings[3] is AttemptStatus.UNKNOWN
    assert sightings[-1] is AttemptStatus.ENDED


def test_a_word_that_is_not_known_is_unknown(stage: Stage) -> None:
    stage.running(SessionStatus.UNKNOWN)
    for _ in range(30):
        assert stage.look().sighting is AttemptStatus.UNKNOWN


def test_a_kernel_that_is_not_shown_for_a_while_is_not_missing(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    for _ in range(8):
        assert stage.look(launched_at=after(0)).sighting in (AttemptStatus.RUNNING, AttemptStatus.UNKNOWN)
    stage.account.hidden.clear()
    stage.look()
    assert stage.look().sighting is AttemptStatus.RUNNING


def as_an_earlier_version_pushed_it(stage: Stage) -> None:
    """Give the kernel its dataset's name, as it had before there was one namespace."""
    stage.account.kernel_table[DATASET] = stage.account.kernel_table.pop(SLUG)


def test_an_attempt_that_an_earlier_version_pushed_is_watched_and_killed_under_the_name_in_its_handle(stage: Stage) -> None:
    stage.running()
    as_an_earlier_version_pushed_it(stage)
    earlier = replace(ref(), handle=f"{DATASET}/v1")
    stage.clock.advance(66.0)
    assert stage.backend.observe(earlier).sighting is AttemptStatus.RUNNING
    stage.account.kernel_table[DATASET].log = "hello"
    assert stage.backend.read_log(earlier, 0) == ("hello", 5)
    stage.backend.kill(earlier)
    assert DATASET not in stage.account.kernel_table
    assert DATASET in stage.account.dataset_table


def test_what_an_earlier_version_pushed_without_hearing_the_answer_is_found_and_not_pushed_again(stage: Stage) -> None:
    stage.running()
    as_an_earlier_version_pushed_it(stage)
    lost = replace(ref(after(0)), handle=None)
    for _ in range(30):
        stage.clock.advance(66.0)
        assert stage.backend.observe(lost).sighting is AttemptStatus.RUNNING
    stage.account.kernel_table[DATASET].outputs = {"report.json": report(1, head=None, saved_step=None).to_json()}
    stage.account.kernel_table[DATASET].status = SessionStatus.COMPLETE
    seen = [stage.backend.observe(lost) for _ in range(15) if stage.clock.advance(66.0) is None][-1]
    assert seen.sighting is AttemptStatus.ENDED
    assert stage.backend.report(lost) is not None


@pytest.mark.parametrize("status", [SessionStatus.QUEUED, SessionStatus.RUNNING])
@pytest.mark.parametrize("was_seen", [True, False])
def test_a_kernel_that_lives_is_not_over_because_reads_of_it_are_refused(
    stage: Stage, status: SessionStatus, *, was_seen: bool
) -> None:
    stage.running(status)
    launched_at = stage.clock.now()
    if was_seen:
        stage.look(launched_at=launched_at)
    stage.account.hidden = {SLUG}
    before, begun_s = stage.account.count(), stage.clock.monotonic()
    for _ in range(50):  # nearly an hour: five times as long as what is shown may lag
        seen = stage.look(launched_at=launched_at)
        assert seen.sighting is AttemptStatus.UNKNOWN
    assert "Kaggle has refused to show the kernel gemma-orch-tamil-s001a1-k (403 or 404) since 00:0" in seen.detail
    assert "counts as alive until" in seen.detail
    first_looks = 2
    assert stage.account.count() - before - first_looks <= (stage.clock.monotonic() - begun_s) / SETTINGS.poll_every_s
    stage.account.hidden.clear()
    looks = [stage.look(launched_at=launched_at) for _ in range(3)]
    assert looks[-1].sighting is AttemptStatus(status)


def test_a_push_whose_answer_was_lost_is_not_missing_because_reads_of_its_kernel_are_refused(stage: Stage) -> None:
    stage.account.failures_after["push_kernel"] = [AmbiguousError("lost after")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    launched_at = stage.clock.now()
    stage.account.hidden = {SLUG}
    for _ in range(50):
        assert stage.look(launched_at=launched_at, has_handle=False).sighting is AttemptStatus.UNKNOWN
    stage.account.hidden.clear()
    looks = [stage.look(launched_at=launched_at, has_handle=False) for _ in range(3)]
    assert looks[-1].sighting is AttemptStatus.QUEUED


def test_a_kernel_that_is_refused_for_ever_is_over_past_its_limit_with_what_it_has_delivered(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    for _ in range(70):
        assert stage.look().sighting is AttemptStatus.UNKNOWN
    stage.account.hidden.clear()
    manifest = stage.deliver(10)
    stage.account.refused = {"kernel", "session_status", "session_outputs"}
    looks = [stage.look()]
    while looks[-1].sighting is not AttemptStatus.ENDED:
        assert len(looks) < 60
        looks.append(stage.look())
    assert "refused to show its kernel since" in looks[-1].detail
    assert "its time limit has passed" in looks[-1].detail
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_a_session_is_not_over_without_the_checkpoint_that_its_report_names_because_a_look_failed(stage: Stage) -> None:
    """A session's steps were trained twice: the look that showed all was made before the wait, and the one after it failed."""
    stage.running()
    stage.look()
    manifest = stage.deliver(20, last=True, status="Blobs_Received")
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json()}
    stage.kernel.status = SessionStatus.COMPLETE
    stage.account.failures["session_outputs"] = [TemporaryError("outputs failed")]
    stage.look(200.0)
    stage.account.process()
    stage.account.failures["dataset"] = [TemporaryError("dataset failed"), TemporaryError("dataset failed")]
    assert stage.look(8000.0).sighting is AttemptStatus.UNKNOWN
    looks = [stage.look() for _ in range(6)]
    assert looks[-1].sighting is AttemptStatus.ENDED
    assert stage.run.checkpoints.ids() == (manifest.id,)


@pytest.mark.parametrize("last_look", ["dataset", "dataset_files", "download"])
def test_what_cannot_be_looked_through_for_long_does_not_hold_the_run_up_for_ever(stage: Stage, last_look: str) -> None:
    stage.running()
    stage.look()
    stage.deliver(20)
    stage.kernel.status = SessionStatus.CANCELLED
    stage.account.broken = {last_look}
    looks = 0
    while stage.look().sighting is not AttemptStatus.ENDED:
        looks += 1
        assert looks < 60
    assert looks > 30, "that many looks after all must be shown"


def test_a_kernel_that_somebody_has_deleted_is_over(stage: Stage) -> None:
    stage.running()
    stage.look()
    del stage.account.kernel_table[SLUG]
    over = [stage.look() for _ in range(15)][-1]
    assert (over.sighting, over.detail) == (AttemptStatus.ENDED, "its kernel is gone: it was deleted")


def test_another_machine_than_was_asked_for_is_said(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path).running()
    stage.kernel.shape = "None"
    assert [stage.look() for _ in range(6)][-1].detail == "Kaggle gave it None instead of NvidiaTeslaT4"
    assert stage.account.count("kernel") == 2  # before the push, and this one


def test_a_report_of_another_attempt_or_one_that_makes_no_sense_is_none(stage: Stage) -> None:
    stage.running()
    stage.look()
    for content in (report(7).to_json(), b"{"):
        stage.kernel.outputs = {"report.json": content}
        stage.kernel.status = SessionStatus.COMPLETE
        for _ in range(5):
            stage.look()
        assert stage.backend.report(ref()) is None


def test_a_handle_that_was_lost_or_that_an_adoption_wrote_is_understood(stage: Stage) -> None:
    from dataclasses import replace

    stage.running()
    assert stage.backend.observe(replace(ref(), handle=None)).sighting is AttemptStatus.RUNNING
    stage.clock.advance(500)
    assert stage.backend.observe(replace(ref(), handle="1")).sighting is AttemptStatus.RUNNING


def test_a_command_that_needs_nothing_of_kaggle_asks_for_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.backend.heartbeat(ref()) is None
    assert stage.backend.report(ref()) is None
    assert stage.backend.poll_interval_s == 6.0
    assert stage.run.checkpoints.ids() == ()
    assert stage.account.count() == 0


def test_what_a_session_that_is_over_left_is_not_listed_at_every_tick(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.status = SessionStatus.CANCELLED
    before = stage.account.count()
    for _ in range(60):
        stage.look(after_s=6.0)
    assert stage.account.count("session_outputs") <= 4
    assert stage.account.count() - before <= 15


def test_an_attempt_is_asked_to_stop_by_the_flag(stage: Stage) -> None:
    stage.running()
    stage.look()
    for _ in range(10):
        stage.backend.ask_to_stop(ref())
        stage.clock.advance(6.0)
    flag = stage.account.dataset_table[control_slug(RUN)][-1].files["stop.json"]
    assert StopFlag.from_json(flag, "") == StopFlag(session=1, attempt=1)
    assert stage.account.count("create_version") == 1


def test_an_attempt_that_is_over_is_not_asked_to_stop(stage: Stage) -> None:
    stage.running(SessionStatus.COMPLETE)
    stage.look()
    stage.backend.ask_to_stop(ref())
    assert stage.account.count("create_version") == 0


def test_killing_saves_first_and_then_deletes_the_kernel(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(10)
    stage.backend.kill(ref())
    names = stage.account.names()
    assert names.index("delete_kernel") > max(index for index, name in enumerate(names) if name in ("dataset", "download"))
    assert SLUG not in stage.account.kernel_table
    over = stage.look(0)
    assert (over.sighting, over.detail) == (
        AttemptStatus.ENDED,
        "its kernel was deleted, after its checkpoints and report were salvaged",
    )
    assert stage.run.checkpoints.ids() == (manifest.id,)


@pytest.mark.parametrize("call", ["kernel", "dataset", "session_outputs", "delete_kernel"])
def test_nothing_is_deleted_before_everything_is_saved(stage: Stage, call: str) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {call}
    with pytest.raises(TemporaryError):
        stage.backend.kill(ref())
    assert SLUG in stage.account.kernel_table
    assert stage.look(0).sighting is AttemptStatus.RUNNING
    stage.account.broken.clear()
    stage.backend.kill(ref())
    assert stage.look(0).sighting is AttemptStatus.ENDED


def test_a_kernel_that_one_look_does_not_show_is_not_taken_for_dead_when_it_is_killed(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    stage.backend.kill(ref())
    assert stage.look(0).sighting is AttemptStatus.RUNNING
    stage.account.hidden.clear()
    stage.backend.kill(ref())
    assert SLUG not in stage.account.kernel_table


def test_a_kernel_that_is_refused_is_killed_when_it_is_shown_again(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    for _ in range(4):
        stage.look()
    before = stage.account.count()
    stage.backend.kill(ref())
    assert stage.account.count() == before, "nothing is asked for between two looks"
    assert stage.look().sighting is AttemptStatus.UNKNOWN
    stage.account.hidden.clear()
    for _ in range(3):
        stage.look()
    stage.backend.kill(ref())
    assert SLUG not in stage.account.kernel_table


@pytest.mark.parametrize(
    ("what", "refusals"),
    [("dataset", {"dataset": [False, True]}), ("outputs", {"kernel": [False, True], "session_outputs": [True]})],
)
def test_a_kernel_is_not_deleted_while_what_it_left_is_refused(stage: Stage, what: str, refusals: dict[str, list[bool]]) -> None:
    stage.running()
    stage.look()
    stage.account.refusals = refusals
    with pytest.raises(TemporaryError, match=f"refuses to show the {what}"):
        stage.backend.kill(ref())
    assert SLUG in stage.account.kernel_table


def test_a_lying_word_that_it_is_over_does_not_save_a_session_that_is_killed(stage: Stage) -> None:
    stage.running(SessionStatus.COMPLETE)
    stage.look()
    stage.account.broken = {"session_status"}
    with pytest.raises(TemporaryError, match="whether"):
        stage.backend.kill(ref())
    stage.account.broken.clear()
    stage.kernel.status = SessionStatus.RUNNING
    stage.backend.kill(ref())
    assert SLUG not in stage.account.kernel_table


def test_a_session_that_lives_on_unseen_after_its_kernel_was_deleted_is_told_to_end(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.backend.kill(ref())
    flag = stage.account.dataset_table[control_slug(RUN)][-1].files["stop.json"]
    assert StopFlag.from_json(flag, "") == StopFlag(session=1, attempt=1)


def test_a_controller_that_comes_back_late_believes_no_single_look_that_shows_nothing(stage: Stage) -> None:
    stage.account.failures_after["push_kernel"] = [AmbiguousError("lost after")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    launched_at = stage.clock.now()
    stage.open()
    stage.account.hidden = {SLUG}
    assert stage.look(after_s=8 * HOUR_S, launched_at=launched_at).sighting is AttemptStatus.UNKNOWN
    stage.account.hidden.clear()
    assert [stage.look(launched_at=launched_at) for _ in range(2)][-1].sighting is AttemptStatus.QUEUED


def test_a_last_checkpoint_that_takes_long_to_process_is_waited_for(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(20, last=True, status="Blobs_Received")
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json()}
    stage.kernel.status = SessionStatus.COMPLETE
    for _ in range(30):  # half an hour
        assert stage.look().sighting is not AttemptStatus.ENDED
    stage.account.process()
    assert [stage.look() for _ in range(2)][-1].sighting is AttemptStatus.ENDED
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_a_session_that_is_over_keeps_its_kernel_when_it_is_killed(stage: Stage) -> None:
    stage.running(SessionStatus.CANCELLED)
    stage.look()
    stage.backend.kill(ref())
    assert SLUG in stage.account.kernel_table
    assert stage.look(0).sighting is AttemptStatus.UNKNOWN, "what it has delivered may still come to be shown"
    looks = [stage.look() for _ in range(15)]
    assert looks[-1].sighting is AttemptStatus.ENDED


def test_what_a_kernel_left_in_its_output_is_brought_here_before_it_is_deleted(stage: Stage) -> None:
    from state.stores.checkpoint_store import DirectoryCheckpointStore
    from tests.kaggle_stage import checkpoint_files

    stage.running()
    stage.look()
    worker = DirectoryCheckpointStore(stage.root / "worker")
    manifest = commit_checkpoint(worker, 20)
    stage.kernel.outputs = {f"checkpoint/{name}": body for name, body in checkpoint_files(worker, manifest).items()}
    stage.backend.kill(ref())
    assert stage.run.checkpoints.ids() == (manifest.id,)
    assert stage.run.checkpoints.verify_tensors(manifest.id) == manifest
