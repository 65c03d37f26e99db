from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.session.budget import Budget, first_save_estimate_s


def budget(**values: float) -> Budget:
    return replace(Budget(started_s=1000.0, limit_s=60.0, checkpoint_every_s=20.0, save_s=4.0, last_save_s=1000.0), **values)


durations = st.floats(min_value=0.0, max_value=1e5)
budgets = st.builds(
    Budget,
    started_s=st.floats(min_value=-1e6, max_value=1e6),
    limit_s=st.floats(min_value=0.1, max_value=1e6),
    checkpoint_every_s=st.floats(min_value=0.001, max_value=1e5),
    save_s=durations,
    last_save_s=st.floats(min_value=-1e6, max_value=1e6),
    forward_s=durations,
    delivery_s=durations,
    recent_steps_s=st.lists(durations, max_size=16).map(tuple),
)
moments = st.floats(min_value=-1e6, max_value=3e6)


@given(budgets, moments, st.booleans())
def test_a_step_that_may_begin_ends_before_the_reserve(plan: Budget, now_s: float, saving: bool):
    if plan.may_train_another_step(now_s, saving=saving):
        after_step_s = now_s + plan.step_s
        assert after_step_s + plan.reserve_s <= plan.started_s + plan.limit_s + 1e-6
        assert plan.may_still_save(after_step_s) or plan.left_s(after_step_s) == pytest.approx(plan.reserve_s)


@given(budgets)
def test_the_training_always_stops_before_the_limit(plan: Budget):
    assert not plan.may_train_another_step(plan.started_s + plan.limit_s)


@given(budgets, moments)
def test_a_checkpoint_in_flight_never_makes_more_time(plan: Budget, now_s: float):
    assert plan.may_train_another_step(now_s) or not plan.may_train_another_step(now_s, saving=True)


@given(budgets, moments)
def test_no_checkpoint_is_begun_that_the_last_one_would_have_to_wait_for(plan: Budget, now_s: float):
    if plan.save_is_due(now_s):
        assert now_s - plan.last_save_s >= plan.checkpoint_every_s
        assert plan.left_s(now_s) >= plan.reserve_s + plan.save_s


@given(budgets, durations)
def test_learning_from_saves_never_makes_the_reserve_smaller(plan: Budget, seconds: float):
    learned = plan.after_save(seconds)
    assert learned.reserve_s >= plan.reserve_s
    assert learned.save_s >= seconds


@given(budgets, moments)
def test_a_session_with_the_limit_that_is_named_could_have_trained(plan: Budget, now_s: float):
    longer = replace(plan, limit_s=plan.sufficient_limit_s(now_s))
    assert longer.may_train_another_step(now_s - 1e-6)


def test_the_reserve_holds_the_save_its_canary_and_the_exit():
    assert budget(forward_s=0.3).reserve_s == pytest.approx(4.0 * 1.25 + 0.3 + 0.5)


def test_a_slow_step_is_expected_again_until_it_is_sixteen_steps_ago():
    plan = budget().after_step(9.0, 3.0)
    for _ in range(15):
        plan = plan.after_step(1.0, 0.3)
        assert plan.step_s == 9.0
    assert plan.after_step(1.0, 0.3).step_s == 1.0
    assert plan.forward_s == 0.3


def test_checkpoints_are_counted_from_when_the_last_one_was_taken():
    plan = budget()
    assert not plan.save_is_due(1019.9)
    assert plan.save_is_due(1020.0)
    assert not plan.after_save_began(1020.0).save_is_due(1039.9)


def test_a_first_save_is_taken_to_be_slow():
    assert first_save_estimate_s(600_000_000) == pytest.approx(7.0)


def test_the_delivery_of_the_last_checkpoint_is_kept_in_reserve():
    plan = budget()
    later = plan.with_delivery(10.0)
    assert later.reserve_s == plan.reserve_s + 10.0
    assert later.with_delivery(10.0) is later
