from __future__ import annotations

from typing import Any

import pytest

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import AskToStop, Finish, GiveUp, Kill, Launch, Wait
from orchestrator.monitoring.status import waiting_for
from orchestrator.ports import AttemptRef, AttemptStatus, Observation
from state.errors import ErrorClass, ExitCode, TemporaryError, UserError
from state.ledger import PutAttempt, StopWish, Waiting
from state.lineage import ancestors
from state.report import Outcome, SessionReport
from state.session import AttemptState, IllegalMoveError, RunState
from state.spec import SessionLimits
from tests.factories import OWNER, RUN, run_spec
from tests.simulation import Simulate, Simulation, attempts_of, digest_of_head


def test_a_run_is_cut_into_sessions_that_each_start_where_the_last_one_ended(simulate: Simulate) -> None:
    run = simulate().create(total_steps=50)
    tick = run.run_until_over()
    assert tick.decision == Finish(RunState.FINISHED, "the run has reached step 50 of 50")
    assert [(a.start_step, a.saved_step) for a in tick.record.attempts] == [(0, 20), (20, 40), (40, 50)]
    assert [a.outcome for a in tick.record.attempts] == [Outcome.BUDGET, Outcome.BUDGET, Outcome.COMPLETED]
    assert run.backend.launches() == {"s001a1": 1, "s002a1": 1, "s003a1": 1}


def test_a_killed_session_keeps_what_it_saved_and_the_next_session_goes_on(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Scenario(killed=session == 2)).create(total_steps=50)
    record = run.run_until_over().record
    assert record.attempts[1].state is AttemptState.LOST
    assert record.attempts[1].reason == "killed"
    assert record.attempts[2].start_step == 40
    assert digest_of_head(record) == digest_of_one_long_session(run)


def digest_of_one_long_session(run: Simulation) -> str:
    """The digest that 50 steps give in one session, in a world of its own."""
    alone = Simulation(run.home.root / "alone", lambda _s, _a: Scenario(save_after=(50,))).create(total_steps=50)
    digest = digest_of_head(alone.run_until_over().record)
    alone.close()
    return digest


def test_unknown_is_never_taken_for_an_end_however_long_it_lasts(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(unknown_looks=50)).create(total_steps=20)
    run.run_until_launch(1)
    for _ in range(50):
        run.tick()
        assert attempts_of(run.record) == [(1, 1, AttemptState.RUNNING)]
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_start_forgives_the_failures_before_it(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Scenario(refused=int(number <= 3))).create(total_steps=20)
    run.run_until_over()
    assert run.record.header.state is RunState.FAILED
    assert isinstance(run.tick().decision, GiveUp)
    run.controller.activate(RUN)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_retries_wait_a_little_longer_each_time(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(save_after=(), killed=True)).create(total_steps=20)
    waits = []
    while not isinstance((tick := run.tick()).decision, GiveUp):
        if isinstance(tick.decision, Wait) and tick.decision.until is not None:
            waits.append(tick.decision.until)
    assert len(waits) == 1
    assert attempts_of(run.record) == [(1, number, AttemptState.LOST) for number in (1, 2, 3)]


