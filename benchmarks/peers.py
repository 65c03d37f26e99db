"""Runs a contender in a process of its own: ours in this environment, the peers in theirs.

The peers ask for versions of numpy and others that ours does not have, so they live in `.venv-peers` (made by
`make .venv-peers/installed`, versions in benchmarks/peers.txt). Each contender measures itself and prints one JSON object
as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def run_peer(module: str, *arguments: str) -> dict[str, Any]:
    """Run `benchmarks.MODULE` with the peers' Python and return what it measured."""
    if not _PYTHON.exists():
        sys.exit(f"{_PYTHON} is missing; `make bench` makes it, or: make .venv-peers/installed")
    return _run(_PYTHON, module, *arguments)


def run_ours(module: str, *arguments: str) -> dict[str, Any]:
    """Run `benchmarks.MODULE` with our Python and return what it measured."""
    return _run(Path(sys.executable), module, *arguments)


def _run(python: Path, module: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [str(python), "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, **_QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"benchmarks.{module} {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured
