"""The door for a backend to come: one object brings all that a kind has, and every command goes through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.commands.context import Terminal
from orchestrator.wiring import BACKENDS
from state.errors import UserError
from tests.toy_backend import ToyKind

RUN = ("--name", "tin-robot", "--backend", "toy")


class Toys:
    """Commands of a gemma-orch that has a third kind of backend."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def type(self, *arguments: str) -> Result:
        terminal = Terminal({"GEMMA_ORCH_HOME": str(self.home), "COLUMNS": "160"}, (*BACKENDS, ToyKind()))
        return CliRunner().invoke(app, list(arguments), obj=terminal)

    def works(self, *arguments: str) -> Result:
        result = self.type(*arguments)
        assert result.exit_code == 0, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path / "home")


def test_a_run_is_begun_shown_extended_and_stopped_on_a_backend_that_no_module_names(toys: Toys) -> None:
    started = toys.works("start", *RUN, "--total-steps", "20")
    assert "finished" in started.stdout
    assert "put tin-robot back into its box" in started.stderr
    view = json.loads(toys.works("status", "--json").stdout)
    assert (view["state"], view["step"], view["sessions"][0]["backend"]) == ("finished", 20, "toy")
    assert (toys.home / "toy box" / "tin-robot" / view["head"]).is_dir()
    assert toys.works("verify").stdout.startswith(view["head"])
    toys.works("start", *RUN, "--total-steps", "30")
    assert "already finished, at step 30" in toys.works("stop").stdout


@pytest.mark.parametrize("option", ["--make-head", "--adopt"])
def test_a_rerun_becomes_the_head_by_either_name_of_the_option_though_a_later_session_exists(toys: Toys, option: str) -> None:
    toys.works("start", *RUN, "--total-steps", "20")
    toys.works("start", *RUN, "--total-steps", "30")
    toys.works("rerun", "1", option)
    assert json.loads(toys.works("status", "--json").stdout)["head"] == "step-00000020-s001a2"


def test_init_writes_the_config_file_of_the_kind_and_says_what_comes_before_start(toys: Toys, tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    said = toys.works("init", str(path), "--backend", "toy", "--owner", "me")
    assert 'backend = "toy"' in path.read_text()
    assert "a toy of me" in said.stderr
    assert "then: wind it up, gemma-orch start" in said.stdout


def test_doctor_looks_at_what_the_kind_needs_and_names_its_next_command(toys: Toys) -> None:
    rows = {row["subject"]: row for row in json.loads(toys.works("doctor", "--backend", "toy", "--json").stdout)}
    assert rows["spring"]["found"] == "wound up"
    assert "next: play" in toys.works("doctor", "--backend", "toy").stdout
    refused = toys.type("doctor", "--backend", "toy", "--live-check").exception
    assert isinstance(refused, UserError)
    assert "has no live check" in refused.what


def test_the_kind_says_which_runs_it_can_have(toys: Toys) -> None:
    refused = toys.type("start", "--name", "broken-robot", "--backend", "toy", "--total-steps", "20").exception
    assert isinstance(refused, UserError)
    assert "no name for a toy" in refused.what


def test_a_backend_that_does_not_exist_is_refused_with_those_that_do(toys: Toys) -> None:
    refused = toys.type("start", "--backend", "toys", "--total-steps", "20").exception
    assert isinstance(refused, UserError)
    assert (refused.expected, refused.remedy) == ("one of local, kaggle, toy", "did you mean 'toy'?")
