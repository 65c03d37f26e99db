"""A whole run without machines: a real ledger, a real checkpoint store, a real controller, and scripted sessions."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import Finish, GiveUp, Launch, Wait
from orchestrator.controller.tick import Controller, Tick
from orchestrator.ports import Ports, Preparer
from orchestrator.wiring import backend_kind
from state.clock import Clock, ManualClock
from state.layout import HomeLayout
from state.ledger import DataRecord, RerunWish, RunHeader, RunRecord, RunWishes
from state.process import ProcessIdentity, identify
from state.session import AttemptState
from state.spec import RunSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, RUN, START, run_spec

Script = Callable[[int, int], Scenario]


class Simulation:
    """One controller's view of a simulated world that lies in a folder; a second one may look at the same folder."""

    def __init__(
        self,
        root: Path,
        script: Script = lambda _session, _attempt: Scenario(),
        *,
        start: datetime = START,
        clock: Clock | None = None,
        owner: ProcessIdentity | None = None,
        backend: type[SimulatedBackend] = SimulatedBackend,
        store: type[DirectoryCheckpointStore] = DirectoryCheckpointStore,
        prepare: Preparer = lambda _spec, _keep_lease, **_version: DATA,
        has_data: Callable[[str, DataRecord], bool] = lambda _run, _data: True,
    ) -> None:
        self.home = HomeLayout(root)
        self.clock = ManualClock(start)
        ticking = clock or self.clock
        self.runs = SqliteRunStore(self.home.ledger)
        self.store = store(self.home.run(RUN).checkpoints)
        self.backend = backend(root / "world", self.store, ticking, script)
        self.ports = Ports(
            kind=backend_kind,
            runs=self.runs,
            home=self.home,
            clock=ticking,
            owner=owner or identify(os.getpid()),
            backend=lambda _name, _run: self.backend,
            checkpoints=lambda _run: self.store,
            prepare=prepare,
            has_data=has_data,
        )
        self.controller = Controller(self.ports)

    def create(self, spec: RunSpec | None = None, **spec_values: Any) -> Simulation:
        """Begin the run, as `start` does."""
        now = self.clock.now()
        self.runs.create(RunHeader(name=RUN, created_at=now, resumed_at=now), RunWishes(spec=spec or run_spec(**spec_values)))
        return self

    @property
    def record(self) -> RunRecord:
        return self.runs.load(RUN)

    def tick(self) -> Tick:
        """One tick; then a second passes, or as much time as the decision waits for."""
        tick = self.controller.tick(RUN)
        until = tick.decision.until if isinstance(tick.decision, Wait) else None
        self.clock.advance(max((until - self.clock.now()).total_seconds(), 1.0) if until is not None else 1.0)
        return tick

    def run_until(self, condition: Callable[[Tick], bool], most_ticks: int = 200) -> Tick:
        """Tick until a condition holds after one."""
        for _ in range(most_ticks):
            tick = self.tick()
            if condition(tick):
                return tick
        raise AssertionError(f"not within {most_ticks} ticks; last decision: {tick.decision}")

    def run_until_over(self) -> Tick:
        """Tick until the run needs no more of them."""
        return self.run_until(lambda tick: isinstance(tick.decision, Finish | GiveUp))

    def run_until_launch(self, session: int, attempt: int = 1) -> Tick:
        """Tick until an attempt has been launched."""
        return self.run_until(
            lambda tick: (
                isinstance(tick.decision, Launch) and (tick.decision.session, tick.decision.attempt) == (session, attempt)
            )
        )

    def rerun(self, session: int, *, adopt: bool = False) -> Tick:
        """Ask for a session again, and tick until that has been carried out and the run is over."""
        self.runs.set_rerun(RUN, RerunWish(session=session, adopt=adopt, requested_at=self.clock.now()))
        return self.run_until_over()

    def damage(self, checkpoint_id: str) -> None:
        """Overwrite a checkpoint's bytes, as a bad disk does."""
        for path in self.store.folder(checkpoint_id).glob("*.safetensors"):
            path.write_bytes(bytes(path.stat().st_size))

    def events(self) -> list[str]:
        return [event.text for event in self.runs.events(RUN, 1000)]

    def close(self) -> None:
        self.runs.close()


Simulate = Callable[..., Simulation]
"""What the fixture `simulate` is: makes simulations of one world."""


def digest_of_head(record: RunRecord) -> str:
    assert record.head is not None
    return record.head.state_sha256


def attempts_of(record: RunRecord) -> list[tuple[int, int, AttemptState]]:
    return [(attempt.session, attempt.attempt, attempt.state) for attempt in record.attempts]
