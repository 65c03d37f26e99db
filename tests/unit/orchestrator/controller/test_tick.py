from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.backends.simulated import Course, SimulatedBackend
from orchestrator.controller.decide import AskToStop, Drop, Finish, GiveUp, Kill, Launch, Resume, Wait
from orchestrator.controller.lease import LEASE_S
from orchestrator.monitoring.status import waiting_for
from orchestrator.ports import AttemptRef, Observation, Sighting
from state import effects
from state.errors import (
    CorruptCheckpointError,
    DataError,
    ErrorClass,
    ExitCode,
    LeaseHeldError,
    LeaseLostError,
    QuotaError,
    TemporaryError,
    UserError,
)
from state.ledger import CheckpointState, DataRecord, PutAttempt, RerunWish, RunRecord, StopWish, Waiting
from state.lineage import ancestors
from state.manifest import Manifest
from state.process import identify
from state.report import Outcome, SessionReport
from state.session import AttemptState, IllegalMoveError, RunState
from state.spec import DataSpec, ExpectedCheckpoint, Retention, RunSpec, SessionLimits, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import DATA, OWNER, RIVAL, RUN, START, after, commit_checkpoint, run_spec
from tests.simulation import Simulation, digest_of_head

Simulate = Callable[..., Simulation]


def attempts_of(record: RunRecord) -> list[tuple[int, int, AttemptState]]:
    return [(attempt.session, attempt.attempt, attempt.state) for attempt in record.attempts]


def test_a_run_is_cut_into_sessions_that_each_start_where_the_last_one_ended(simulate: Simulate) -> None:
    run = simulate().create(total_steps=50)
    tick = run.run_until_over()
    assert tick.decision == Finish(RunState.FINISHED, "step 50 of 50 is reached")
    assert [(a.start_step, a.saved_step) for a in tick.record.attempts] == [(0, 20), (20, 40), (40, 50)]
    assert [a.outcome for a in tick.record.attempts] == [Outcome.BUDGET, Outcome.BUDGET, Outcome.COMPLETED]
    assert run.backend.launches() == {"s001a1": 1, "s002a1": 1, "s003a1": 1}


def test_a_killed_session_keeps_what_it_saved_and_the_next_session_goes_on(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Course(killed=session == 2)).create(total_steps=50)
    record = run.run_until_over().record
    assert record.attempts[1].state is AttemptState.LOST
    assert record.attempts[1].reason == "killed"
    assert record.attempts[2].start_step == 40
    assert digest_of_head(record) == digest_of_one_long_session(run)


def digest_of_one_long_session(run: Simulation) -> str:
    """The digest that 50 steps give in one session, in a world of its own."""
    alone = Simulation(run.home.root / "alone", lambda _s, _a: Course(save_after=(50,))).create(total_steps=50)
    digest = digest_of_head(alone.run_until_over().record)
    alone.close()
    return digest


def test_a_launch_whose_answer_is_lost_is_looked_for_before_anything_is_sent_again(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(lost_answer=True, unknown_looks=3)).create(total_steps=20)
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


def test_unknown_is_never_taken_for_an_end_however_long_it_lasts(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(unknown_looks=50)).create(total_steps=20)
    run.run_until_launch(1)
    for _ in range(50):
        run.tick()
        assert attempts_of(run.record) == [(1, 1, AttemptState.RUNNING)]
    assert run.run_until_over().record.header.state is RunState.FINISHED


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
    run = simulate(lambda _s, _a: Course(refused=1)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.TEMPORARY
    assert "3 attempts in a row without a new verified step" in decision.message
    record = run.record
    assert attempts_of(record) == [(1, number, AttemptState.LOST) for number in (1, 2, 3)]
    assert record.attempts[0].reason == "it could not be launched: the simulated backend refuses s001a1"
    assert "session 1 attempt 1 failed: it could not be launched: the simulated backend refuses s001a1" in run.events()
    assert run.backend.alive() == ()


def test_start_forgives_the_failures_before_it(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Course(refused=int(number <= 3))).create(total_steps=20)
    run.run_until_over()
    assert run.record.header.state is RunState.FAILED
    assert isinstance(run.tick().decision, GiveUp)
    run.controller.activate(RUN)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_retries_wait_a_little_longer_each_time(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=(), killed=True)).create(total_steps=20)
    waits = []
    while not isinstance((tick := run.tick()).decision, GiveUp):
        if isinstance(tick.decision, Wait) and tick.decision.until is not None:
            waits.append(tick.decision.until)
    assert len(waits) == 1
    assert attempts_of(run.record) == [(1, number, AttemptState.LOST) for number in (1, 2, 3)]


