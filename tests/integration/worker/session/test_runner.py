from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from state.errors import ErrorClass
from state.report import Outcome, Phase
from state.spec import ExpectedCheckpoint
from tests.patience import wait_until
from tests.repository import ROOT
from tests.sessions import SmallRun


@pytest.fixture
def run(ram_path: Path) -> SmallRun:
    return SmallRun(ram_path)


def first_session(run: SmallRun, steps: int = 4) -> ExpectedCheckpoint:
    """A session of so many steps; what the next one is told to start from."""
    assert run.run(run.spec(1, max_steps=steps)) == 0
    expected = run.expected()
    assert expected is not None
    return expected


def state_file(run: SmallRun, checkpoint: str) -> Path:
    return run.store.folder(checkpoint) / "state.safetensors"


def test_a_limit_on_file_sizes_leaves_the_last_good_checkpoint(run: SmallRun):
    start = first_session(run)
    spec = run.spec(2, start=start)
    limit_bytes = state_file(run, start.id).stat().st_size // 2
    with run.start(spec, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 2, said
    assert "Traceback" not in said
    report = run.report(spec)
    assert report.error_class is ErrorClass.USER
    assert "is full" in report.reason
    assert [entry.name for entry in run.layout.checkpoints.iterdir()] == [start.id]


def test_each_file_of_the_start_checkpoint_is_read_once(run: SmallRun):
    """A file that is looked at twice may be verified and then be another one when it is restored."""
    start = first_session(run)
    spec = run.spec(2, start=start)
    watched = str(run.store.folder(start.id))
    run.write(spec)
    command = [sys.executable, "-m", "tests.open_files", watched, str(run.attempt(spec).spec)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    opened = [Path(line).name for line in result.stdout.splitlines()]
    assert opened.count("state.safetensors") == 1


def test_two_processes_on_one_session_do_no_harm(run: SmallRun):
    spec = run.spec(total_steps=100_000)
    with run.start(spec) as first:
        wait_until(lambda: (beat := run.heartbeat(spec)) is not None and beat.phase is Phase.TRAINING, process=first)
        assert run.run(spec) == 3
        assert f"this session is running already (process {first.pid} on " in run.said[-1]
        first.send_signal(signal.SIGINT)
        said = first.communicate()[1].decode()
    assert first.returncode == 0, said
    report = run.report(spec)
    assert (report.outcome, report.reason) == (Outcome.STOPPED, "SIGINT asked for it")
    assert report.head in run.store.ids()
