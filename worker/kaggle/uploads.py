"""Uploads checkpoints to the attempt's own dataset: each upload makes one version with one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from state.clock import Clock
from state.errors import GemmaOrchError, TemporaryError
from state.kaggle.api import KaggleApi
from state.kaggle.blobs import upload_file
from state.kaggle.datasets import begin_version, published_version
from state.kaggle.errors import CorruptUploadError, DeniedError, ProcessingFailedError
from state.kaggle.job import KaggleJob
from state.kaggle.names import attempt_dataset_slug
from state.quantities import format_duration, format_size
from worker.kaggle.outbox import Parcel
from worker.kaggle.pace import Pace

_TEST_NAME = "gemma-orch-write-test"
_NAP_S = 1.0


class Uploads:
    """Uploads checkpoints as versions of the attempt's dataset, and checks that Kaggle publishes them completely.

    Args:
        api: The account.
        job: The job: its dataset, and how long Kaggle may take.
        scratch: Folder for the state that an interrupted upload needs to resume.
        clock: Measures the uploads.
        say: Called with log lines.
    """

    def __init__(self, api: KaggleApi, job: KaggleJob, scratch: Path, *, clock: Clock, say: Callable[[str], None]) -> None:
        self._api = api
        self._job = job
        self._scratch = scratch
        self._clock = clock
        self._say = say
        self.pace = Pace()
        self.may_write = False
        """Whether a test upload has shown that this session may write."""
        self._has_written = False
        """Whether Kaggle has made a version for this session."""
        self._sent: Parcel | None = None
        """The last checkpoint that Kaggle has accepted as a version; None after that version was found to be bad."""
        self._sent_s = 0.0
        self._is_published = False
        """Whether the version of `_sent` is published with all its files."""
        self._doubtful: str | None = None
        """Checkpoint whose version may exist although we have no answer from Kaggle."""
        self._known_bad: int | None = None
        """Version that lacks files or failed in processing; its checkpoint has been sent again already."""
        self._num_bad = 0
        self._standing = 1  # the version that the controller has made

    def has_sent(self, checkpoint_id: str) -> bool:
        """Return whether a checkpoint was sent and its version is not known to be bad."""
        return self._sent is not None and self._sent.id == checkpoint_id

    def is_final(self, refusal: GemmaOrchError) -> bool:
        """Return whether a refusal is final. After a successful write, a denial may only mean that a version is in process."""
        return not (isinstance(refusal, DeniedError) and self._has_written)

    def prove(self, deadline_s: float, *, check_abandoned: Callable[[], None] = lambda: None) -> None:
        """Upload a few bytes that are never attached to a dataset, to learn early whether this session may write.

        Does nothing after it has succeeded once.

        Args:
            deadline_s: When to give up, on the clock's monotonic axis.
            check_abandoned: Called often; an exception that it raises ends the upload.

        Raises:
            UserError: the session may not write.
            TemporaryError: it is unknown whether it may.
        """
        if self.may_write:
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        test = self._scratch / _TEST_NAME
        test.write_bytes(self._job.dataset.encode())
        clock = _RestlessClock(self._clock, check_abandoned)
        upload_file(self._api, test, _TEST_NAME, resume_dir=self._scratch, deadline_s=deadline_s, clock=clock)
        self.may_write = True
        self._say("the account can be written to: checkpoints are uploaded")

    def check(self) -> bool:
        """Check the version that was sent last; return whether its checkpoint must be sent again.

        Raises:
            TemporaryError: Kaggle did not answer.
        """
        sent, dataset = self._sent, self._job.dataset
        if sent is None or self._is_published:
            return False
        try:
            number = published_version(self._api, dataset, sent.files, str(sent.note))
        except (CorruptUploadError, ProcessingFailedError) as error:
            return self._is_bad(error.version, str(error))
        if number is not None:
            self._is_published = True
            self._say(f"checkpoint {sent.id} is published as version {number} of {dataset}")
            return False
        limit_s = self._job.processing_limit_s
        return self._is_late and self._is_bad(None, f"checkpoint {sent.id} is not processed after {format_duration(limit_s)}")

    def send(self, parcel: Parcel, deadline_s: float, *, tidy: bool, check_abandoned: Callable[[], None] = lambda: None) -> None:
        """Upload a checkpoint and have Kaggle make a version of it; does not wait for the processing.

        Args:
            parcel: The checkpoint.
            deadline_s: When to give up, on the clock's monotonic axis.
            tidy: Whether old versions may be deleted if there are too many. They are deleted only if the version sent last
                is known to be good.
            check_abandoned: Called often; an exception that it raises ends the upload.

        Raises:
            UserError: Kaggle refuses the upload.
            TemporaryError: the deadline has passed, or it is unknown whether the version was made.
        """
        if self._doubtful == parcel.id and self._stands(parcel):
            self._accepted(parcel, is_published=True, deleted_old=False)
            return
        many = self._standing + 1 > self._job.most_versions
        delete_old = tidy and many and self._sent is not None and self._is_published and not self._is_overtaken()
        begun_s = last_byte_s = self._clock.monotonic()

        def on_bytes(_: int) -> None:
            nonlocal last_byte_s
            last_byte_s = self._clock.monotonic()
            check_abandoned()

        self._doubtful = parcel.id
        begin_version(
            self._api,
            self._job.dataset,
            parcel.files,
            str(parcel.note),
            delete_old=delete_old,
            resume_dir=self._scratch / f"after-{self._num_bad}-bad",  # never resume bytes that led to a bad version
            deadline_s=deadline_s,
            clock=_RestlessClock(self._clock, check_abandoned),
            settle_s=self._job.settle_s,
            processing_limit_s=self._job.processing_limit_s,
            on_bytes=on_bytes,
        )
        whole_s = self._clock.monotonic() - begun_s
        self.pace = self.pace.after(parcel.size_bytes, last_byte_s - begun_s, whole_s)
        self._accepted(parcel, is_published=False, deleted_old=delete_old)
        self._say(f"checkpoint {parcel.id} is uploaded: {format_size(parcel.size_bytes)} in {format_duration(whole_s)}")

    def _is_overtaken(self) -> bool:
        """Return whether a later attempt exists on the account, or may exist: it may start from one of our older versions."""
        spec = self._job.spec
        later = (
            attempt_dataset_slug(spec.run, spec.session, spec.attempt + 1),
            attempt_dataset_slug(spec.run, spec.session + 1, 1),
        )
        try:
            overtaken = next((slug for slug in later if self._api.dataset(slug, owner=self._job.owner) is not None), None)
            if overtaken is None:  # it may exist although the read was refused: only the list of all datasets can tell
                listed = self._api.datasets("")
                overtaken = next((slug for slug in later if slug in listed), None)
                if self._job.dataset not in listed:
                    return True
        except TemporaryError:
            return True
        if overtaken is not None:
            self._say(f"{overtaken} was begun after this attempt: older versions are not deleted any more")
        return overtaken is not None

    @property
    def _is_late(self) -> bool:
        return self._clock.monotonic() - self._sent_s > self._job.processing_limit_s

    def _is_bad(self, version: int | None, why: str) -> bool:
        """Note a bad version; return whether it is news: a bad version stays visible beside the one that replaced it."""
        if version is not None and version == self._known_bad and not self._is_late:
            return False
        self._say(f"{why}\nit is uploaded again")
        self._known_bad = version
        self._num_bad += 1
        self._sent = None
        return True

    def _stands(self, parcel: Parcel) -> bool:
        """Return whether a version exists that we got no answer for."""
        try:
            return published_version(self._api, self._job.dataset, parcel.files, str(parcel.note)) is not None
        except (CorruptUploadError, ProcessingFailedError):
            return False

    def _accepted(self, parcel: Parcel, *, is_published: bool, deleted_old: bool) -> None:
        self._doubtful, self._has_written = None, True
        self._sent, self._is_published, self._sent_s = parcel, is_published, self._clock.monotonic()
        self._standing = 1 if deleted_old else self._standing + 1


class _RestlessClock:
    """A clock whose `sleep` runs a check about once a second, so that the check can interrupt it."""

    def __init__(self, clock: Clock, check: Callable[[], None]) -> None:
        self.now = clock.now
        self.monotonic = clock.monotonic
        self._sleep = clock.sleep
        self._check = check

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, unless the check raises."""
        while seconds > 0.0:
            self._check()
            self._sleep(min(seconds, _NAP_S))
            seconds -= _NAP_S
        self._check()
