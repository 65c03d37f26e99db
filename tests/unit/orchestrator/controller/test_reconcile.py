from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.controller.reconcile import Draft, Found, Observed, reconcile, step_back
from orchestrator.ports import AttemptStatus, Observation
from state.errors import CorruptCheckpointError, ErrorClass
from state.ledger import (
    AddEvent,
    AttemptRecord,
    Change,
    CheckpointRecord,
    CheckpointState,
    PutAttempt,
    PutCheckpoint,
    RunHeader,
    RunRecord,
    SetHeader,
)
from state.manifest import Manifest
from state.report import Outcome
from state.session import LIVE_STATES, AttemptState, RunState, check_attempt_move
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import START, after, attempt, checkpoint, report, run_record, stage_checkpoint

HEAD = checkpoint(20, 1)
UNKNOWN = Observation(AttemptStatus.UNKNOWN)


def live(state: AttemptState = AttemptState.RUNNING, **values: Any) -> AttemptRecord:
    return attempt(2, state=state, outcome=None, start_checkpoint=HEAD.id, start_step=20, **values)


def with_live(state: AttemptState = AttemptState.RUNNING, **values: Any) -> RunRecord:
    return run_record([attempt(1, saved_step=20, head=HEAD.id), live(state, **values)], [HEAD], head=HEAD.id)


def last(changes: tuple[Change, ...], kind: type) -> Any:
    """The last change of a kind, or None."""
    return next((change for change in reversed(changes) if isinstance(change, kind)), None)


def attempt_after(changes: tuple[Change, ...]) -> AttemptRecord:
    change = last(changes, PutAttempt)
    assert isinstance(change, PutAttempt)
    return change.attempt


def header_after(changes: tuple[Change, ...]) -> RunHeader:
    change = last(changes, SetHeader)
    assert isinstance(change, SetHeader)
    return change.header


def texts(changes: tuple[Change, ...]) -> list[str]:
    return [change.event.text for change in changes if isinstance(change, AddEvent)]


@pytest.fixture
def found(tmp_path: Any) -> Any:
    """Make a checkpoint as a tick finds it."""
    store = DirectoryCheckpointStore(tmp_path)

    def make(step: int, session: int = 2, number: int = 1, **values: Any) -> Found:
        manifest: Manifest = stage_checkpoint(store, step, session=session, number=number, **values)[1]
        return Found(manifest, "c" * 64)

    return make


@pytest.mark.parametrize("state", sorted(LIVE_STATES - {AttemptState.ENDED}))
def test_unknown_changes_nothing(state: AttemptState) -> None:
    assert reconcile(with_live(state), Observed(UNKNOWN), START) == ()


def test_a_world_that_shows_nothing_new_changes_nothing() -> None:
    assert reconcile(with_live(), Observed(Observation(AttemptStatus.RUNNING)), START) == ()
    assert reconcile(run_record(), Observed(), START) == ()


@pytest.mark.parametrize(
    ("state", "sighting", "expected"),
    [
        (AttemptState.LAUNCHING, AttemptStatus.MISSING, AttemptState.PLANNED),
        (AttemptState.LAUNCHING, AttemptStatus.QUEUED, AttemptState.QUEUED),
        (AttemptState.LAUNCHING, AttemptStatus.RUNNING, AttemptState.RUNNING),
        (AttemptState.LAUNCHING, AttemptStatus.ENDED, AttemptState.LOST),
        (AttemptState.QUEUED, AttemptStatus.RUNNING, AttemptState.RUNNING),
        (AttemptState.QUEUED, AttemptStatus.ENDED, AttemptState.LOST),
        (AttemptState.QUEUED, AttemptStatus.MISSING, AttemptState.LOST),
        (AttemptState.RUNNING, AttemptStatus.QUEUED, AttemptState.QUEUED),
        (AttemptState.RUNNING, AttemptStatus.ENDED, AttemptState.LOST),
        (AttemptState.RUNNING, AttemptStatus.MISSING, AttemptState.LOST),
        (AttemptState.ENDED, AttemptStatus.ENDED, AttemptState.LOST),
    ],
)
def test_the_record_follows_what_is_seen(state: AttemptState, sighting: AttemptStatus, expected: AttemptState) -> None:
    assert attempt_after(reconcile(with_live(state), Observed(Observation(sighting)), START)).state is expected


