"""A home that version 0.1.0 wrote goes on in this version: a run in progress outlives every upgrade.

`tests/golden/home-0.1.0` is that home, byte for byte: `gemma-orch start --config gemma-orch.toml` was run in an empty home with
the config file that lies in it. It is never written again. A later version that changes what is stored adds a home of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from state.layout import MANIFEST_NAME, HomeLayout, RunLayout
from state.manifest import Manifest
from state.spec import SessionSpec
from state.tensor_files import tensor_entries
from tests.patience import PATIENCE_S
from tests.repository import ROOT
from worker.device import environment, pick_device

GOLDEN = ROOT / "tests" / "golden" / "home-0.1.0"
RUN = "first"
FIRST, HEAD = "step-00000006-s001a1", "step-00000012-s002a1"


class OldHome:
    """A copy of the home, and the commands that its user types after the upgrade."""

    def __init__(self, root: Path) -> None:
        self.layout = HomeLayout(root).run(RUN)
        self._environment = {**os.environ, "GEMMA_ORCH_HOME": str(root), "COLUMNS": "200"}
        shutil.copytree(GOLDEN, root)

    def type(self, *arguments: str) -> str:
        """Type a command that must succeed; return its stdout."""
        result = subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.type(*arguments, "--json"))


@pytest.fixture
def home(tmp_path: Path) -> OldHome:
    return OldHome(tmp_path / "home")


def manifest_of(run: RunLayout, checkpoint_id: str) -> Manifest:
    return Manifest.from_json((run.checkpoints / checkpoint_id / MANIFEST_NAME).read_bytes(), checkpoint_id)


def golden_manifest(checkpoint_id: str) -> Manifest:
    return manifest_of(HomeLayout(GOLDEN).run(RUN), checkpoint_id)


def golden_spec(session: int) -> SessionSpec:
    spec = HomeLayout(GOLDEN).run(RUN).attempt(session, 1).spec
    return SessionSpec.from_json(spec.read_bytes(), str(spec))


def is_the_machine_of_the_golden_home() -> bool:
    """Whether equal bits are promised here: the same torch on the same processor."""
    made, here = golden_manifest(HEAD).environment, environment(golden_spec(2).training, pick_device())
    return (made.torch, made.device) == (here.torch, here.device)


def test_the_home_opens_and_shows_what_it_showed(home: OldHome) -> None:
    view = home.json("status", RUN)
    assert (view["state"], view["step"], view["head"]) == ("finished", 12, HEAD)
    assert view["state_sha256"] == golden_manifest(HEAD).state_sha256
    assert [(row["id"], row["state"]) for row in home.json("checkpoints", RUN)] == [
        (FIRST, "verified"),
        (HEAD, "verified"),
    ]
    home.type("logs", "1")
    home.type("data", "show", "--step", "3", "--decode")


@pytest.mark.parametrize("checkpoint", [FIRST, HEAD])
def test_its_checkpoints_verify(home: OldHome, checkpoint: str) -> None:
    assert home.json("verify", checkpoint)["state_sha256"] == golden_manifest(checkpoint).state_sha256


@pytest.mark.parametrize(("session", "saved"), [(1, FIRST), (2, HEAD)])
def test_what_determines_its_weights_has_the_digest_that_it_had(session: int, saved: str) -> None:
    manifest = golden_manifest(saved)
    assert golden_spec(session).trajectory_sha256(manifest.step) == manifest.trajectory_sha256


def test_it_is_extended_by_a_session_that_starts_from_its_head(home: OldHome) -> None:
    home.type("start", "--name", RUN, "--total-steps", "18")
    view = home.json("status", RUN)
    assert (view["state"], view["step"]) == ("finished", 18)
    newest = manifest_of(home.layout, view["head"])
    assert (newest.parent, newest.session) == (HEAD, 3)


@pytest.mark.parametrize("session", [1, 2])
def test_a_session_of_it_runs_again(home: OldHome, session: int) -> None:
    said = home.type("rerun", str(session), "--run", RUN)
    assert "completed" in said if session == 2 else "all 6 steps of this session are trained" in said
    if is_the_machine_of_the_golden_home():
        original = golden_manifest(FIRST if session == 1 else HEAD)
        rerun = manifest_of(home.layout, original.id.replace("a1", "a2"))
        assert rerun.state_sha256 == original.state_sha256


def test_it_is_exported_with_the_weights_that_it_had(home: OldHome, tmp_path: Path) -> None:
    home.type("export", "--run", RUN, "--format", "safetensors", "--out", str(tmp_path / "out"))
    exported = {entry.name: entry.sha256 for entry in tensor_entries([tmp_path / "out" / "model.safetensors"])}
    trained = {tensor.name: tensor.sha256 for tensor in golden_manifest(HEAD).tensors}
    assert exported == {name.removeprefix("model."): sha for name, sha in trained.items() if name.startswith("model.")}