def test_the_same_error_twice_in_a_row_ends_the_run(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(error_class=ErrorClass.INFRA)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.message.startswith("the same error twice in a row")
    assert len(run.record.attempts) == 2


def test_an_error_that_only_the_user_can_mend_ends_the_run_at_once(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(error_class=ErrorClass.USER)).create()
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.USER
    assert len(run.record.attempts) == 1


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


def test_a_corrupt_head_is_quarantined_and_the_run_falls_back_and_says_what_it_costs(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until(lambda tick: tick.record.head_step == 20)
    run.damage("step-00000020-s001a1")
    assert isinstance(run.tick().decision, Launch)  # was decided, and called off when its start was read
    assert len(run.record.attempts) == 1
    assert run.record.head_step == 10
    assert any("falls back to step-00000010-s001a1, which costs 10 steps" in text for text in run.events())
    run.tick()
    assert "step-00000020-s001a1" not in run.store.ids()
    assert list(run.home.run(RUN).checkpoints.glob(".quarantined-step-00000020-s001a1-1/why.txt"))
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert record.checkpoints["step-00000020-s001a1"].state is CheckpointState.QUARANTINED
    assert "step-00000020-s001a1" not in set(ancestors(record.header.head, record.parents))


def test_two_step_backs_are_taken_and_the_third_corrupt_checkpoint_ends_the_run_with_exit_code_4(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=(5, 10, 15, 20))).create(total_steps=60, retention=Retention(keep_last=4))
    run.run_until(lambda tick: tick.record.head_step == 20)
    for step in (10, 15, 20):
        run.damage(f"step-{step:08d}-s001a1")
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.DATA
    assert "3 checkpoints in a row were corrupt" in decision.message
    assert run.record.header.exit_code == ExitCode.DATA
    assert run.record.head_step == 5
    assert len(run.record.attempts) == 1


def test_start_after_corrupt_checkpoints_tries_once_more(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Course((5, 10, 15, 20), refuses_start=session == 2 and number <= 3))
    run.create(total_steps=40, retention=Retention(keep_last=5))
    assert isinstance(run.run_until_over().decision, GiveUp)
    run.controller.activate(RUN)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_run_whose_only_checkpoint_is_corrupt_begins_again(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=(20,))).create(total_steps=40)
    run.run_until(lambda tick: tick.record.head_step == 20)
    run.damage("step-00000020-s001a1")
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert record.attempts[1].start_checkpoint is None
    assert any("falls back to its beginning, which costs 20 steps" in text for text in run.events())


def test_a_corrupt_new_checkpoint_is_never_the_head(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Course(rots_after=20 if session == 1 else None)).create(total_steps=40)
    record = run.run_until_over().record
    assert "step-00000020-s001a1" not in record.checkpoints
    assert record.attempts[1].start_step == 10
    assert any(text.startswith("checkpoint step-00000020-s001a1 is quarantined before it was used") for text in run.events())
    assert list(run.home.run(RUN).checkpoints.glob(".quarantined-step-00000020-s001a1-1/why.txt"))


