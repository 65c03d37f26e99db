from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import Simulation

_RAM = Path("/dev/shm")

os.environ["OMP_DYNAMIC"] = "FALSE"  # as in every worker
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy machine makes spinning threads, and with them the tests, slow
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers asks its hub on threads that outlive the test that began them


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A folder in memory where there is one: fsync costs nothing there, and a killed process loses nothing either."""
    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None, prefix="gemma-orch-test-") as folder:
        yield Path(folder)


@pytest.fixture
def simulate(ram_path: Path) -> Iterator[Callable[..., Simulation]]:
    """Make simulations of one world; see `Simulation`."""
    made: list[Simulation] = []

    def make(*arguments: Any, **options: Any) -> Simulation:
        made.append(Simulation(ram_path, *arguments, **options))
        return made[-1]

    yield make
    for simulation in made:
        simulation.close()
