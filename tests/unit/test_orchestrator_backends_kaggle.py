from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import Sighting
from orchestrator.backends.kaggle import weekly_quota
from orchestrator.kaggle.sources import DataSources
from state.data_manifest import DataManifest
from state.errors import AmbiguousError, NotLaunchedError, TemporaryError, UserError
from state.kaggle.errors import BusyError, InvalidSourcesError, KaggleQuotaError
from state.kaggle.job import CheckpointPlace, StopFlag
from state.kaggle.names import control_slug, data_slug
from state.kaggle.records import AcceleratorQuota, SessionStatus
from state.layout import attempt_name
from state.report import Outcome
from tests.factories import RUN, after, attempt, commit_checkpoint, report, run_record, session_data, session_spec
from tests.fake_kaggle import OWNER
from tests.kaggle_stage import SETTINGS, SLUG, Stage, ref, upload_checkpoint
from tests.token_data import write_data

GPU = SETTINGS.model_copy(update={"accelerator": "t4x2"})
HOUR_S = 3600.0

Make = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def gpu_stage(root: Path, **values: Any) -> Stage:
    return Stage(root, GPU.model_copy(update=values))


# Before the push.


def test_an_attempt_gets_its_dataset_with_its_spec_and_the_control_dataset(stage: Stage) -> None:
    spec = session_spec()
    stage.launch(spec)
    assert stage.account.dataset_table[SLUG][0].files == {"session.json": spec.to_json()}
    assert stage.account.dataset_table[control_slug(RUN)][0].files.keys() == {"run.json", "data.json", "stop.json"}


def test_nothing_is_pushed_before_its_dataset_is_processed(stage: Stage) -> None:
    stage.account.processing = True
    spec = session_spec()
    for _ in range(30):
        assert stage.backend.make_ready(spec) == f"the dataset {SLUG} to be processed by Kaggle"
        stage.clock.advance(2.0)
    assert stage.account.count("create_dataset") == 2
    assert stage.account.count("dataset") < 20
    stage.account.process()
    stage.launch(spec)


def test_making_ready_goes_on_after_a_controller_was_killed(stage: Stage) -> None:
    spec = session_spec()
    stage.account.processing = True
    stage.backend.make_ready(spec)
    stage.open()
    stage.account.process()
    stage.launch(spec)
    assert stage.account.count("create_dataset") == 2


def test_a_dataset_of_the_attempts_name_that_is_not_the_attempts_is_left_alone(stage: Stage) -> None:
    stage.account.add_version(SLUG, "Initial release", {"session.json": session_spec(fence=9).to_json()})
    with pytest.raises(UserError, match="of another run named tamil"):
        stage.backend.make_ready(session_spec())


def test_a_run_whose_names_do_not_fit_is_refused(stage: Stage) -> None:
    with pytest.raises(UserError, match="cannot have kernels on Kaggle"):
        stage.backend.make_ready(session_spec(run="a" * 40))


def test_what_kaggle_does_not_answer_is_asked_again_a_little_later(stage: Stage) -> None:
    stage.account.broken = {"dataset"}
    with pytest.raises(TemporaryError):
        stage.backend.make_ready(session_spec())
    assert stage.backend.make_ready(session_spec()) == "dataset does not answer"
    assert stage.account.count("dataset") == 1


# Its data.


class Prepared:
    """A data folder here, and what of it is on the account."""

    def __init__(self, root: Path) -> None:
        self.stage = Stage(root)
        self.manifest: DataManifest = write_data(root / "data", {"en": list(range(200))})
        self.data = session_data(data_dir=str(root / "data"), data_sha256=self.manifest.data_sha256)
        self.sources = DataSources(self.stage.account, RUN, root / "kaggle")  # type: ignore[arg-type]
        self.first, self.second = (data_slug(self.manifest.data_sha256, number) for number in (0, 1))

    def upload(self, *numbers: int) -> None:
        content = (self.stage.root / "data" / "data.json").read_bytes()
        if 0 in numbers:
            self.stage.account.add_version(self.first, "", {"data.json": content, "tokenizer.model": b"t"})
        if 1 in numbers:
            self.stage.account.add_version(self.second, "", dict.fromkeys(self.manifest.files, b""))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


