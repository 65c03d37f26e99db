from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.controller.decide import (
    AskToStop,
    Drop,
    Finish,
    GiveUp,
    Kill,
    Launch,
    Resume,
    Wait,
    decide,
    first_attempt_with_progress,
    next_attempt_number,
)
from orchestrator.ports import Quota
from state.ledger import CEILING_GRACE_S, CheckpointRecord, RerunWish, RunRecord, StopWish
from state.session import AttemptState, RunState
from state.spec import SessionLimits
from tests.factories import START, after, attempt, checkpoint, failed, run_record, run_spec

AVAILABLE = Quota(available=True)


def two_sessions(**values: Any) -> RunRecord:
    """Sessions 1 and 2 have brought the run to step 40."""
    checkpoints: list[CheckpointRecord] = [
        checkpoint(20, 1),
        checkpoint(40, 2, parent="step-00000020-s001a1"),
    ]
    attempts = [
        attempt(1, saved_step=20, head=checkpoints[0].id),
        attempt(2, start_checkpoint=checkpoints[0].id, start_step=20, saved_step=40, head=checkpoints[1].id),
        *values.pop("more", ()),
    ]
    return run_record(attempts, checkpoints, **{"head": checkpoints[1].id, **values})


def with_live(state: AttemptState, *, stop: StopWish | None = None, **values: Any) -> RunRecord:
    """Session 3 is in some state."""
    launched_at = None if state is AttemptState.PLANNED else START
    live = attempt(3, state=state, outcome=None, launched_at=launched_at, **values)
    return two_sessions(more=[live], wishes={"stop": stop})


def test_a_new_run_launches_session_1_from_nothing() -> None:
    assert decide(run_record(), AVAILABLE, START) == Launch(session=1, attempt=1, start_checkpoint=None)


def test_after_progress_the_next_session_starts_at_the_head() -> None:
    assert decide(two_sessions(), AVAILABLE, START) == Launch(3, 1, "step-00000040-s002a1")


def test_after_a_session_without_progress_the_same_session_gets_another_attempt() -> None:
    assert decide(two_sessions(more=[failed(3, 1, 3)]), AVAILABLE, START) == Launch(3, 2, "step-00000040-s002a1")


def test_a_limit_in_steps_is_told_to_every_session() -> None:
    spec = run_spec(limits=SessionLimits(session_steps=7))
    assert decide(run_record(spec=spec), AVAILABLE, START) == Launch(1, 1, None, max_steps=7)


@pytest.mark.parametrize("state", [AttemptState.LAUNCHING, AttemptState.QUEUED, AttemptState.RUNNING, AttemptState.ENDED])
def test_nothing_is_launched_while_an_attempt_may_be_alive(state: AttemptState) -> None:
    assert decide(with_live(state), AVAILABLE, START) == Wait(f"session 3 attempt 1 is {state} on simulated")


def test_an_attempt_whose_intent_is_durable_is_gone_on_with() -> None:
    record = with_live(AttemptState.PLANNED)
    assert decide(record, AVAILABLE, START) == Resume(record.attempts[-1])


@pytest.mark.parametrize(
    ("state", "stop", "expected"),
    [
        (AttemptState.PLANNED, StopWish.CHECKPOINT, Drop),
        (AttemptState.PLANNED, StopWish.NOW, Drop),
        (AttemptState.LAUNCHING, StopWish.CHECKPOINT, Wait),
        (AttemptState.LAUNCHING, StopWish.NOW, Wait),
        (AttemptState.QUEUED, StopWish.CHECKPOINT, AskToStop),
        (AttemptState.QUEUED, StopWish.NOW, Kill),
        (AttemptState.RUNNING, StopWish.CHECKPOINT, AskToStop),
        (AttemptState.RUNNING, StopWish.NOW, Kill),
    ],
)
def test_what_a_stop_does_depends_on_how_far_the_attempt_is(state: AttemptState, stop: StopWish, expected: type) -> None:
    assert type(decide(with_live(state, stop=stop), AVAILABLE, START)) is expected


def test_an_attempt_past_its_limit_and_the_grace_is_asked_to_stop_before_it_is_killed() -> None:
    ceiling = START + timedelta(seconds=100 + CEILING_GRACE_S)
    second, grace = timedelta(seconds=1), timedelta(seconds=CEILING_GRACE_S)
    record = with_live(AttemptState.RUNNING)
    assert isinstance(decide(record, AVAILABLE, ceiling), Wait)
    assert decide(record, AVAILABLE, ceiling + 100 * grace) == AskToStop(record.attempts[-1])
    asked = with_live(AttemptState.RUNNING, asked_at=ceiling + second)
    assert isinstance(decide(asked, AVAILABLE, ceiling + second + grace), AskToStop)
    decision = decide(asked, AVAILABLE, ceiling + 2 * second + grace)
    assert decision == Kill(asked.attempts[-1], "it exceeded its time limit and did not stop when asked")


def test_an_attempt_that_was_asked_to_stop_before_its_limit_is_not_killed_for_being_slow() -> None:
    record = with_live(AttemptState.RUNNING, asked_at=START)
    assert isinstance(decide(record, AVAILABLE, after(100 + CEILING_GRACE_S)), Wait)


def test_an_attempt_that_nobody_has_found_yet_is_never_killed_for_its_age() -> None:
    assert isinstance(decide(with_live(AttemptState.LAUNCHING), AVAILABLE, after(10_000)), Wait)


def test_stopping_a_run_at_rest_is_final_until_start() -> None:
    decision = decide(two_sessions(wishes={"stop": StopWish.NOW}), AVAILABLE, START)
    assert decision == Finish(RunState.STOPPED, "killed on request, at step 40; the same start command continues from there")


