"""Uploads checkpoints to the account, beside the training and at the session's end, because the machine's disk is lost.

If the account cannot be written to, the last checkpoint is left in the kernel's output (kernel-output mode).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from state import files
from state.clock import Clock
from state.errors import GemmaOrchError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.job import KaggleJob
from state.kaggle.names import OUTPUT_FOLDER
from state.layout import AttemptLayout
from state.stores.checkpoint_store import CheckpointStore
from worker.kaggle.outbox import Outbox, Parcel
from worker.kaggle.pace import copy_s
from worker.kaggle.uploads import Uploads
from worker.process import lower_priority

_TEST_LIMIT_S = 60.0
_LAST_TEST_LIMIT_S = 10.0
_LAST_TEST_SHARE = 0.05  # of the session: half of the reserve that is kept before an upload has been measured
_BYTES_PER_NUMBER = 12  # a weight and its two moments, in float32
_LOOKS = 4  # polls between two uploads, and polls within the time for which Kaggle's reads may be stale
_SHORTEST_LOOK_S = 0.2
_LONGEST_LOOK_S = 60.0
_RETRY_S = 5.0
_EXIT_S = 1.0
_GOODBYE_S = 5.0


class _AbandonedError(Exception):
    """An upload was given up because a newer checkpoint must be uploaded instead."""


@dataclass(frozen=True)
class DeliveryPaths:
    """The folders of a delivery."""

    outbox: Path
    """For checkpoints that wait for delivery; on the disk of the store."""
    scratch: Path
    """For the state that an interrupted upload needs to resume."""
    working: Path
    """The kernel's output folder, which contains the report."""


