from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from state.architecture import ModelSpec
from state.spec import DataSpec, Retention, RunSpec, SessionLimits, TrainingSpec, compare_specs
from tests.factories import run_spec, session_spec


def refusals(old: RunSpec, new: RunSpec, reached_step: int = 0) -> dict[str, str | None]:
    return {change.field: change.refusal for change in compare_specs(old, new, reached_step=reached_step)}


def test_equal_specs_have_no_differences() -> None:
    assert compare_specs(run_spec(), run_spec()) == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"backend": "local"}, "backend"),
        ({"limits": SessionLimits(session_limit_s=60.0)}, "limits.session_limit_s"),
        ({"retention": Retention(keep_last=9)}, "retention.keep_last"),
        ({"total_steps": 101}, "total_steps"),
        ({"total_steps": 50}, "total_steps"),
    ],
)
def test_what_leaves_the_trained_weights_alone_may_change(changes: dict[str, Any], field: str) -> None:
    assert refusals(run_spec(), run_spec(**changes), reached_step=50) == {field: None}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ModelSpec(size="270m")}, "model.size"),
        ({"data": DataSpec(alpha=0.5)}, "data.alpha"),
        ({"training": TrainingSpec(seed=1)}, "training.seed"),
        ({"training": TrainingSpec(threads=3)}, "training.threads"),
    ],
)
def test_what_would_change_trained_weights_is_refused(changes: dict[str, Any], field: str) -> None:
    refused = refusals(run_spec(), run_spec(**changes))
    assert list(refused) == [field]
    assert "start another run with --name" in str(refused[field])


def test_a_run_cannot_end_before_the_step_that_it_has_reached() -> None:
    assert refusals(run_spec(), run_spec(total_steps=49), reached_step=50) == {
        "total_steps": "the run has reached step 50 already"
    }


def test_a_run_with_a_cosine_schedule_cannot_be_extended() -> None:
    cosine = TrainingSpec(schedule="cosine")
    refused = refusals(run_spec(training=cosine), run_spec(training=cosine, total_steps=200))
    assert "the cosine schedule knows its end" in str(refused["total_steps"])


def test_differences_come_in_the_order_of_their_names_and_read_well() -> None:
    changes = compare_specs(run_spec(), run_spec(total_steps=200, training=TrainingSpec(seed=1), backend="local"))
    assert [change.field for change in changes] == ["backend", "total_steps", "training.seed"]
    assert str(changes[1]) == "total_steps: 100 -> 200 (allowed)"
    assert str(changes[2]).startswith("training.seed: 0 -> 1 (not allowed: ")


def test_micro_batches_fill_the_batch() -> None:
    assert TrainingSpec(batch_size=8, micro_batch_size=4).micro_batch_size == 4
    with pytest.raises(ValidationError, match="micro_batch_size 3 does not divide batch_size 8"):
        TrainingSpec(batch_size=8, micro_batch_size=3)


def test_fewer_than_two_checkpoints_cannot_be_kept() -> None:
    with pytest.raises(ValidationError):
        Retention(keep_last=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": TrainingSpec(seed=1)},
        {"sequence_length": 16},
        {"mixture": {"en": 0.5, "hi": 0.5}},
        {"data_sha256": "other"},
    ],
)
def test_a_trajectory_is_another_one_when_anything_that_makes_weights_differs(changes: dict[str, Any]) -> None:
    assert session_spec(**changes).trajectory_sha256() != session_spec().trajectory_sha256()


@pytest.mark.parametrize(
    "changes", [{"session": 2, "fence": 9}, {"limit_s": 1.0}, {"total_steps": 7}, {"max_steps": 3}, {"branch": "b"}]
)
def test_a_trajectory_is_the_same_however_it_is_cut_into_sessions(changes: dict[str, Any]) -> None:
    assert session_spec(**changes).trajectory_sha256() == session_spec().trajectory_sha256()


def test_with_a_cosine_schedule_the_last_step_belongs_to_the_trajectory() -> None:
    cosine = TrainingSpec(schedule="cosine")
    assert session_spec(training=cosine, total_steps=7).trajectory_sha256() != session_spec(training=cosine).trajectory_sha256()
