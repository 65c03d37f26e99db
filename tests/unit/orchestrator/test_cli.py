from __future__ import annotations

from pathlib import Path

import pytest

from tests.terminal import Terminal, fill_with_runs

COMMANDS = {
    "Runs": ("start", "status", "stop", "rerun", "tick", "session", "logs"),
    "Data": ("prepare", "tokenizer", "data"),
    "Checkpoints": ("checkpoints", "verify", "export"),
    "Kaggle": ("adopt", "promote", "publish", "upload"),
    "Tools": ("init", "doctor", "prove", "demo"),
}
WITH_OWN_OPTIONS = [
    (command,) for commands in COMMANDS.values() for command in commands if command not in ("prepare", "tokenizer", "data")
] + [("data", "show"), ("data", "add"), ("data",), ("tokenizer",)]


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


@pytest.fixture
def with_run(terminal: Terminal) -> Terminal:
    fill_with_runs(terminal.home)
    return terminal


def test_the_help_names_every_command_by_what_it_is_for(terminal: Terminal) -> None:
    shown, panel = {}, ""
    for line in terminal.type("--help").output.splitlines():
        if line.startswith("╭─"):
            panel = line.strip("╭─╮ ")
        elif (first := line.strip("│ ").split(maxsplit=1)) and line.startswith("│ ") and line[2] != " ":
            shown[first[0]] = panel
    expected = {command: panel for panel, commands in COMMANDS.items() for command in commands}
    assert {name: panel for name, panel in shown.items() if not name.startswith("-")} == expected


@pytest.mark.parametrize("command", WITH_OWN_OPTIONS, ids=" ".join)
def test_the_help_of_a_command_fits_one_screen(terminal: Terminal, command: tuple[str, ...]) -> None:
    result = terminal.type(*command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 48


@pytest.mark.parametrize(
    ("typed", "meant"), [(["preprae"], "prepare"), (["data", "shwo"], "show"), (["tokenizer", "trian"], "train")]
)
def test_a_verb_that_does_not_exist_is_a_mistake_with_a_guess(terminal: Terminal, typed: list[str], meant: str) -> None:
    result = terminal.type(*typed)
    assert (result.exit_code, f"'{meant}'" in result.output) == (2, True)
