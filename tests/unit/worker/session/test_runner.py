from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from state import crash_points
from state.clock import SystemClock
from state.errors import ErrorClass, UserError
from state.layout import MANIFEST_NAME
from state.manifest import Manifest
from state.report import Outcome, Phase
from state.spec import ORDER_VERSION, ExpectedCheckpoint, SessionData, SessionSpec
from tests.sessions import CountingClock, SmallRun, asked_after, let_saver_finish, make_data, small_architecture
from worker.session.assembly import check_trajectory
from worker.session.runner import Host, run_session

CORRUPT = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "changed in one bit": lambda path: flip_last_bit(path),
    "missing": lambda path: path.unlink(),
}


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(ram_path: Path) -> SmallRun:
    return SmallRun(ram_path)


def first_session(run: SmallRun, steps: int = 4) -> ExpectedCheckpoint:
    """A session of so many steps; what the next one is told to start from."""
    assert run.run(run.spec(1, max_steps=steps)) == 0
    expected = run.expected()
    assert expected is not None
    return expected


def state_file(run: SmallRun, checkpoint: str) -> Path:
    return run.store.folder(checkpoint) / "state.safetensors"


def newest(run: SmallRun) -> Manifest:
    manifest = run.newest()
    assert manifest is not None
    return manifest


def test_a_session_tells_all_about_itself(run: SmallRun):
    spec = run.spec(1, max_steps=5)
    assert run.run(spec) == 0
    report = run.report(spec)
    assert (report.outcome, report.reason) == (Outcome.BUDGET, "all 5 steps of this session are trained")
    assert (report.start_step, report.end_step, report.saved_step) == (0, 5, 5)
    assert report.head == "step-00000005-s001a1"
    assert report.tokens == 5 * 4 * 8
    assert report.error_class is None
    assert report.longest_save_s is not None
    parts = report.seconds
    assert parts.startup + parts.restore + parts.train + parts.save == pytest.approx(parts.whole)
    heartbeat = run.heartbeat(spec)
    assert heartbeat is not None
    assert (heartbeat.phase, heartbeat.step, heartbeat.saved_step) == (Phase.ENDING, 5, 5)
    assert len(run.attempt(spec).metrics.read_text().splitlines()) == 5


def test_a_checkpoint_tells_where_it_comes_from(run: SmallRun):
    first_session(run)
    spec = run.spec(2, start=run.expected(), max_steps=3)
    assert run.run(spec) == 0
    manifest, parent = newest(run), run.store.manifest("step-00000004-s001a1")[0]
    assert (manifest.parent, parent.parent) == (parent.id, None)
    assert manifest.trajectory_sha256 == spec.trajectory_sha256(manifest.step)
    assert manifest.data_position.samples == 7 * 4
    assert sum(manifest.data_position.samples_by_language.values()) == 7 * 4
    assert manifest.environment == parent.environment
    assert run.store.verify_tensors(manifest.id) == manifest
    first_loss = json.loads(run.attempt(spec).metrics.read_text().splitlines()[0])["loss"]
    assert first_loss == parent.next_loss


def test_the_last_session_says_that_the_run_is_complete(run: SmallRun):
    spec = run.spec(1, total_steps=6)
    assert run.run(spec) == 0
    assert run.report(spec).outcome is Outcome.COMPLETED
    again = run.spec(2, start=run.expected(), total_steps=6)
    assert run.run(again) == 0
    report = run.report(again)
    assert (report.outcome, report.head, report.tokens) == (Outcome.COMPLETED, None, 0)


def test_a_stop_file_ends_the_session_with_a_checkpoint(run: SmallRun):
    spec = run.spec()
    run.write(spec)
    ask = asked_after(3)

    def touch() -> None:
        if ask():
            run.attempt(spec).stop.touch()

    assert run.run(spec, asked_to_stop=touch) == 0
    report = run.report(spec)
    assert (report.outcome, report.reason) == (Outcome.STOPPED, "you asked it to stop")
    assert report.end_step == report.saved_step == 3


