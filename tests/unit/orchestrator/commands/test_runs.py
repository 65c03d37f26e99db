from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from state.errors import LeaseHeldError
from state.layout import HomeLayout
from state.spec import RunSpec, TrainingSpec
from state.stores.run_store import SqliteRunStore
from tests.factories import RIVAL
from tests.terminal import Terminal, fill_with_runs


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


@pytest.fixture
def with_run(terminal: Terminal) -> Terminal:
    fill_with_runs(terminal.home)
    return terminal


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
    assert view["waiting_for"] == "a controller, to launch session 1 attempt 1; continue: gemma-orch start --name fresh-run"
    assert "fresh-run" in with_run.type("status", "--all").output


def test_the_human_status_goes_to_stdout_and_talk_to_stderr(with_run: Terminal) -> None:
    result = with_run.type("status")
    assert "0 -> 50" in result.stdout
    assert "1 more run in this home" in result.stderr


def test_watching_a_run_that_is_over_ends_at_once(with_run: Terminal) -> None:
    assert with_run.type("status", "finished", "--watch").exit_code == 0


def test_stopping_what_is_over_says_so(with_run: Terminal) -> None:
    assert "already finished" in with_run.type("stop", "finished").stdout


def test_logs_of_a_session_that_is_not_there_name_those_that_are(with_run: Terminal) -> None:
    assert "one of s001a1, s002a1" in str(with_run.fail("logs", "7", "--run", "finished"))


def test_logs_print_what_the_worker_printed(with_run: Terminal) -> None:
    folder = HomeLayout(with_run.home).run("finished-run").attempt(2, 1)
    folder.root.mkdir(parents=True)
    folder.log.write_text("नमस्ते from the worker\n", encoding="utf-8")
    for session in ((), ("2",), ("s002a1",)):
        assert with_run.type("logs", *session, "--run", "finished").stdout == "नमस्ते from the worker\n"
    silent = with_run.type("logs", "1", "--run", "finished")
    assert (silent.stdout, "session 1 attempt 1 of finished-run has no output" in silent.stderr) == ("", True)


def test_rerunning_a_session_that_is_not_there_names_those_that_are(with_run: Terminal) -> None:
    assert "1 to 2" in str(with_run.fail("rerun", "9", "--run", "finished"))


def test_the_help_of_rerun_shows_only_the_present_name_of_make_head(terminal: Terminal) -> None:
    shown = terminal.type("rerun", "--help").output
    assert ("--make-head" in shown, "--adopt" in shown) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["start"], "--total-steps N"),
        (["start", "--total-steps", "5", "--model", "tinny"], "did you mean 'tiny'"),
        (["start", "--total-steps", "5", "--backend", "lokal"], "did you mean 'local'"),
        (["start", "--total-steps", "5", "--session-limit", "soon"], "'soon' is not a duration"),
        (["start", "--total-steps", "5", "--config", "nowhere.toml"], "gemma-orch init writes one"),
        (["start", "--total-steps", "5", "--name", "No Spaces"], "another --name"),
        (["start", "--total-steps", "5", "--data", "x", "--corpus", "y"], "--data cannot be combined with --corpus"),
        (["start", "--total-steps", "5", "--data", "x", "--tokenizer", "y"], "text to prepare, or a prepared data folder"),
        (["start", "--total-steps", "5", "--weight", "konkani"], "such as --weight konkani=0.2"),
        (["start", "--total-steps", "5", "--weight", "konkani=-1"], "--weight is invalid: 'konkani=-1'"),
        (["start", "--total-steps", "5", "--mixing", "evenly"], "data.mixing is 'evenly'"),
        (["start", "--total-steps", "5", "--alpha", "2"], "data.alpha is 2.0"),
        (["start", "--total-steps", "5", "--max-epochs", "4.5"], "max_epochs needs mixing = unimax"),
        (["start", "--total-steps", "5", "--mixing", "unimax", "--weight", "a=1"], "leave out weights, or mixing"),
        (["start", "--total-steps", "5", "--scratch", "x", "--scratch-size", "much"], "'much' is not a size"),
        (["start", "--total-steps", "5", "--scratch-size", "20GB"], "scratch_dir is missing"),
    ],
)
def test_a_mistake_in_a_start_is_explained_and_makes_no_run(terminal: Terminal, arguments: list[str], expected: str) -> None:
    error = terminal.fail(*arguments)
    assert error.exit_code == 2
    assert expected in str(error)
    assert terminal.fail("status").what.startswith("no run in")


def test_changing_what_is_trained_already_is_refused_with_the_list_of_changes(with_run: Terminal) -> None:
    error = with_run.fail("start", "--name", "finished-run", "--total-steps", "150", "--seed", "4")
    assert "total_steps: 100 -> 150 (allowed)" in str(error)
    assert "training.seed: 0 -> 4 (not allowed: it would change weights that are already trained" in str(error)
    assert "--name" in error.remedy


def test_a_start_is_not_left_to_a_controller_that_does_not_bring_the_run_on(with_run: Terminal) -> None:
    """As `data add` and `rerun` of a run that is over: the start would end well, and nothing would ever go on."""
    runs = SqliteRunStore(HomeLayout(with_run.home).ledger)
    runs.acquire("finished-run", RIVAL, datetime.now(UTC), 60.0)
    runs.set_spec(
        "finished-run",
        RunSpec(name="finished-run", total_steps=100, training=TrainingSpec(threads=1)),
        seen=runs.load("finished-run"),
    )
    before = runs.load("finished-run")
    error = with_run.fail("start", "--name", "finished-run", "--total-steps", "120")
    assert isinstance(error, LeaseHeldError)
    assert "and will leave it finished\nNext: repeat the command when that controller has ended" in str(error)
    assert runs.load("finished-run") == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file"), ("{}", "is not a valid SessionSpec"), ("no JSON", "is not a valid SessionSpec")],
)
def test_a_file_that_holds_no_session_is_a_mistake_that_says_where_sessions_are(
    terminal: Terminal, tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    error = terminal.fail("session", str(path))
    assert error.exit_code == 2
    assert f"{path} {problem}" in str(error)
    assert str(terminal.home / "runs" / "RUN") in str(error)
