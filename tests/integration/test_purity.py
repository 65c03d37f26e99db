from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.repository import ROOT

_PACKAGES = ("state", "worker", "orchestrator")
_SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in _PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    """Import every module in an empty folder, with nothing in the environment, and look what has happened."""
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in _SOURCES]
    program = (
        "import importlib, sys, threading\n"
        "sys.dont_write_bytecode = True\n"
        "opened = []\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+'):\n"
        "        opened.append(arguments[0])\n"
        "    if event in ('subprocess.Popen', 'os.mkdir', 'socket.connect', 'sqlite3.connect'):\n"
        "        opened.append(event)\n"
        "for heavy in ('torch', 'sentencepiece', 'safetensors', 'rich', 'typer'):\n"
        "    importlib.import_module(heavy)\n"
        "sys.addaudithook(watch)\n"
        "before = threading.active_count()\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "assert opened == [], opened\n"
        "assert threading.active_count() == before\n"
    )
    answer = _run(program, modules, tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def _run(program: str, modules: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that is told modules, in a folder that is empty, with nothing in the environment."""
    return subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_does_not_call_kaggle_does_not_load_its_client(tmp_path: Path) -> None:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(sorted({'kagglesdk', 'requests', 'urllib3'} & set(sys.modules)))\n"
    )
    modules = ["orchestrator.cli", "orchestrator.wiring", "state.kaggle.api", "state.kaggle.datasets", "worker.session.runner"]
    answer = _run(program, modules, tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "[]\n", "")