def test_the_same_error_twice_in_a_row_ends_the_run(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(error_class=ErrorClass.INFRA)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.message.startswith("two attempts in a row failed with the same error")
    assert len(run.record.attempts) == 2


def test_an_error_that_only_the_user_can_mend_ends_the_run_at_once(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(error_class=ErrorClass.USER)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.USER
    assert len(run.record.attempts) == 1


def test_stop_after_the_next_checkpoint_ends_the_session_and_start_goes_on(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    assert isinstance(run.tick().decision, AskToStop)
    tick = run.run_until_over()
    assert tick.decision == Finish(
        RunState.STOPPED, "stopped on request, at step 10; the same start command continues from there"
    )
    assert run.record.attempts[0].outcome is Outcome.STOPPED
    assert run.record.wishes.stop is None
    run.controller.activate(RUN)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_stop_now_kills_the_session_and_the_record_says_who_asked(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.NOW)
    assert isinstance(run.tick().decision, Kill)
    assert isinstance(run.run_until_over().decision, Finish)
    assert run.record.header.state is RunState.STOPPED
    assert run.record.attempts[0].reason == "killed on the user's request"


def test_stop_of_a_finished_run_leaves_it_finished(simulate: Simulate) -> None:
    run = simulate().create(total_steps=20)
    run.run_until_over()
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    tick = run.tick()
    assert tick.decision == Finish(RunState.FINISHED, "the run has reached step 20 of 20")
    assert tick.record.header.state is RunState.FINISHED
    assert tick.record.wishes.stop is None


def test_stop_that_comes_when_the_last_step_is_reached_says_finished(simulate: Simulate) -> None:
    run = simulate().create(total_steps=20)
    run.run_until(lambda tick: tick.record.head_step == 20)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_stop_that_is_taken_back_in_time_changes_nothing(simulate: Simulate) -> None:
    run = simulate().create(total_steps=40)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.NOW)
    run.controller.activate(RUN)
    assert run.record.wishes.stop is None
    assert len(run.run_until_over().record.attempts) == 2


def test_more_steps_make_a_finished_run_go_on_from_its_head(simulate: Simulate) -> None:
    run = simulate().create(total_steps=20)
    run.run_until_over()
    run.runs.set_spec(RUN, run_spec(total_steps=50), seen=run.record)
    assert isinstance(run.tick().decision, Finish)  # only start makes it go on
    run.controller.activate(RUN)
    record = run.run_until_over().record
    assert record.head_step == 50
    assert [a.start_step for a in record.attempts] == [0, 20, 40]


class Deaf(SimulatedBackend):
    """Its sessions never end by themselves, and do not listen."""

    def ask_to_stop(self, ref: AttemptRef) -> None:
        pass


def test_a_session_past_its_limit_that_does_not_listen_is_killed_and_the_record_says_why(simulate: Simulate) -> None:
    endless = Scenario(save_after=tuple(range(1, 201)))
    run = simulate(lambda session, _: endless if session == 1 else Scenario(), backend=Deaf)
    run.create(total_steps=300, limits=SessionLimits(session_limit_s=60.0))
    run.run_until_launch(1)
    run.clock.advance(60 + 121)
    assert isinstance(run.tick().decision, AskToStop)
    run.clock.advance(121)
    assert isinstance(run.tick().decision, Kill)
    run.tick()
    assert run.record.attempts[0].state is AttemptState.LOST
    assert run.record.attempts[0].reason == "it exceeded its time limit and did not stop when asked"
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_session_that_a_machine_has_slept_through_saves_and_ends(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(save_after=tuple(range(1, 21))))
    run.create(total_steps=20, limits=SessionLimits(session_limit_s=60.0))
    run.run_until_launch(1)
    run.tick()
    run.clock.advance(8 * 3600)
    assert isinstance(run.tick().decision, AskToStop)
    run.tick()
    assert (run.record.attempts[0].state, run.record.attempts[0].outcome) == (AttemptState.DONE, Outcome.STOPPED)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_running_the_last_session_again_makes_its_result_the_head(simulate: Simulate) -> None:
    run = simulate().create(total_steps=40)
    run.run_until_over()
    before = run.record
    after_rerun = run.rerun(2).record
    again = after_rerun.attempts[-1]
    assert (again.session, again.attempt, again.adopt) == (2, 2, True)
    assert after_rerun.header.head == again.head == "step-00000040-s002a2"
    assert digest_of_head(after_rerun) == digest_of_head(before)
    assert again.comparison == f"identical to step-00000040-s002a1: state sha256 {digest_of_head(before)}"
    assert after_rerun.header.state is RunState.FINISHED


def test_running_the_first_session_again_starts_from_nothing(simulate: Simulate) -> None:
    run = simulate().create(total_steps=20)
    run.run_until_over()
    again = run.rerun(1).record.attempts[-1]
    assert again.start_checkpoint is None
    assert run.runs.session_spec(RUN, 1, 2).start is None
    assert run.record.header.head == "step-00000020-s001a2"


def test_adopting_a_rerun_makes_a_finished_run_go_on_from_its_result(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    digest = digest_of_head(run.run_until_over().record)
    record = run.rerun(2, adopt=True).record
    assert record.header.state is RunState.FINISHED
    assert record.head_step == 60
    assert digest_of_head(record) == digest
    assert [a.session for a in record.attempts] == [1, 2, 3, 2, 4]
    assert record.attempts[-1].start_checkpoint == "step-00000040-s002a2"
    assert "step-00000060-s003a1" not in set(ancestors(record.header.head, record.parents))


def test_adopting_a_rerun_lets_a_failed_run_go_on(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Scenario(save_after=() if (session, number) < (3, 4) and session == 3 else (10, 20)))
    run.create(total_steps=60)
    assert isinstance(run.run_until_over().decision, GiveUp)
    record = run.rerun(2).record
    assert record.header.state is RunState.FINISHED
    assert record.head_step == 60


def test_a_stopped_run_stays_stopped_when_its_last_session_runs_again(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    run.run_until_over()
    record = run.rerun(1).record
    assert record.header.state is RunState.STOPPED
    assert record.header.head == "step-00000020-s001a2"


def test_a_rerun_that_is_killed_before_it_saved_leaves_the_head_alone(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Scenario(save_after=(10, 20) if number == 1 else (), killed=number > 1))
    run.create(total_steps=40)
    run.run_until_over()
    record = run.rerun(2).record
    assert record.header.head == "step-00000040-s002a1"
    assert record.attempts[-1].comparison == "nothing to compare: the rerun saved no checkpoint"


class ByHand(SimulatedBackend):
    """A world in which somebody may be running an attempt by hand."""

    by_hand: AttemptRef | None = None

    def observe(self, ref: AttemptRef) -> Observation:
        if self.by_hand is not None and (ref.session, ref.attempt) == (self.by_hand.session, self.by_hand.attempt):
            return Observation(AttemptStatus.RUNNING)
        return super().observe(ref)


def test_nothing_is_launched_while_somebody_runs_the_newest_attempt_by_hand(simulate: Simulate) -> None:
    run = simulate(backend=ByHand).create(total_steps=40)
    run.run_until(lambda tick: tick.record.head_step == 20)
    run.backend.observe(AttemptRef(RUN, 1, 1))
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    run.run_until_over()
    run.controller.activate(RUN)
    run.backend.by_hand = AttemptRef(RUN, 1, 1)  # type: ignore[attr-defined]
    for _ in range(5):
        assert run.tick().decision == Wait("session 1 attempt 1 is run by hand; the controller waits until it ends")
    run.backend.by_hand = None  # type: ignore[attr-defined]
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_what_a_hand_run_is_writing_is_not_swept_away(simulate: Simulate) -> None:
    run = simulate(backend=ByHand).create(total_steps=60)
    run.run_until_launch(2)
    run.backend.by_hand = AttemptRef(RUN, 1, 1)  # type: ignore[attr-defined]
    being_written, left_over = run.store.stage("step-00000017-s001a1"), run.store.stage("step-00000037-s002a1")
    foreign = run.store.stage("step-00000037-s099a1")
    run.run_until_launch(3)
    assert being_written.exists()
    assert foreign.exists()
    assert not left_over.exists()


def test_an_unknown_run_is_the_users_error(simulate: Simulate) -> None:
    with pytest.raises(UserError, match="there is no run 'tamil'"):
        simulate().tick()


class Offline(SimulatedBackend):
    offline = False

    def observe(self, ref: AttemptRef) -> Observation:
        if self.offline:
            raise TemporaryError("the network is down")
        return super().observe(ref)

    def report(self, ref: AttemptRef) -> SessionReport | None:
        if self.offline:
            raise TemporaryError("the network is down")
        return super().report(ref)


def test_a_tick_that_cannot_look_changes_nothing(simulate: Simulate) -> None:
    run = simulate(backend=Offline).create(total_steps=20)
    run.run_until_launch(1)
    before = run.record
    run.backend.offline = True  # type: ignore[attr-defined]
    with pytest.raises(TemporaryError):
        run.tick()
    assert run.record == before
    run.backend.offline = False  # type: ignore[attr-defined]
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_tick_that_is_asked_to_go_no_further_decides_nothing(simulate: Simulate) -> None:
    run = simulate().create()
    tick = run.controller.tick(RUN, until=lambda _record: True)
    assert isinstance(tick.decision, Wait)
    assert run.record.attempts == ()


def test_an_attempt_cannot_be_moved_where_the_table_forbids(simulate: Simulate) -> None:
    run = simulate(owner=OWNER).create(total_steps=20)
    record = run.run_until_over().record
    over = record.attempts[0].evolve(state=AttemptState.RUNNING)
    with pytest.raises(IllegalMoveError):
        run.runs.apply(RUN, OWNER, [PutAttempt(over)])
    assert run.record == record


def test_a_decision_that_changes_the_run_comes_with_the_record_after_it(simulate: Simulate) -> None:
    tick = simulate().create().tick()
    assert isinstance(tick.decision, Launch)
    assert tick.record.live_attempt is not None


def test_a_quota_is_not_asked_for_while_an_attempt_lives(simulate: Simulate) -> None:
    class Counted(SimulatedBackend):
        asked = 0

        def quota(self, now: Any) -> Any:
            self.asked += 1
            return super().quota(now)

    run = simulate(backend=Counted).create(total_steps=20)
    run.run_until_launch(1)
    asked = run.backend.asked  # type: ignore[attr-defined]
    assert run.tick().record.live_attempt is not None
    assert run.backend.asked == asked  # type: ignore[attr-defined]


def test_what_the_next_session_waits_for_is_in_the_record_until_it_runs(simulate: Simulate) -> None:
    run = simulate(lambda _session, _attempt: Scenario(unready=1)).create(total_steps=20)
    run.tick()
    assert run.record.header.waiting == Waiting(reason="s001a1 to be made ready")
    assert run.record.header.newest_fence == 1
    assert waiting_for(run.ports, run.record) == "s001a1 to be made ready"
    run.tick()
    assert run.record.header.waiting is None
    assert run.run_until_over().record.header.waiting is None