def test_the_datasets_of_the_data_are_found_by_its_digest_and_asked_for_once(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    assert prepared.sources.unready(prepared.data) is None
    before = prepared.stage.account.count()
    assert prepared.sources.of(prepared.data) == (prepared.first, prepared.second)
    assert prepared.stage.account.count() == before


def test_data_whose_folder_is_on_another_machine_is_found_from_the_account_alone(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    elsewhere = prepared.data.model_copy(update={"data_dir": "/not/here"})
    assert prepared.sources.of(elsewhere) == (prepared.first, prepared.second)


@pytest.mark.parametrize("there", [(), (0,), (1,)])
def test_data_that_is_not_on_the_account_is_the_users_to_upload(prepared: Prepared, there: tuple[int, ...]) -> None:
    prepared.upload(*there)
    with pytest.raises(UserError, match=f"gemma-orch upload --run {RUN}"):
        prepared.sources.unready(prepared.data)


def test_data_that_is_listed_and_is_not_shown_is_waited_for(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    prepared.stage.account.hidden = {prepared.first}
    with pytest.raises(TemporaryError, match="is listed and is not shown"):
        prepared.sources.unready(prepared.data)


def test_data_that_is_being_processed_is_waited_for(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    prepared.stage.account.dataset_table[prepared.second][0].status = "Blobs_Received"
    assert prepared.sources.unready(prepared.data) == f"the dataset {prepared.second} to be processed by Kaggle"


def test_a_dataset_of_the_datas_name_that_holds_other_data_is_refused(prepared: Prepared) -> None:
    prepared.upload(1)
    prepared.stage.account.add_version(prepared.first, "", {"data.json": b"{}", "tokenizer.model": b"t"})
    with pytest.raises(UserError, match="is not on Kaggle"):
        prepared.sources.unready(prepared.data)


# The push.


def test_a_push_says_everything_explicitly(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    assert stage.launch(session_spec(limit_s=99.2)) == f"{SLUG}/v1"
    push = stage.kernel.push
    assert (push.slug, push.machine_shape, push.internet, push.timeout_s) == (SLUG, "NvidiaTeslaT4", True, 103)
    assert push.dataset_sources == (f"{OWNER}/data-p00", f"{OWNER}/data-p01")
    assert push.kernel_sources == ()
    job = stage.job
    assert (job.owner, job.dataset, job.control, job.start) == (OWNER, SLUG, control_slug(RUN), None)
    assert job.spec == session_spec(limit_s=99.2)


def test_a_session_that_starts_from_a_checkpoint_gets_its_dataset_as_an_input(stage: Stage) -> None:
    stage.record = run_record([attempt(1, backend="kaggle", ended_at=after(0))])
    manifest = upload_checkpoint(stage.account, stage.root / "worker", 10)
    store = stage.run.checkpoints
    assert store.ids() == (manifest.id,)
    stage.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))
    second = stage.account.kernel_table["gemma-orch-tamil-s002a1"].push
    assert second.dataset_sources[-1] == f"{OWNER}/{SLUG}"


def test_a_kernel_that_is_there_already_is_looked_at_and_not_pushed_again(stage: Stage) -> None:
    stage.launch()
    with pytest.raises(AmbiguousError):
        stage.backend.launch(session_spec())
    assert stage.account.count("push_kernel") == 1


def test_an_answer_that_was_lost_is_ambiguous_whether_or_not_the_push_arrived(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [AmbiguousError("lost before")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    assert stage.look(launched_at=stage.clock.now()).sighting is Sighting.UNKNOWN
    assert stage.look(after_s=700, launched_at=after(0)).sighting is Sighting.MISSING
    stage.account.failures_after["push_kernel"] = [AmbiguousError("lost after")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    assert stage.look().sighting is Sighting.QUEUED


def test_a_look_before_the_push_that_fails_launches_nothing(stage: Stage) -> None:
    stage.account.failures["kernel"] = [TemporaryError("no answer")]
    with pytest.raises(NotLaunchedError, match="no answer"):
        stage.launch()
    assert stage.account.count("push_kernel") == 0


def test_a_full_account_is_tried_again_after_minutes_and_not_before(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [BusyError("Maximum batch GPU session count of 2 reached.")]
    with pytest.raises(NotLaunchedError, match="session count of 2"):
        stage.launch()
    before = stage.account.count()
    stage.clock.advance(170.0)
    assert "session count of 2" in (stage.backend.make_ready(session_spec()) or "")
    assert not stage.backend.quota(stage.clock.now()).available
    assert stage.account.count() == before
    stage.clock.advance(20.0)
    assert stage.launch() == f"{SLUG}/v1"


def test_a_weekly_quota_that_is_used_up_is_tried_again_at_the_refresh_and_not_before(stage: Stage) -> None:
    refusal = KaggleQuotaError("Maximum weekly GPU quota of 30.00 hours reached.", until=after(5 * HOUR_S))
    stage.account.failures["push_kernel"] = [refusal]
    with pytest.raises(NotLaunchedError, match="refreshed at 2026-01-01 05:00 UTC"):
        stage.launch()
    stage.clock.advance(4.9 * HOUR_S)
    told = stage.backend.quota(stage.clock.now())
    assert (told.available, told.until) == (False, after(5 * HOUR_S))
    stage.clock.advance(0.2 * HOUR_S)
    assert stage.launch() == f"{SLUG}/v1"


def test_a_quota_refusal_that_names_no_moment_waits_for_what_the_quota_call_says(stage: Stage) -> None:
    stage.account.gpu = AcceleratorQuota(after(9 * HOUR_S), 0.0, 0.0, 1.0)
    stage.account.failures["push_kernel"] = [KaggleQuotaError("Maximum weekly GPU quota reached.")]
    with pytest.raises(NotLaunchedError, match="09:00 UTC"):
        stage.launch()


def test_a_push_that_certainly_failed_is_tried_again(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [TemporaryError("HTTP 429")]
    with pytest.raises(NotLaunchedError, match="HTTP 429"):
        stage.launch()
    stage.clock.advance(61.0)
    assert stage.launch() == f"{SLUG}/v1"


def test_a_kernel_that_was_pushed_without_its_inputs_is_deleted(stage: Stage) -> None:
    stage.account.failures_after["push_kernel"] = [InvalidSourcesError(SLUG, 1, ["ann/data-p00"])]
    with pytest.raises(UserError, match="without ann/data-p00"):
        stage.launch()
    assert SLUG not in stage.account.kernel_table
    assert stage.account.count("delete_kernel") == 1


def test_a_kernel_without_its_inputs_that_cannot_be_deleted_is_watched(stage: Stage) -> None:
    stage.account.failures_after["push_kernel"] = [InvalidSourcesError(SLUG, 1, ["ann/data-p00"])]
    stage.account.failures["delete_kernel"] = [TemporaryError("it still is there")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    assert stage.look().sighting is Sighting.QUEUED


def test_what_only_the_user_can_mend_is_the_users(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [UserError("Permission 'kernelSessions.enableInternet' was denied")]
    with pytest.raises(UserError, match="enableInternet"):
        stage.launch()


# Quota.


@pytest.mark.parametrize(
    ("used_h", "reserved_h", "reserve_h", "available"),
    [(0, 0, 0, True), (29.5, 0, 0, True), (29.9, 0, 0, False), (18, 12, 0, False), (20, 0, 10, False), (19, 0, 10, True)],
)
def test_a_session_needs_more_quota_than_the_settling_time(
    used_h: float, reserved_h: float, reserve_h: float, *, available: bool
) -> None:
    told = AcceleratorQuota(after(9), used_h * HOUR_S, reserved_h * HOUR_S, 30 * HOUR_S)
    quota = weekly_quota(told, GPU.model_copy(update={"gpu_reserve_s": reserve_h * HOUR_S}))
    assert quota.available is available
    assert available or (quota.until == after(9) and f"of {30.0} h are used" in quota.reason)


def test_a_quota_that_kaggle_does_not_tell_of_is_left_to_kaggle() -> None:
    assert weekly_quota(AcceleratorQuota(None, None, None, None), GPU).available


def test_the_quota_is_read_before_a_gpu_push_at_most_once_a_poll(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    stage.launch()
    assert stage.account.names().index("quota") < stage.account.names().index("push_kernel")
    before = stage.account.count("quota")
    stage.clock.advance(61.0)
    for _ in range(9):
        assert stage.backend.quota(stage.clock.now()).available
    assert stage.account.count("quota") == before + 1


def test_a_quota_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    stage.account.broken = {"quota"}
    told = stage.backend.quota(stage.clock.now())
    assert (told.available, told.until) == (False, after(60))
    assert "cannot be asked for" in told.reason
    assert stage.backend.make_ready(session_spec()) is not None


def test_cpu_sessions_have_no_quota(stage: Stage) -> None:
    assert stage.backend.quota(after(0)).available
    stage.launch()
    assert stage.account.count("quota") == 0


# Watching.


def test_a_session_is_queued_for_hours_and_then_runs(stage: Stage) -> None:
    stage.running(SessionStatus.QUEUED)
    for _ in range(60):
        assert stage.look().sighting is Sighting.QUEUED
    stage.kernel.status = SessionStatus.RUNNING
    stage.look()
    assert stage.look().sighting is Sighting.RUNNING


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
    assert over.sighting is Sighting.ENDED
    said = stage.backend.report(ref())
    assert said is not None
    assert (said.head, said.outcome) == (manifest.id, Outcome.BUDGET)
    assert stage.run.checkpoints.ids() == (manifest.id,)
    before = stage.account.count()
    for _ in range(20):
        assert stage.look().sighting is Sighting.ENDED
    assert stage.account.count() == before


def test_the_seam_is_at_most_one_poll_whatever_is_looked_at_next(tmp_path: Path) -> None:
    for looks_before in (1, 2, 3, 4):
        stage = Stage(tmp_path / str(looks_before)).running()
        for _ in range(looks_before):
            stage.look()
        stage.deliver(20, last=True)
        stage.kernel.status = SessionStatus.COMPLETE
        assert stage.look().sighting is Sighting.ENDED


def test_a_report_that_comes_before_the_word_that_it_is_over_ends_nothing(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.deliver(20, last=True)
    for _ in range(30):
        assert stage.look().sighting is Sighting.RUNNING


def test_one_lying_answer_that_it_is_over_ends_nothing(stage: Stage) -> None:
    stage.running()
    stage.look()
    for wrong in (SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED):
        stage.kernel.status = wrong
        assert {stage.look().sighting for _ in range(2)} <= {Sighting.RUNNING, Sighting.UNKNOWN}
        stage.kernel.status = SessionStatus.RUNNING
        for _ in range(4):
            stage.look()
        assert stage.look().sighting is Sighting.RUNNING


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (SessionStatus.CANCELLED, "at its limit, or somebody cancelled it"),
        (SessionStatus.ERROR, "failed without a report"),
        (SessionStatus.COMPLETE, "left no report"),
    ],
)
def test_what_is_over_without_a_report_keeps_what_it_had_delivered(stage: Stage, status: SessionStatus, words: str) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(10)
    stage.kernel.status = status
    sightings = []
    while not sightings or sightings[-1].sighting is not Sighting.ENDED:
        sightings.append(stage.look())
        assert len(sightings) < 30
    assert {seen.sighting for seen in sightings[2:-1]} == {Sighting.UNKNOWN}
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
        assert stage.look().sighting is not Sighting.ENDED
    stage.account.process()
    assert [stage.look() for _ in range(2)][-1].sighting is Sighting.ENDED
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_a_session_that_could_not_upload_leaves_report_and_checkpoint_in_its_output(stage: Stage) -> None:
    from state.checkpoint_store import DirectoryCheckpointStore
    from tests.kaggle_stage import checkpoint_files

    stage.running()
    stage.look()
    worker = DirectoryCheckpointStore(stage.root / "worker")
    manifest = commit_checkpoint(worker, 20)
    outputs = {f"checkpoint/{name}": content for name, content in checkpoint_files(worker, manifest).items()}
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json(), **outputs}
    stage.kernel.log = "it could not upload\n"
    stage.kernel.status = SessionStatus.COMPLETE
    assert [stage.look() for _ in range(2)][-1].sighting is Sighting.ENDED
    store = stage.run.checkpoints
    assert store.ids() == (manifest.id,)
    assert store.place(manifest.id) == CheckpointPlace(kind="output", owner=OWNER, slug=SLUG, version=1)
    assert store.verify(manifest.id, manifest.expected(store.manifest(manifest.id)[1])) == manifest
    stage.record = run_record([attempt(1, backend="kaggle", ended_at=stage.clock.now())])
    stage.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))
    assert stage.account.kernel_table["gemma-orch-tamil-s002a1"].push.kernel_sources == (f"{OWNER}/{SLUG}",)
    assert store.verify_tensors(manifest.id) == manifest
    assert stage.backend.read_log(ref(), 0) == ("it could not upload\n", 20)


def test_an_outage_of_hours_is_unknown_and_progress_is_read_from_the_dataset(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status"}
    manifest = stage.deliver(10)
    for _ in range(200):
        seen = stage.look()
    assert seen.sighting is Sighting.UNKNOWN
    assert "session_status does not answer; last seen running" in seen.detail
    assert stage.run.checkpoints.ids() == (manifest.id,)
    stage.account.broken.clear()
    stage.look()
    assert stage.look().sighting is Sighting.RUNNING


def test_a_whole_outage_leaves_everything_as_it_was(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status", "dataset", "kernel", "dataset_files", "download", "session_outputs"}
    sightings = [stage.look(launched_at=after(0)).sighting for _ in range(200)]
    assert set(sightings[2:]) == {Sighting.UNKNOWN}


def test_a_session_whose_report_is_there_is_over_though_its_status_cannot_be_had_for_days(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.broken = {"session_status"}
    stage.deliver(20, last=True)
    sightings = [stage.look().sighting for _ in range(15)]
    assert sightings[3] is Sighting.UNKNOWN
    assert sightings[-1] is Sighting.ENDED


def test_a_word_that_is_not_known_is_unknown(stage: Stage) -> None:
    stage.running(SessionStatus.UNKNOWN)
    for _ in range(30):
        assert stage.look().sighting is Sighting.UNKNOWN


def test_a_kernel_that_is_not_shown_for_a_while_is_not_missing(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    for _ in range(8):
        assert stage.look(launched_at=after(0)).sighting in (Sighting.RUNNING, Sighting.UNKNOWN)
    stage.account.hidden.clear()
    stage.look()
    assert stage.look().sighting is Sighting.RUNNING


def test_a_kernel_that_somebody_has_deleted_is_over(stage: Stage) -> None:
    stage.running()
    stage.look()
    del stage.account.kernel_table[SLUG]
    over = [stage.look() for _ in range(15)][-1]
    assert (over.sighting, over.detail) == (Sighting.ENDED, "its kernel is gone: somebody has deleted it")


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
    assert stage.backend.observe(replace(ref(), handle=None)).sighting is Sighting.RUNNING
    stage.clock.advance(500)
    assert stage.backend.observe(replace(ref(), handle="1")).sighting is Sighting.RUNNING


def test_a_command_that_needs_nothing_of_kaggle_asks_for_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.backend.heartbeat(ref()) is None
    assert stage.backend.report(ref()) is None
    assert stage.backend.look_every_s == 6.0
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


# Ending.


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
        Sighting.ENDED,
        "its kernel was deleted, after all that could be saved of it was",
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
    assert stage.look(0).sighting is Sighting.RUNNING
    stage.account.broken.clear()
    stage.backend.kill(ref())
    assert stage.look(0).sighting is Sighting.ENDED


def test_a_kernel_that_one_look_does_not_show_is_not_taken_for_dead_when_it_is_killed(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.account.hidden = {SLUG}
    stage.backend.kill(ref())
    assert stage.look(0).sighting is Sighting.RUNNING
    stage.account.hidden.clear()
    stage.backend.kill(ref())
    assert SLUG not in stage.account.kernel_table


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
    assert stage.look(after_s=8 * HOUR_S, launched_at=launched_at).sighting is Sighting.UNKNOWN
    stage.account.hidden.clear()
    assert [stage.look(launched_at=launched_at) for _ in range(2)][-1].sighting is Sighting.QUEUED


def test_a_last_checkpoint_that_takes_long_to_process_is_waited_for(stage: Stage) -> None:
    stage.running()
    stage.look()
    manifest = stage.deliver(20, last=True, status="Blobs_Received")
    stage.kernel.outputs = {"report.json": report(1, head=manifest.id).to_json()}
    stage.kernel.status = SessionStatus.COMPLETE
    for _ in range(30):  # half an hour
        assert stage.look().sighting is not Sighting.ENDED
    stage.account.process()
    assert [stage.look() for _ in range(2)][-1].sighting is Sighting.ENDED
    assert stage.run.checkpoints.ids() == (manifest.id,)


def test_the_first_session_deletes_no_version_and_uploads_as_often_as_there_is_room(tmp_path: Path) -> None:
    small = {"storage_quota_bytes": 1, "upload_every_s": 60.0}
    stage = Stage(tmp_path, SETTINGS.model_copy(update=small))
    stage.launch(session_spec(limit_s=3600.0))
    assert (stage.job.most_versions, stage.job.upload_every_s) == (1 + 1 + 60, 1800.0)


def test_a_session_that_is_over_keeps_its_kernel_when_it_is_killed(stage: Stage) -> None:
    stage.running(SessionStatus.CANCELLED)
    stage.look()
    stage.backend.kill(ref())
    assert SLUG in stage.account.kernel_table
    assert stage.look(0).sighting is Sighting.ENDED


def test_what_a_kernel_left_in_its_output_is_brought_here_before_it_is_deleted(stage: Stage) -> None:
    from state.checkpoint_store import DirectoryCheckpointStore
    from tests.kaggle_stage import checkpoint_files

    stage.running()
    stage.look()
    worker = DirectoryCheckpointStore(stage.root / "worker")
    manifest = commit_checkpoint(worker, 20)
    stage.kernel.outputs = {f"checkpoint/{name}": body for name, body in checkpoint_files(worker, manifest).items()}
    stage.backend.kill(ref())
    assert stage.run.checkpoints.ids() == (manifest.id,)
    assert stage.run.checkpoints.verify_tensors(manifest.id) == manifest


# Promotion.


def test_a_checkpoint_that_is_only_here_is_brought_to_the_account_before_a_session_starts_from_it(stage: Stage) -> None:
    store = stage.run.checkpoints
    manifest = commit_checkpoint(store, 10)
    start = manifest.expected(store.manifest(manifest.id)[1])
    stage.launch(session_spec(2, start=start))
    assert store.place(manifest.id) == CheckpointPlace(kind="dataset", owner=OWNER, slug=SLUG, version=2)
    push = stage.account.kernel_table["gemma-orch-tamil-s002a1"].push
    assert f"{OWNER}/{SLUG}" in push.dataset_sources
    assert stage.account.count("create_version") == 1


def test_a_launch_from_a_checkpoint_that_has_no_place_waits(stage: Stage) -> None:
    store = stage.run.checkpoints
    manifest = commit_checkpoint(store, 10)
    with pytest.raises(NotLaunchedError, match="not on the account yet"):
        stage.backend.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))


# Its log.


def test_the_log_of_a_running_session_is_followed_not_more_often_than_people_read(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "step 1\n"
    assert stage.backend.read_log(ref(), 0) == ("step 1\n", 7)
    stage.kernel.log += "step 2\n"
    for _ in range(4):
        assert stage.backend.read_log(ref(), 7) == ("", 7)
        stage.clock.advance(1.0)
    stage.clock.advance(2.0)
    assert stage.backend.read_log(ref(), 7) == ("step 2\n", 14)
    assert stage.account.count("follow_log") == 2


def test_the_log_of_a_session_that_is_over_is_kept_here(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "வணக்கம்\n"
    stage.kernel.status = SessionStatus.COMPLETE
    stage.look()
    stage.look()
    assert stage.backend.read_log(ref(), 0)[0] == "வணக்கம்\n"
    stage.account.kernel_table.clear()
    before = stage.account.count()
    assert stage.backend.read_log(ref(), 0) == ("வணக்கம்\n", 8)
    assert stage.account.count() == before
    assert stage.home.run(RUN).attempt(1, 1).log.name == "worker.log"
    assert attempt_name(1, 1) in str(stage.home.run(RUN).attempt(1, 1).log)


def test_a_stream_that_breaks_off_does_not_take_back_what_was_printed(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "one two three"
    assert stage.backend.read_log(ref(), 0) == ("one two three", 13)
    stage.kernel.log = "one"
    stage.clock.advance(6.0)
    assert stage.backend.read_log(ref(), 13) == ("", 13)
