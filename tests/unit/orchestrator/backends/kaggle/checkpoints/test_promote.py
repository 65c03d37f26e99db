"""A checkpoint that a session could only leave in its kernel's output comes to lie in its attempt's dataset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.checkpoints.promote import Promoted, advice, checkpoints_of, promote_all, to_promote
from orchestrator.ports import Ports
from orchestrator.wiring import backend_kind
from state.errors import AmbiguousError, CorruptCheckpointError, TemporaryError, UserError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import OUTPUT_FOLDER, PushedKernel, attempt_dataset_slug, attempt_kernel_slug
from state.kaggle.records import KernelPush, SessionStatus
from state.layout import MANIFEST_NAME
from state.ledger import Change, CheckpointRecord, CheckpointState, PutAttempt, PutCheckpoint, RunHeader, RunWishes
from state.manifest import Manifest
from state.process import identify
from state.session import AttemptState, RunState
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore
from tests.factories import (
    RUN,
    START,
    after,
    attempt,
    checkpoint,
    commit_checkpoint,
    header,
    run_record,
    run_spec,
    session_spec,
)
from tests.fake_kaggle import OWNER, FakeKernel
from tests.kaggle_stage import DATASET, SLUG, Stage, checkpoint_files, note_of, upload_checkpoint
from tests.terminal import Terminal


class KilledError(BaseException):
    """The process ends here."""


class Heard:
    """Hears how far a promotion is."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.num_bytes = self.num_sent = 0
        self.is_open = False

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, title: str, num_bytes: int) -> None:
        self.say(title)
        self.num_bytes, self.is_open = num_bytes, True

    def sent(self, num_bytes: int) -> None:
        self.num_sent += num_bytes

    def end(self) -> None:
        self.is_open = False


class Depot:
    """A run on Kaggle whose sessions could not upload."""

    def __init__(self, root: Path) -> None:
        self.stage = Stage(root)
        self.account = self.stage.account
        self.heard = Heard()
        self.known: list[CheckpointRecord] = []

    @property
    def ports(self) -> Ports:
        return Ports(
            kind=backend_kind,
            runs=SqliteRunStore(self.stage.home.ledger),
            home=self.stage.home,
            clock=self.stage.clock,
            owner=identify(os.getpid()),
            backend=lambda _name, _run: self.stage.backend,
            checkpoints=lambda _run: self.stage.run.checkpoints,
            prepare=lambda *_arguments, **_options: pytest.fail("nothing is prepared"),
        )

    def leave(self, step: int, session: int = 1) -> Manifest:
        """Let a session end that leaves a checkpoint in its kernel's output."""
        worker = DirectoryCheckpointStore(self.stage.root / f"worker-{session}")
        made = commit_checkpoint(worker, step, session=session)
        kernel = PushedKernel(attempt_kernel_slug(RUN, session, 1))
        outputs = {f"{OUTPUT_FOLDER}/{name}": content for name, content in checkpoint_files(worker, made).items()}
        self.account.kernel_table[kernel.slug] = FakeKernel(
            KernelPush(kernel.slug, "", "NvidiaTeslaT4", internet=False, timeout_s=1, dataset_sources=()),
            status=SessionStatus.COMPLETE,
            outputs=outputs,
        )
        self.account.add_version(attempt_dataset_slug(RUN, session, 1), "Initial release", {"session.json": b"{}"})
        listed = self.account.session_outputs(kernel.slug, 1)
        assert listed is not None
        self.stage.run.checkpoints.discovery.take_outputs(session, 1, kernel, listed[0])
        self.know(worker, made)
        return made

    def know(self, store: DirectoryCheckpointStore, made: Manifest) -> None:
        """Let the ledger know a checkpoint, the newest one as the head."""
        record = checkpoint(
            made.step,
            made.session,
            state_sha256=made.state_sha256,
            manifest_sha256=store.manifest(made.id)[1],
            total_bytes=made.total_bytes,
        )
        self.known.append(record)
        sessions = sorted({each.session for each in self.known})
        attempts = [attempt(session, backend="kaggle", ended_at=after(0)) for session in sessions]
        self.stage.record = run_record(attempts, self.known, spec=run_spec(backend="kaggle"), head=made.id)

    def wanted(self, checkpoint_id: str | None = None) -> tuple[CheckpointRecord, ...]:
        return to_promote(self.stage.record, self.stage.run.checkpoints, checkpoint_id)

    def promote(self, checkpoint_id: str | None = None) -> list[Promoted]:
        return list(promote_all(self.stage.run.checkpoints, self.wanted(checkpoint_id), self.heard))

    def place(self, made: Manifest) -> CheckpointPlace | None:
        return self.stage.run.checkpoints.place(made.id)

    def settle(self) -> None:
        """Let everything be looked at as long as something may come from it."""
        for _ in range(80):
            self.stage.run.checkpoints.ids()
            self.stage.clock.advance(61.0)

    @property
    def fetched(self) -> DirectoryCheckpointStore:
        return DirectoryCheckpointStore(self.stage.home.run(RUN).root / "kaggle" / "promotion" / "checkpoints")


