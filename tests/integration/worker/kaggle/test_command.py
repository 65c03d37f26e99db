from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from state.report import Outcome, SessionReport
from tests.factories import session_spec
from tests.kaggle_jobs import job_of
from tests.repository import ROOT
from worker.__main__ import main


def test_a_job_that_is_not_there_is_no_stack_trace(capsys: pytest.CaptureFixture[str]):
    assert main(["kaggle", "nowhere/job.json"]) == 2
    assert "nowhere/job.json cannot be read" in capsys.readouterr().err


def test_a_jobs_folder_takes_the_outputs(tmp_path: Path):
    (tmp_path / "job.json").write_bytes(job_of(session_spec()).to_json())
    command = [sys.executable, "-m", "worker", "kaggle", str(tmp_path / "job.json")]
    places = ["--input", str(tmp_path / "input"), "--scratch", str(tmp_path / "scratch")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    done = subprocess.run([*command, *places], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = SessionReport.from_json((tmp_path / "report.json").read_bytes(), "the report")
    assert report.outcome is Outcome.FAILED
    assert f"below {tmp_path / 'input'}" in report.reason