@pytest.mark.parametrize("state", sorted(LIVE_STATES - {AttemptState.PLANNED}))  # nobody looks for what was never sent
@pytest.mark.parametrize("sighting", list(AttemptStatus))
@pytest.mark.parametrize("reported", [True, False])
def test_every_move_that_a_sighting_causes_is_allowed(state: AttemptState, sighting: AttemptStatus, *, reported: bool) -> None:
    world = Observed(Observation(sighting), report(2) if reported else None)
    old = state
    for change in reconcile(with_live(state), world, START):
        if isinstance(change, PutAttempt):
            check_attempt_move(old, change.attempt.state)
            old = change.attempt.state


def test_an_end_with_a_report_says_what_the_report_says() -> None:
    world = Observed(
        Observation(AttemptStatus.ENDED),
        report(2, outcome=Outcome.FAILED, reason="no", error_class=ErrorClass.INFRA, error_fingerprint="f", longest_save_s=2.5),
    )
    changes = reconcile(with_live(), world, after(90))
    ended = attempt_after(changes)
    assert (ended.state, ended.outcome, ended.reason) == (AttemptState.DONE, Outcome.FAILED, "no")
    assert (ended.error_class, ended.error_fingerprint, ended.longest_save_s) == (ErrorClass.INFRA, "f", 2.5)
    assert ended.ended_at == after(50)
    assert texts(changes) == ["session 2 attempt 1 failed: no"]


def test_an_end_without_a_report_is_lost_and_says_what_the_backend_saw() -> None:
    ended = attempt_after(reconcile(with_live(), Observed(Observation(AttemptStatus.ENDED, "killed", after(70))), after(90)))
    assert (ended.state, ended.outcome, ended.reason, ended.ended_at) == (AttemptState.LOST, Outcome.LOST, "killed", after(70))
    silent = attempt_after(reconcile(with_live(), Observed(Observation(AttemptStatus.ENDED)), after(90)))
    assert (silent.reason, silent.ended_at) == ("the session ended without a report", after(90))


def test_what_was_killed_keeps_the_reason_that_it_was_killed_for() -> None:
    ended = attempt_after(
        reconcile(with_live(reason="past its limit"), Observed(Observation(AttemptStatus.ENDED, "SIGKILL")), START)
    )
    assert ended.reason == "past its limit"


def test_a_report_of_a_session_that_still_runs_waits(found: Any) -> None:
    assert reconcile(with_live(), Observed(Observation(AttemptStatus.RUNNING), report(2)), START) == ()


def test_new_checkpoints_become_the_head_in_the_order_of_their_steps(found: Any) -> None:
    world = Observed(
        Observation(AttemptStatus.RUNNING), found=(found(40, parent="step-00000030-s002a1"), found(30, parent=HEAD.id))
    )
    changes = reconcile(with_live(), world, after(5))
    put = [change.checkpoint for change in changes if isinstance(change, PutCheckpoint)]
    assert [(known.step, known.parent, known.verified_at) for known in put] == [
        (30, HEAD.id, after(5)),
        (40, "step-00000030-s002a1", after(5)),
    ]
    assert header_after(changes).head == "step-00000040-s002a1"
    saved = attempt_after(changes)
    assert (saved.saved_step, saved.head, saved.state) == (40, "step-00000040-s002a1", AttemptState.RUNNING)


def test_the_last_checkpoints_of_an_attempt_count_before_its_end(found: Any) -> None:
    changes = reconcile(with_live(), Observed(Observation(AttemptStatus.ENDED), None, (found(30),)), START)
    ended = attempt_after(changes)
    assert (ended.state, ended.saved_step) == (AttemptState.LOST, 30)


def test_a_parent_that_its_worker_has_pruned_already_gives_way_to_the_start(found: Any) -> None:
    changes = reconcile(with_live(), Observed(found=(found(50, parent="step-00000040-s002a1"),)), START)
    assert last(changes, PutCheckpoint).checkpoint.parent == HEAD.id


def test_an_attempt_is_as_far_as_its_furthest_checkpoint_however_late_the_others_come(found: Any) -> None:
    record = run_record([attempt(1, saved_step=20, head=HEAD.id)], [HEAD], head=HEAD.id)
    changes = reconcile(record, Observed(found=(found(15, session=1),)), START)
    assert last(changes, PutAttempt) is None
    assert last(changes, SetHeader) is None