def test_what_a_session_finds_corrupt_is_stepped_back_from_and_is_not_the_same_error_twice(simulate: Simulate) -> None:
    course = {1: Course(save_after=(5, 10, 15, 20))}
    run = simulate(lambda session, number: course.get(session, Course(refuses_start=session == 2 and number <= 2))).create(
        total_steps=60
    )
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert [a.start_step for a in record.attempts[:4]] == [0, 20, 15, 10]
    assert record.header.step_backs == 0


def test_coming_back_to_a_step_that_was_lost_to_corruption_is_no_progress(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Course(refuses_start=session > 1 and session % 2 == 0)).create(total_steps=60)
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.DATA


def test_a_checkpoint_of_no_attempt_of_ours_is_kept_as_a_branch(simulate: Simulate) -> None:
    run = simulate().create(total_steps=40)
    commit_checkpoint(run.store, 99, session=9, fence=99)
    record = run.run_until_over().record
    assert record.head_step == 40
    assert record.checkpoints["step-00000099-s009a1"].state is CheckpointState.VERIFIED


def test_stop_after_the_next_checkpoint_ends_the_session_and_start_goes_on(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(1)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    assert isinstance(run.tick().decision, AskToStop)
    tick = run.run_until_over()
    assert tick.decision == Finish(RunState.STOPPED, "stopped as asked, at step 10; the same start command goes on from there")
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
    assert run.record.attempts[0].reason == "the user asked for it"


def test_stop_while_the_answer_to_a_launch_is_lost_waits_until_it_is_known(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(lost_answer=True, unknown_looks=2)).create(total_steps=60)
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


def test_stop_of_a_finished_run_leaves_it_finished(simulate: Simulate) -> None:
    run = simulate().create(total_steps=20)
    run.run_until_over()
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    tick = run.tick()
    assert tick.decision == Finish(RunState.FINISHED, "step 20 of 20 is reached")
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
    run.runs.set_spec(RUN, run_spec(total_steps=50))
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
    endless = Course(save_after=tuple(range(1, 201)))
    run = simulate(lambda session, _: endless if session == 1 else Course(), backend=Deaf)
    run.create(total_steps=300, limits=SessionLimits(session_limit_s=60.0))
    run.run_until_launch(1)
    run.clock.advance(60 + 121)
    assert isinstance(run.tick().decision, AskToStop)
    run.clock.advance(121)
    assert isinstance(run.tick().decision, Kill)
    run.tick()
    assert run.record.attempts[0].state is AttemptState.LOST
    assert run.record.attempts[0].reason == "it is past its limit and did not stop when asked"
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_session_that_a_machine_has_slept_through_saves_and_ends(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=tuple(range(1, 21))))
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


