from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.session.bundle import bundle
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.names import VersionNote, attempt_kernel_slug
from state.report import Outcome, SessionReport
from tests.kaggle_clients import USER, connected
from tests.kaggle_jobs import job_of, mount_checkpoint
from tests.kernel_bench import Bench
from tests.patience import PATIENCE_S
from tests.repository import ROOT
from tests.sessions import SmallRun


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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


@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        ("", 4, "OMP_DYNAMIC=TRUE makes products of matrices wrong: it is set to FALSE here"),
        (
            "import torch",
            2,
            "OMP_DYNAMIC=TRUE makes products of matrices wrong, and torch is loaded already",
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
    spec = run.spec(total_steps=1_000_000, limit_s=36_000.0, checkpoint_every_s=0.2)
    job = job_of(spec, upload_every_s=0.5, settle_s=0.5)
    with connected(tmp_path, timescale=1.0, queue_s=0.0, processing_s=0.1) as kaggle:
        data = {path.name: path.read_bytes() for path in run.layout.data.iterdir()}
        kaggle.create_dataset("some-data", data)
        kaggle.create_dataset(job.dataset, {"session.json": b"{}"})
        kernel, sources = attempt_kernel_slug(spec.run, spec.session, spec.attempt), [f"{USER}/some-data"]
        pushed = kaggle.push(kernel, bundle(job, ROOT), machine_shape="None", dataset_data_sources=sources)
        assert pushed.version_number == 1
        emulator = kaggle.emulator
        emulator.wait(lambda: emulator.journal.of("CreateDatasetVersion"))
        session = emulator.sessions.all()[0]
        emulator.sessions.send_signal(session, signal.SIGTERM)
        assert session.done.wait(PATIENCE_S)
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
