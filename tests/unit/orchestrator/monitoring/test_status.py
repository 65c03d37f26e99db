from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

from orchestrator.monitoring.status import observe_run, waiting_for
from state.ledger import StopWish, Waiting
from state.session import RunState
from tests.factories import RUN
from tests.simulation import Simulation


def test_looking_at_a_run_says_what_it_waits_for_and_who_could_bring_it_on(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path).create(total_steps=100)
    ports = simulation.ports
    assert (
        waiting_for(ports, simulation.record)
        == "a controller, to launch session 1 attempt 1; continue: gemma-orch start --name tamil"
    )
    early = Waiting(reason="the quota is used up", until=simulation.clock.now() + timedelta(hours=1))
    quota = dataclasses.replace(simulation.record, header=simulation.record.header.evolve(waiting=early))
    said = waiting_for(ports, quota) or ""
    assert said.startswith("the quota is used up, until ")
    assert "; then a controller, to launch session 1" in said
    simulation.run_until_launch(1)
    assert observe_run(ports, RUN).waiting_for == "session 1 attempt 1 is running on simulated"
    simulation.runs.set_stop(RUN, StopWish.CHECKPOINT)
    assert observe_run(ports, RUN).waiting_for == "session 1 to save and end, as requested"
    simulation.run_until_over()
    assert simulation.record.header.state is RunState.STOPPED
    assert observe_run(ports, RUN).waiting_for is None
