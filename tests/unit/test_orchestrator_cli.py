from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from state.errors import GemmaOrchError
from state.layout import HomeLayout
from state.ledger import AttemptRecord, PutAttempt, RunHeader, RunWishes, SetHeader
from state.process import identify
from state.report import Outcome
from state.run_store import SqliteRunStore
from state.session import AttemptState, RunState
from state.spec import RunSpec
from tests.factories import DATA, session_spec

COMMANDS = (
    "start", "status", "rerun", "stop", "tick", "logs", "checkpoints", "verify", "init", "doctor", "prove", "export", "demo",
)  # fmt: skip
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Terminal:
    """Types commands into a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def type(self, *arguments: str) -> Result:
        return CliRunner(env={"GEMMA_ORCH_HOME": str(self.home), "COLUMNS": "160"}).invoke(app, list(arguments))

    def fail(self, *arguments: str) -> GemmaOrchError:
        result = self.type(*arguments)
        assert isinstance(result.exception, GemmaOrchError), result.output
        return result.exception


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


@pytest.fixture
def with_run(terminal: Terminal) -> Terminal:
    """A home with a finished run of two sessions and an active one that has none."""
    store, owner = SqliteRunStore(HomeLayout(terminal.home).ledger), identify(os.getpid())
    for name, state, age_s in (("finished-run", RunState.FINISHED, 60), ("fresh-run", RunState.ACTIVE, 3600)):
        header = RunHeader(name=name, created_at=NOW, resumed_at=NOW - timedelta(seconds=age_s), message="why", data=DATA)
        store.create(header, RunWishes(spec=RunSpec(name=name, total_steps=100)))
        store.acquire(name, owner, NOW, 60)
        store.apply(name, owner, [SetHeader(header.model_copy(update={"state": state}))])
        store.release(name, owner)
    store.acquire("finished-run", owner, NOW, 60)
    for session in (1, 2):
        attempt = AttemptRecord(
            session=session,
            attempt=1,
            fence=session,
            backend="local",
            state=AttemptState.DONE,
            start_checkpoint=None,
            start_step=50 * (session - 1),
            planned_at=NOW,
            launched_at=NOW,
            ended_at=NOW + timedelta(seconds=30),
            limit_s=60,
            outcome=Outcome.BUDGET,
            reason="time is up",
            saved_step=50 * session,
        )
        store.apply("finished-run", owner, [PutAttempt(attempt, session_spec(run="finished-run", session=session))])
    store.release("finished-run", owner)
    store.close()
    return terminal


def test_the_help_names_every_command(terminal: Terminal) -> None:
    text = terminal.type("--help").output
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_one_screen(terminal: Terminal, command: str) -> None:
    result = terminal.type(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 48


@pytest.mark.parametrize("command", ["status", "stop", "logs", "checkpoints", "verify", "rerun 1", "export --out x"])
def test_a_home_without_runs_says_how_to_begin_one(terminal: Terminal, command: str) -> None:
    error = terminal.fail(*command.split())
    assert error.exit_code == 2
    assert "gemma-orch start --total-steps 200" in str(error)


def test_a_tick_without_an_active_run_is_no_error(terminal: Terminal) -> None:
    assert terminal.type("tick").exit_code == 0


def test_the_newest_run_is_meant_when_none_is_named(with_run: Terminal) -> None:
    view = json.loads(with_run.type("status", "--json").stdout)
    assert (view["run"], view["state"], view["step"], view["total_steps"]) == ("finished-run", "finished", 0, 100)
    assert [session["end_step"] for session in view["sessions"]] == [50, 100]


def test_runs_are_named_by_unique_prefix(with_run: Terminal) -> None:
    assert json.loads(with_run.type("status", "fr", "--json").stdout)["run"] == "fresh-run"
    assert "begins 2 runs" in str(with_run.fail("status", "f"))
    assert "did you mean 'fresh-run'" in str(with_run.fail("status", "freshrun"))


def test_the_status_of_a_run_without_sessions_says_what_it_waits_for(with_run: Terminal) -> None:
    view = json.loads(with_run.type("status", "fresh", "--json").stdout)
    assert view["waiting_for"] == "a controller, to launch session 1 attempt 1; gemma-orch start --name fresh-run goes on"
    assert "fresh-run" in with_run.type("status", "--all").output


def test_the_human_status_goes_to_stdout_and_talk_to_stderr(with_run: Terminal) -> None:
    result = with_run.type("status")
    assert "0 -> 50" in result.stdout
    assert "1 more run in this home" in result.stderr


def test_watching_a_run_that_is_over_ends_at_once(with_run: Terminal) -> None:
    assert with_run.type("status", "finished", "--watch").exit_code == 0


def test_stopping_what_is_over_says_so(with_run: Terminal) -> None:
    assert "finished already" in with_run.type("stop", "finished").stdout


def test_logs_of_a_session_that_is_not_there_name_those_that_are(with_run: Terminal) -> None:
    assert "one of s001a1, s002a1" in str(with_run.fail("logs", "7", "--run", "finished"))


def test_logs_print_what_the_worker_printed(with_run: Terminal) -> None:
    folder = HomeLayout(with_run.home).run("finished-run").attempt(2, 1)
    folder.root.mkdir(parents=True)
    folder.log.write_text("नमस्ते from the worker\n", encoding="utf-8")
    for session in ((), ("2",), ("s002a1",)):
        assert with_run.type("logs", *session, "--run", "finished").stdout == "नमस्ते from the worker\n"
    assert with_run.type("logs", "1", "--run", "finished").stdout == ""


def test_rerunning_a_session_that_is_not_there_names_those_that_are(with_run: Terminal) -> None:
    assert "1 to 2" in str(with_run.fail("rerun", "9", "--run", "finished"))


def test_checkpoints_of_a_run_without_any_are_an_empty_list(with_run: Terminal) -> None:
    assert json.loads(with_run.type("checkpoints", "finished", "--json").stdout) == []
    assert "no checkpoint yet" in with_run.type("checkpoints", "finished").stderr
    assert "no checkpoint yet" in str(with_run.fail("verify", "--run", "finished"))
    assert "there is no checkpoint 'x'" in str(with_run.fail("verify", "x", "--run", "finished"))


def test_init_writes_a_config_that_start_reads_and_never_over_another_file(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "gemma-orch.toml"
    assert terminal.type("init", str(path)).exit_code == 0
    assert "total_steps = 100000" in path.read_text()
    path.write_text("mine")
    assert "exists already" in str(terminal.fail("init", str(path)))
    assert path.read_text() == "mine"
    assert terminal.type("init", str(path), "--force").exit_code == 0
    assert "does not exist" in str(terminal.fail("init", str(tmp_path / "nowhere" / "x.toml")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["start"], "--total-steps N"),
        (["start", "--total-steps", "5", "--model", "tinny"], "did you mean 'tiny'"),
        (["start", "--total-steps", "5", "--backend", "lokal"], "did you mean 'local'"),
        (["start", "--total-steps", "5", "--session-limit", "soon"], "'soon' is not a duration"),
        (["start", "--total-steps", "5", "--config", "nowhere.toml"], "gemma-orch init writes one"),
        (["start", "--total-steps", "5", "--name", "No Spaces"], "another --name"),
    ],
)
def test_a_mistake_in_a_start_is_explained_and_makes_no_run(terminal: Terminal, arguments: list[str], expected: str) -> None:
    error = terminal.fail(*arguments)
    assert error.exit_code == 2
    assert expected in str(error)
    assert terminal.fail("status").what.startswith("there is no run")


def test_changing_what_is_trained_already_is_refused_with_the_list_of_changes(with_run: Terminal) -> None:
    error = with_run.fail("start", "--name", "finished-run", "--total-steps", "150", "--seed", "4")
    assert "total_steps: 100 -> 150 (allowed)" in str(error)
    assert "training.seed: 0 -> 4 (not allowed: it would change weights that are trained already" in str(error)
    assert "--name" in error.remedy


def test_doctor_says_what_was_found(terminal: Terminal) -> None:
    findings = {finding["subject"]: finding for finding in json.loads(terminal.type("doctor", "--json").stdout)}
    assert findings["torch"]["ok"]
    assert str(terminal.home) in findings["home"]["found"]
    assert "next:" in terminal.type("doctor").stdout


def test_an_unknown_export_format_is_explained(with_run: Terminal) -> None:
    assert "no checkpoint yet" in str(with_run.fail("export", "--run", "finished", "--format", "hff", "--out", "x"))


def test_more_pieces_than_steps_cannot_be_proved(terminal: Terminal) -> None:
    assert "cannot be cut" in str(terminal.fail("prove", "--steps", "3", "--pieces", "4"))


def run_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env={**os.environ, "GEMMA_ORCH_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_users_mistake_gives_words_and_exit_code_2_and_never_a_stack_trace(tmp_path: Path) -> None:
    result = run_command(tmp_path, "start", "--total-steps", "5", "--model", "tinny")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no model size 'tinny'")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_home_that_cannot_be_a_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_command(tmp_path / "file", "status")
    assert result.returncode == 2
    assert re.search("the ledger .* cannot be opened", result.stderr)


def test_a_reader_that_goes_away_gets_no_stack_trace(with_run: Terminal) -> None:
    command = f"{sys.executable} -m orchestrator status --json finished-run | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "GEMMA_ORCH_HOME": str(with_run.home)},
        capture_output=True,
        check=False,
    )
    assert result.stderr == b""


def test_the_controller_imports_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, orchestrator.cli, orchestrator.begin, orchestrator.watch, orchestrator.doctor, orchestrator.demo, "
        "orchestrator.handover, orchestrator.wiring; "
        "print(*{'torch', 'numpy', 'sentencepiece', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("", "")
