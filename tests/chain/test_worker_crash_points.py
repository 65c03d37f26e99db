from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.crash_points import STEPS
from tests.repository import ROOT
from tests.sessions import SmallRun


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None, prefix="gemma-orch-test-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.crash_points", str(Path(folder) / "run")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_session_is_killed_after_every_side_effect_it_has(lines: list[dict[str, object]]):
    assert [line["ended"] for line in lines] == [-signal.SIGKILL] * (len(lines) - 1) + [0]
    assert len(lines) > 5 * 5  # five checkpoints, each of which is written, synced, renamed and committed


def test_the_same_command_again_reaches_the_same_state(lines: list[dict[str, object]], ram_path: Path):
    straight = SmallRun(ram_path, total_steps=STEPS)
    assert straight.run(straight.spec()) == 0
    newest = straight.newest()
    assert newest is not None
    assert {(line["again"], line["step"], line["state_sha256"]) for line in lines} == {(0, STEPS, newest.state_sha256)}


def test_no_half_made_checkpoint_is_ever_taken_for_one(lines: list[dict[str, object]]):
    assert [line["corrupt"] for line in lines] == [[]] * len(lines)


def test_nothing_half_written_stays_behind(lines: list[dict[str, object]]):
    assert [line["hidden"] for line in lines] == [[]] * len(lines)


def test_at_least_two_checkpoints_are_kept(lines: list[dict[str, object]]):
    assert min(int(str(line["kept"])) for line in lines) >= 2