def test_a_signal_before_the_first_step_ends_the_session_without_a_checkpoint(run: SmallRun):
    spec = run.spec()
    assert run.run(spec, asked_to_stop=lambda: "SIGTERM") == 0
    report = run.report(spec)
    assert (report.outcome, report.reason, report.head) == (Outcome.STOPPED, "SIGTERM asked for it", None)
    assert (report.end_step, report.saved_step) == (0, None)
    assert run.store.ids() == ()


def test_a_signal_that_comes_while_a_checkpoint_is_being_made_waits_for_that_one(run: SmallRun):
    spec = run.spec(checkpoint_every_s=1e-6)
    assert run.run(spec, asked_to_stop=asked_after(2)) == 0
    assert newest(run).step == run.report(spec).end_step == 2


def test_the_session_is_over_before_its_limit(run: SmallRun):
    spec = run.spec(limit_s=5.0, save_estimate_s=0.5, total_steps=10_000)
    clock = CountingClock(0.01)
    assert run.run(spec, clock=clock) == 0
    report = run.report(spec)
    assert report.outcome is Outcome.BUDGET
    assert report.end_step > 3
    assert 3.0 < report.seconds.whole < 5.0


def test_the_time_for_the_delivery_is_kept_back_as_it_becomes_known(run: SmallRun):
    spec = run.spec(limit_s=5.0, save_estimate_s=0.5, total_steps=10_000)
    assert run.run(spec, clock=CountingClock(0.01), delivery_reserve_s=lambda: 2.0) == 0
    report = run.report(spec)
    assert report.outcome is Outcome.BUDGET
    assert 1.0 < report.seconds.whole < 3.0


def test_those_who_wait_for_checkpoints_are_told_of_each_before_older_ones_go(run: SmallRun):
    spec = run.spec(max_steps=6, checkpoint_every_s=1e-6)
    told: list[str] = []
    there: list[bool] = []

    def committed(checkpoint: str) -> None:
        there.append(all(name in run.store.ids() for name in (*told[-1:], checkpoint)))
        told.append(checkpoint)

    assert run.run(spec, committed=committed) == 0
    assert told[-1] == "step-00000006-s001a1"
    assert set(run.store.ids()) <= set(told)
    assert all(there)


def test_a_session_that_is_too_short_says_what_would_do(run: SmallRun):
    spec = run.spec(limit_s=1.0)
    assert run.run(spec, clock=CountingClock(0.1)) == 2
    report = run.report(spec)
    assert (report.outcome, report.error_class, report.head) == (Outcome.FAILED, ErrorClass.USER, None)
    assert "a session of 1s is too short" in report.reason
    assert "raise --session-limit" in report.reason
    # What it names does.
    limit_s = float(report.reason.partition("at least ")[2].split("s")[0])
    longer = run.spec(2, limit_s=limit_s)
    assert run.run(longer, clock=CountingClock(0.1)) == 0
    assert run.report(longer).end_step >= 1


def test_a_session_whose_first_step_leaves_no_time_to_save_does_not_make_it(run: SmallRun):
    clock = CountingClock(0.2)
    spec = run.spec(limit_s=20.0)

    def sleep() -> None:
        clock.sleep(17.5)  # what is left is enough for a save, until the first step has taken its time as well

    assert run.run(spec, clock=clock, asked_to_stop=sleep) == 2
    report = run.report(spec)
    assert "is too short" in report.reason
    assert (report.end_step, report.seconds.whole > 17.5) == (0, True)


def test_checkpoints_are_made_on_the_way_and_the_oldest_go(run: SmallRun):
    start = first_session(run)
    spec = run.spec(2, start=start, checkpoint_every_s=1e-6, retention={"keep_last": 2})
    assert run.run(spec) == 0
    kept = run.store.ids()
    assert start.id in kept
    assert [name for name in kept if name.endswith("s002a1")] == [name for name in kept if name != start.id]
    assert len(kept) == 3
    report = run.report(spec)
    assert report.seconds.saving_behind > 0
    assert newest(run).train_s > 0