def in_dataset(version: int, slug: str = DATASET) -> CheckpointPlace:
    return CheckpointPlace(kind="dataset", owner=OWNER, slug=slug, version=version)


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


def test_the_head_comes_from_its_kernels_output_into_its_attempts_dataset(depot: Depot) -> None:
    made = depot.leave(10)
    assert depot.promote() == [Promoted(made.id, in_dataset(2), stood_already=False)]
    worker = DirectoryCheckpointStore(depot.stage.root / "worker-1")
    version = depot.account.dataset_table[DATASET][1]
    assert (version.notes, version.files) == (str(note_of(worker, made)), checkpoint_files(worker, made))
    assert list(version.files)[-1] == f"{made.id}.{MANIFEST_NAME}"
    assert depot.place(made) == in_dataset(2)
    assert depot.heard.num_sent == depot.heard.num_bytes == sum(map(len, version.files.values()))
    assert depot.heard.said[0].endswith(f"from the output of the kernel {SLUG}")
    assert depot.heard.said[-1] == f"waiting for Kaggle to process {DATASET}, up to 1h"
    assert depot.fetched.ids() == ()


def test_a_promoted_checkpoint_outlives_its_kernel_and_is_the_next_ones_input(depot: Depot) -> None:
    made = depot.leave(10)
    depot.promote()
    del depot.account.kernel_table[SLUG]
    depot.stage.clock.advance(1000.0)
    store = depot.stage.run.checkpoints
    start = made.expected(store.manifest(made.id)[1])
    assert store.verify(made.id, start) == made
    depot.stage.launch(session_spec(2, start=start))
    push = depot.account.kernel_table[attempt_kernel_slug(RUN, 2, 1)].push
    assert (push.dataset_sources[-1], push.kernel_sources) == (f"{OWNER}/{DATASET}", ())


def test_all_that_lies_in_outputs_only_is_meant_the_head_first_then_the_newest(depot: Depot) -> None:
    made = [depot.leave(10 * session, session) for session in (1, 2, 3)]
    uploaded = upload_checkpoint(depot.account, depot.stage.root / "worker-4", 40, session=4)
    depot.know(DirectoryCheckpointStore(depot.stage.root / "worker-4"), uploaded)
    pruned = depot.leave(50, session=5)
    depot.known[-1] = depot.known[-1].evolve(state=CheckpointState.PRUNED)
    depot.stage.record = run_record(depot.stage.record.attempts, depot.known, head=made[1].id)
    depot.stage.run.checkpoints.ids()
    assert [each.id for each in depot.wanted()] == [made[1].id, made[2].id, made[0].id]
    assert [each.id for each in depot.promote()] == [made[1].id, made[2].id, made[0].id]
    assert depot.wanted() == ()
    assert len(depot.account.dataset_table[attempt_dataset_slug(RUN, pruned.session, 1)]) == 1


