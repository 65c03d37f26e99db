from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from state.clock import SystemClock
from state.errors import DataError, UserError
from state.layout import checkpoint_id
from state.manifest import DataPosition, Environment, Manifest, state_sha256
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import START
from worker.checkpoint.saver import Saver, SaveRequest, WrittenState
from worker.checkpoint.snapshot import StateImage

PLENTY = 2**60


def make_state() -> dict[str, Tensor]:
    """A state whose tensors end before, at and after the ends of pages and chunks."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"model.a": 1, "model.b": 1024, "model.c": 700_000, "optimizer.d": 3}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


class DiskFullStore(DirectoryCheckpointStore):
    """A store whose disk is full at the moment of the commit."""

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        raise OSError(errno.ENOSPC, "No space left on device")


class BrokenStore(DirectoryCheckpointStore):
    """A store whose disk does not answer."""

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        raise OSError(errno.EIO, "Input/output error")


class BarredStore(DirectoryCheckpointStore):
    """A store in which nothing can be begun until it is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened = threading.Event()

    def stage(self, checkpoint_id: str) -> Path:
        assert self.opened.wait(60)
        return super().stage(checkpoint_id)


def manifest_of(written: WrittenState) -> Manifest:
    position = DataPosition(samples=written.step)
    return Manifest(
        id=checkpoint_id(written.step, 1, 1),
        run="r",
        session=1,
        attempt=1,
        fence=1,
        branch=None,
        step=written.step,
        parent=None,
        created_at=START,
        trajectory_sha256="",
        data_sha256="",
        data_position=position,
        next_loss=written.next_loss,
        train_s=0.0,
        environment=Environment(torch="", python="", device="", threads=1, compiled=False, code_sha256=""),
        state_sha256=state_sha256(written.tensors, written.step, position),
        tensors=written.tensors,
        files=(written.file,),
    )