def test_only_a_save_at_full_priority_tells_the_next_session_how_long_it_takes(run: SmallRun):
    behind_only = run.spec(1, checkpoint_every_s=1e-6)
    run.run(behind_only, asked_to_stop=fail_after_saves(5))
    assert run.report(behind_only).saved_step
    assert run.report(behind_only).longest_save_s is None
    with_last = run.spec(2, checkpoint_every_s=1e-6)
    assert run.run(with_last) == 0
    assert run.report(with_last).longest_save_s


def test_a_checkpoint_that_cannot_be_deleted_is_told_and_harms_nothing(run: SmallRun):
    def break_the_disk(kind: str, what: str) -> None:
        if kind == "rename" and what.startswith(".trash-"):
            raise OSError(errno.EIO, "Input/output error")

    crash_points.observe(break_the_disk)
    try:
        assert run.run(run.spec(checkpoint_every_s=1e-6, retention={"keep_last": 2}), asked_to_stop=let_saver_finish) == 0
    finally:
        crash_points.observe(None)
    assert any("cannot be deleted" in line for line in run.said)
    assert newest(run).step == 20


@pytest.mark.parametrize("damage", CORRUPT)
def test_a_corrupt_checkpoint_is_refused_by_name(run: SmallRun, damage: str):
    start = first_session(run)
    CORRUPT[damage](state_file(run, start.id))
    spec = run.spec(2, start=start)
    assert run.run(spec) == 4
    report = run.report(spec)
    assert (report.outcome, report.error_class, report.corrupt_checkpoint) == (Outcome.FAILED, ErrorClass.DATA, start.id)
    assert report.head is None
    assert start.id in report.reason


def test_a_checkpoint_whose_manifest_is_not_the_expected_one_is_refused(run: SmallRun):
    start = first_session(run)
    spec = run.spec(2, start=start.evolve(manifest_sha256="0" * 64))
    assert run.run(spec) == 4
    assert run.report(spec).corrupt_checkpoint == start.id


def restate(run: SmallRun, checkpoint: str, /, **changes: object) -> ExpectedCheckpoint:
    """Write other values into a checkpoint's manifest, as if that had been committed."""
    manifest = run.store.manifest(checkpoint)[0].evolve(**changes)
    (run.store.folder(checkpoint) / MANIFEST_NAME).write_bytes(manifest.to_json())
    expected = run.expected(checkpoint)
    assert expected is not None
    return expected


def test_a_canary_that_sings_differently_stops_the_session_at_its_first_step(run: SmallRun):
    start = first_session(run)
    loss = newest(run).next_loss
    spec = run.spec(2, start=restate(run, start.id, next_loss=loss * (1 + 1e-6)))
    assert run.run(spec) == 4
    report = run.report(spec)
    assert (report.error_class, report.corrupt_checkpoint) == (ErrorClass.DATA, start.id)
    assert (report.end_step, report.head, report.tokens) == (4, None, 0)
    assert repr(loss) in report.reason


