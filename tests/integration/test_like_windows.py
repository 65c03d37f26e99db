"""The controller where fcntl, /proc, signals and descriptors of folders are absent; see `tests/like_windows.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.kaggle_chain import RUN, KaggleRun
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.settings import Settings
from tests.repository import ROOT
from tests.terminal import fill_with_runs
from tests.token_data import write_data


class Machine:
    """Types commands into a gemma-orch that lacks what Windows lacks."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._environment = {**os.environ, "GEMMA_ORCH_HOME": str(self.home), "HOME": str(folder), "COLUMNS": "160"}

    def type(self, *arguments: str, expect: int = 0, encoding: str = "cp1252") -> subprocess.CompletedProcess[str]:
        """Type a command, and check its exit code; its output goes into a pipe, as Windows encodes that."""
        result = subprocess.run(
            [sys.executable, "-m", "tests.like_windows", *arguments],
            cwd=ROOT,
            env={**self._environment, "PYTHONIOENCODING": encoding},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        assert result.returncode == expect, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_module_of_the_controller_imports(machine: Machine) -> None:
    assert machine.type().stdout == "imported\n"


def test_help_doctor_init_and_status_work(machine: Machine, tmp_path: Path) -> None:
    assert "Train your own Gemma 3" in machine.type("--help").stdout
    rows = {row["subject"]: row for row in json.loads(machine.type("doctor", "--json", expect=2).stdout)}
    assert "need Linux or macOS" in rows["system"]["found"]
    assert all(row["ok"] for subject, row in rows.items() if subject != "system")
    config = tmp_path / "gemma-orch.toml"
    machine.type("init", str(config), "--backend", "kaggle", "--owner", "me", "--name", "mine")
    assert 'backend = "kaggle"' in config.read_text(encoding="utf-8")
    assert "no run in" in machine.type("status", expect=2).stderr
    assert machine.type("status", "--all").stderr == ""


@pytest.mark.parametrize(
    "command", [("start", "--backend", "local", "--total-steps", "5"), ("rerun", "1", "--run", "finished-run")]
)
def test_a_session_on_this_machine_is_refused_in_words(machine: Machine, command: tuple[str, ...]) -> None:
    fill_with_runs(machine.home)
    said = machine.type(*command, expect=2).stderr
    assert "sessions on this machine need Linux or macOS" in said
    assert "--backend kaggle runs everywhere" in said


@pytest.mark.parametrize("command", ["demo", "prove"])
def test_what_the_worker_does_is_refused_in_words(machine: Machine, command: str) -> None:
    assert "on this machine needs Linux or macOS" in machine.type(command, expect=2).stderr


def test_a_run_whose_sessions_ran_on_another_machine_is_shown(machine: Machine) -> None:
    fill_with_runs(machine.home)
    assert "time is up" in machine.type("status", "finished-run", "--all").stdout


def test_a_whole_run_is_begun_shown_extended_and_stopped(machine: Machine, tmp_path: Path) -> None:
    write_data(tmp_path / "data", {"தமிழ்": np.arange(4000) % 2000 + 4}, vocab_size=2048)
    run = ("toy", "start", "--name", "tin-robot", "--backend", "toy", "--data", str(tmp_path / "data"))
    assert "finished" in machine.type(*run, "--total-steps", "20").stdout
    view = json.loads(machine.type("toy", "status", "--json").stdout)
    assert (view["state"], view["step"]) == ("finished", 20)
    assert machine.type("toy", "verify").stdout.startswith(view["head"])
    assert view["head"] in machine.type("toy", "checkpoints").stdout
    machine.type("toy", "start", "--name", "tin-robot", "--total-steps", "30")
    assert "no run is active" in machine.type("toy", "tick").stderr
    machine.type("toy", "logs")
    assert "already finished, at step 30" in machine.type("toy", "stop").stdout


class RunLikeWindows(KaggleRun):
    """A user whose controller lacks what Windows lacks; the emulator's kernels run as they do on Kaggle, on Linux."""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.like_windows", *arguments]


def test_a_chain_on_kaggle_is_begun_watched_verified_and_gone_on_with_by_another_machine(tmp_path: Path) -> None:
    settings = Settings(timescale=1.0, start_at=datetime.now(UTC), processing_s=0.2, queue_s=0.1)
    with KaggleEmulator(tmp_path, settings) as emulator:
        run = RunLikeWindows(tmp_path / "mine", emulator, total_steps=8, session_steps=4)
        run.prepare()
        assert "ok" in run.type("doctor", "--backend", "kaggle", expect=0)
        run.type("start", "--config", str(run.config))
        view = json.loads(run.type("status", "--json"))
        assert (view["state"], view["step"], len(view["sessions"])) == ("finished", 8, 2)
        assert view["head"] in run.type("verify")
        run.type("logs")
        assert "no run is active" in run.type("tick")
        assert "on this machine needs Linux or macOS" in run.type("publish", expect=2)
        other = RunLikeWindows(tmp_path / "other", emulator, total_steps=8, session_steps=4)
        other.type("adopt", f"tester/{RUN}")
        assert view["head"] in other.type("checkpoints")
        assert emulator.errors == []
