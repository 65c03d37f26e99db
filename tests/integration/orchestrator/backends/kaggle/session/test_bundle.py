"""The script that is pushed: one file that trains wherever the image has the modules for it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.session.bundle import MAX_SCRIPT_BYTES, bundle
from state.errors import ErrorClass, UserError
from state.layout import AttemptLayout
from state.report import Outcome, SessionReport
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import session_spec
from tests.kaggle_emulator.machines import nvidia_smi
from tests.kaggle_jobs import job_of, mount_data
from tests.patience import PATIENCE_S
from tests.repository import ROOT
from tests.sessions import SmallRun, another_torch
from worker.device import code_sha256
from worker.kaggle.inputs import Mounts, find_checkpoint

SCRIPT_BYTES = 260_000
PYTHON_3_12 = next(iter(sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python"))), None) or shutil.which("python3.12")


def unpacked(script: str) -> dict[str, bytes]:
    code = re.search('^CODE = "(.*)"$', script, re.MULTILINE)
    assert code is not None
    with zipfile.ZipFile(io.BytesIO(lzma.decompress(base64.b85decode(code[1])))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def run_script(script: str, folder: Path, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a kernel: in a folder of its own, without a credential, and nothing of this checkout in reach."""
    (folder / "working").mkdir(parents=True)
    (folder / "temp").mkdir()
    path = folder / "script.py"
    path.write_text(script)
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder / "temp"),
        "KAGGLE_CACHE_MOUNT_FOLDER": str(folder / "input"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return subprocess.run(
        [python, str(path)],
        cwd=folder / "working",
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def report_in(folder: Path) -> SessionReport:
    return SessionReport.from_json((folder / "working" / "report.json").read_bytes(), "the report")


def test_the_same_job_gives_the_same_script():
    job = job_of(session_spec())
    assert bundle(job, ROOT) == bundle(job, ROOT)


def test_the_script_is_small_and_one_line_of_it_is_the_job():
    job = job_of(session_spec())
    script = bundle(job, ROOT)
    assert len(script.encode()) <= SCRIPT_BYTES
    assert f"JOB = {job.model_dump_json()!r}" in script.splitlines()


def test_the_code_in_the_script_has_the_digest_of_the_source(tmp_path: Path):
    for name, content in unpacked(bundle(job_of(session_spec()), ROOT)).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert code_sha256(tmp_path) == code_sha256(ROOT)


def test_code_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="the worker's code cannot be read"):
        bundle(job_of(session_spec()), tmp_path)


def test_a_script_that_kaggle_would_refuse_is_refused_here(tmp_path: Path):
    for name in ("worker/kaggle/bootstrap.py", "state/large.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(MAX_SCRIPT_BYTES))
    (tmp_path / "worker/kaggle/bootstrap.py").write_text("")
    with pytest.raises(UserError, match=r"the script of tamil s001a1 is too large: \d+ bytes"):
        bundle(job_of(session_spec()), tmp_path)


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(sys.executable, id="this Python"),
        pytest.param(PYTHON_3_12, id="3.12", marks=pytest.mark.skipif(PYTHON_3_12 is None, reason="needs a Python 3.12")),
    ],
)
def test_an_image_without_the_modules_says_which_and_reports_it(tmp_path: Path, base: str | Path):
    subprocess.run([base, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    script = bundle(job_of(session_spec()), ROOT)
    compiled = "import sys, pathlib\nfor path in sys.argv[1:]: compile(pathlib.Path(path).read_bytes(), path, 'exec')"
    sources = [str(path) for package in ("state", "worker") for path in sorted((ROOT / package).rglob("*.py"))]
    subprocess.run([python, "-c", compiled, *sources], check=True)
    result = run_script(script, tmp_path, str(python))
    assert result.returncode == 0, result.stderr
    assert "this image lacks what gemma-orch needs: the Python module pydantic, the Python module torch" in result.stderr
    report = report_in(tmp_path)
    assert (report.outcome, report.error_class, report.start_step) == (Outcome.FAILED, ErrorClass.USER, 0)
    assert "torch" in report.reason


@pytest.mark.parametrize("accelerator", ["cpu", "t4x2"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("__version__ = '2.16.0+cu130'", "torch is 2.16.0+cu130, which gemma-orch does not support"),
        ("raise ImportError('libcuda.so.1: no such file')", "torch is installed, but cannot be imported"),
    ],
    ids=["too new", "broken"],
)
def test_a_torch_of_the_image_that_cannot_be_used_is_reported(accelerator: str, code: str, words: str, ram_path: Path):
    run = SmallRun(ram_path / "run")
    kernel = ram_path / "kernel"
    mount_data(run.layout.data, kernel / "input", run.data)
    tool = ram_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(nvidia_smi("NvidiaTeslaT4"), encoding="ascii")
    tool.chmod(0o755)
    result = run_script(
        bundle(job_of(run.spec(), accelerator=accelerator), ROOT),
        kernel,
        PATH=f"{tool.parent}:{os.environ['PATH']}",
        PYTHONPATH=another_torch(ram_path / "other", code),
    )
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    report = report_in(kernel)
    assert (report.outcome, report.error_class, report.head) == (Outcome.FAILED, ErrorClass.USER, None)
    assert words in report.reason
    assert "a newer gemma-orch where the controller runs" in report.reason


def test_a_script_trains_offline_and_leaves_its_checkpoint_in_the_output(tmp_path: Path, ram_path: Path):
    run = SmallRun(ram_path)
    spec = run.spec(max_steps=3, limit_s=120.0)
    mount_data(run.layout.data, tmp_path / "input", run.data)
    result = run_script(bundle(job_of(spec), ROOT), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the account is out of reach" in result.stderr
    working = AttemptLayout(tmp_path / "working")
    report = report_in(tmp_path)
    assert (report.outcome, report.end_step, report.head) == (Outcome.BUDGET, 3, "step-00000003-s001a1")
    assert {path.name for path in working.root.iterdir()} >= {"report.json", "metrics.jsonl", "heartbeat.json", "session.json"}
    assert len(working.metrics.read_text().splitlines()) == 3
    output = working.root / "checkpoint"
    manifest = json.loads((output / f"{report.head}.manifest.json").read_bytes())
    assert manifest["environment"]["code_sha256"] == code_sha256(ROOT)
    # What a kernel leaves, the next one finds where it is mounted; and it is what a session of this machine has trained.
    assert run.run(spec) == 0
    trained = run.store.verify(str(report.head))
    assert trained.state_sha256 == manifest["state_sha256"]
    found = DirectoryCheckpointStore(tmp_path / "found", may_link=True)
    sha256 = hashlib.sha256((output / f"{report.head}.manifest.json").read_bytes()).hexdigest()
    expected = trained.expected(sha256)
    assert find_checkpoint(Mounts(working.root), expected, found.folder(expected.id))
    found.verify(expected.id, expected)
