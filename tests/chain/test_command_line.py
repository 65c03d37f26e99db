"""Whole runs through the real command line, with real workers and a model so small that starting Python takes longest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring.status import observe_run
from orchestrator.wiring import wire
from tests.patience import PATIENCE_S, wait_until
from tests.repository import ROOT

CONFIG = """
[run]
name = "small"
total_steps = 6

[model]
num_layers = 2
hidden_size = 32
intermediate_size = 64
num_heads = 2
num_kv_heads = 1
head_dim = 16
sliding_window = 8
local_layers_per_global = 1

[data]
sequence_length = 16

[training]
batch_size = 2
threads = 1
{training}

[session]
steps = 3
"""


class Home:
    """A home of its own, a config in it, and the commands that a user types."""

    def __init__(self, root: Path, training: str = "") -> None:
        self.root = root
        self.config = root / "gemma-orch.toml"
        self.environment = {**os.environ, "GEMMA_ORCH_HOME": str(root / "home"), "COLUMNS": "200"}
        root.mkdir(exist_ok=True)
        self.ports = wire(self.environment)
        self.config.write_text(CONFIG.format(training=training))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator", *arguments]

    def type(self, *arguments: str, expect: int = 0) -> str:
        """Type a command, check its exit code, and return all that it said."""
        result = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert result.returncode == expect, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr

    def start(self, *options: str, expect: int = 0) -> str:
        return self.type("start", "--config", str(self.config), *options, expect=expect)

    def status(self) -> dict[str, Any]:
        """What `status --json` prints; without a process of its own, which would slow down what is watched."""
        return observe_run(self.ports, "small").model_dump(mode="json")

    def checkpoints(self) -> list[dict[str, Any]]:
        return list(json.loads(self.type("checkpoints", "--json")))

    def wait_until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Look at the status until something holds of it."""

        def look() -> dict[str, Any] | None:
            return view if "small" in self.ports.runs.names() and holds(view := self.status()) else None

        view = wait_until(look)
        assert view is not None
        return view

    def spec_of(self, session: str) -> Path:
        return self.root / "home" / "runs" / "small" / "sessions" / session / "session.json"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The state digests of an uninterrupted run, by step."""
    home = Home(tmp_path_factory.mktemp("straight"))
    digests = {}
    for steps in (9, 12):
        home.start("--total-steps", str(steps), "--session-steps", "100")
        digests[steps] = home.status()["state_sha256"]
    return digests


def test_a_run_is_begun_continued_extended_rerun_damaged_and_mended(tmp_path: Path, straight: dict[int, str]) -> None:
    home = Home(tmp_path / "chained")
    said = home.start()
    assert "finished: the run has reached step 6 of 6" in said
    assert [session["end_step"] for session in home.status()["sessions"]] == [3, 6]

    before = home.checkpoints()
    home.start()
    assert home.checkpoints() == before, "the same command again does nothing more"

    assert "changes total_steps: 6 -> 9" in home.start("--total-steps", "9")
    view = home.status()
    assert (view["step"], view["state_sha256"]) == (9, straight[9])
    assert "not allowed: the run has already reached step 9" in home.start("--total-steps", "8", expect=2)

    said = home.type("rerun", "2")
    assert "identical to step-00000006-s002a1" in said
    assert home.status()["head"] == view["head"], "a rerun of an earlier session is a branch"

    assert straight[9] in home.type("verify")
    tensors = next(home.root.glob(f"home/runs/small/checkpoints/{view['head']}/*.safetensors"))
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(damaged)
    assert "has changed" in home.type("verify", expect=4)

    said = home.start("--total-steps", "12")
    assert "falls back to step-00000006-s002a1, which costs 3 steps" in said
    view = home.status()
    assert (view["step"], view["state_sha256"]) == (12, straight[12])
    states = {checkpoint["id"]: checkpoint["state"] for checkpoint in home.checkpoints()}
    assert states["step-00000009-s003a1"] == "quarantined"

    home.type("export", "--format", "safetensors", "--out", str(tmp_path / "weights"))
    assert (tmp_path / "weights" / "model.safetensors").is_file()
    assert "did you mean 'hf'" in home.type("export", "--format", "hff", "--out", str(tmp_path / "x"), expect=2)


def test_a_worker_that_is_killed_or_asked_to_end_costs_nothing(tmp_path: Path, straight: dict[int, str]) -> None:
    home = Home(tmp_path / "killed", training="learning_rate = 3e-3")
    home.start("--total-steps", "1000000", "--session-steps", "1000000", "--checkpoint-every", "0.3s", "--detach")
    for number in (signal.SIGTERM, signal.SIGKILL):
        live = home.wait_until(lambda view: view["live"] and view["live"]["phase"] == "training" and view["live"]["saved_step"])
        os.kill(live["live"]["pid"], number)
        home.wait_until(lambda view, then=live: len(view["sessions"]) > len(then["sessions"]))
    home.wait_until(lambda view: view["live"] and view["live"]["phase"] == "training")
    assert (
        "another controller holds this run until"
        in subprocess.run(home.command("tick"), env=home.environment, capture_output=True, text=True, check=False).stderr
    )
    assert "is stopped, at step" in home.type("stop")
    outcomes = [session["outcome"] for session in home.status()["sessions"]]
    assert outcomes == ["stopped", "lost", "stopped"]
    reached = home.status()["step"]

    undisturbed = Home(tmp_path / "undisturbed")
    undisturbed.start("--total-steps", str(reached), "--session-steps", "1000000")
    assert undisturbed.status()["state_sha256"] == home.status()["state_sha256"]


def test_the_status_that_is_printed_is_the_documented_contract(tmp_path: Path) -> None:
    home = Home(tmp_path / "contract")
    home.start("--total-steps", "3")
    assert json.loads(home.type("status", "--json")) == home.status()
    documented = ROOT.joinpath("docs", "json.md").read_text(encoding="utf-8")
    for name in (*home.status(), *home.status()["sessions"][0], *home.checkpoints()[0]):
        assert name == "schema_version" or re.search(rf"\b{name}\b", documented), name


def test_stopping_at_once_loses_only_what_was_not_saved(tmp_path: Path) -> None:
    home = Home(tmp_path / "stopped")
    home.start("--total-steps", "1000000", "--session-steps", "1000000", "--checkpoint-every", "0.3s", "--detach")
    home.wait_until(lambda view: view["live"] and view["live"]["saved_step"])
    home.type("stop", "--now")
    view = home.status()
    assert (view["state"], view["sessions"][0]["outcome"]) == ("stopped", "lost")
    assert view["step"] == view["sessions"][0]["end_step"] > 0
    assert "already stopped" in home.type("stop")


def test_a_session_runs_by_hand_without_a_controller_and_twice_without_harm(tmp_path: Path) -> None:
    home = Home(tmp_path / "by-hand")
    home.start("--total-steps", "3")
    before = home.checkpoints()
    assert "nothing to do" in home.type("session", str(home.spec_of("s001a1")))
    home.start("--total-steps", "3")
    assert home.checkpoints() == before


def test_ticks_alone_bring_a_run_to_its_end_after_its_controller_was_killed(tmp_path: Path, straight: dict[int, str]) -> None:
    home = Home(tmp_path / "ticked")
    controller = subprocess.Popen(home.command("start", "--config", str(home.config), "--total-steps", "9"), env=home.environment)
    home.wait_until(lambda view: view["live"] or view["sessions"])
    controller.kill()
    controller.wait()
    while home.status()["state"] == "active":
        home.type("tick")
    assert home.status()["state_sha256"] == straight[9]
    assert [session["outcome"] for session in home.status()["sessions"]] == ["budget", "budget", "completed"]


def test_a_cosine_run_is_not_extended_and_says_why(tmp_path: Path) -> None:
    home = Home(tmp_path / "cosine", training='schedule = "cosine"')
    home.start("--total-steps", "3")
    assert "every learning rate depends on the last step" in home.start("--total-steps", "6", expect=2)


def test_what_the_user_must_mend_stops_the_run_with_exit_code_2(tmp_path: Path) -> None:
    home = Home(tmp_path / "wrong")
    said = home.start("--corpus", str(tmp_path / "nowhere"), expect=2)
    assert "nowhere" in said
    said = home.start("--corpus", str(tmp_path), "--tokenizer", str(home.config), expect=2)
    assert "gemma-orch.toml" in said


def test_a_corpus_that_is_mostly_broken_is_exit_code_4_and_mended_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "english"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "fine"}\n' + "{broken\n" * 20)
    home = Home(tmp_path / "broken")
    assert "a.jsonl" in home.start("--corpus", str(tmp_path / "corpus"), expect=4)
    (folder / "a.jsonl").write_text('{"text": "' + "a sentence that is long enough. " * 20 + '"}\n')
    assert "finished" in home.start("--corpus", str(tmp_path / "corpus"))


def test_text_is_prepared_then_trained_on_then_looked_at(tmp_path: Path) -> None:
    home = Home(tmp_path / "data")
    corpus, out = tmp_path / "my corpus", tmp_path / "tokens"
    texts = {"english": "The boat goes out at dawn, number {}.", "कोंकणी": "व्हडें दर्यांत गेलें, {}."}
    for language, text in texts.items():
        (corpus / language).mkdir(parents=True)
        lines = "".join(json.dumps({"text": text.format(number)}) + "\n" for number in range(40))
        (corpus / language / "a b.jsonl").write_text(lines, encoding="utf-8")
    prepare = ("prepare", "--corpus", str(corpus), "--out", str(out), "--validation", "0.1")
    said = home.type(*prepare)
    manifest = json.loads((out / "data.json").read_bytes())
    assert all(f"{language:8} " in said for language in texts)
    assert "holds this data already" in home.type(*prepare)
    assert manifest["data_sha256"][:12] in home.type("data", "show", "--data", str(out))

    weights = ("--weight", "english=1", "--weight", "कोंकणी=3")
    assert "did you mean 'english'" in home.start("--data", str(out), "--weight", "englich=1", expect=2)
    home.start("--data", str(out), *weights)
    overview = json.loads(home.type("data", "show", "--json"))
    assert [(held["language"], held["share"]) for held in overview["versions"][0]["languages"]] == [
        ("english", 0.25),
        ("कोंकणी", 0.75),
    ]
    step = json.loads(home.type("data", "show", "--step", "6", "--decode", "--json"))
    for sequence in step["sequences"]:
        for piece in sequence["documents"]:
            assert piece["source"] == f"{sequence['language']}/a b.jsonl"
            begin = texts[sequence["language"]].format(piece["record"] - 1)
            assert piece["document_offset"] or piece["text"].removeprefix("<bos>").rstrip("\ufffd") in f"{begin}<eos>"
    documented = ROOT.joinpath("docs", "json.md").read_text(encoding="utf-8")
    fields = {*overview, *overview["versions"][0], *overview["versions"][0]["languages"][0]}
    fields |= {*step, *step["sequences"][0], *step["sequences"][0]["documents"][0]}
    assert {name for name in fields if not re.search(rf"\b{name}\b", documented)} == set()
    for language in manifest["languages"].values():
        (out / language["shards"][0]["index"]["name"]).write_bytes(b"")
    assert "has changed" in home.type("data", "show", "--step", "1", expect=4)


def test_data_that_is_added_later_is_read_from_its_step_on(tmp_path: Path) -> None:
    home = Home(tmp_path / "added")
    home.start("--total-steps", "3")
    folder = tmp_path / "more" / "english"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{number} boats are out on the wide sea."}) + "\n" for number in range(60))
    )
    add = ("data", "add", "--corpus", str(tmp_path / "more"), "--from-step")
    assert "is already trained" in home.type(*add, "3", expect=2)
    assert "from step 4 on" in home.type(*add, "4")
    home.start("--total-steps", "5")
    versions = json.loads(home.type("data", "show", "--json"))["versions"]
    assert [(held["first_step"], held["last_step"]) for held in versions] == [(1, 3), (4, 5)]
    assert "boats are out" in home.type("data", "show", "--step", "4", "--decode")


def test_a_session_too_short_to_save_stops_the_run_and_names_a_limit_that_would_do(tmp_path: Path) -> None:
    home = Home(tmp_path / "short")
    said = home.start("--session-limit", "1s", expect=2)
    assert "too short" in said
    assert "raise --session-limit" in said
    home.start("--session-limit", "60s")


def test_a_proof_prints_a_certificate(tmp_path: Path) -> None:
    home = Home(tmp_path / "proof")
    certificate = home.type("prove", "--config", str(home.config), "--steps", "4", "--pieces", "2")
    assert "identical" in certificate
