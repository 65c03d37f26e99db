"""Saves checkpoints beside the training: only the copy of the state stops it; a thread of low priority does the rest.

The states of one save:

    idle --begin--> copied --thread--> written --next_loss--> committed --poll or finish--> idle
                      |                   |
                      +-------------------+-- an error, or rescue before next_loss --> removed --> idle

    copied      the thread (after `finish`, the caller) writes and hashes the copy in chunks
    written     the thread waits for the loss of the next step, which the manifest records
    committed   the manifest exists, and `after_commit` has run

`begin` copies the state on the training thread. From then on the training changes the live tensors, never the copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from state import crash_points, files
from state.clock import Clock
from state.errors import GemmaOrchError
from state.manifest import FileEntry, Manifest, TensorEntry
from state.stores.checkpoint_store import CheckpointStore
from worker.checkpoint.bulk_file import BulkFile
from worker.failure import disk_full, is_disk_full
from worker.process import lower_priority

if TYPE_CHECKING:
    from worker.checkpoint.snapshot import StateImage


STATE_FILE = "state.safetensors"

_CHUNK_BYTES = 2 * 1024 * 1024  # whole pages; small enough to stay in the processor's cache for the write and two digests
_SPARE_BYTES = 1024 * 1024  # room for manifest, report and metrics


@dataclass(frozen=True)
class WrittenState:
    """The facts about a written state that its manifest records."""

    step: int
    next_loss: float
    tensors: tuple[TensorEntry, ...]
    file: FileEntry


@dataclass(frozen=True)
class SaveRequest:
    """The request to save the current state as a checkpoint."""

    checkpoint_id: str
    step: int
    manifest: Callable[[WrittenState], Manifest]
    """Makes the manifest from what was written. Called on the saving thread; if it raises, no checkpoint is committed."""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint."""

    checkpoint_id: str
    step: int
    seconds: float
    """From the copy to the manifest, without the wait for the next step's loss."""


class Saver:
    """Makes one checkpoint at a time from the live state.

    `begin` copies the state. A thread writes and hashes the copy, waits for the loss of the next step (the canary of the
    session that restores this checkpoint), and commits. `finish` does the remaining work on the calling thread, because
    a thread of low priority can wait long for a core on a busy machine, and an ordinary user cannot raise a priority again.

    Args:
        store: The store to commit to.
        image: Memory for the copy.
        root: The store's folder; its disk must have room.
        clock: Measures the seconds of a save.
        after_commit: Called on the saving thread after each commit (pruning).
        free_bytes: Returns the free bytes on the disk of a folder.
    """

    def __init__(
        self,
        store: CheckpointStore,
        image: StateImage,
        *,
        root: Path,
        clock: Clock,
        after_commit: Callable[[SaveRequest], None] = lambda request: None,
        free_bytes: Callable[[Path], int] = files.free_bytes,
    ) -> None:
        self._store = store
        self._image = image
        self._root = root
        self._clock = clock
        self._after_commit = after_commit
        self._free_bytes = free_bytes
        self._needed_bytes = image.size_bytes + _SPARE_BYTES
        self._save: _Save | None = None

    @property
    def step_in_flight(self) -> int | None:
        """The step whose checkpoint is in flight, or None."""
        return self._save.request.step if self._save else None

    def check_room(self) -> None:
        """Raise UserError if the disk has no room for one more checkpoint."""
        free = self._free_bytes(self._root)
        if free < self._needed_bytes:
            raise disk_full(self._needed_bytes, free, self._root)

    def begin(self, request: SaveRequest, *, urgent: bool = False) -> None:
        """Copy the state and start making its checkpoint.

        Args:
            request: The checkpoint.
            urgent: Whether nothing is trained meanwhile, so that the thread may run at full priority.

        Raises:
            UserError: the disk has no room for it.
        """
        if self._save is not None:
            raise RuntimeError(f"the checkpoint of step {self._save.request.step} is still in flight")
        self.check_room()
        self._image.take()
        self._save = _Save(request, self._image, self._store, self._clock, self._after_commit)
        self._save.start(urgent=urgent)

    def next_loss(self, loss: float) -> None:
        """Give the loss of the step after the saved one. Only the first call for a save counts."""
        if self._save is not None:
            self._save.tell_next_loss(loss)

    def poll(self) -> Saved | None:
        """Return the checkpoint that was committed since the last call, or None; never waits.

        Raises:
            UserError: the disk is full.
            Exception: any other error that ended the save.
        """
        if self._save is None or not self._save.is_over:
            return None
        return self._collect()

    def finish(self) -> Saved | None:
        """Finish the checkpoint in flight and return it; return None if there is none. Raises the same errors as `poll`.

        Call `next_loss` first: the commit waits for it.
        """
        if self._save is None:
            return None
        return self._collect()

    def rescue(self) -> Saved | None:
        """After a failure of the training: finish the checkpoint in flight if its next loss is known, else drop it."""
        if self._save is None:
            return None
        if not self._save.knows_next_loss:
            self._save.abandon()
            self._save = None
            return None
        return self.finish()

    def _collect(self) -> Saved:
        save, self._save = self._save, None
        assert save is not None
        try:
            save.finish()
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self._needed_bytes, self._free_bytes(self._root), self._root) from error
            raise
        return Saved(save.request.checkpoint_id, save.request.step, save.seconds)


