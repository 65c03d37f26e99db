from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.repository import ROOT


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The reference scenario, played once undisturbed and once for every side effect after which its controller is killed."""
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None, prefix="gemma-orch-test-") as folder:
        answer = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.chain.reference_scenario", folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_the_reference_scenario_holds_what_it_is_meant_to_hold(played: Any) -> None:
    reference = played["reference"]
    assert [(a["session"], a["attempt"], a["outcome"]) for a in reference["attempts"]] == [
        (1, 1, "budget"),
        (2, 1, "lost"),
        (3, 1, "budget"),
        (4, 1, "failed"),
        (4, 2, "budget"),
        (5, 1, "completed"),
        (2, 2, "budget"),
    ]
    assert {known["state"] for known in reference["checkpoints"]} == {"verified", "pruned", "quarantined"}
    assert len([name for name in reference["leftovers"] if name.startswith(".quarantined-")]) == 2
    assert reference["attempts"][-1]["comparison"].startswith("identical to step-00000040-s002a1")
    assert played["kills"] > 100


def test_a_controller_killed_after_any_side_effect_leaves_a_run_that_ends_the_same(played: Any) -> None:
    assert played["differences"] == []


def test_no_kill_makes_an_attempt_be_launched_twice(played: Any) -> None:
    assert set(played["reference"]["launches"].values()) == {1}  # and every kill ends with the same count
