from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.worker_process.command import command_of, require_training_extra
from tests.repository import ROOT


def test_what_lies_where_the_user_stands_is_not_run_instead_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("worker.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = subprocess.run(command_of("worker", "data", "show", "--help"), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_in_a_checkout_our_packages_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "-P" not in command_of("worker")


def test_the_training_extra_is_here() -> None:
    require_training_extra()
