from __future__ import annotations

import os
import signal
import sys
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
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; child processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HERE = Path(__file__).parent
_ROOMS_OF_PROCESSES = ("integration", "chain")
_OUTSIDE = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "socket.bind"})
_unmarked: pytest.Item | None = None
"""The test that runs and may start no process and open no port; None while one runs that may."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test of the rooms in which processes and servers are started with the room's name."""
    for item in items:
        room = item.path.relative_to(_HERE).parts[0]
        if room in _ROOMS_OF_PROCESSES:
            item.add_marker(room)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Know whether the test that runs is marked."""
    global _unmarked
    _unmarked = None if any(item.get_closest_marker(room) for room in _ROOMS_OF_PROCESSES) else item
    try:
        return (yield)
    finally:
        _unmarked = None


def _refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    if _unmarked is not None and event in _OUTSIDE:
        item = _unmarked.nodeid
        pytest.fail(f"{item} starts a process or opens a port ({event}): such a test lives in tests/integration/ or tests/chain/")


sys.addaudithook(_refuse_outside)


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
