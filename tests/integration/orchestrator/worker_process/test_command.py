from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.interpreter import command_of
from orchestrator.worker_process.command import require_training_extra
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


def test_a_signal_to_end_reaches_the_child_whose_exit_code_is_ours() -> None:
    child = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"
    ours = "import sys; from orchestrator.worker_process.command import run_with_our_terminal as run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", ours, sys.executable, "-c", child]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
    assert process.returncode == 7
