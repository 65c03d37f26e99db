from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backends.simulated import Scenario
from orchestrator.controller.checkpoints import collect, compare
from orchestrator.controller.decide import GiveUp, Launch
from state import crash_points
from state.errors import ExitCode, TemporaryError
from state.ledger import CheckpointRecord, CheckpointState, RerunWish, RunRecord
from state.lineage import ancestors
from state.manifest import Manifest
from state.session import RunState
from state.spec import ExpectedCheckpoint, Retention
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import RUN, START, attempt, checkpoint, commit_checkpoint, run_record
from tests.simulation import Simulate, digest_of_head


def test_new_checkpoints_come_back_verified_and_known_ones_are_not_read(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    known, new = commit_checkpoint(store, 10), commit_checkpoint(store, 20)
    (store.folder(known.id) / "rank-0.safetensors").unlink()
    looks: list[int] = []
    found, corrupt = collect(store, {known.id}, lambda: looks.append(1))
    assert [one.manifest for one in found] == [new]
    assert found[0].manifest_sha256 == store.manifest(new.id)[1]
    assert corrupt == ()
    assert len(looks) == 1


def test_what_does_not_verify_comes_back_apart_with_what_is_wrong(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    good, bad = commit_checkpoint(store, 10), commit_checkpoint(store, 20)
    (store.folder(bad.id) / "rank-0.safetensors").write_bytes(b"")
    found, corrupt = collect(store, (), lambda: None)
    assert [one.manifest.id for one in found] == [good.id]
    assert [error.checkpoint_id for error in corrupt] == [bad.id]


def test_a_checkpoint_that_its_worker_prunes_while_it_is_read_is_no_corrupt_one(tmp_path: Path) -> None:
    class PrunedMeanwhile(DirectoryCheckpointStore):
        def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
            self.delete(checkpoint_id)
            return super().verify(checkpoint_id, expected)

    store = PrunedMeanwhile(tmp_path)
    commit_checkpoint(store, 10)
    assert collect(store, (), lambda: None) == ((), ())


def test_an_empty_store_has_nothing_to_collect(tmp_path: Path) -> None:
    assert collect(DirectoryCheckpointStore(tmp_path / "none"), (), lambda: None) == ((), ())


def recorded(manifest: Manifest) -> CheckpointRecord:
    return checkpoint(
        manifest.step,
        manifest.session,
        manifest.attempt,
        fence=manifest.fence,
        branch=manifest.branch,
        state_sha256=manifest.state_sha256,
    )


@pytest.fixture
def store(tmp_path: Path) -> DirectoryCheckpointStore:
    return DirectoryCheckpointStore(tmp_path)


def a_rerun(store: DirectoryCheckpointStore, *, content: bytes = b"", step: int = 20) -> RunRecord:
    """A run of two sessions, the first of which was run again."""
    original = commit_checkpoint(store, 20, session=1)
    later = commit_checkpoint(store, 40, session=2)
    again = commit_checkpoint(store, step, session=1, number=2, fence=3, branch="rerun-s001a2", content=content)
    return run_record(
        [
            attempt(1, saved_step=20, head=original.id),
            attempt(2, saved_step=40, head=later.id),
            attempt(1, 2, fence=3, branch="rerun-s001a2", saved_step=step, head=again.id),
        ],
        [recorded(original), recorded(later), recorded(again)],
        head=later.id,
    )


def test_an_equal_result_is_identical(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store)
    digest = record.checkpoints["step-00000020-s001a1"].state_sha256
    assert compare(record, record.attempts[-1], store) == f"identical to step-00000020-s001a1: state sha256 {digest}"


def test_another_result_names_the_first_tensor_that_differs(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, content=b"other")
    assert compare(record, record.attempts[-1], store) == ("differs from step-00000020-s001a1; first difference: tensor model.a")


def test_what_differs_cannot_be_told_when_the_originals_files_are_gone(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, content=b"other")
    store.delete("step-00000020-s001a1")
    assert compare(record, record.attempts[-1], store) == (
        "differs from step-00000020-s001a1; first difference: unknown, for the files of one of the two are missing"
    )


def test_identity_is_known_even_when_the_originals_files_are_gone(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store)
    store.delete("step-00000020-s001a1")
    assert compare(record, record.attempts[-1], store).startswith("identical to step-00000020-s001a1")


def test_a_rerun_that_ended_at_another_step_has_nothing_to_be_compared_with(store: DirectoryCheckpointStore) -> None:
    record = a_rerun(store, step=17)
    assert compare(record, record.attempts[-1], store) == ("nothing to compare: the run has no other checkpoint of step 17")


def test_a_rerun_that_saved_nothing_has_nothing_to_compare(store: DirectoryCheckpointStore) -> None:
    again = attempt(1, 2, fence=2, branch="rerun-s001a2")
    record = run_record([attempt(1, saved_step=20), again])
    assert compare(record, again, store) == "nothing to compare: the rerun saved no checkpoint"


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
    run = simulate(lambda _s, _a: Scenario(save_after=(5, 10, 15, 20))).create(total_steps=60, retention=Retention(keep_last=4))
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
    run = simulate(lambda session, number: Scenario((5, 10, 15, 20), refuses_start=session == 2 and number <= 3))
    run.create(total_steps=40, retention=Retention(keep_last=5))
    assert isinstance(run.run_until_over().decision, GiveUp)
    run.controller.activate(RUN)
    assert run.run_until_over().record.header.state is RunState.FINISHED


def test_a_run_whose_only_checkpoint_is_corrupt_begins_again(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(save_after=(20,))).create(total_steps=40)
    run.run_until(lambda tick: tick.record.head_step == 20)
    run.damage("step-00000020-s001a1")
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert record.attempts[1].start_checkpoint is None
    assert any("falls back to its beginning, which costs 20 steps" in text for text in run.events())


def test_a_corrupt_new_checkpoint_is_never_the_head(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Scenario(rots_after=20 if session == 1 else None)).create(total_steps=40)
    record = run.run_until_over().record
    assert "step-00000020-s001a1" not in record.checkpoints
    assert record.attempts[1].start_step == 10
    assert any(text.startswith("new checkpoint step-00000020-s001a1 is corrupt and quarantined") for text in run.events())
    assert list(run.home.run(RUN).checkpoints.glob(".quarantined-step-00000020-s001a1-1/why.txt"))


def test_what_a_session_finds_corrupt_is_stepped_back_from_and_is_not_the_same_error_twice(simulate: Simulate) -> None:
    course = {1: Scenario(save_after=(5, 10, 15, 20))}
    run = simulate(lambda session, number: course.get(session, Scenario(refuses_start=session == 2 and number <= 2))).create(
        total_steps=60
    )
    record = run.run_until_over().record
    assert record.header.state is RunState.FINISHED
    assert [a.start_step for a in record.attempts[:4]] == [0, 20, 15, 10]
    assert record.header.step_backs == 0


def test_coming_back_to_a_step_that_was_lost_to_corruption_is_no_progress(simulate: Simulate) -> None:
    run = simulate(lambda session, number: Scenario(refuses_start=session > 1 and session % 2 == 0)).create(total_steps=60)
    decision = run.run_until_over().decision
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == ExitCode.DATA


def test_a_checkpoint_of_no_attempt_of_ours_is_kept_as_a_branch(simulate: Simulate) -> None:
    run = simulate().create(total_steps=40)
    commit_checkpoint(run.store, 99, session=9, fence=99)
    record = run.run_until_over().record
    assert record.head_step == 40
    assert record.checkpoints["step-00000099-s009a1"].state is CheckpointState.VERIFIED


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


def test_a_rerun_whose_start_is_corrupt_is_called_off_and_says_so(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_over()
    run.damage("step-00000020-s001a1")
    record = run.rerun(2).record
    assert record.wishes.rerun is None
    assert len(record.attempts) == 3
    assert record.checkpoints["step-00000020-s001a1"].state is CheckpointState.QUARANTINED
    assert record.head_step == 60
    assert any(text.startswith("the rerun of session 2 is cancelled: ") for text in run.events())


def test_a_late_commit_by_an_older_attempt_becomes_a_branch(simulate: Simulate) -> None:
    run = simulate().create(total_steps=60)
    run.run_until_launch(3)
    late = commit_checkpoint(run.store, 59, session=1, parent="step-00000020-s001a1")
    record = run.run_until_over().record
    assert record.head_step == 60
    assert late.id not in set(ancestors(record.header.head, record.parents))
    assert record.checkpoints[late.id].state is CheckpointState.VERIFIED
    assert late.id in run.store.ids()
    assert f"checkpoint {late.id} cannot become the head (fence token 1): kept as a branch" in run.events()


def test_what_a_hand_run_of_the_newest_attempt_commits_becomes_the_head(simulate: Simulate) -> None:
    run = simulate(lambda session, _: Scenario(save_after=(10,), killed=True)).create(total_steps=40)
    run.run_until(lambda tick: tick.record.head_step == 10)
    by_hand = commit_checkpoint(run.store, 15, session=1, parent="step-00000010-s001a1")
    run.tick()
    assert run.record.header.head == by_hand.id
    assert run.record.attempts[0].saved_step == 15


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


def test_pruning_keeps_the_newest_the_starts_and_the_head_and_the_store_agrees(simulate: Simulate) -> None:
    run = simulate(lambda _s, _a: Scenario(save_after=(2, 4, 6, 8, 10))).create(
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
        with pytest.raises(TemporaryError, match="is mounted"):
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
    run = simulate(lambda _s, _a: Scenario(save_after=(10,))).create(
        total_steps=60, retention=Retention(keep_last=2, keep_session_starts=2)
    )
    run.run_until_launch(4)
    run.runs.set_rerun(RUN, RerunWish(session=3, adopt=False, requested_at=START))
    record = run.run_until_over().record
    assert any(a.session == 3 and a.attempt == 2 and a.saved_step == 30 for a in record.attempts)


def test_a_controller_that_dies_between_forgetting_and_deleting_a_checkpoint_deletes_it_later(simulate: Simulate) -> None:
    class Died(BaseException):
        pass

    def die(kind: crash_points.EffectKind, what: str) -> None:
        if kind == "rename" and what.startswith(".trash"):
            raise Died

    run = simulate(lambda _s, _a: Scenario(save_after=(2, 4, 6, 8, 10))).create(total_steps=20)
    crash_points.observe(die)
    try:
        with pytest.raises(Died):
            run.run_until_over()
    finally:
        crash_points.observe(None)
    assert list(run.home.run(RUN).checkpoints.glob(".trash-*"))
    run.run_until_over()
    assert not list(run.home.run(RUN).checkpoints.glob(".trash-*"))