def test_running_an_earlier_session_again_makes_a_branch_that_is_compared_and_never_used(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_over()
    head = run.record.header.head
    record = run.rerun(2).record
    again = record.attempts[-1]
    assert record.header.head == head
    assert again.branch == "rerun-s002a2"
    assert (again.start_step, again.saved_step) == (20, 40)
    assert again.comparison is not None
    assert again.comparison.startswith("identical to step-00000040-s002a1")
    assert f"session 2 attempt 2: {again.comparison}" in run.events()
    assert record.checkpoints[again.head or ""].branch == "rerun-s002a2"


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
    run = simulate(lambda session, number: Course(save_after=() if (session, number) < (3, 4) and session == 3 else (10, 20)))
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


def test_a_rerun_whose_start_is_corrupt_is_called_off_and_says_so(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_over()
    run.damage("step-00000020-s001a1")
    record = run.rerun(2).record
    assert record.wishes.rerun is None
    assert len(record.attempts) == 3
    assert record.checkpoints["step-00000020-s001a1"].state is CheckpointState.QUARANTINED
    assert record.head_step == 60
    assert any(text.startswith("session 2 cannot run again: ") for text in run.events())


def test_a_rerun_whose_data_cannot_be_had_is_called_off_and_says_so(simulate: Simulate) -> None:
    """Else the wish stays, and every tick tries again: a rerun, and each start after it, would never end."""
    run = simulate().create(total_steps=50)
    run.run_until_over()
    lost = simulate(prepare=failing_preparation, has_data=lambda _run, _data: False)
    lost.runs.set_rerun(RUN, RerunWish(session=1, adopt=False, requested_at=lost.clock.now()))
    tick = lost.run_until_over()
    assert isinstance(tick.decision, Finish)
    assert lost.record.wishes.rerun is None
    assert lost.record.header.state is RunState.FINISHED
    assert lost.events()[-1].startswith("session 1 cannot run again: the corpus is gone")


def failing_preparation(spec: RunSpec, keep_lease: Callable[[], None], **_version: int) -> DataRecord:
    raise DataError("the corpus is gone")


def test_a_rerun_that_is_killed_before_it_saved_leaves_the_head_alone(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Course(save_after=(10, 20) if number == 1 else (), killed=number > 1))
    run.create(total_steps=40)
    run.run_until_over()
    record = run.rerun(2).record
    assert record.header.head == "step-00000040-s002a1"
    assert record.attempts[-1].comparison == "the rerun saved nothing to compare"


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


def test_a_late_commit_by_an_older_attempt_becomes_a_branch(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(3)
    late = commit_checkpoint(run.store, 59, session=1, parent="step-00000020-s001a1")
    record = run.run_until_over().record
    assert record.head_step == 60
    assert late.id not in set(ancestors(record.header.head, record.parents))
    assert record.checkpoints[late.id].state is CheckpointState.VERIFIED
    assert late.id in run.store.ids()
    assert f"checkpoint {late.id} came late (fence 1): kept as a branch" in run.events()


def test_what_a_hand_run_of_the_newest_attempt_commits_becomes_the_head(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Course(save_after=(10,), killed=True)).create(total_steps=40)
    run.run_until(lambda tick: tick.record.head_step == 10)
    by_hand = commit_checkpoint(run.store, 15, session=1, parent="step-00000010-s001a1")
    run.tick()
    assert run.record.header.head == by_hand.id
    assert run.record.attempts[0].saved_step == 15


class ByHand(SimulatedBackend):
    """A world in which somebody may be running an attempt by hand."""

    by_hand: AttemptRef | None = None

    def observe(self, ref: AttemptRef) -> Observation:
        if self.by_hand is not None and (ref.session, ref.attempt) == (self.by_hand.session, self.by_hand.attempt):
            return Observation(Sighting.RUNNING)
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
        assert run.tick().decision == Wait("session 1 attempt 1 is being run by hand")
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


def test_data_that_cannot_be_prepared_plans_nothing_and_ends_the_run(simulate: Simulate) -> None:
    def broken(_spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        raise DataError("the corpus is empty", remedy="put text into it")

    simulation = simulate(prepare=broken).create()
    simulation.run_until_over()
    record = simulation.record
    assert (record.header.state, record.header.exit_code, record.attempts) == (RunState.FAILED, 4, ())
    assert record.header.message == "the corpus is empty\nNext: put text into it"


def test_a_stop_is_heard_before_data_is_prepared(simulate: Simulate) -> None:
    def never(_spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        raise AssertionError("nobody wants this data any more")

    simulation = simulate(prepare=never).create()
    simulation.runs.set_stop(RUN, StopWish.CHECKPOINT)
    simulation.run_until_over()
    assert simulation.record.header.state is RunState.STOPPED


def test_data_prepared_for_what_is_no_longer_asked_for_is_not_taken(simulate: Simulate) -> None:
    prepared: list[float] = []

    def slowly(spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        prepared.append(spec.data.alpha)
        if len(prepared) == 1:  # meanwhile, in another terminal
            changed = spec.evolve(data=spec.data.evolve(alpha=0.5))
            simulation.runs.set_spec(RUN, changed)
        return DATA

    simulation = simulate(prepare=slowly).create()
    simulation.run_until(lambda tick: tick.record.live_attempt is not None)
    assert prepared == [0.7, 0.5]


def test_data_that_was_lost_is_prepared_again_and_must_be_the_same(simulate: Simulate) -> None:
    data = [DATA, DATA, DATA.evolve(sha256="f" * 64)]
    simulation = simulate(prepare=lambda _spec, _keep_lease, **_version: data.pop(0), has_data=lambda _run, _data: False).create()
    simulation.run_until_over()
    record = simulation.record
    assert (record.header.state, record.header.exit_code, len(record.attempts)) == (RunState.FAILED, 4, 2)
    assert "its corpus has changed since" in (record.header.message or "")


@pytest.mark.parametrize("finished", [True, False])
def test_a_data_folder_that_was_moved_is_read_where_the_user_says(simulate: Simulate, *, finished: bool) -> None:
    places = {"/old"}
    run = simulate(prepare=found_there(places), has_data=lambda _run, data: data.folder in places)
    run.create(total_steps=40, data=DataSpec(prepared="/old"))
    run.run_until_over()
    places.symmetric_difference_update({"/old", "/new"})
    run.runs.set_spec(RUN, run_spec(total_steps=40 if finished else 60, data=DataSpec(prepared="/new")))
    run.controller.activate(RUN)
    run.run_until_over()
    header = run.record.header
    assert (header.state, [data.folder for data in header.data]) == (RunState.FINISHED, ["/new"])


def test_a_data_folder_with_other_data_is_not_taken_for_the_moved_one(simulate: Simulate) -> None:
    places = {"/old"}
    run = simulate(prepare=found_there(places, sha256="9" * 64), has_data=lambda _run, data: data.folder in places)
    run.create(total_steps=40, data=DataSpec(prepared="/old"))
    run.run_until_over()
    run.runs.set_spec(RUN, run_spec(total_steps=60, data=DataSpec(prepared="/other")))
    run.controller.activate(RUN)
    run.run_until_over()
    header = run.record.header
    assert (header.state, header.data[0].folder) == (RunState.FAILED, "/old")
    assert "/other holds other data than run tamil is trained on" in (header.message or "")


def found_there(places: set[str], sha256: str = DATA.sha256) -> Callable[..., DataRecord]:
    """A preparer of folders made already: what lies in another place than the known ones has this digest."""

    def prepare(spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        folder = spec.data.prepared or ""
        return DATA.evolve(folder=folder, sha256=DATA.sha256 if folder in places else sha256)

    return prepare


def test_a_finished_run_whose_head_is_damaged_goes_on_from_the_last_good_one_when_the_user_says_start(simulate: Simulate) -> None:
    simulation = simulate().create(total_steps=40)
    simulation.run_until_over()
    before = simulation.record
    assert before.header.head is not None
    simulation.damage(before.header.head)
    simulation.controller.activate(RUN)
    simulation.run_until_over()
    after = simulation.record
    assert (after.header.state, after.head_step) == (RunState.FINISHED, 40)
    assert after.header.head != before.header.head
    assert digest_of_head(after) == digest_of_head(before)


def test_a_tick_that_is_asked_to_go_no_further_decides_nothing(simulate: Simulate) -> None:
    run = simulate().create()
    tick = run.controller.tick(RUN, until=lambda _record: True)
    assert isinstance(tick.decision, Wait)
    assert run.record.attempts == ()


def test_pruning_keeps_the_newest_the_starts_and_the_head_and_the_store_agrees(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=(2, 4, 6, 8, 10))).create(
        total_steps=60, retention=Retention(keep_last=2, keep_session_starts=2)
    )
    record = run.run_until_over().record
    kept = {c.step for c in record.checkpoints.values() if c.state is CheckpointState.VERIFIED}
    assert kept == {60, 58, 50, 40}
    assert {int(name.split("-")[1]) for name in run.store.ids()} == kept


def test_a_run_whose_disk_is_gone_waits_for_it_and_does_not_begin_again(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until(lambda tick: tick.record.head_step == 20)
    folder = run.home.run(RUN).checkpoints
    away = folder.rename(folder.with_name("unmounted"))
    for _ in range(3):
        with pytest.raises(TemporaryError, match="that it is mounted"):
            run.tick()
    away.rename(folder)
    record = run.run_until_over().record
    assert [a.start_step for a in record.attempts] == [0, 20, 40]
    assert record.header.step_backs == 0


def test_a_disk_that_is_gone_for_a_while_costs_no_checkpoint(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_over()
    kept = run.store.ids()
    folder = run.home.run(RUN).checkpoints
    away = folder.rename(folder.with_name("unmounted"))
    run.tick()
    away.rename(folder)
    run.tick()
    assert run.store.ids() == kept
    assert run.rerun(2).record.attempts[-1].saved_step == 40


def test_a_rerun_that_is_wished_for_keeps_its_start_from_being_pruned(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Course(save_after=(10,))).create(
        total_steps=60, retention=Retention(keep_last=2, keep_session_starts=2)
    )
    run.run_until_launch(4)
    run.runs.set_rerun(RUN, RerunWish(session=3, adopt=False, requested_at=START))
    record = run.run_until_over().record
    assert any(a.session == 3 and a.attempt == 2 and a.saved_step == 30 for a in record.attempts)


def test_a_controller_that_dies_between_forgetting_and_deleting_a_checkpoint_deletes_it_later(simulate: Simulate) -> None:
    class Died(BaseException):
        pass

    def die(kind: effects.EffectKind, what: str) -> None:
        if kind == "rename" and what.startswith(".trash"):
            raise Died

    run = simulate(lambda _s, _a: Course(save_after=(2, 4, 6, 8, 10))).create(total_steps=20)
    effects.observe(die)
    try:
        with pytest.raises(Died):
            run.run_until_over()
    finally:
        effects.observe(None)
    assert list(run.home.run(RUN).checkpoints.glob(".trash-*"))
    run.run_until_over()
    assert not list(run.home.run(RUN).checkpoints.glob(".trash-*"))


def test_two_sessions_of_one_run_are_never_alive_at_once(simulate: Simulate) -> None:
    class Watchful(SimulatedBackend):
        def launch(self, spec: SessionSpec) -> str:
            assert self.alive() == ()
            return super().launch(spec)

    run = simulate(lambda session, _: Course(killed=session == 1, lost_answer=session == 2), backend=Watchful)
    assert run.create(total_steps=60).run_until_over().record.header.state is RunState.FINISHED


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


def test_an_attempt_that_is_not_ready_stays_planned_and_the_tick_says_what_it_waits_for(simulate: Simulate) -> None:
    run = simulate(lambda _session, _attempt: Course(unready=2)).create(total_steps=20)
    assert [run.tick().decision for _ in range(2)] == [Wait("s001a1 to be made ready")] * 2
    assert [attempt.state for attempt in run.record.attempts] == [AttemptState.PLANNED]
    assert run.run_until_over().record.header.state is RunState.FINISHED
    assert run.backend.launches() == {"s001a1": 1}


def test_an_attempt_that_the_platform_has_no_room_for_is_launched_later_under_the_same_name(simulate: Simulate) -> None:
    run = simulate(lambda _session, _attempt: Course(full=3)).create(total_steps=20)
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
    run = simulate(lambda _session, _attempt: Course(unready=1)).create(total_steps=20)
    run.tick()
    assert run.record.header.waiting == Waiting(reason="s001a1 to be made ready")
    assert run.record.header.newest_fence == 1
    assert waiting_for(run.ports, run.record) == "s001a1 to be made ready"
    run.tick()
    assert run.record.header.waiting is None
    assert run.run_until_over().record.header.waiting is None
