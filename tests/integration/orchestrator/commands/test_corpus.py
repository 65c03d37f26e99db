from __future__ import annotations

from pathlib import Path

import pytest

from tests.terminal import Terminal, fill_with_runs, run_command


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


@pytest.fixture
def with_run(terminal: Terminal) -> Terminal:
    fill_with_runs(terminal.home)
    return terminal


def test_the_help_of_prepare_is_that_of_the_worker_and_needs_no_home(tmp_path: Path) -> None:
    result = run_command(tmp_path / "home", "prepare", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: gemma-orch prepare ")
    assert all(option in result.stdout for option in ("--corpus", "--text-field", "--validation", "--max-part-size", "--json"))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare"], "--out"),
        (["prepare", "--out", "x", "--tokeniser", "y"], "did you mean '--tokenizer'?"),
        (["prepare", "--corpus", "nowhere", "--out", "x"], "nowhere"),
        (["prepare", "--out", "x", "--shard-size", "big"], "'big' is not a size"),
        (["data", "show", "--data", "nowhere"], "nowhere is no data folder"),
    ],
)
def test_what_was_typed_reaches_the_worker_and_its_words_the_user(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run_command(tmp_path / "home", *arguments)
    assert result.returncode in (2, 4)
    assert words in result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


@pytest.mark.parametrize("verb", ["train", "report", "check"])
def test_the_verbs_for_tokenizers_are_the_workers(tmp_path: Path, verb: str) -> None:
    result = run_command(tmp_path / "home", "tokenizer", verb, "--help")
    assert result.returncode == 0
    assert f"tokenizer {verb}" in result.stdout


def test_a_data_folder_is_shown_alone(with_run: Terminal) -> None:
    assert "combined with a run" in str(with_run.fail("data", "show", "finished", "--data", "x"))
    assert "combined with --step" in str(with_run.fail("data", "show", "--data", "x", "--step", "3"))


@pytest.mark.parametrize("verb", [["show"], ["add", "--corpus", "x"]])
def test_without_a_run_there_is_no_data_to_speak_of(terminal: Terminal, verb: list[str]) -> None:
    assert "no run in" in str(terminal.fail("data", *verb))


@pytest.mark.parametrize("given", [[], ["--corpus", "x", "--data", "y"]], ids=["nothing", "both"])
def test_what_is_to_be_added_must_be_said(with_run: Terminal, given: list[str]) -> None:
    assert "either --corpus, once or more, or --data" in str(with_run.fail("data", "add", "finished", *given))
