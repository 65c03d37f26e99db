from __future__ import annotations

import signal
from pathlib import Path

import pytest

from state.errors import ErrorClass, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.job import KaggleJob
from state.report import Outcome
from state.spec import Reading, SessionSpec
from tests.factories import commit_checkpoint, report, session_spec
from tests.kaggle_clients import USER
from tests.kaggle_jobs import job_of, mount_checkpoint
from tests.kernel_bench import Bench
from worker.kaggle.kernel import KernelPaths, main
from worker.session.runner import Host


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_session_gets_this_machines_folders(bench: Bench):
    spec = bench.spec(cache_dir="/home/me/cache", reading=Reading(scratch_dir="/home/me/fast", scratch_bytes=5))
    assert bench.run(job_of(spec)) == 0
    told = bench.session.spec
    assert told is not None
    scratch = bench.places.scratch
    assert Path(told.checkpoints_dir) == scratch / "checkpoints"
    assert told.cache_dir == str(scratch / "cache")
    assert told.reading == Reading(scratch_dir=str(scratch / "blocks"), scratch_bytes=5)
    assert (scratch / "blocks").is_dir()
    assert (Path(told.data[0].data_dir) / "data.json").exists()
    assert told.trajectory_sha256(0) == spec.trajectory_sha256(0)


def test_what_is_not_asked_for_is_left_out(bench: Bench):
    bench.run(job_of(bench.spec()))
    told = bench.session.spec
    assert told is not None
    assert (told.cache_dir, told.reading) == (None, Reading())


def test_another_machine_is_given_back_at_once(bench: Bench):
    def another(job: KaggleJob) -> str:
        raise TemporaryError("Kaggle gave another machine than 2 x T4: the machine has no GPU")

    assert bench.run(job_of(bench.spec(), accelerator="t4x2"), check_machine=another) == 0
    assert bench.session.spec is None
    told = bench.report()
    assert (told.outcome, told.error_class, told.head) == (Outcome.FAILED, ErrorClass.INFRA, None)
    assert "gave another machine" in told.reason


def test_a_missing_module_is_the_users_to_mend(bench: Bench):
    def without_torch(job: KaggleJob) -> str:
        raise ModuleNotFoundError("no torch", name="torch")

    assert bench.run(job_of(bench.spec()), check_machine=without_torch) == 0
    assert bench.report().error_class is ErrorClass.USER


def test_missing_data_is_reported(bench: Bench):
    assert bench.run(job_of(session_spec())) == 0
    told = bench.report()
    assert told.error_class is ErrorClass.DATA
    assert "gemma-orch upload" in told.reason


def test_a_disk_that_takes_nothing_is_reported(bench: Bench):
    bench.places.scratch.write_text("no folder")
    assert bench.run(job_of(bench.spec())) == 0
    assert bench.report().error_class is ErrorClass.INFRA
    assert "Traceback" in bench.said[-1]


def test_a_report_that_cannot_be_written_is_no_success(bench: Bench):
    (bench.places.working / "report.json").mkdir()
    assert bench.run(job_of(session_spec())) == 4
    assert "the report cannot be written" in bench.said[-1]


def test_the_start_is_taken_from_its_mount(bench: Bench):
    spec, job = bench.start()
    assert spec.start is not None
    mount_checkpoint(bench.store, spec.start.id, bench.places.input / "datasets" / USER / "gemma-orch-tamil-s001a1")
    bench.run(job)
    assert bench.checkpoints.verify(spec.start.id, spec.start).step == 20


def test_a_stale_mount_is_reported_where_nothing_can_be_fetched(bench: Bench):
    _, job = bench.start()
    assert bench.run(job) == 0
    told = bench.report()
    assert (told.error_class, told.start_step, told.end_step) == (ErrorClass.INFRA, 20, 20)
    assert "stale mount" in told.reason


def test_without_an_account_the_last_checkpoint_is_left_in_the_output(bench: Bench):
    def train(spec: SessionSpec, host: Host) -> None:
        made = commit_checkpoint(bench.checkpoints, 20)
        host.committed(made.id)
        bench.session.reports = report(1, head=made.id)

    bench.session.before = train
    assert bench.run(job_of(bench.spec())) == 0
    assert any("the account is out of reach: there is no network" in line for line in bench.said)
    assert len(list((bench.places.working / "checkpoint").iterdir())) == 3


def test_the_budget_keeps_the_time_for_the_delivery(bench: Bench):
    bench.run(job_of(bench.spec()), connect=lambda _: KaggleApi(Credentials("x", user=USER, token="x")))
    assert bench.session.host is not None
    assert bench.session.host.delivery_reserve_s() == pytest.approx(10.0)


def test_a_session_that_hangs_brings_home_what_it_has(bench: Bench):
    def hang(spec: SessionSpec, host: Host) -> None:
        made = commit_checkpoint(bench.checkpoints, 20)
        host.committed(made.id)
        hung = report(1, head=made.id, outcome=Outcome.HUNG)
        (bench.places.working / "report.json").write_bytes(hung.to_json())
        host.exit_at_once(3)

    bench.session.before = hang
    bench.run(job_of(bench.spec()))
    assert bench.exits == [0]
    assert (bench.places.working / "checkpoint").is_dir()


@pytest.mark.parametrize(("code", "kernels"), [(0, 3), (4, 4)])
def test_a_session_without_a_report_is_no_success(bench: Bench, code: int, kernels: int):
    bench.session.reports, bench.session.code = None, code
    assert bench.run(job_of(bench.spec())) == kernels
    assert "has left no report" in bench.said[-1]


def test_a_session_that_failed_and_says_so_keeps_its_files(bench: Bench):
    bench.session.code = 4
    assert bench.run(job_of(bench.spec())) == 0


def test_the_session_uses_the_platforms_credentials(bench: Bench):
    bench.run(job_of(bench.spec()))
    assert [found.source for found in bench.connected] == ["the session's token"]


@pytest.mark.parametrize("place", ["datasets/me/secrets", "secrets"])
def test_a_users_own_token_takes_their_place_and_is_never_said(bench: Bench, place: str):
    (bench.places.input / place).mkdir(parents=True)
    (bench.places.input / place / "token").write_text("KGAT_secret\n")
    bench.run(job_of(bench.spec(), token_dataset="me/secrets"))
    assert [(found.user, found.token) for found in bench.connected] == [("me", "KGAT_secret")]
    assert "KGAT_secret" not in "\n".join(bench.said)


def test_a_token_that_is_not_there_leaves_the_output(bench: Bench):
    assert bench.run(job_of(bench.spec(), token_dataset="me/secrets")) == 0
    assert bench.connected == []
    assert any("the dataset me/secrets is not mounted" in line for line in bench.said)


def test_a_session_without_a_token_leaves_the_output(bench: Bench):
    def none() -> Credentials:
        raise UserError("the session has no token")

    assert bench.run(job_of(bench.spec()), credentials=none) == 0
    assert any("the session has no token" in line for line in bench.said)


def test_the_folders_are_those_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    places = KernelPaths.of({"TMPDIR": "/somewhere", "KAGGLE_CACHE_MOUNT_FOLDER": "/mounts"})
    assert (places.input, places.scratch) == (Path("/mounts"), Path("/somewhere/gemma-orch"))
    assert places.working in (tmp_path, Path("/kaggle/working"))
    assert KernelPaths.of({}).input == Path("/kaggle/input")


def test_a_job_that_makes_no_sense_is_told(capsys: pytest.CaptureFixture[str]):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main("{}", {}) == 4
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "the kernel's job is not a valid KaggleJob" in capsys.readouterr().err