def with_own_checkpoints() -> RunRecord:
    """Session 2 runs, and has saved steps 30, 40 and 50."""
    own = [checkpoint(step, 2, parent=HEAD.id) for step in (30, 40, 50)]
    return run_record([attempt(1, saved_step=20, head=HEAD.id), live()], [HEAD, *own], head=own[-1].id)


def pruned(changes: tuple[Change, ...]) -> list[int]:
    return [change.checkpoint.step for change in changes if isinstance(change, PutCheckpoint)]


def test_what_a_worker_has_pruned_of_its_own_is_noted() -> None:
    world = Observed(Observation(AttemptStatus.RUNNING), present=frozenset({HEAD.id, "step-00000050-s002a1"}))
    changes = reconcile(with_own_checkpoints(), world, START)
    assert pruned(changes) == [30, 40]
    assert last(changes, PutCheckpoint).checkpoint.state is CheckpointState.PRUNED


@pytest.mark.parametrize("present", [frozenset[str](), frozenset({"step-00000050-s002a1"})])
def test_what_no_worker_can_have_pruned_may_come_back_and_is_not_noted(present: frozenset[str]) -> None:
    world = Observed(Observation(AttemptStatus.RUNNING), present=present)
    changes = reconcile(with_own_checkpoints(), world, START)
    assert 20 not in pruned(changes)
    assert 50 not in pruned(changes)
    if not present:
        assert changes == ()


def test_nothing_is_noted_as_pruned_while_nobody_runs() -> None:
    over = run_record([attempt(1, saved_step=20, head=HEAD.id)], [checkpoint(10), HEAD], head=HEAD.id)
    assert reconcile(over, Observed(present=frozenset({HEAD.id})), START) == ()


def test_a_late_commit_of_an_older_attempt_is_kept_as_a_branch(found: Any) -> None:
    changes = reconcile(with_live(), Observed(found=(found(99, session=1, parent=HEAD.id),)), START)
    assert last(changes, SetHeader) is None
    assert texts(changes) == ["checkpoint step-00000099-s001a1 cannot become the head (fence token 1): kept as a branch"]


def test_a_commit_of_an_attempt_that_we_never_planned_is_kept_as_a_branch(found: Any) -> None:
    changes = reconcile(with_live(), Observed(found=(found(99, session=7, fence=7, parent="step-00000090-s006a1"),)), START)
    assert last(changes, SetHeader) is None
    assert last(changes, PutCheckpoint).checkpoint.parent == "step-00000090-s006a1"
    assert len(texts(changes)) == 1


def test_a_reruns_commit_is_a_branch_and_nothing_to_talk_about(found: Any) -> None:
    record = with_live(branch="rerun-s002a1")
    changes = reconcile(record, Observed(found=(found(30, branch="rerun-s002a1"),)), START)
    assert last(changes, SetHeader) is None
    assert texts(changes) == []


def test_what_is_corrupt_and_new_is_told_and_not_recorded() -> None:
    world = Observed(corrupt=(CorruptCheckpointError("step-00000030-s002a1", "a.safetensors has changed"),))
    changes = reconcile(with_live(), world, START)
    assert texts(changes) == ["new checkpoint step-00000030-s002a1 is corrupt and quarantined: a.safetensors has changed"]
    assert len(changes) == 1


def test_a_checkpoint_that_a_session_found_corrupt_is_stepped_back_from() -> None:
    world = Observed(
        Observation(AttemptStatus.ENDED),
        report(2, outcome=Outcome.FAILED, corrupt_checkpoint=HEAD.id, error_class=ErrorClass.DATA, error_fingerprint="f"),
    )
    changes = reconcile(with_live(), world, START)
    assert header_after(changes).head is None
    assert header_after(changes).step_backs == 1
    assert attempt_after(changes).error_fingerprint is None


def line(*steps: int, **values: Any) -> list[CheckpointRecord]:
    """Checkpoints of one line, oldest first."""
    records: list[CheckpointRecord] = []
    for step in steps:
        records.append(checkpoint(step, parent=records[-1].id if records else None, **values))
    return records


