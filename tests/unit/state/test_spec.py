from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from state.architecture import Architecture, ModelSpec
from state.spec import DataSpec, Reading, Retention, RunSpec, SessionLimits, TrainingSpec, compare_specs
from tests.factories import run_spec, session_data, session_spec


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
        ({"reading": Reading(scratch_dir="/fast")}, "reading.scratch_dir"),
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


def test_a_data_folder_may_be_moved_but_not_take_the_place_of_a_corpus() -> None:
    here, there, corpus = (run_spec(data=DataSpec(**values)) for values in ({"prepared": "/a"}, {"prepared": "/b"}, {}))
    assert refusals(here, there) == {"data.prepared": None}
    assert refusals(corpus, here)["data.prepared"] is not None


def test_a_run_cannot_end_before_the_step_that_it_has_reached() -> None:
    assert refusals(run_spec(), run_spec(total_steps=49), reached_step=50) == {
        "total_steps": "the run has already reached step 50"
    }


def test_a_run_with_a_cosine_schedule_cannot_be_extended() -> None:
    cosine = TrainingSpec(schedule="cosine")
    refused = refusals(run_spec(training=cosine), run_spec(training=cosine, total_steps=200))
    assert "every learning rate depends on the last step" in str(refused["total_steps"])


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
        {"data": (session_data(mixture={"en": 0.5, "hi": 0.5}),)},
        {"data": (session_data(data_sha256="other"),)},
        {"data": (session_data(), session_data(6, data_sha256="other"))},
    ],
)
def test_a_trajectory_is_another_one_when_anything_that_makes_weights_differs(changes: dict[str, Any]) -> None:
    assert session_spec(**changes).trajectory_sha256(7) != session_spec().trajectory_sha256(7)


@pytest.mark.parametrize(
    "changes",
    [
        {"session": 2, "fence": 9},
        {"limit_s": 1.0},
        {"total_steps": 7},
        {"max_steps": 3},
        {"branch": "b"},
        {"reading": Reading(scratch_dir="/fast")},
    ],
)
def test_a_trajectory_is_the_same_however_it_is_cut_into_sessions(changes: dict[str, Any]) -> None:
    assert session_spec(**changes).trajectory_sha256(7) == session_spec().trajectory_sha256(7)


class LaterTraining(TrainingSpec):
    """What a later version may ask for, with what was done before it existed as its default."""

    precision: str = "fp32"


class LaterArchitecture(Architecture):
    softcap: float | None = None


def test_a_setting_that_did_not_exist_when_a_run_began_leaves_its_trajectory_alone() -> None:
    begun = session_spec()
    training = LaterTraining(**begun.training.model_dump())
    architecture = LaterArchitecture(**begun.architecture.model_dump())
    upgraded = session_spec(training=training, architecture=architecture)
    assert upgraded.trajectory_sha256(7) == begun.trajectory_sha256(7)


def test_a_new_setting_makes_another_trajectory_as_soon_as_it_is_used() -> None:
    begun = session_spec()
    training = LaterTraining(**begun.training.model_dump(), precision="fp16")
    architecture = LaterArchitecture(**begun.architecture.model_dump(), softcap=30.0)
    digests = {
        session_spec(**changes).trajectory_sha256(7) for changes in ({}, {"training": training}, {"architecture": architecture})
    }
    assert len(digests) == 3


def test_with_a_cosine_schedule_the_last_step_belongs_to_the_trajectory() -> None:
    cosine = TrainingSpec(schedule="cosine")
    shorter = session_spec(training=cosine, total_steps=7)
    assert shorter.trajectory_sha256(3) != session_spec(training=cosine).trajectory_sha256(3)


def test_a_data_version_that_begins_later_leaves_older_checkpoints_what_they_are() -> None:
    old = session_spec()
    new = session_spec(data=(session_data(), session_data(6, data_sha256="other")))
    assert [new.trajectory_sha256(step) == old.trajectory_sha256(step) for step in (1, 5, 6, 7)] == [True, True, True, False]


def test_the_version_in_force_is_the_last_that_a_step_has_read() -> None:
    spec = session_spec(data=(session_data(), session_data(6, data_sha256="second"), session_data(9, data_sha256="third")))
    in_force = {step: spec.data_until(step)[-1].data_sha256 for step in (0, 6, 7, 9, 10)}
    first = session_data().data_sha256
    assert in_force == {0: first, 6: first, 7: "second", 9: "second", 10: "third"}


@pytest.mark.parametrize("firsts", [(1,), (0, 0), (0, 5, 5), (0, 6, 5)])
def test_versions_that_do_not_follow_each_other_are_refused(firsts: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="the first must be 0"):
        session_spec(data=tuple(session_data(first) for first in firsts))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prepared": "/data", "corpus": ("/text",)}, "leave out corpus and tokenizer"),
        ({"prepared": "/data", "tokenizer": "/t.model"}, "leave out corpus and tokenizer"),
        ({"mixing": "unimax", "weights": {"en": 1.0}}, "leave out weights, or mixing"),
        ({"mixing": "unimax", "alpha": 0.5}, "leave out alpha, or mixing"),
        ({"max_epochs": 2.0}, "needs mixing = unimax"),
        ({"max_epochs": 2.0, "weights": {"en": 1.0}}, "needs mixing = unimax"),
    ],
)
def test_data_settings_that_contradict_each_other_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataSpec.model_validate(values)


def test_a_size_for_scratch_needs_its_folder() -> None:
    with pytest.raises(ValidationError, match="scratch_dir is missing"):
        Reading(scratch_bytes=1)