@pytest.mark.parametrize("state", [RunState.STOPPED, RunState.FINISHED])
def test_a_run_that_has_ended_stays_as_it_is(state: RunState) -> None:
    assert decide(two_sessions(state=state, message="why"), AVAILABLE, START) == Finish(state, "why")


def test_a_run_that_has_failed_says_why_every_time() -> None:
    record = two_sessions(state=RunState.FAILED, message="why", exit_code=4)
    assert decide(record, AVAILABLE, START) == GiveUp("why", 4)
    assert decide(two_sessions(state=RunState.FAILED), AVAILABLE, START) == GiveUp("", 2)


def test_stopping_a_failed_run_does_not_make_it_stopped() -> None:
    record = two_sessions(state=RunState.FAILED, message="why", exit_code=4, wishes={"stop": StopWish.NOW})
    assert decide(record, AVAILABLE, START) == GiveUp("why", 4)


def test_the_last_step_finishes_the_run() -> None:
    record = two_sessions(spec=run_spec(total_steps=40))
    assert decide(record, AVAILABLE, START) == Finish(RunState.FINISHED, "the run has reached step 40 of 40")


def test_without_quota_the_run_waits_until_there_is_some() -> None:
    quota = Quota(available=False, reason="no hours are left this week", until=after(60))
    assert decide(two_sessions(), quota, START) == Wait("no hours are left this week", after(60))


def test_after_two_failures_the_next_attempt_waits_and_says_until_when() -> None:
    record = two_sessions(more=[failed(3, 1, 3), failed(3, 2, 4)])
    decision = decide(record, AVAILABLE, after(40))
    assert isinstance(decision, Wait)
    assert decision.until is not None
    assert decide(record, AVAILABLE, decision.until) == Launch(3, 3, "step-00000040-s002a1")


def test_three_failures_are_explained() -> None:
    decision = decide(two_sessions(more=[failed(3, number, 2 + number) for number in (1, 2, 3)]), AVAILABLE, after(1000))
    assert decision == GiveUp("3 attempts in a row without a new verified step; last: session 3 attempt 3: killed", 3)


def test_a_session_run_by_hand_is_waited_for() -> None:
    record = two_sessions()
    decision = decide(record, AVAILABLE, START, by_hand=record.attempts[-1])
    assert decision == Wait("session 2 attempt 1 is run by hand; the controller waits until it ends")


def test_a_dropped_attempt_leaves_no_gap_in_the_numbers() -> None:
    record = two_sessions(more=[attempt(3, state=AttemptState.DROPPED, outcome=None)])
    assert decide(record, AVAILABLE, START) == Launch(3, 2, "step-00000040-s002a1")


def wish(session: int, *, adopt: bool = False) -> dict[str, Any]:
    return {"rerun": RerunWish(session=session, adopt=adopt, requested_at=START)}


def test_the_last_session_runs_again_with_its_limits_and_is_adopted() -> None:
    record = two_sessions(wishes=wish(2), spec=run_spec(limits=SessionLimits(session_steps=30)), state=RunState.STOPPED)
    assert decide(record, AVAILABLE, START) == Launch(
        2, 2, "step-00000020-s001a1", branch="rerun-s002a2", adopt=True, max_steps=30
    )


def test_a_later_attempt_that_brought_nothing_is_nothing_that_came_after() -> None:
    decision = decide(two_sessions(wishes=wish(2), more=[failed(3, 1, 3)]), AVAILABLE, START)
    assert isinstance(decision, Launch)
    assert decision.adopt


def test_an_earlier_session_runs_again_exactly_as_far_as_before_and_is_not_adopted() -> None:
    decision = decide(two_sessions(wishes=wish(1)), AVAILABLE, START)
    assert decision == Launch(1, 2, None, branch="rerun-s001a2", adopt=False, max_steps=20)


def test_an_earlier_session_is_adopted_when_that_is_asked_for() -> None:
    decision = decide(two_sessions(wishes=wish(1, adopt=True)), AVAILABLE, START)
    assert isinstance(decision, Launch)
    assert decision.adopt


def test_a_stop_comes_before_a_rerun() -> None:
    record = two_sessions(wishes={**wish(1), "stop": StopWish.NOW})
    assert isinstance(decide(record, AVAILABLE, START), Finish)


def test_a_session_that_never_was_cannot_run_again() -> None:
    with pytest.raises(ValueError, match="run tamil has no session 9"):
        first_attempt_with_progress(two_sessions(), 9)


def test_a_rerun_is_compared_with_the_attempt_that_brought_the_run_on() -> None:
    record = run_record(
        [failed(1, 1, 1), attempt(1, 2, fence=2, saved_step=20), attempt(1, 3, fence=3, branch="b", saved_step=20)]
    )
    assert first_attempt_with_progress(record, 1).attempt == 2
    assert next_attempt_number(record, 1) == 4
    assert next_attempt_number(record, 2) == 1


def test_a_rerun_of_a_session_without_progress_starts_where_its_first_attempt_did() -> None:
    record = run_record([failed(1, 1, 1), failed(1, 2, 2)])
    assert first_attempt_with_progress(record, 1).attempt == 1


def test_an_attempt_that_is_queued_for_days_is_never_late():
    record = with_live(AttemptState.QUEUED, limit_s=100)
    assert isinstance(decide(record, AVAILABLE, after(1_000_000)), Wait)


def test_an_attempt_is_late_from_when_it_began_to_run_not_from_when_it_was_sent():
    record = with_live(AttemptState.RUNNING, running_at=after(5000), limit_s=100)
    assert isinstance(decide(record, AVAILABLE, after(5100)), Wait)
    assert isinstance(decide(record, AVAILABLE, after(5101 + CEILING_GRACE_S)), AskToStop)