def test_promoting_again_does_nothing(depot: Depot) -> None:
    made = depot.leave(10)
    depot.promote()
    before = depot.account.count()
    assert depot.promote() == []
    assert depot.promote(made.id) == [Promoted(made.id, in_dataset(2), stood_already=True)]
    assert depot.account.count() == before


def test_what_another_machine_has_promoted_is_only_looked_at(depot: Depot) -> None:
    made = depot.leave(10)
    worker = DirectoryCheckpointStore(depot.stage.root / "worker-1")
    depot.account.add_version(DATASET, str(note_of(worker, made)), checkpoint_files(worker, made))
    assert depot.promote() == [Promoted(made.id, in_dataset(2), stood_already=False)]
    assert depot.account.count("start_upload", "download_output") == 1  # the manifest, when the output was first looked through


@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("download_output", "before"),
        ("start_upload", "before"),
        ("create_version", "before"),
        ("create_version", "after"),
        ("dataset_files", "before"),
    ],
)
def test_a_promotion_that_was_killed_goes_on_and_makes_one_version(depot: Depot, call: str, when: str) -> None:
    made = depot.leave(10)
    failures = depot.account.failures if when == "before" else depot.account.failures_after
    failures[call] = [KilledError()]  # type: ignore[list-item]
    with pytest.raises(KilledError):
        depot.promote()
    depot.stage.open()
    assert [each.place for each in depot.promote(made.id)] == [in_dataset(2)]
    assert len(depot.account.dataset_table[DATASET]) == 2


def test_files_that_were_fetched_before_the_end_are_not_fetched_again(depot: Depot) -> None:
    made = depot.leave(10)
    depot.account.failures["create_version"] = [KilledError()]  # type: ignore[list-item]
    with pytest.raises(KilledError):
        depot.promote()
    before = depot.account.count("download_output")
    depot.stage.open()
    assert depot.promote()[0].place == in_dataset(2)
    assert depot.account.count("download_output") == before
    assert depot.fetched.ids() == ()
    assert depot.place(made) == in_dataset(2)


def test_fetched_files_that_have_changed_since_are_fetched_again(depot: Depot) -> None:
    made = depot.leave(10)
    depot.account.failures["create_version"] = [KilledError()]  # type: ignore[list-item]
    with pytest.raises(KilledError):
        depot.promote()
    path = depot.fetched.folder(made.id) / "rank-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    depot.promote()
    worker = DirectoryCheckpointStore(depot.stage.root / "worker-1")
    assert depot.account.dataset_table[DATASET][1].files == checkpoint_files(worker, made)


def test_the_files_that_are_here_already_are_taken_from_here(depot: Depot) -> None:
    made = depot.leave(10)
    depot.stage.run.checkpoints.folder(made.id)
    before = depot.account.count("download_output")
    depot.promote()
    assert depot.account.count("download_output") == before
    assert depot.stage.run.checkpoints.verify_tensors(made.id) == made


def test_a_checkpoint_that_is_only_here_is_brought_when_it_is_named(depot: Depot) -> None:
    local = DirectoryCheckpointStore(depot.stage.home.run(RUN).checkpoints)
    made = commit_checkpoint(local, 10)
    depot.know(local, made)
    assert depot.promote() == []
    assert depot.promote(made.id) == [Promoted(made.id, in_dataset(2), stood_already=False)]
    assert depot.heard.said[0].endswith("from the run's folder")


def test_an_answer_that_was_lost_makes_no_second_version(depot: Depot) -> None:
    depot.leave(10)
    depot.account.failures_after["create_version"] = [AmbiguousError("lost")]
    assert depot.promote()[0].place == in_dataset(2)
    assert len(depot.account.dataset_table[DATASET]) == 2


