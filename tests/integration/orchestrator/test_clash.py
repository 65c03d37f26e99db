from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.clash import PACKAGES, clashes, find_clashes
from tests.repository import ROOT


def install(folder: Path, name: str, *files: str) -> None:
    """Write files as an installer does, with their digests in RECORD."""
    record = []
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# of {name}\n")
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        record.append(f"{file},sha256={digest},{path.stat().st_size}\n")
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("".join(record) + "state/__pycache__/x.pyc,,\n" * (name == "gemma-orch"))


def found(site: Path, **others: str) -> list[str]:
    origins = {package: str(site / package / "__init__.py") for package in PACKAGES}
    return list(clashes(site, {**origins, **others}, importlib.metadata.distributions(path=[str(site)])))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with gemma-orch and something that has nothing to do with it."""
    install(tmp_path, "gemma-orch", *(f"{package}/__init__.py" for package in PACKAGES), "state/errors.py")
    install(tmp_path, "stateful", "stateful/state/__init__.py", "workers.py")
    return tmp_path.resolve()


def test_as_installed_there_is_no_clash(site: Path) -> None:
    assert found(site) == []
    assert find_clashes() == (), "nor in this very environment"


@pytest.mark.parametrize("file", ["state/__init__.py", "state/other.py", "state.py"])
def test_another_distribution_with_a_package_of_our_name_is_named(site: Path, file: str) -> None:
    install(site, "other-state", file)
    assert "other-state 1.0 installed state into the same folder" in found(site)


def test_a_file_that_was_overwritten_or_removed_is_named(site: Path) -> None:
    (site / "state" / "errors.py").write_text("# of another\n")
    assert found(site) == ["files changed since installation: 1, such as state/errors.py"]
    (site / "worker" / "__init__.py").unlink()
    assert found(site) == ["files changed since installation: 2, such as worker/__init__.py, state/errors.py"]


def test_a_distribution_elsewhere_takes_nothing(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    install(elsewhere, "other-state", "state/__init__.py")
    origins = {package: str(site / package / "__init__.py") for package in PACKAGES}
    assert list(clashes(site, origins, importlib.metadata.distributions(path=[str(elsewhere)]))) == []


def test_a_package_that_comes_first_is_named_with_its_place(site: Path) -> None:
    assert found(site, worker="/mine/worker.py") == [f"worker is found at /mine/worker.py, not in {site}"]
    assert next(clashes(site, {}, ())) == f"orchestrator is found at nowhere, not in {site}"


def gemma_orch(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Type a command in a folder as the installed script does, optionally with another folder on the path."""
    code = "import sys; from orchestrator.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "GEMMA_ORCH_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join(str(each) for each in (path, ROOT) if each is not None),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_doctor_names_a_worker_that_hides_ours_and_what_to_do(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "worker.py").write_text("raise SystemExit('not ours')")
    result = gemma_orch(tmp_path, "doctor", "--json", path=mine)
    row = {finding["subject"]: finding for finding in json.loads(result.stdout)}["packages"]
    assert (result.returncode, row["ok"]) == (2, False)
    assert f"worker is found at {mine / 'worker.py'}" in row["found"]
    assert "uv tool install" in row["remedy"]


def test_where_state_is_another_package_every_command_says_so(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "state.py").write_text("")
    result = gemma_orch(tmp_path, "status", path=mine)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert f"gemma-orch cannot import its package state: Python finds {mine / 'state.py'}" in result.stderr


def test_files_of_the_users_with_our_names_break_no_command(tmp_path: Path) -> None:
    for name in ("worker", "state", "orchestrator", "random", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    doctor = gemma_orch(tmp_path, "doctor", "--json")
    assert {finding["subject"]: finding["ok"] for finding in json.loads(doctor.stdout)}["packages"], doctor.stdout
    for command, exit_code in ((("status",), 2), (("session", "nowhere"), 2), (("prepare", "--help"), 0)):
        result = gemma_orch(tmp_path, *command)
        assert (result.returncode, "not ours" in result.stdout + result.stderr) == (exit_code, False), result.stderr