class _Save:
    """One checkpoint in flight. Its work is a generator, so another thread can continue it after any chunk."""

    def __init__(
        self,
        request: SaveRequest,
        image: StateImage,
        store: CheckpointStore,
        clock: Clock,
        after_commit: Callable[[SaveRequest], None],
    ) -> None:
        self.request = request
        self.seconds = 0.0
        self._image = image
        self._store = store
        self._clock = clock
        self._after_commit = after_commit
        self._work = self._chunks()
        self._leave = threading.Event()
        self._told = threading.Event()
        self._next_loss: float | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._future: Future[bool] | None = None
        self._urgent = False

    @property
    def is_over(self) -> bool:
        """Whether the checkpoint exists or has failed."""
        return self._future is not None and self._future.done()

    @property
    def knows_next_loss(self) -> bool:
        """Whether the next loss, the last thing that the manifest needs, is known."""
        return self._next_loss is not None

    def start(self, *, urgent: bool) -> None:
        """Begin the work on its own thread."""
        self._urgent = urgent
        self._future = self._executor.submit(self._run, urgent=urgent)
        self._executor.shutdown(wait=False)

    def tell_next_loss(self, loss: float) -> None:
        """Give the next loss, which the manifest waits for."""
        if self._next_loss is None:
            self._next_loss = loss
            self._told.set()

    def finish(self) -> None:
        """Do the remaining work on the calling thread; raise the error that ended it, if any."""
        assert self._future is not None
        self._leave.set()
        if not self._future.result():
            self._leave.clear()
            self._run(urgent=True)

    def abandon(self) -> None:
        """Drop the checkpoint and remove its staged files."""
        assert self._future is not None
        self._leave.set()
        self._told.set()
        with contextlib.suppress(OSError):  # an error no longer matters: the checkpoint is dropped
            self._future.result()
        self._work.close()

    def _run(self, *, urgent: bool) -> bool:
        """Work until all is done or another thread takes over; return whether all is done."""
        if not urgent:
            lower_priority()
        return all(not self._leave.is_set() for _ in self._work)

    def _chunks(self) -> Generator[None, None, None]:
        """Make the checkpoint; yield after each chunk, where another thread may take over."""
        begun_s = self._clock.monotonic()
        staged = self._store.stage(self.request.checkpoint_id)
        try:
            tensors, file = yield from _write(self._image, staged / STATE_FILE, direct=not self._urgent)
            self.seconds = self._clock.monotonic() - begun_s
            self._told.wait()
            if self._next_loss is None:
                _remove(staged)
                return
            begun_s = self._clock.monotonic()
            written = WrittenState(self.request.step, self._next_loss, tensors, file)
            self._store.commit(staged, self._manifest(written, staged))
        except (OSError, GeneratorExit):
            _remove(staged)  # a part of a checkpoint is useless, and a full disk needs the room
            raise
        self._after_commit(self.request)
        self.seconds += self._clock.monotonic() - begun_s

    def _manifest(self, written: WrittenState, staged: Path) -> Manifest:
        try:
            return self.request.manifest(written)
        except GemmaOrchError:
            _remove(staged)  # this state must not become a checkpoint, for instance after a corrupt block of data
            raise


def _write(image: StateImage, path: Path, *, direct: bool) -> Generator[None, None, tuple[tuple[TensorEntry, ...], FileEntry]]:
    """Write the image and compute all digests, in one pass over the memory."""
    memory = memoryview(image.buffer)
    whole, tensor = hashlib.sha256(), hashlib.sha256()
    entries: list[TensorEntry] = []
    with BulkFile(path, direct=direct) as file:
        for begin in range(0, image.size_bytes, _CHUNK_BYTES):
            end = min(begin + _CHUNK_BYTES, image.size_bytes)
            file.write(memory[begin:end])
            whole.update(memory[begin:end])
            for part in image.parts[len(entries) :]:
                tensor.update(memory[max(part.begin, begin) : max(begin, min(part.end, end))])
                if part.end > end:
                    break
                entries.append(TensorEntry(name=part.name, dtype=part.dtype, shape=part.shape, sha256=tensor.hexdigest()))
                tensor = hashlib.sha256()
            yield
    crash_points.done("write", path.name)
    return tuple(entries), FileEntry(name=path.name, size_bytes=image.size_bytes, sha256=whole.hexdigest())


def _remove(staged: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to report
        files.remove_tree(staged)