def test_a_version_is_waited_for_until_it_is_processed(depot: Depot) -> None:
    made = depot.leave(10)
    depot.account.processing = True
    with pytest.raises(TemporaryError, match=r"is not ready after 3600 s"):
        depot.promote()
    assert depot.place(made) == CheckpointPlace(kind="output", owner=OWNER, slug=SLUG, version=1)
    assert not depot.heard.is_open
    depot.account.process()
    assert depot.promote()[0].place == in_dataset(2)
    assert depot.account.count("create_version") == 1


def test_what_lies_wrong_in_the_output_is_not_sent_and_does_not_keep_the_others(depot: Depot) -> None:
    old, new = depot.leave(10, session=1), depot.leave(20, session=2)
    outputs = depot.account.kernel_table[attempt_kernel_slug(RUN, 2, 1)].outputs
    name = f"{OUTPUT_FOLDER}/{new.id}.rank-1.safetensors"
    outputs[name] = outputs[name][:-1] + b"!"
    with pytest.raises(CorruptCheckpointError, match=r"rank-1\.safetensors of checkpoint .* does not have the manifest's sha256"):
        depot.promote()
    assert depot.place(old) == in_dataset(2)
    assert any(f"{new.id} is not promoted" in line for line in depot.heard.said)
    assert len(depot.account.dataset_table[attempt_dataset_slug(RUN, 2, 1)]) == 1


def test_what_lies_in_an_output_is_not_gone_because_its_kernel_is_refused(depot: Depot) -> None:
    depot.leave(10)
    depot.account.refused = {"session_outputs", "kernel", "session_status"}
    for _ in range(5):
        with pytest.raises(TemporaryError, match=r"does not show|refuses to show the outputs"):
            depot.promote()
        depot.stage.clock.advance(601.0)
    depot.account.refused.clear()
    depot.promote()


def test_a_kernel_that_was_deleted_is_said_to_be_the_reason(depot: Depot) -> None:
    depot.leave(10)
    depot.account.kernel_table.clear()
    with pytest.raises(TemporaryError, match=r"does not show the kernel gemma-orch-tamil-s001a1-k, whose output holds") as caught:
        depot.promote()
    assert "that checkpoint is lost" in caught.value.remedy
    depot.stage.clock.advance(61.0)
    with pytest.raises(TemporaryError, match=r"in its output is gone; a read after 600 s must confirm that"):
        depot.promote()
    depot.stage.clock.advance(601.0)
    with pytest.raises(CorruptCheckpointError, match="in its output is gone"):
        depot.promote()


def test_a_version_that_came_out_wrong_does_not_take_the_outputs_place(depot: Depot) -> None:
    made = depot.leave(10)
    worker = DirectoryCheckpointStore(depot.stage.root / "worker-1")
    files = checkpoint_files(worker, made)
    del files[f"{made.id}.rank-1.safetensors"]
    depot.account.add_version(DATASET, str(note_of(worker, made)), files)
    depot.settle()
    assert depot.place(made) == CheckpointPlace(kind="output", owner=OWNER, slug=SLUG, version=1)
    assert depot.promote()[0].place == in_dataset(3)


def test_a_dataset_that_was_deleted_is_made_anew_and_its_versions_count_from_one(depot: Depot) -> None:
    made = depot.leave(10)
    for step in (6, 8):
        upload_checkpoint(depot.account, depot.stage.root / f"worker-{step}", step)
    depot.stage.run.checkpoints.ids()
    del depot.account.dataset_table[DATASET]
    assert depot.promote()[0].place == in_dataset(2)
    assert depot.account.dataset_table[DATASET][0].files.keys() == {"origin.txt"}
    assert depot.place(made) == in_dataset(2)


def test_what_was_pruned_on_its_way_stays_pruned_and_goes_with_its_dataset(depot: Depot) -> None:
    made = depot.leave(10)
    store = depot.stage.run.checkpoints
    worker = DirectoryCheckpointStore(depot.stage.root / "worker-1")
    store.delete(made.id)
    depot.account.add_version(DATASET, str(note_of(worker, made)), checkpoint_files(worker, made))
    depot.settle()
    assert store.ids() == ()
    store.sweep(lambda _name: True)
    assert DATASET not in depot.account.dataset_table


