from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.backends.simulated import SimulatedBackend
from orchestrator.controller.lease import LEASE_S
from state.errors import LeaseHeldError, LeaseLostError
from state.manifest import Manifest
from state.session import RunState
from state.spec import ExpectedCheckpoint, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import OWNER, RIVAL, RUN
from tests.simulation import Simulate, Simulation


def test_a_second_controller_is_told_who_holds_the_run_and_until_when(simulate: Simulate) -> None:
    first = simulate(owner=OWNER).create()
    first.tick()
    second = simulate(owner=RIVAL)
    with pytest.raises(LeaseHeldError, match=r"another controller holds this run until \d\d:\d\d:\d\d \(process 1 on desk\)"):
        second.tick()
    first.controller.release(RUN)
    second.tick()
    with pytest.raises(LeaseHeldError):
        first.tick()


def test_a_silent_controller_of_another_machine_is_replaced_when_its_lease_is_over(simulate: Simulate) -> None:
    first = simulate(owner=OWNER).create()
    first.tick()
    second = simulate(owner=RIVAL)
    second.clock.advance(LEASE_S + 1)
    assert second.run_until_over().record.header.state is RunState.FINISHED


def test_a_lease_is_prolonged_when_half_of_it_is_gone(simulate: Simulate) -> None:
    run = simulate(owner=OWNER).create(total_steps=1000)
    run.tick()
    lease = run.runs.lease(RUN)
    assert lease is not None
    run.clock.advance(LEASE_S / 2 - 5)
    run.tick()
    assert run.runs.lease(RUN) == lease
    run.clock.advance(10)
    run.tick()
    prolonged = run.runs.lease(RUN)
    assert prolonged is not None
    assert prolonged.until > lease.until


class Sleepy(SimulatedBackend):
    """Whoever asks it for quota falls asleep for an hour, and another controller takes the run over meanwhile."""

    taken_over_by: Simulation | None = None

    def quota(self, now: Any) -> Any:
        rival, self.taken_over_by = self.taken_over_by, None
        if rival is not None:
            rival.clock.advance(3600)
            rival.run_until_launch(1)
            rival.controller.release(RUN)
        return super().quota(now)


def test_a_controller_that_lost_its_lease_in_mid_tick_writes_nothing_even_when_nobody_holds_it_now(simulate: Simulate) -> None:
    run = simulate(owner=OWNER, backend=Sleepy).create(total_steps=40)
    rival = simulate(owner=RIVAL)
    run.backend.taken_over_by = rival  # type: ignore[attr-defined]
    with pytest.raises(LeaseLostError, match="taken over by another controller"):
        run.tick()
    assert [(a.session, a.attempt, a.fence) for a in run.record.attempts] == [(1, 1, 1)]
    assert run.run_until_over().record.header.state is RunState.FINISHED  # and the next tick begins afresh
    assert set(run.backend.launches().values()) == {1}


def test_a_launch_begins_with_a_lease_that_outlasts_it_however_long_the_start_was_read(simulate: Simulate) -> None:
    left_s: list[float] = []

    class Measured(SimulatedBackend):
        def launch(self, spec: SessionSpec) -> str:
            lease = run.runs.lease(RUN)
            assert lease is not None
            left_s.append((lease.until - run.clock.now()).total_seconds())
            return super().launch(spec)

    class Slow(DirectoryCheckpointStore):
        def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
            run.clock.advance(LEASE_S * 0.75)
            return super().verify(checkpoint_id, expected)

    run = simulate(backend=Measured, store=Slow).create(total_steps=60)
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert len(left_s) == 3
    assert min(left_s) >= LEASE_S / 2


def test_preparing_keeps_the_lease_and_stops_when_it_is_lost(simulate: Simulate) -> None:
    rival = simulate(owner=RIVAL)

    def prepare(spec: Any, keep_lease: Callable[[], None], **_version: int) -> Any:
        run.clock.advance(LEASE_S * 0.75)
        keep_lease()
        rival.clock.advance(LEASE_S * 1.5)
        with pytest.raises(LeaseHeldError):
            rival.tick()
        rival.clock.advance(LEASE_S)
        rival.tick()
        rival.controller.release(RUN)
        keep_lease()
        raise AssertionError("unreachable")

    run = simulate(owner=OWNER, prepare=prepare).create()
    with pytest.raises(LeaseLostError):
        run.tick()
    assert run.record.header.newest_fence == 1  # the rival's
