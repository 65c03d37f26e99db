from __future__ import annotations

import pytest

from state.session import (
    ATTEMPT_MOVES,
    LIVE_STATES,
    RUN_MOVES,
    AttemptState,
    IllegalMoveError,
    RunState,
    check_attempt_move,
    check_run_move,
)


@pytest.mark.parametrize("old", list(AttemptState))
@pytest.mark.parametrize("new", list(AttemptState))
def test_an_attempt_makes_the_moves_of_the_table_and_no_others(old: AttemptState, new: AttemptState) -> None:
    if new == old or new in ATTEMPT_MOVES[old]:
        check_attempt_move(old, new)
        return
    with pytest.raises(IllegalMoveError, match=f"an attempt cannot go from {old} to {new}"):
        check_attempt_move(old, new)


@pytest.mark.parametrize("old", list(RunState))
@pytest.mark.parametrize("new", list(RunState))
def test_a_run_makes_the_moves_of_the_table_and_no_others(old: RunState, new: RunState) -> None:
    if new == old or new in RUN_MOVES[old]:
        check_run_move(old, new)
        return
    with pytest.raises(IllegalMoveError, match=f"a run cannot go from {old} to {new}"):
        check_run_move(old, new)


def test_every_state_has_its_moves() -> None:
    assert set(ATTEMPT_MOVES) == set(AttemptState)
    assert set(RUN_MOVES) == set(RunState)


def test_what_is_over_is_over_and_everything_else_is_live() -> None:
    over = {state for state, moves in ATTEMPT_MOVES.items() if not moves}
    assert over == {AttemptState.DONE, AttemptState.LOST, AttemptState.DROPPED}
    assert set(AttemptState) - over == LIVE_STATES


def test_every_live_attempt_can_still_come_to_its_end() -> None:
    reached = {AttemptState.PLANNED}
    for _ in AttemptState:
        reached |= {new for old in reached for new in ATTEMPT_MOVES[old]}
    assert reached == set(AttemptState)


def test_nothing_that_was_sent_can_be_dropped() -> None:
    assert [old for old, moves in ATTEMPT_MOVES.items() if AttemptState.DROPPED in moves] == [AttemptState.PLANNED]


def test_start_makes_any_run_active() -> None:
    assert all(RunState.ACTIVE in moves for state, moves in RUN_MOVES.items() if state is not RunState.ACTIVE)