def test_a_canary_from_another_environment_is_forgiven_its_rounding(run: SmallRun):
    start = first_session(run)
    manifest = newest(run)
    elsewhere = manifest.environment.evolve(torch="2.12.0")
    for factor, code in ((1 + 1e-4, 0), (1.01, 4)):
        told = restate(run, start.id, next_loss=manifest.next_loss * factor, environment=elsewhere)
        spec = run.spec(2, attempt=code + 1, start=told, max_steps=1)
        assert run.run(spec) == code


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": small_architecture(vocab_size=60)}, "its vocabulary has 50 pieces, this session's tokenizer has 60"),
        (
            {"architecture": small_architecture(intermediate_size=32)},
            r"its model.layers.0.mlp.down_proj.weight has the shape (16, 24), this session's model (16, 32)",
        ),
        ({"data_sha256": "0" * 64}, "it was trained on other data"),
        ({"sequence_length": 12}, "its training settings, sequence length or mixture of languages differ"),
        ({"training": {"learning_rate": 0.5}}, "its training settings, sequence length or mixture of languages differ"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_the_difference_named(
    run: SmallRun, changes: dict[str, object], said: str
):
    spec = run.spec(2, start=first_session(run), **changes)
    assert run.run(spec) == 2
    report = run.report(spec)
    assert report.error_class is ErrorClass.USER
    assert said in report.reason
    assert report.corrupt_checkpoint is None


def test_a_checkpoint_whose_data_was_read_in_another_order_is_refused_and_the_order_named(run: SmallRun):
    first_session(run)
    manifest = newest(run).evolve(order_version=1, trajectory_sha256="of an older gemma-orch")
    with pytest.raises(UserError, match=f"it uses data order 1, this version supports only order {ORDER_VERSION}"):
        check_trajectory(run.spec(2, start=run.expected()), manifest)


def test_scratch_changes_no_bit_and_is_empty_when_the_session_has_ended(run: SmallRun):
    scratch = run.layout.root / "scratch"
    assert run.run(run.spec(1)) == 0
    assert run.run(run.spec(2, reading={"scratch_dir": str(scratch)})) == 0
    plain, copied = (run.store.manifest(name)[0] for name in run.store.ids())
    assert plain.state_sha256 == copied.state_sha256
    assert list(scratch.iterdir()) == []
    assert no_copier()


def test_a_session_that_fails_ends_its_copier_too(run: SmallRun):
    def stumble() -> str | None:
        if not no_copier():
            raise UnexpectedError
        return None

    assert run.run(run.spec(1, reading={"scratch_dir": str(run.layout.root / "scratch")}), asked_to_stop=stumble) != 0
    assert no_copier()


def no_copier() -> bool:
    return not any(thread.name == "scratch" for thread in threading.enumerate())


def test_other_data_under_the_same_run_is_refused(run: SmallRun):
    make_data(run.layout.data, seed=2)
    spec = run.spec()
    assert run.run(spec) == 2
    assert "the data that this run is trained on" in run.report(spec).reason


def test_data_of_another_tokenizer_is_refused(run: SmallRun):
    data = make_data(run.layout.data, vocab_size=40)
    spec = run.spec(data_sha256=data.data_sha256)
    assert run.run(spec) == 2
    assert "was encoded with 40 pieces" in run.report(spec).reason


def test_a_disk_without_room_is_told_before_anything_is_trained(run: SmallRun):
    spec = run.spec()
    assert run.run(spec, free_bytes=lambda path: 1000) == 2
    report = run.report(spec)
    assert (report.error_class, report.tokens) == (ErrorClass.USER, 0)
    assert "0.0 MiB are free" in report.reason


def test_a_disk_that_fills_up_later_leaves_the_last_good_checkpoint(run: SmallRun):
    start = first_session(run)
    free = iter([2**40, *[1000] * 100])
    spec = run.spec(2, start=start)
    assert run.run(spec, free_bytes=lambda path: next(free)) == 2
    report = run.report(spec)
    assert (report.outcome, report.error_class, report.end_step) == (Outcome.FAILED, ErrorClass.USER, 20)
    assert run.store.ids() == (start.id,)
    assert run.store.verify_tensors(start.id)


class UnexpectedError(Exception):
    """Nobody has foreseen this."""


def after_looks(number: int, error: Exception) -> Any:
    looked = iter(range(10_000))

    def ask() -> None:
        if next(looked) == number:
            raise error

    return ask


def test_an_unexpected_error_is_reported_with_its_traceback(run: SmallRun):
    spec = run.spec()
    assert run.run(spec, asked_to_stop=after_looks(3, UnexpectedError("of value 3"))) == 3
    report = run.report(spec)
    assert (report.outcome, report.error_class) == (Outcome.FAILED, ErrorClass.INFRA)
    assert report.reason == "unexpected UnexpectedError: of value 3"
    assert any("Traceback" in line for line in run.said)
    again = run.spec(2)
    run.run(again, asked_to_stop=after_looks(5, UnexpectedError("of value 5")))
    assert run.report(again).error_fingerprint == report.error_fingerprint


def test_an_error_does_not_cost_the_checkpoint_that_is_nearly_made(run: SmallRun):
    spec = run.spec(checkpoint_every_s=1e-6)
    # The checkpoint of step 1 is begun at the second look; at the third, its next loss is known.
    assert run.run(spec, asked_to_stop=after_looks(2, UnexpectedError())) == 3
    report = run.report(spec)
    assert (report.end_step, report.saved_step, report.head) == (2, 1, "step-00000001-s001a1")
    assert run.store.verify_tensors("step-00000001-s001a1")


def test_when_that_checkpoint_is_lost_as_well_both_are_told(run: SmallRun):
    looked = iter(range(100))

    def unplug() -> None:
        look = next(looked)
        if look == 1:  # the checkpoint of step 1 is about to be begun
            run.layout.checkpoints.rename(run.layout.root / "unplugged")
            run.layout.checkpoints.touch()
        if look == 2:
            raise UnexpectedError

    spec = run.spec(checkpoint_every_s=1e-6)
    assert run.run(spec, asked_to_stop=unplug, free_bytes=lambda path: 2**40) == 3
    assert run.report(spec).head is None
    assert any("the checkpoint in flight is lost too" in line for line in run.said)


def test_a_report_that_cannot_be_written_is_told(run: SmallRun):
    spec = run.spec(max_steps=1)
    run.write(spec)
    run.attempt(spec).report.mkdir()
    (run.attempt(spec).report / "file").touch()

    def block() -> None:
        run.attempt(spec).report.mkdir(exist_ok=True)
        (run.attempt(spec).report / "file").touch()

    assert run.run(spec, asked_to_stop=block) == 0
    assert any("the report cannot be written" in line for line in run.said)


def test_a_session_that_hangs_ends_with_a_report(run: SmallRun, capfd: pytest.CaptureFixture[str]):
    clock = CountingClock(0.0)
    ended = threading.Event()
    codes: list[int] = []

    def exit_at_once(code: int) -> None:
        codes.append(code)
        ended.set()

    def hang() -> str:
        clock.sleep(3000.0)
        assert ended.wait(60)
        return "SIGTERM"

    spec = run.spec()
    run.run(spec, clock=clock, asked_to_stop=hang, exit_at_once=exit_at_once)
    assert codes == [3]
    assert "training has not ended for 50m, 30m are allowed" in run.said
    assert "most recent call first" in capfd.readouterr().err  # the stack of every thread, for whoever wants to know why


def test_a_session_that_has_ended_well_is_left_as_it_is(run: SmallRun):
    spec = run.spec(max_steps=3)
    assert run.run(spec) == 0
    before = snapshot_of(run.layout.root)
    assert run.run_again(spec) == 0
    assert run.said[-1] == (
        "nothing to do: this session ended at step 3 (all 3 steps of this session are trained), checkpoint step-00000003-s001a1"
    )
    assert snapshot_of(run.layout.root) == before


def snapshot_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_a_session_that_failed_may_be_run_again(run: SmallRun):
    spec = run.spec(max_steps=3)
    assert run.run(spec, free_bytes=lambda path: 0) == 2
    assert run.run(spec) == 0
    assert run.report(spec).outcome is Outcome.BUDGET


def test_a_report_that_makes_no_sense_is_no_report(run: SmallRun):
    spec = run.spec(max_steps=3)
    run.write(spec)
    run.attempt(spec).report.write_text("{")
    assert run.run(spec) == 0
    assert run.report(spec).outcome is Outcome.BUDGET


def test_a_session_whose_result_is_gone_is_run_again(run: SmallRun):
    spec = run.spec(max_steps=3)
    assert run.run(spec) == 0
    state = newest(run).state_sha256
    run.store.delete(newest(run).id)
    assert run.run(spec) == 0
    assert newest(run).state_sha256 == state


def test_a_session_whose_result_is_pruned_has_nothing_to_do_once_the_run_has_gone_on(run: SmallRun):
    first = run.spec(1, max_steps=3)
    assert run.run(first) == 0
    pruned = newest(run).id
    assert run.run(run.spec(2, start=run.expected(), max_steps=2)) == 0
    run.store.delete(pruned)
    before = snapshot_of(run.layout.root)
    assert run.run_again(first) == 0
    assert run.said[-1] == "nothing to do: the run has gone on to checkpoint step-00000005-s002a1"
    assert snapshot_of(run.layout.root) == before


@pytest.mark.parametrize("changes", [{"run": "another"}, {"branch": "rerun"}, {"fence": 1}])
def test_a_checkpoint_that_is_no_later_one_of_the_run_is_no_going_on(run: SmallRun, changes: dict[str, object]):
    first = run.spec(1, max_steps=3)
    assert run.run(first) == 0
    pruned = newest(run).id
    assert run.run(run.spec(2, start=run.expected(), max_steps=2)) == 0
    restate(run, newest(run).id, **changes)
    run.store.delete(pruned)
    assert run.run_again(first) == 0
    assert run.report(first).head == pruned
    assert pruned in run.store.ids()


def test_a_shard_that_has_changed_stops_the_session_before_anything_is_kept(run: SmallRun):
    shard = run.data.languages["konkani"].shards[0].name
    flip_last_bit(run.layout.data / shard)
    spec = run.spec(checkpoint_every_s=1e-6)
    assert run.run(spec) == 4
    report = run.report(spec)
    assert (report.error_class, report.head, report.corrupt_checkpoint) == (ErrorClass.DATA, None, None)
    assert run.store.ids() == ()
    assert shard in report.reason
    assert "repeat the gemma-orch start command, which prepares it again" in report.reason


def damaged_from(run: SmallRun, step: int) -> SessionData:
    """Data that a run reads from a step on, of which one shard has changed."""
    folder = run.layout.root / "later"
    data = make_data(folder, seed=2)
    flip_last_bit(folder / data.languages["english"].shards[0].name)
    return run.version(first_step=step, data_dir=str(folder), data_sha256=data.data_sha256)


@pytest.fixture
def late_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let digests of blocks come when a small session has long trained and could have saved."""
    at_once = hashlib.sha256

    def sha256(data: bytes = b"") -> Any:
        if threading.current_thread().name == "verification":
            threading.Event().wait(0.15)
        return at_once(data)

    monkeypatch.setattr(hashlib, "sha256", sha256)


@pytest.mark.usefixtures("late_digests")
@pytest.mark.parametrize("steps", [6, 7])
@pytest.mark.parametrize("checkpoint_every_s", [1e-6, 10_000.0])
def test_no_checkpoint_is_ever_made_of_damaged_tokens(run: SmallRun, steps: int, checkpoint_every_s: float):
    spec = run.spec(data=(run.version(), damaged_from(run, 5)), total_steps=steps, checkpoint_every_s=checkpoint_every_s)
    assert run.run(spec) == 4
    report = run.report(spec)
    assert (report.outcome, report.error_class) == (Outcome.FAILED, ErrorClass.DATA)
    assert "has changed: block 0 of 'english'" in report.reason
    # The checkpoint of step 5 would promise the loss of the first damaged batch.
    assert all(run.store.manifest(name)[0].step < 5 for name in run.store.ids())
    assert os.listdir(run.layout.checkpoints) == list(run.store.ids())


def test_damaged_tokens_are_blamed_for_what_they_lead_to(run: SmallRun):
    start = first_session(run, steps=5)
    spec = run.spec(2, start=start)
    shard = run.data.languages["english"].shards[0].name
    (run.layout.data / shard).write_bytes(b"\xff" * 1800)  # tokens that the vocabulary does not have
    assert run.run(spec) == 4
    report = run.report(spec)
    assert (report.error_class, report.corrupt_checkpoint) == (ErrorClass.DATA, None)
    assert f"{shard} has changed" in report.reason


def test_a_session_says_what_it_does_while_it_does_it(run: SmallRun):
    first = run.spec(1, max_steps=3, limit_s=600.0)
    assert run.run(first) == 0
    parameters = f"{first.architecture.num_parameters():,} parameters"
    assert run.said[:2] == [
        "session 1, attempt 1: begins, from step 0 to 3 at most, limit 10m",
        f"starts from the seed {first.training.seed}, {parameters}",
    ]
    assert run.said[2].startswith("checkpoint step-00000003-s001a1 is saved, ")
    assert run.said[3].startswith("session 1, attempt 1: budget at step 3")
    run.said.clear()
    assert run.run(run.spec(2, start=run.expected())) == 0
    assert run.said[0].startswith("session 2, attempt 1: begins, from step 3 to 20 at most, limit ")
    assert run.said[1] == f"restored from checkpoint step-00000003-s001a1, {parameters}"


def own(run: SmallRun, spec: SessionSpec) -> list[str]:
    return [name for name in run.store.ids() if name.endswith(f"s{spec.session:03d}a{spec.attempt}")]


def test_a_killed_sessions_own_corrupt_checkpoints_are_put_aside_for_the_one_before(run: SmallRun):
    spec = run.spec(2, start=first_session(run), checkpoint_every_s=1e-6)
    assert run.run(spec, asked_to_stop=fail_after_saves(9)) == 3
    good, *bad = own(run, spec)
    good_step = run.store.manifest(good)[0].step
    flip_last_bit(state_file(run, bad[0]))
    (run.store.folder(bad[1]) / MANIFEST_NAME).write_text("{}")
    assert run.run(spec) == 0
    assert any(f"{bad[0]} has changed" in line for line in run.said)
    for name in bad:
        assert list(run.layout.checkpoints.glob(f".quarantined-{name}-*"))
    assert run.report(spec).tokens == (20 - good_step) * 4 * 8
    straight = SmallRun(run.layout.root / "straight")
    assert straight.run(straight.spec()) == 0
    assert newest(run).state_sha256 == newest(straight).state_sha256


def test_a_session_whose_own_checkpoints_are_all_corrupt_begins_again_as_if_it_had_read_none(run: SmallRun):
    spec = run.spec(1, checkpoint_every_s=1e-6, retention={"keep_last": 2})
    assert run.run(spec, asked_to_stop=fail_after_saves(9)) == 3
    for name in own(run, spec):
        flip_last_bit(state_file(run, name))
    assert run.run(spec) == 0
    assert run.report(spec).tokens == 20 * 4 * 8
    straight = SmallRun(run.layout.root / "straight")
    assert straight.run(straight.spec()) == 0
    assert newest(run).state_sha256 == newest(straight).state_sha256


def fail_after_saves(number: int) -> Any:
    """At every step boundary, let the checkpoint in flight be finished; fail at the n-th."""
    looked = iter(range(10_000))

    def ask() -> None:
        let_saver_finish()
        if next(looked) == number:
            raise UnexpectedError

    return ask


def test_a_checkpoint_of_an_older_fence_is_not_ones_own(run: SmallRun):
    assert run.run(run.spec(1, max_steps=6)) == 0
    spec = run.spec(1, fence=9, max_steps=3)
    run.attempt(spec).report.unlink()
    assert run.run(spec) == 0
    assert run.report(spec).end_step == 3


def test_a_spec_that_is_not_there_or_no_spec_is_told(tmp_path: Path):
    said: list[str] = []
    path = tmp_path / "session.json"
    assert run_session(path, Host(clock=SystemClock(), started_s=0.0, say=said.append)) == 2
    assert f"{path} cannot be read: No such file or directory" in said[-1]
    path.write_text('{"run": 3}')
    assert run_session(path, Host(clock=SystemClock(), started_s=0.0, say=said.append)) == 4
    assert "is not a valid SessionSpec: run: Input should be a valid string" in said[-1]
