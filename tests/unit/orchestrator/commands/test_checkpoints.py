from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.terminal import Terminal, fill_with_runs


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home")


@pytest.fixture
def with_run(terminal: Terminal) -> Terminal:
    fill_with_runs(terminal.home)
    return terminal


def test_checkpoints_of_a_run_without_any_are_an_empty_list(with_run: Terminal) -> None:
    assert json.loads(with_run.type("checkpoints", "finished", "--json").stdout) == []
    assert "no checkpoint yet" in with_run.type("checkpoints", "finished").stderr
    assert "no checkpoint yet" in str(with_run.fail("verify", "--run", "finished"))
    assert "there is no checkpoint 'x'" in str(with_run.fail("verify", "x", "--run", "finished"))


def test_an_unknown_export_format_is_explained(with_run: Terminal) -> None:
    assert "no checkpoint yet" in str(with_run.fail("export", "--run", "finished", "--format", "hff", "--out", "x"))
