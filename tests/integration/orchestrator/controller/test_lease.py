from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from state.errors import LeaseHeldError
from state.process import identify
from tests.simulation import Simulation

Simulate = Callable[..., Simulation]


def test_a_dead_controller_of_this_machine_is_replaced_at_once(simulate: Simulate) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    first = simulate(owner=identity).create()
    first.tick()
    second = simulate(owner=identify(os.getpid()))
    with pytest.raises(LeaseHeldError):
        second.tick()
    child.communicate()
    second.tick()
