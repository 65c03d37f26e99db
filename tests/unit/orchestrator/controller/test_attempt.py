from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller.attempt import plan_attempt
from orchestrator.controller.decide import Launch
from state.errors import UserError
from state.layout import HomeLayout
from state.session import AttemptState
from state.spec import SessionLimits
from tests.factories import START, attempt, checkpoint, expected, run_record, run_spec

HOME = HomeLayout(Path("home"))


def test_the_first_attempt_starts_from_nothing_with_fence_1() -> None:
    record = run_record(spec=run_spec(limits=SessionLimits(session_limit_s=90.0, checkpoint_every_s=7.0)))
    planned, spec = plan_attempt(record, Launch(1, 1, None, max_steps=5), HOME, START)
    assert (planned.state, planned.fence, planned.start_step, planned.planned_at) == (AttemptState.PLANNED, 1, 0, START)
    assert (spec.fence, spec.start, spec.max_steps) == (1, None, 5)
    assert (spec.limit_s, spec.checkpoint_every_s, spec.total_steps) == (90.0, 7.0, 100)
    assert spec.checkpoints_dir == str(HOME.run("tamil").checkpoints)
    assert spec.architecture.vocab_size == 300


def test_a_session_is_told_exactly_which_bytes_to_start_from() -> None:
    head = checkpoint(20, 1)
    record = run_record([attempt(1, saved_step=20)], [head], head=head.id)
    planned, spec = plan_attempt(record, Launch(2, 1, head.id), HOME, START)
    assert spec.start == expected(head)
    assert (planned.start_step, planned.fence) == (20, 2)


def test_a_rerun_carries_its_branch_and_whether_it_is_adopted() -> None:
    record = run_record([attempt(1, saved_step=20)], newest_fence=7)
    planned, spec = plan_attempt(record, Launch(1, 2, None, branch="rerun-s001a2", adopt=True), HOME, START)
    assert (planned.branch, planned.adopt, planned.fence) == ("rerun-s001a2", True, 8)
    assert spec.branch == "rerun-s001a2"


def test_the_longest_of_the_last_five_measured_saves_is_kept_back() -> None:
    saves = [99.0, 1.0, None, 3.0, 2.0, 1.0, 1.0]
    record = run_record([attempt(number, longest_save_s=save_s) for number, save_s in enumerate(saves, start=1)])
    assert plan_attempt(record, Launch(8, 1, None), HOME, START)[1].save_estimate_s == 3.0
    assert plan_attempt(run_record(), Launch(1, 1, None), HOME, START)[1].save_estimate_s is None


def test_without_data_nothing_can_be_planned() -> None:
    with pytest.raises(UserError, match="the data of run tamil is not prepared"):
        plan_attempt(run_record(data=()), Launch(1, 1, None), HOME, START)
