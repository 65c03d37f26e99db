from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_a_users_mistake_gives_words_and_exit_code_2_and_never_a_stack_trace(tmp_path: Path) -> None:
    result = run_command(tmp_path, "start", "--total-steps", "5", "--model", "tinny")
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown model size: 'tinny'")
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
        "import sys, orchestrator.cli, orchestrator.requests.start, orchestrator.monitoring.watch, orchestrator.doctor, "
        "orchestrator.demo, orchestrator.worker_process.verbs, orchestrator.wiring; "
        "print(*{'torch', 'numpy', 'sentencepiece', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_what_every_command_loads_speaks_to_no_network() -> None:
    """Loading ssl takes milliseconds, whatever the command."""
    code = (
        "import sys, orchestrator.wiring, orchestrator.monitoring.watch; "
        "print(*{'ssl', 'http.client', 'urllib.request', 'requests', 'kagglesdk'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_help_answers_at_once_as_it_reads_no_documents_and_opens_no_ledger() -> None:
    code = (
        "import contextlib, io, sys; from orchestrator.cli import app\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    app(['--help'], standalone_mode=False)\n"
        "print(*{'pydantic', 'sqlite3', 'state.spec', 'orchestrator.controller.tick'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("", "")
