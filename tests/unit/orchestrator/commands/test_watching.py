from __future__ import annotations

from pathlib import Path

import pytest
import typer

from orchestrator.backends.simulated import Scenario
from orchestrator.commands.context import INTERRUPTED
from orchestrator.commands.watching import watching
from state.session import AttemptState
from tests.factories import RUN
from tests.simulation import Simulation


def interrupted(simulation: Simulation) -> int:
    with pytest.raises(typer.Exit) as ended, watching(simulation.controller._ports, RUN):
        raise KeyboardInterrupt
    return int(ended.value.exit_code)


def test_ctrl_c_says_what_becomes_of_the_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulation = Simulation(tmp_path).create(total_steps=100)
    assert interrupted(simulation) == INTERRUPTED
    assert "session" not in capsys.readouterr().err
    simulation.run_until_launch(1)
    interrupted(simulation)
    assert "session 1 continues until its limit" in capsys.readouterr().err


def test_ctrl_c_says_of_a_session_that_waits_to_be_launched_that_it_will_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = Simulation(tmp_path, lambda _session, _attempt: Scenario(unready=9)).create(total_steps=100)
    simulation.tick()
    live = simulation.record.live_attempt
    assert live is not None
    assert live.state is AttemptState.PLANNED
    interrupted(simulation)
    assert "session 1 is not launched yet" in capsys.readouterr().err
