from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.controller.retry import GoOn, StopAndExplain, judge, retry_delay_s
from state.errors import ErrorClass, ExitCode
from state.report import Outcome
from state.session import AttemptState
from tests.factories import after, attempt, failed, run_record


def test_a_run_without_failures_goes_on_at_once() -> None:
    assert judge(run_record()) == GoOn()
    assert judge(run_record([attempt(1, saved_step=20)])) == GoOn()


def test_after_one_failure_the_next_attempt_does_not_wait() -> None:
    assert judge(run_record([attempt(1, saved_step=20), failed(2, 1, 2)])) == GoOn()


def test_after_two_failures_the_next_attempt_waits_from_the_end_of_the_last() -> None:
    verdict = judge(run_record([failed(1, 1, 1), failed(1, 2, 2)]))
    assert isinstance(verdict, GoOn)
    assert verdict.not_before == after(20) + timedelta(seconds=retry_delay_s(2, "tamil 1 2"))
    assert judge(run_record([failed(1, 1, 1), failed(1, 2, 2, ended_at=None)])) == GoOn()


def test_three_failures_in_a_row_stop_the_run() -> None:
    verdict = judge(run_record([failed(1, number, number) for number in (1, 2, 3)]))
    assert verdict == StopAndExplain(
        "3 attempts in a row without a new verified step; last: session 1 attempt 3: killed", ExitCode.TEMPORARY
    )


def test_progress_between_failures_begins_the_count_again() -> None:
    attempts = [failed(1, 1, 1), failed(1, 2, 2), attempt(1, 3, fence=3, saved_step=20), failed(2, 1, 4)]
    assert judge(run_record(attempts)) == GoOn()


def test_a_checkpoint_saved_before_a_kill_is_progress() -> None:
    attempts = [failed(number, 1, number, saved_step=10 * number) for number in (1, 2, 3)]
    assert judge(run_record(attempts)) == GoOn()


def test_what_failed_before_the_user_said_start_is_forgiven() -> None:
    attempts = [failed(1, number, number) for number in (1, 2, 3)]
    assert judge(run_record(attempts, resumed_at=after(1))) == GoOn()


def test_reruns_and_dropped_attempts_are_no_failures_of_the_line() -> None:
    attempts = [
        failed(1, 1, 1),
        failed(1, 2, 2, branch="rerun-s001a2"),
        attempt(1, 3, fence=3, state=AttemptState.DROPPED, outcome=None),
    ]
    assert judge(run_record(attempts)) == GoOn()


def test_sessions_that_a_platform_ends_before_their_first_save_are_not_repeated_for_ever() -> None:
    attempts = [failed(1, number, number, state=AttemptState.DONE, outcome=Outcome.STOPPED) for number in (1, 2, 3)]
    assert isinstance(judge(run_record(attempts)), StopAndExplain)


def test_the_same_error_twice_in_a_row_stops_the_run() -> None:
    same = [failed(1, number, number, error_fingerprint="f", error_class=ErrorClass.DATA) for number in (1, 2)]
    assert judge(run_record(same)) == StopAndExplain(
        "two attempts in a row failed with the same error; last: session 1 attempt 2: killed", ExitCode.DATA
    )
    other = [*same[:1], failed(1, 2, 2, error_fingerprint="g")]
    assert isinstance(judge(run_record(other)), GoOn)


def test_errors_without_a_fingerprint_are_never_the_same() -> None:
    assert isinstance(judge(run_record([failed(1, 1, 1), failed(1, 2, 2)])), GoOn)


def test_an_error_of_the_users_stops_the_run_at_once() -> None:
    assert judge(run_record([failed(1, 1, 1, error_class=ErrorClass.USER)])) == StopAndExplain(
        "session 1 attempt 1: killed", ExitCode.USER
    )


def test_a_refusal_for_want_of_quota_is_waited_out_and_not_counted() -> None:
    refused = [failed(1, number, number, error_class=ErrorClass.QUOTA, error_fingerprint="q") for number in range(1, 9)]
    assert judge(run_record(refused)) == GoOn(after(80 + 900))
    assert judge(run_record([failed(1, 1, 1, error_class=ErrorClass.QUOTA, ended_at=None)])) == GoOn()
    assert judge(run_record([*refused, failed(1, 9, 9)])) == GoOn()


def test_more_than_two_corrupt_checkpoints_in_a_row_stop_the_run() -> None:
    assert judge(run_record(step_backs=2)) == GoOn()
    verdict = judge(run_record(step_backs=3))
    assert isinstance(verdict, StopAndExplain)
    assert verdict.exit_code == ExitCode.DATA


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 100), st.text(max_size=20))
def test_delays_are_bounded_and_the_same_each_time(num_failures: int, seed: str) -> None:
    delay_s = retry_delay_s(num_failures, seed)
    assert delay_s == retry_delay_s(num_failures, seed)
    assert 0.0 <= delay_s <= 1.5 * 900.0
    assert (delay_s == 0.0) == (num_failures <= 1)


def test_delays_grow_and_differ_between_runs() -> None:
    assert retry_delay_s(2, "a") < 23 < 0.5 * 15 * 2**4 <= retry_delay_s(6, "a")
    assert retry_delay_s(2, "a") != retry_delay_s(2, "b")
