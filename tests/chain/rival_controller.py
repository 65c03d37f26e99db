"""A controller as a program, for tests with several at once: python -m tests.chain.rival_controller FOLDER {stay|cron}.

`stay` ticks until the run is over, as `start` does; `cron` gives the run back after every tick. Prints one line for each thing
that a user would see, and exits with 0 when the run is over.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import Finish, GiveUp
from state.clock import SystemClock
from state.errors import LeaseHeldError
from state.spec import SessionSpec
from tests.factories import RUN
from tests.simulation import Simulation

_LOOK_S = 0.002


class OneAtATime(SimulatedBackend):
    """Refuses to hold two living sessions at once."""

    def launch(self, spec: SessionSpec) -> str:
        alive = self.alive()
        assert not alive, f"{spec.session} is launched beside {alive}"
        return super().launch(spec)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(folder: Path, mode: str) -> None:
    """Bring the run to its end, whoever else is at work on it."""
    run = Simulation(folder, lambda session, _: Scenario(killed=session % 3 == 0), backend=OneAtATime, clock=SystemClock())
    told = False
    while True:
        try:
            tick = run.controller.tick(RUN)
        except LeaseHeldError as error:
            if not told:
                say(f"held: {error}")
            told = True
            time.sleep(_LOOK_S)
            continue
        told = False
        say(f"ticked: {type(tick.decision).__name__}")
        if isinstance(tick.decision, Finish | GiveUp):
            run.controller.release(RUN)
            return
        if mode == "cron":
            run.controller.release(RUN)
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