def test_a_step_back_goes_to_the_nearest_verified_ancestor_and_says_the_cost() -> None:
    known = line(10, 20, 30, 40)
    known[2] = known[2].evolve(state=CheckpointState.PRUNED)
    draft = Draft(run_record([attempt(1)], known, head=known[3].id), START)
    step_back(draft, known[3].id, "it has changed")
    assert draft.record.header.head == known[1].id
    assert draft.record.header.step_backs == 1
    assert draft.record.checkpoints[known[3].id].state is CheckpointState.QUARANTINED
    assert draft.record.checkpoints[known[3].id].note == "it has changed"
    assert texts(tuple(draft.changes)) == [
        "checkpoint step-00000040-s001a1 is quarantined: it has changed; "
        "the run falls back to step-00000020-s001a1, which costs 20 steps"
    ]


def test_a_corrupt_checkpoint_that_is_not_the_head_costs_nothing() -> None:
    known = line(10, 20)
    draft = Draft(run_record([attempt(1)], known, head=known[1].id), START)
    step_back(draft, known[0].id, "it has changed")
    assert draft.record.header.head == known[1].id
    assert draft.record.header.step_backs == 0
    assert texts(tuple(draft.changes)) == ["checkpoint step-00000010-s001a1 is quarantined: it has changed"]


@pytest.mark.parametrize("state", [CheckpointState.QUARANTINED, CheckpointState.PRUNED])
def test_what_is_gone_already_is_not_stepped_back_from(state: CheckpointState) -> None:
    known = checkpoint(10, state=state)
    draft = Draft(run_record([attempt(1)], [known]), START)
    step_back(draft, known.id, "gone")
    step_back(draft, "step-00000099-s009a1", "unknown")
    assert draft.changes == []


def test_only_a_step_beyond_what_was_lost_clears_the_count_of_step_backs(found: Any) -> None:
    lost = checkpoint(40, 1, state=CheckpointState.QUARANTINED)
    record = run_record([attempt(1), live()], [HEAD, lost], head=HEAD.id, step_backs=2)
    assert header_after(reconcile(record, Observed(found=(found(40),)), START)).step_backs == 2
    assert header_after(reconcile(record, Observed(found=(found(40), found(50))), START)).step_backs == 0


def rerun_ends(*, state: RunState, adopt: bool = True, head: str | None = "step-00000015-s001a2") -> tuple[Change, ...]:
    known = [HEAD, checkpoint(15, 1, 2, branch="rerun-s001a2")]
    again = attempt(
        1,
        2,
        fence=2,
        state=AttemptState.RUNNING,
        outcome=None,
        branch="rerun-s001a2",
        adopt=adopt,
        head=head,
        saved_step=15 if head else None,
    )
    record = run_record(
        [attempt(1, saved_step=20), again], known, head=HEAD.id, state=state, message="old", exit_code=4, step_backs=3
    )
    return reconcile(record, Observed(Observation(AttemptStatus.ENDED), report(1, 2)), after(9))


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED])
def test_an_adopted_result_below_the_last_step_makes_the_run_active_as_start_does(state: RunState) -> None:
    changes = rerun_ends(state=state)
    header = header_after(changes)
    assert (header.head, header.state, header.message) == ("step-00000015-s001a2", RunState.ACTIVE, None)
    assert (header.exit_code, header.resumed_at, header.step_backs) == (0, after(9), 0)
    assert texts(changes)[-1] == "the run continues from step-00000015-s001a2, the result of rerun-s001a2"


@pytest.mark.parametrize("state", [RunState.ACTIVE, RunState.STOPPED])
def test_an_adopted_result_leaves_an_active_or_a_stopped_run_what_it_is(state: RunState) -> None:
    header = header_after(rerun_ends(state=state))
    assert (header.head, header.state, header.message) == ("step-00000015-s001a2", state, "old")


def test_a_rerun_that_is_not_adopted_or_saved_nothing_leaves_the_head() -> None:
    assert last(rerun_ends(state=RunState.FINISHED, adopt=False), SetHeader) is None
    assert last(rerun_ends(state=RunState.FINISHED, head=None), SetHeader) is None


@pytest.mark.parametrize(
    "plant",
    [
        lambda draft, _attempt: draft.set_header(step_backs="two"),
        lambda draft, attempt: draft.put_attempt(attempt, saved_step="20"),
        lambda draft, attempt: draft.put_attempt(attempt, stat=AttemptState.DONE),
    ],
)
def test_a_wrong_value_never_gets_into_the_record(plant: Callable[[Draft, AttemptRecord], object]) -> None:
    record = with_live()
    draft = Draft(record, after(0))
    with pytest.raises((ValidationError, TypeError)):
        plant(draft, record.attempts[-1])
    assert draft.changes == []
