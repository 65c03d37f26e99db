from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ports import AttemptStatus
from state.errors import AmbiguousError, NotLaunchedError, TemporaryError, UserError
from state.kaggle.errors import BusyError, InvalidSourcesError, KaggleQuotaError, SlugTakenError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import control_slug
from state.kaggle.records import AcceleratorQuota, KernelPush
from tests.factories import RUN, after, attempt, commit_checkpoint, run_record, session_spec
from tests.fake_kaggle import OWNER
from tests.kaggle_stage import DATASET, SETTINGS, SLUG, Stage, upload_checkpoint

GPU = SETTINGS.evolve(accelerator="t4x2")
HOUR_S = 3600.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def gpu_stage(root: Path, **values: Any) -> Stage:
    return Stage(root, GPU.evolve(**values))


def test_an_attempt_gets_its_dataset_with_its_spec_and_the_control_dataset(stage: Stage) -> None:
    spec = session_spec()
    stage.launch(spec)
    assert stage.account.dataset_table[DATASET][0].files == {"session.json": spec.to_json()}
    assert stage.account.dataset_table[control_slug(RUN)][0].files.keys() == {"run.json", "data.json", "stop.json"}


def test_nothing_is_pushed_before_its_dataset_is_processed(stage: Stage) -> None:
    stage.account.processing = True
    spec = session_spec()
    for _ in range(30):
        assert stage.backend.make_ready(spec) == f"the dataset {DATASET} to be processed by Kaggle"
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
    stage.account.add_version(DATASET, "Initial release", {"session.json": session_spec(fence=9).to_json()})
    with pytest.raises(UserError, match="of another run named tamil"):
        stage.backend.make_ready(session_spec())


def test_a_dataset_that_an_earlier_version_made_for_the_attempt_is_the_attempts(stage: Stage) -> None:
    """It wrote fewer fields, and wrote them otherwise; it is the same spec."""
    fields = json.loads(session_spec().to_json())
    del fields["reading"], fields["branch"]
    stage.account.add_version(DATASET, "Initial release", {"session.json": json.dumps(fields).encode()})
    assert "another run" not in str(stage.backend.make_ready(session_spec()))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_dataset_of_the_attempts_name_that_holds_no_spec_is_left_alone(stage: Stage, content: bytes) -> None:
    stage.account.add_version(DATASET, "Initial release", {"session.json": content})
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


def test_a_push_says_everything_explicitly(tmp_path: Path) -> None:
    stage = gpu_stage(tmp_path)
    assert stage.launch(session_spec(limit_s=99.2)) == f"{SLUG}/v1"
    push = stage.kernel.push
    assert (push.slug, push.machine_shape, push.internet, push.timeout_s) == (SLUG, "NvidiaTeslaT4", True, 103)
    assert push.dataset_sources == (f"{OWNER}/data-p00", f"{OWNER}/data-p01")
    assert push.kernel_sources == ()
    job = stage.job
    assert (job.owner, job.dataset, job.control, job.start) == (OWNER, DATASET, control_slug(RUN), None)
    assert job.spec == session_spec(limit_s=99.2)


def test_a_session_that_starts_from_a_checkpoint_gets_its_dataset_as_an_input(stage: Stage) -> None:
    stage.record = run_record([attempt(1, backend="kaggle", ended_at=after(0))])
    manifest = upload_checkpoint(stage.account, stage.root / "worker", 10)
    store = stage.run.checkpoints
    assert store.ids() == (manifest.id,)
    stage.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))
    second = stage.account.kernel_table["gemma-orch-tamil-s002a1-k"].push
    assert second.dataset_sources[-1] == f"{OWNER}/{DATASET}"


def test_a_kernel_that_is_there_already_is_looked_at_and_not_pushed_again(stage: Stage) -> None:
    stage.launch()
    with pytest.raises(AmbiguousError):
        stage.backend.launch(session_spec())
    assert stage.account.count("push_kernel") == 1


def test_an_answer_that_was_lost_is_ambiguous_whether_or_not_the_push_arrived(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [AmbiguousError("lost before")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    assert stage.look(launched_at=stage.clock.now(), has_handle=False).sighting is AttemptStatus.UNKNOWN
    looks = [stage.look(after_s=700, launched_at=after(0), has_handle=False)]
    while looks[-1].sighting is not AttemptStatus.MISSING:
        assert "it is unknown whether its push arrived" in looks[-1].detail
        looks.append(stage.look(launched_at=after(0), has_handle=False))
    assert len(looks) <= 6, "two lists of the account's kernels, in turn with the other looks"
    stage.account.failures_after["push_kernel"] = [AmbiguousError("lost after")]
    with pytest.raises(AmbiguousError):
        stage.launch()
    assert stage.look().sighting is AttemptStatus.QUEUED


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
    assert stage.look().sighting is AttemptStatus.QUEUED


def test_a_kernels_name_that_a_dataset_has_is_the_users_to_mend_and_nothing_is_deleted(stage: Stage) -> None:
    stage.account.add_version(SLUG, "somebody else's", {"a.bin": b"1"})
    with pytest.raises(SlugTakenError, match="in use by a dataset"):
        stage.launch()
    assert stage.account.count("delete_kernel", "delete_dataset") == 0


def test_a_datasets_name_that_a_kernel_has_is_refused_at_once(stage: Stage) -> None:
    push = KernelPush(DATASET, "", "None", internet=True, timeout_s=1, dataset_sources=())
    stage.account.push_kernel(push)
    with pytest.raises(SlugTakenError, match="in use by a notebook"):
        stage.backend.make_ready(session_spec())


def test_what_only_the_user_can_mend_is_the_users(stage: Stage) -> None:
    stage.account.failures["push_kernel"] = [UserError("Permission 'kernelSessions.enableInternet' was denied")]
    with pytest.raises(UserError, match="enableInternet"):
        stage.launch()


def test_the_first_session_deletes_no_version_and_uploads_as_often_as_there_is_room(tmp_path: Path) -> None:
    small = {"storage_quota_bytes": 1, "upload_every_s": 60.0}
    stage = Stage(tmp_path, SETTINGS.evolve(**small))
    stage.launch(session_spec(limit_s=3600.0))
    assert (stage.job.most_versions, stage.job.upload_every_s) == (1 + 1 + 60, 1800.0)


def test_a_checkpoint_that_is_only_here_is_brought_to_the_account_before_a_session_starts_from_it(stage: Stage) -> None:
    store = stage.run.checkpoints
    manifest = commit_checkpoint(store, 10)
    start = manifest.expected(store.manifest(manifest.id)[1])
    stage.launch(session_spec(2, start=start))
    assert store.place(manifest.id) == CheckpointPlace(kind="dataset", owner=OWNER, slug=DATASET, version=2)
    push = stage.account.kernel_table["gemma-orch-tamil-s002a1-k"].push
    assert f"{OWNER}/{DATASET}" in push.dataset_sources
    assert stage.account.count("create_version") == 1


def test_a_launch_from_a_checkpoint_that_has_no_place_waits(stage: Stage) -> None:
    store = stage.run.checkpoints
    manifest = commit_checkpoint(store, 10)
    with pytest.raises(NotLaunchedError, match="not on the account yet"):
        stage.backend.launch(session_spec(2, start=manifest.expected(store.manifest(manifest.id)[1])))