class Delivery:
    """Delivers the checkpoints of one attempt.

    Call `committed` for each checkpoint. A thread uploads the newest one at the upload interval; `finish` delivers the last.

    Args:
        job: The job: the attempt, its dataset and the upload interval.
        api: The account; None: it cannot be reached, so that only the kernel's output remains.
        store: The store of the attempt's checkpoints.
        desk: The folders.
        clock: Measures the uploads.
        ends_s: When the process must be gone, on the clock's monotonic axis.
        say: Called with log lines, on any thread.
    """

    def __init__(
        self,
        job: KaggleJob,
        api: KaggleApi | None,
        store: CheckpointStore,
        desk: DeliveryPaths,
        *,
        clock: Clock,
        ends_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._job = job
        self._desk = desk
        self._clock = clock
        self._ends_s = ends_s
        self._say = say
        self._uploads = Uploads(api, job, desk.scratch, clock=clock, say=say) if api is not None else None
        self._outbox = Outbox(desk.outbox, store)
        self._size_bytes = _BYTES_PER_NUMBER * job.spec.architecture.num_parameters()
        self._newest: Parcel | None = None
        self._in_flight: Parcel | None = None
        self._due_s = clock.monotonic() + job.upload_every_s
        self._complaint = ""
        self._abandon = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look_often, name="delivery", daemon=True)

    @property
    def poll_interval_s(self) -> float:
        """The interval at which the thread polls, in seconds."""
        every_s = min(self._job.upload_every_s, self._job.settle_s) / _LOOKS
        return min(max(every_s, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)

    def start(self) -> None:
        """Begin to deliver, on a separate thread of low priority."""
        self._thread.start()

    def committed(self, checkpoint_id: str) -> None:
        """Accept a committed checkpoint. Called on the saving thread; logs errors and never raises them."""
        try:
            self._take(checkpoint_id)
        except (GemmaOrchError, OSError) as error:
            self._say(f"checkpoint {checkpoint_id} cannot be delivered now: {error}")

    def reserve_s(self) -> float:
        """Return the seconds to reserve for the delivery of the last checkpoint."""
        if self._uploads is None:
            return copy_s(self._size_bytes)
        return self._uploads.pace.reserve_s(self._size_bytes, self._job.spec.limit_s)

    def look(self) -> None:
        """Poll once: prove that the account can be written to, check the version sent last, send a checkpoint if it is due."""
        uploads = self._uploads
        if uploads is None:
            return
        try:
            uploads.prove(self._clock.monotonic() + _TEST_LIMIT_S, check_abandoned=self._check_abandoned)
            if uploads.check():
                self._due_s = self._clock.monotonic()
            if self._is_due(uploads):
                self._send_newest(uploads)
            self._complaint = ""
        except _AbandonedError:
            return
        except UserError as error:
            self._refused(uploads, error)
        except (GemmaOrchError, OSError) as error:
            self._complain(error)

    def finish(self, head: str | None) -> bool:
        """Deliver the attempt's last checkpoint in the remaining time; return whether it was uploaded to the account.

        Args:
            head: The last checkpoint that the attempt committed; None if it has none.
        """
        self._over.set()
        parcel = self._last(head)
        if parcel is None:
            return False
        copy_limit_s = self._ends_s - _EXIT_S - copy_s(parcel.size_bytes)
        self._let_thread_end(parcel, copy_limit_s)
        if self._upload_last(parcel, copy_limit_s):
            return True
        self._put_out(parcel)
        return False

    # The thread's part.

    def _look_often(self) -> None:
        lower_priority()
        self.look()
        while not self._over.wait(self.poll_interval_s):
            self.look()

    def _is_due(self, uploads: Uploads) -> bool:
        newest = self._newest
        return newest is not None and not uploads.has_sent(newest.id) and self._clock.monotonic() >= self._due_s

    def _send_newest(self, uploads: Uploads) -> None:
        with self._lock:
            parcel = self._in_flight = self._newest
        assert parcel is not None
        try:
            uploads.send(parcel, self._ends_s, tidy=True, check_abandoned=self._check_abandoned)
        finally:
            with self._lock:
                self._in_flight = None
                self._tidy()
        self._due_s = self._clock.monotonic() + self._job.upload_every_s

    def _check_abandoned(self) -> None:
        if self._abandon.is_set():
            raise _AbandonedError

    def _refused(self, uploads: Uploads, error: UserError) -> None:
        """Switch to kernel-output mode if the refusal is final."""
        if not uploads.is_final(error):
            self._complain(error)
            return
        self._uploads = None
        self._say(f"the account cannot be written to: {error}\nthe last checkpoint is left in this kernel's output instead")

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complaint:
            self._say(f"nothing can be uploaded now, retrying soon: {error}")
        self._complaint = str(error)

    # The saving thread's part.

    def _take(self, checkpoint_id: str) -> Parcel | None:
        """Put a checkpoint into the outbox and return it; None if another attempt made it."""
        parcel = self._outbox.put(checkpoint_id)
        spec, made = self._job.spec, parcel.manifest
        mine = (spec.run, spec.session, spec.attempt, spec.fence)
        if (made.run, made.session, made.attempt, made.fence) != mine:
            self._say(f"checkpoint {checkpoint_id} has fence {made.fence} of session {made.session}: it is not this attempt's")
            return None
        with self._lock:
            self._newest = parcel
            self._size_bytes = parcel.size_bytes
            self._tidy()
        return parcel

    def _tidy(self) -> None:
        kept = {parcel.id for parcel in (self._newest, self._in_flight) if parcel is not None}
        try:
            self._outbox.keep_only(kept)
        except OSError as error:
            self._say(f"the outbox cannot be tidied up: {error}")

    # The end's part.

    def _last(self, head: str | None) -> Parcel | None:
        if head is None:
            return None
        if self._newest is not None and self._newest.id == head:
            return self._newest
        try:  # made by an earlier process of this attempt, or could not be put into the outbox before
            return self._take(head)
        except (GemmaOrchError, OSError) as error:
            self._say(f"checkpoint {head} cannot be delivered: {error}")
            return None

    def _let_thread_end(self, parcel: Parcel, deadline_s: float) -> None:
        """End the thread: wait if it uploads the last checkpoint, abandon the upload of an older one."""
        if not self._thread.is_alive():
            return
        in_flight = self._in_flight
        if in_flight is not None and in_flight.id == parcel.id:
            self._thread.join(max(_GOODBYE_S, deadline_s - self._clock.monotonic()))
        else:
            self._abandon.set()
            self._thread.join(_GOODBYE_S)

    def _upload_last(self, parcel: Parcel, deadline_s: float) -> bool:
        """Retry until the upload succeeds, is refused for good, or the time is over; return whether it succeeded."""
        report = AttemptLayout(self._desk.working).report
        whole = parcel.with_file(report) if report.exists() else parcel
        limit_s = self._job.spec.limit_s
        pause_s = min(_RETRY_S, limit_s / 100)
        test_limit_s = min(_LAST_TEST_LIMIT_S, _LAST_TEST_SHARE * limit_s)
        while (uploads := self._uploads) is not None:
            try:
                uploads.prove(min(deadline_s, self._clock.monotonic() + test_limit_s))
                uploads.check()
                if not uploads.has_sent(parcel.id):
                    uploads.send(whole, deadline_s, tidy=False)
                return True
            except UserError as error:
                self._refused(uploads, error)
            except (GemmaOrchError, OSError) as error:
                self._complain(error)
            # Stop retrying if the account has never answered, or if there is no time for another try.
            if not uploads.may_write or self._clock.monotonic() + pause_s >= deadline_s:
                return False
            self._clock.sleep(pause_s)
        return False

    def _put_out(self, parcel: Parcel) -> None:
        """Copy or link a checkpoint into the kernel's output, the manifest last."""
        folder = self._desk.working / OUTPUT_FOLDER
        try:
            files.remove_tree(folder)
            folder.mkdir(parents=True)
            for file in parcel.files:
                files.link_or_copy(file.path, folder / file.name)
        except OSError as error:
            self._say(f"checkpoint {parcel.id} cannot be left in {folder} either, and is lost: {error}")
            return
        self._say(f"checkpoint {parcel.id} is left in this kernel's output, {OUTPUT_FOLDER}/")