class Bench:
    def __init__(self, root: Path, store: DirectoryCheckpointStore | None = None, free: Callable[[Path], int] | None = None):
        self.root = root
        self.state = make_state()
        self.store = store or DirectoryCheckpointStore(root)
        self.committed: list[str] = []
        self.saver = Saver(
            self.store,
            StateImage(self.state),
            root=root,
            clock=SystemClock(),
            after_commit=lambda request: self.committed.append(request.checkpoint_id),
            free_bytes=free or (lambda path: PLENTY),
        )

    def begin(self, step: int, *, urgent: bool = False) -> str:
        name = checkpoint_id(step, 1, 1)
        self.saver.begin(SaveRequest(name, step, manifest_of), urgent=urgent)
        return name

    def leftovers(self) -> list[str]:
        return [entry.name for entry in self.root.iterdir() if entry.name not in self.store.ids()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_state_of_which_no_manifest_can_be_made_becomes_no_checkpoint(bench: Bench):
    def manifest(written: WrittenState) -> Manifest:
        raise DataError("the state was trained on damaged tokens")

    bench.saver.begin(SaveRequest(checkpoint_id(1, 1, 1), 1, manifest))
    bench.saver.next_loss(1.0)
    with pytest.raises(DataError, match="damaged tokens"):
        bench.saver.finish()
    assert (bench.store.ids(), bench.leftovers(), bench.committed) == ((), [], [])


@pytest.mark.parametrize("urgent", [False, True])
def test_a_checkpoint_exists_when_its_next_loss_is_told(bench: Bench, urgent: bool):
    name = bench.begin(7, urgent=urgent)
    assert bench.saver.step_in_flight == 7
    assert bench.saver.poll() is None
    assert bench.store.ids() == ()
    bench.saver.next_loss(1.5)
    saved = bench.saver.finish()
    assert saved is not None
    assert (saved.checkpoint_id, saved.step) == (name, 7)
    assert saved.seconds > 0
    assert bench.store.verify_tensors(name).next_loss == 1.5
    assert bench.committed == [name]
    assert bench.saver.step_in_flight is None
    assert bench.leftovers() == []


def test_a_checkpoint_holds_the_state_of_the_moment_when_it_was_begun(bench: Bench):
    first = bench.begin(1)
    for tensor in bench.state.values():
        tensor.add_(1.0)
    bench.saver.next_loss(1.0)
    bench.saver.finish()
    second = bench.begin(2)
    bench.saver.next_loss(1.0)
    bench.saver.finish()
    assert bench.store.manifest(first)[0].tensors != bench.store.manifest(second)[0].tensors


def test_the_training_can_ask_without_waiting(bench: Bench):
    bench.begin(1)
    bench.saver.next_loss(1.0)
    for thread in threading.enumerate():
        if thread.name.startswith("saver"):
            thread.join()
    saved = bench.saver.poll()
    assert saved is not None
    assert saved.step == 1
    assert bench.saver.poll() is None


def test_only_the_first_loss_after_a_save_counts(bench: Bench):
    name = bench.begin(1)
    bench.saver.next_loss(1.0)
    bench.saver.next_loss(2.0)
    bench.saver.finish()
    assert bench.store.manifest(name)[0].next_loss == 1.0


def test_a_loss_that_no_save_waits_for_is_nothing(bench: Bench):
    bench.saver.next_loss(1.0)
    assert bench.saver.finish() is None
    assert bench.saver.rescue() is None


def test_one_checkpoint_at_a_time(bench: Bench):
    bench.begin(1)
    with pytest.raises(RuntimeError, match="step 1 is still in flight"):
        bench.begin(2)
    bench.saver.next_loss(1.0)
    bench.saver.finish()


def test_the_rest_of_a_save_can_be_taken_over(tmp_path: Path):
    store = BarredStore(tmp_path)
    bench = Bench(tmp_path, store)
    name = bench.begin(3)
    bench.saver.next_loss(1.0)
    # The thread stands before its first chunk; it leaves after that one, and the caller does what is left.
    threading.Timer(0.05, store.opened.set).start()
    assert bench.saver.finish() is not None
    assert bench.store.verify_tensors(name).step == 3


def test_there_is_an_error_before_anything_is_written_when_the_disk_has_no_room(tmp_path: Path):
    bench = Bench(tmp_path, free=lambda path: 1_000_000)
    with pytest.raises(UserError, match=r"a checkpoint needs 3\.7 MiB, 1\.0 MiB are free"):
        bench.begin(1)
    assert list(tmp_path.iterdir()) == []
    assert bench.saver.step_in_flight is None


def test_a_disk_that_fills_up_meanwhile_costs_only_this_checkpoint(tmp_path: Path):
    good = Bench(tmp_path)
    kept = good.begin(1)
    good.saver.next_loss(1.0)
    good.saver.finish()
    bench = Bench(tmp_path, DiskFullStore(tmp_path))
    bench.begin(2)
    bench.saver.next_loss(1.0)
    with pytest.raises(UserError, match="is full"):
        bench.saver.finish()
    assert bench.store.ids() == (kept,)
    assert bench.leftovers() == []
    assert bench.saver.step_in_flight is None


def test_any_other_trouble_is_raised_where_the_training_is(tmp_path: Path):
    bench = Bench(tmp_path, BrokenStore(tmp_path))
    bench.begin(2)
    bench.saver.next_loss(1.0)
    with pytest.raises(OSError, match="Input/output error"):
        bench.saver.finish()
    assert bench.leftovers() == []


def test_what_cannot_be_deleted_hides_no_error(tmp_path: Path):
    class StubbornStore(BrokenStore):
        def commit(self, staged: Path, manifest: Manifest) -> Manifest:
            for file in staged.iterdir():
                file.unlink()
            staged.rmdir()
            staged.symlink_to(tmp_path / "nowhere")
            return super().commit(staged, manifest)

    bench = Bench(tmp_path, StubbornStore(tmp_path))
    bench.begin(2)
    bench.saver.next_loss(1.0)
    with pytest.raises(OSError, match="Input/output error"):
        bench.saver.finish()


def test_the_same_step_with_another_result_is_kept_for_comparison(bench: Bench):
    bench.begin(1)
    bench.saver.next_loss(1.0)
    bench.saver.finish()
    bench.state["model.b"].add_(1.0)
    bench.begin(1)
    bench.saver.next_loss(1.0)
    with pytest.raises(DataError, match=r"trained twice with different results; first difference: tensor model\.b"):
        bench.saver.finish()
    assert len(bench.leftovers()) == 1


def test_a_failed_training_still_brings_home_a_checkpoint_that_knows_all(bench: Bench):
    name = bench.begin(4)
    bench.saver.next_loss(1.0)
    saved = bench.saver.rescue()
    assert saved is not None
    assert saved.checkpoint_id == name


def test_a_failed_training_gives_up_a_checkpoint_without_next_loss(bench: Bench):
    bench.begin(4)
    assert bench.saver.rescue() is None
    assert bench.saver.step_in_flight is None
    assert list(bench.root.iterdir()) == []


def test_giving_up_hides_that_the_disk_was_full_as_well(tmp_path: Path):
    class FullStore(DirectoryCheckpointStore):
        def stage(self, checkpoint_id: str) -> Path:
            raise OSError(errno.ENOSPC, "No space left on device")

    bench = Bench(tmp_path, FullStore(tmp_path))
    bench.begin(4)
    assert bench.saver.rescue() is None
