"""Brings checkpoints from the machine, which will be gone, to the account: beside the training, and at the session's end.

Where the account cannot be written to, the last checkpoint is left in the kernel's output.
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
_LAST_TEST_SHARE = 0.05  # of the session: half of what is kept before anything is measured
_BYTES_PER_NUMBER = 12  # a weight and its two moments, in float32
_LOOKS = 4  # looks at what is processed between two uploads, and within the time in which reads may lag
_SHORTEST_LOOK_S = 0.2
_LONGEST_LOOK_S = 60.0
_RETRY_S = 5.0
_EXIT_S = 1.0
_GOODBYE_S = 5.0


class _AbandonedError(Exception):
    """An upload was given up on the way because a newer checkpoint is to go."""


@dataclass(frozen=True)
class Desk:
    """Where a delivery works."""

    outbox: Path
    """Folder for checkpoints that wait, on the disk of the store."""
    scratch: Path
    """Folder for what an upload needs to go on after a break."""
    working: Path
    """The kernel's output folder, with the report."""


class Delivery:
    """Delivers the checkpoints of one attempt.

    `committed` is told of each, a thread uploads the newest one when it is time, and `finish` brings the last one away.

    Args:
        job: What is delivered, where to, and how often.
        api: The account; None: it cannot be reached, and the kernel's output is all there is.
        store: Where the attempt's checkpoints are committed.
        desk: Where to work.
        clock: What uploads are measured with.
        ends_s: When the process must be gone, on the clock's monotonic axis.
        say: Takes a line for the log; called on any thread.
    """

    def __init__(
        self,
        job: KaggleJob,
        api: KaggleApi | None,
        store: CheckpointStore,
        desk: Desk,
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
    def look_every_s(self) -> float:
        """How often the thread looks what there is to do."""
        every_s = min(self._job.upload_every_s, self._job.settle_s) / _LOOKS
        return min(max(every_s, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)

    def start(self) -> None:
        """Begin to deliver, on a thread of its own and of low priority."""
        self._thread.start()

    def committed(self, checkpoint_id: str) -> None:
        """Take a checkpoint that has come to exist; called on the saving thread, which it never disturbs."""
        try:
            self._take(checkpoint_id)
        except (GemmaOrchError, OSError) as error:
            self._say(f"checkpoint {checkpoint_id} cannot be delivered now: {error}")

    def reserve_s(self) -> float:
        """Return the seconds that the delivery of the last checkpoint needs."""
        if self._uploads is None:
            return copy_s(self._size_bytes)
        return self._uploads.pace.reserve_s(self._size_bytes, self._job.spec.limit_s)

    def look(self) -> None:
        """Do what there is to do now: prove that the account can be written to, check what was sent, send what is due."""
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
        """Bring the attempt's last checkpoint away, in the time that is left; return whether it lies on the account.

        Args:
            head: The last checkpoint that the attempt has committed; None: it has none.
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
        while not self._over.wait(self.look_every_s):
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
        """Give up the account when the refusal is final."""
        if not uploads.is_final(error):
            self._complain(error)
            return
        self._uploads = None
        self._say(f"the account cannot be written to: {error}\nthe last checkpoint is left in this kernel's output instead")

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complaint:
            self._say(f"nothing can be uploaded now, the next try is soon: {error}")
        self._complaint = str(error)

    # The saving thread's part.

    def _take(self, checkpoint_id: str) -> Parcel | None:
        """Return a checkpoint of this attempt, ready for delivery; None for one of another attempt."""
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
        try:  # of an earlier process of this attempt, or one that could not be taken then
            return self._take(head)
        except (GemmaOrchError, OSError) as error:
            self._say(f"checkpoint {head} cannot be delivered: {error}")
            return None

    def _let_thread_end(self, parcel: Parcel, deadline_s: float) -> None:
        """Wait for an upload of the last checkpoint; give up one of an older checkpoint."""
        if not self._thread.is_alive():
            return
        in_flight = self._in_flight
        if in_flight is not None and in_flight.id == parcel.id:
            self._thread.join(max(_GOODBYE_S, deadline_s - self._clock.monotonic()))
        else:
            self._abandon.set()
            self._thread.join(_GOODBYE_S)

    def _upload_last(self, parcel: Parcel, deadline_s: float) -> bool:
        """Try until it is done, refused, or too late; return whether it is done."""
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
            # An account that never answered is not waited for; nor is one that has no time to.
            if not uploads.may_write or self._clock.monotonic() + pause_s >= deadline_s:
                return False
            self._clock.sleep(pause_s)
        return False

    def _put_out(self, parcel: Parcel) -> None:
        """Leave a checkpoint in the kernel's output, the manifest last."""
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
