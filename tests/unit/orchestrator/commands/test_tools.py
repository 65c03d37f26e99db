from __future__ import annotations

from pathlib import Path

import pytest

from tests.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


def test_init_writes_a_config_that_start_reads_and_never_over_another_file(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "gemma-orch.toml"
    assert terminal.type("init", str(path)).exit_code == 0
    assert "total_steps = 100000" in path.read_text()
    path.write_text("mine")
    assert "already exists" in str(terminal.fail("init", str(path)))
    assert path.read_text() == "mine"
    assert terminal.type("init", str(path), "--force").exit_code == 0
    assert "folder is missing" in str(terminal.fail("init", str(tmp_path / "nowhere" / "x.toml")))


def test_more_pieces_than_steps_cannot_be_proved(terminal: Terminal) -> None:
    assert "at least one step per piece" in str(terminal.fail("prove", "--steps", "3", "--pieces", "4"))
