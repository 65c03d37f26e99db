from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.session.bundle import bundle
from state.clock import ManualClock
from state.errors import ErrorClass, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.job import CheckpointPlace, KaggleJob
from state.kaggle.names import VersionNote, attempt_kernel_slug
from state.layout import AttemptLayout
from state.report import Outcome, SessionReport
from state.spec import Reading, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint, report, session_spec
from tests.kaggle_clients import USER, connected
from tests.kaggle_jobs import job_of, mount_checkpoint, mount_data
from tests.repository import ROOT
from tests.sessions import SmallRun, make_data
from worker.kaggle.kernel import Kernel, Places, Surroundings, main
from worker.session.runner import Host


class Session:
    """Stands in for the training: writes the report of a session, and remembers what it was told."""

    def __init__(self) -> None:
        self.spec: SessionSpec | None = None
        self.host: Host | None = None
        self.reports: SessionReport | None = report(1, head=None)
        self.before: Callable[[SessionSpec, Host], None] = lambda spec, host: None
        self.code = 0

    def __call__(self, spec_file: Path, host: Host) -> int:
        self.spec, self.host = SessionSpec.from_json(spec_file.read_bytes(), "the spec"), host
        self.before(self.spec, host)
        if self.reports is not None:
            (spec_file.parent / "report.json").write_bytes(self.reports.to_json())
        return self.code


