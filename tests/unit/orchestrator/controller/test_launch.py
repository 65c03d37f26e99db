from __future__ import annotations

from typing import Any

import pytest

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import Drop, Finish, GiveUp, Kill, Resume, Wait
from state.errors import CorruptCheckpointError, ExitCode, QuotaError, TemporaryError
from state.ledger import CheckpointState, RerunWish, StopWish
from state.session import AttemptState, RunState
from state.spec import SessionSpec
from tests.factories import RUN, START, after
from tests.simulation import Simulate, Simulation, attempts_of, digest_of_head


def test_a_launch_whose_answer_is_lost_is_looked_for_before_anything_is_sent_again(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(lost_answer=True, unknown_looks=3)).create(total_steps=20)
    run.run_until_launch(1)
    assert run.record.attempts[0].state is AttemptState.LAUNCHING
    for _ in range(3):
        assert isinstance(run.tick().decision, Wait)
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert run.backend.launches() == {"s001a1": 1}


class Forgetful(SimulatedBackend):
    """Loses the first launch itself, not only the answer to it."""

    lost = False

    def launch(self, spec: SessionSpec) -> str:
        if not self.lost:
            self.lost = True
            raise KeyboardInterrupt
        return super().launch(spec)


def test_a_controller_that_dies_before_the_launch_goes_out_leaves_an_attempt_that_the_next_one_launches(
    simulate: Simulate,
) -> None:
    run = simulate(backend=Forgetful).create(total_steps=20)
    with pytest.raises(KeyboardInterrupt):
        run.tick()
    assert run.record.attempts[0].state is AttemptState.LAUNCHING
    assert isinstance(run.tick().decision, Resume)
    record = run.run_until_over().record
    assert attempts_of(record) == [(1, 1, AttemptState.DONE)]
    assert run.backend.launches() == {"s001a1": 1}


class Distrustful(SimulatedBackend):
    """Wants a checkpoint's bytes somewhere else before it launches, and finds that those of one are not what they were."""

    bad: str | None = None

    def make_ready(self, spec: SessionSpec) -> str | None:
        if spec.start is not None and spec.start.id == self.bad:
            raise CorruptCheckpointError(self.bad, f"{self.bad} has another sha256")
        return super().make_ready(spec)


def test_a_start_that_is_found_corrupt_while_it_is_brought_somewhere_is_stepped_back_from(simulate: Simulate) -> None:
    run = simulate(backend=Distrustful).create(total_steps=60)
    run.run_until_launch(2)
    run.run_until(lambda tick: tick.record.head_step == 40)
    head = run.record.header.head
    assert head is not None
    run.backend.bad = head  # type: ignore[attr-defined]
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert record.checkpoints[head].state is CheckpointState.QUARANTINED
    assert digest_of_head(record) is not None


def test_a_launch_that_fails_for_certain_is_another_attempt_and_three_end_the_run(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(refused=1)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.TEMPORARY
    assert "3 attempts in a row without a new verified step" in decision.message
    record = run.record
    assert attempts_of(record) == [(1, number, AttemptState.LOST) for number in (1, 2, 3)]
    assert record.attempts[0].reason == "the launch failed: the simulated backend refuses s001a1"
    assert "session 1 attempt 1 failed: the launch failed: the simulated backend refuses s001a1" in run.events()
    assert run.backend.alive() == ()


class NoQuota(SimulatedBackend):
    def launch(self, spec: SessionSpec) -> str:
        if spec.attempt <= 4:
            raise QuotaError("no hours are left this week")
        return super().launch(spec)


def test_a_refusal_for_want_of_quota_is_waited_for_and_never_ends_the_run(simulate: Simulate) -> None:
    run = simulate(backend=NoQuota).create(total_steps=20)
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert len(run.record.attempts) == 5
    assert run.clock.now() >= after(4 * 900)


def test_stop_while_the_answer_to_a_launch_is_lost_waits_until_it_is_known(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(lost_answer=True, unknown_looks=2)).create(total_steps=60)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.NOW)
    assert [type(run.tick().decision) for _ in range(3)] == [Wait, Wait, Kill]
    run.run_until_over()
    assert run.record.header.state is RunState.STOPPED


def test_stop_before_anything_was_sent_drops_the_attempt(simulate: Simulate) -> None:
    run = simulate(backend=Forgetful).create(total_steps=40)
    with pytest.raises(KeyboardInterrupt):
        run.tick()
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    assert isinstance(run.tick().decision, Drop)
    assert isinstance(run.tick().decision, Finish)
    assert attempts_of(run.record) == [(1, 1, AttemptState.DROPPED)]
    assert run.backend.launches() == {}
    run.controller.activate(RUN)
    record = run.run_until_over().record
    assert [(a.session, a.attempt) for a in record.attempts] == [(1, 1), (1, 2), (2, 1)]


def test_a_second_rerun_wished_for_while_the_first_is_planned_is_not_lost(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_over()
    first, second = (RerunWish(session=session, adopt=False, requested_at=START) for session in (1, 2))
    run.runs.set_rerun(RUN, first)

    class WishesMeanwhile(SimulatedBackend):
        def quota(self, now: Any) -> Any:
            if run.record.wishes.rerun == first:
                run.runs.set_rerun(RUN, second)
            return super().quota(now)

    other = Simulation(run.home.root, backend=WishesMeanwhile, start=after(1000))
    other.run_until_over()
    assert [(a.session, a.attempt) for a in other.record.attempts[3:]] == [(1, 2), (2, 2)]
    other.close()


def test_two_sessions_of_one_run_are_never_alive_at_once(simulate: Simulate) -> None:
    class Watchful(SimulatedBackend):
        def launch(self, spec: SessionSpec) -> str:
            assert self.alive() == ()
            return super().launch(spec)

    run = simulate(lambda session, _: Scenario(killed=session == 1, lost_answer=session == 2), backend=Watchful)
    assert run.create(total_steps=60).run_until_over().record.header.state is RunState.FINISHED


def test_an_attempt_that_is_not_ready_stays_planned_and_the_tick_says_what_it_waits_for(simulate: Simulate) -> None:
    run = simulate(lambda _session, _attempt: Scenario(unready=2)).create(total_steps=20)
    assert [run.tick().decision for _ in range(2)] == [Wait("s001a1 to be made ready")] * 2
    assert [attempt.state for attempt in run.record.attempts] == [AttemptState.PLANNED]
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert run.backend.launches() == {"s001a1": 1}


def test_an_attempt_that_the_platform_has_no_room_for_is_launched_later_under_the_same_name(simulate: Simulate) -> None:
    run = simulate(lambda _session, _attempt: Scenario(full=3)).create(total_steps=20)
    assert run.tick().decision == Wait("the simulated backend is full: s001a1 waits")
    assert [attempt.state for attempt in run.record.attempts] == [AttemptState.PLANNED]
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert run.backend.launches() == {"s001a1": 1}


def test_what_cannot_be_made_ready_now_is_tried_again_and_is_no_failed_attempt(simulate: Simulate) -> None:
    class OutOfReach(SimulatedBackend):
        calls = 0

        def make_ready(self, spec: Any) -> str | None:
            self.calls += 1
            if self.calls == 1:
                raise TemporaryError("the platform does not answer")
            return super().make_ready(spec)

    run = simulate(backend=OutOfReach).create(total_steps=20)
    assert run.tick().decision == Wait("the platform does not answer")
    assert len(run.run_until_over().record.attempts) == 1