def test_a_dataset_stays_while_a_needed_checkpoint_of_its_attempt_is_in_the_output(depot: Depot) -> None:
    made = depot.leave(10)
    early = upload_checkpoint(depot.account, depot.stage.root / "worker-6", 6)
    store = depot.stage.run.checkpoints
    depot.settle()
    store.delete(early.id)
    store.sweep(lambda _name: True)
    assert DATASET in depot.account.dataset_table
    store.delete(made.id)
    store.sweep(lambda _name: True)
    assert DATASET not in depot.account.dataset_table


def test_a_controllers_sweep_does_not_touch_a_promotion(depot: Depot) -> None:
    made = depot.leave(10)
    staged = depot.fetched.stage(made.id)
    depot.stage.run.checkpoints.sweep(lambda _name: True)
    assert staged.is_dir()


def test_the_dataset_of_an_attempt_at_work_is_its_own(depot: Depot) -> None:
    made = depot.leave(10)
    live = attempt(1, backend="kaggle", state=AttemptState.RUNNING)
    depot.stage.record = run_record([live], depot.known, head=made.id)
    with pytest.raises(TemporaryError, match="its attempt s001a1 is running") as caught:
        depot.promote(made.id)
    assert "gemma-orch stop tamil" in caught.value.remedy
    assert depot.promote() == []


def test_what_to_do_is_said_while_the_head_is_in_an_output_and_costs_no_call(depot: Depot) -> None:
    depot.leave(10)
    before = depot.account.count()
    assert "gemma-orch promote --run tamil copies it into a dataset" in advice(depot.ports, depot.stage.record)
    assert depot.account.count() == before
    depot.promote()
    assert advice(depot.ports, depot.stage.record) == ""
    assert advice(depot.ports, run_record()) == ""


def test_a_run_that_was_never_on_kaggle_has_nothing_to_promote(depot: Depot) -> None:
    local = DirectoryCheckpointStore(depot.stage.home.run(RUN).checkpoints)
    ports = depot.ports.__class__(**{**vars(depot.ports), "checkpoints": lambda _run: local})
    with pytest.raises(UserError, match="has never trained on Kaggle"):
        checkpoints_of(ports, run_record())
    assert advice(ports, run_record(head="step-00000010-s001a1")) == ""


# The commands.


def remembered(depot: Depot) -> Terminal:
    """A terminal in whose home the depot's run is remembered as finished."""
    store, owner = SqliteRunStore(depot.stage.home.ledger), identify(os.getpid())
    record = depot.stage.record
    known: RunHeader = header(state=RunState.FINISHED, head=record.header.head, newest_fence=1)
    changes: list[Change] = [
        *(PutAttempt(each, session_spec(each.session)) for each in record.attempts),
        *(PutCheckpoint(each) for each in depot.known),
    ]
    store.create(known, RunWishes(spec=run_spec(backend="kaggle")), changes)
    store.acquire(RUN, owner, START, 60)
    store.release(RUN, owner)
    store.close()
    return Terminal(depot.stage.home.root)


def test_a_run_that_is_over_says_that_its_head_is_to_be_promoted(depot: Depot) -> None:
    depot.leave(10)
    assert "gemma-orch promote --run tamil" in remembered(depot).type("stop").stderr


def test_the_command_says_when_nothing_is_to_be_done(depot: Depot) -> None:
    depot.leave(10)
    depot.promote()
    terminal = remembered(depot)
    assert terminal.type("promote").stdout.startswith("nothing to promote")
    assert terminal.type("stop").stderr == ""


def test_the_command_names_what_it_does_not_know(depot: Depot) -> None:
    depot.leave(10)
    assert "checkpoint" in str(remembered(depot).fail("promote", "step-99"))