class Bench:
    """A kernel's folders, with its data mounted."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root / "input", root / "working", root / "scratch")
        self.places.working.mkdir(parents=True)
        self.data = make_data(root / "data")
        mount_data(root / "data", self.places.input, self.data)
        self.store = DirectoryCheckpointStore(root / "elsewhere")
        self.said: list[str] = []
        self.exits: list[int] = []
        self.session = Session()
        self.around = Surroundings(
            places=self.places,
            clock=ManualClock(),
            started_s=0.0,
            connect=self._connect,
            credentials=lambda: Credentials("the session's token", user=USER, token="t"),
            check_machine=lambda job: f"a {job.accelerator}",
            run_session=self.session,
            exit_at_once=self.exits.append,
            say=self.said.append,
        )
        self.connected: list[Credentials] = []

    def _connect(self, credentials: Credentials) -> KaggleApi:
        self.connected.append(credentials)
        raise TemporaryError("there is no network")

    def spec(self, **values: Any) -> SessionSpec:
        spec = session_spec(**values)
        version = spec.data[0].evolve(data_sha256=self.data.data_sha256)
        return spec.evolve(data=(version,))

    def run(self, job: KaggleJob, **around: Any) -> int:
        return Kernel(job, replace(self.around, **around)).run()

    def report(self) -> SessionReport:
        path = AttemptLayout(self.places.working).report
        return SessionReport.from_json(path.read_bytes(), str(path))

    def start(self) -> tuple[SessionSpec, KaggleJob]:
        """A job that starts from a checkpoint."""
        made = commit_checkpoint(self.store, 20)
        spec = self.spec(session=2, start=made.expected(self.store.manifest(made.id)[1]))
        return spec, job_of(spec, start=CheckpointPlace(kind="dataset", owner=USER, slug="gemma-orch-tamil-s001a1", version=1))

    @property
    def checkpoints(self) -> DirectoryCheckpointStore:
        return DirectoryCheckpointStore(self.places.scratch / "checkpoints", may_link=True)


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
        raise TemporaryError("asked for 2 GPUs of the kind T4, got another machine: the machine has no GPU")

    assert bench.run(job_of(bench.spec(), accelerator="t4x2"), check_machine=another) == 0
    assert bench.session.spec is None
    told = bench.report()
    assert (told.outcome, told.error_class, told.head) == (Outcome.FAILED, ErrorClass.INFRA, None)
    assert "got another machine" in told.reason


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


def test_behind_a_stale_mount_the_start_is_fetched_by_its_version(bench: Bench, tmp_path: Path):
    spec, job = bench.start()
    assert spec.start is not None
    flat = mount_checkpoint(bench.store, spec.start.id, tmp_path / "flat")
    (tmp_path / "kaggle").mkdir()
    with connected(tmp_path / "kaggle", processing_s=1.0) as kaggle:
        kaggle.create_dataset("gemma-orch-tamil-s001a1", {path.name: path.read_bytes() for path in flat.iterdir()})
        key = Credentials("key", user=USER, key=kaggle.emulator.settings.key)
        kaggle.create_dataset(job.dataset, {"session.json": b"{}"})
        assert bench.run(job, connect=lambda _: KaggleApi(key)) == 0
    assert bench.checkpoints.verify(spec.start.id, spec.start).step == 20
    assert any("is fetched from" in line for line in bench.said)


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
    places = Places.of({"TMPDIR": "/somewhere", "KAGGLE_CACHE_MOUNT_FOLDER": "/mounts"})
    assert (places.input, places.scratch) == (Path("/mounts"), Path("/somewhere/gemma-orch"))
    assert places.working in (tmp_path, Path("/kaggle/working"))
    assert Places.of({}).input == Path("/kaggle/input")


def test_a_job_that_makes_no_sense_is_told(capsys: pytest.CaptureFixture[str]):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main("{}", {}) == 4
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "the kernel's job is not a valid KaggleJob" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        ("", 4, "OMP_DYNAMIC=TRUE makes products of matrices wrong: it is set to FALSE here"),
        (
            "import torch",
            2,
            "OMP_DYNAMIC=TRUE is set, with which products of matrices come out wrong, and torch is loaded already",
        ),
    ],
    ids=["in time", "too late"],
)
def test_a_kernel_keeps_its_threads_or_says_that_it_is_too_late(before: str, code: int, said: str):
    program = f"{before}\nimport os, sys\nfrom worker.kaggle.kernel import main\nsys.exit(main('{{}}', os.environ))"
    environment = {**os.environ, "OMP_DYNAMIC": "TRUE"}
    kernel = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (kernel.returncode, said in kernel.stderr) == (code, True), kernel.stderr


def test_a_pushed_kernel_trains_uploads_and_ends_well_when_it_is_asked_to(tmp_path: Path, ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.spec(total_steps=1_000_000, limit_s=300.0, checkpoint_every_s=0.2)
    job = job_of(spec, upload_every_s=0.5, settle_s=0.5)
    with connected(tmp_path, queue_s=0.0, processing_s=0.1) as kaggle:
        data = {path.name: path.read_bytes() for path in run.layout.data.iterdir()}
        kaggle.create_dataset("some-data", data)
        kaggle.create_dataset(job.dataset, {"session.json": b"{}"})
        kernel, sources = attempt_kernel_slug(spec.run, spec.session, spec.attempt), [f"{USER}/some-data"]
        pushed = kaggle.push(kernel, bundle(job, ROOT), machine_shape="None", dataset_data_sources=sources)
        assert pushed.version_number == 1
        emulator = kaggle.emulator
        emulator.wait(lambda: emulator.journal.of("CreateDatasetVersion"), real_s=60.0)
        session = emulator.sessions.all()[0]
        emulator.sessions.send_signal(session, signal.SIGTERM)
        assert session.done.wait(60.0)
        log = "".join(str(line["data"]) for line in session.log)
        assert session.outcome == "COMPLETE", log
        emulator.wait(
            lambda: not emulator.datasets.find(f"{USER}/{job.dataset}", emulator.clock.now()).is_processing(emulator.clock.now())
        )
        outputs = {file.name: file.path for file in session.outputs}
        told = SessionReport.from_json(outputs["report.json"].read_bytes(), "the report")
        assert (told.outcome, told.reason) == (Outcome.STOPPED, "SIGTERM asked for it")
        newest = max(kaggle.dataset(job.dataset).versions, key=lambda version: version.version_number)
        note = VersionNote.parse(newest.version_notes)
        assert note is not None
        assert note.checkpoint == told.head
        assert f"{told.head}.manifest.json" in kaggle.files(job.dataset)
        assert {"metrics.jsonl", "heartbeat.json", "session.json"} <= outputs.keys()
        assert not any(name.startswith("checkpoint/") for name in outputs)
        assert emulator.leaks() == []
