"""Sends requests that must not take effect twice: marks each durably, and looks before sending again after a lost answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from state import files as durable
from state.clock import Clock
from state.document import Document
from state.errors import AmbiguousError, DataError, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.blobs import forget_upload, upload_file
from state.kaggle.errors import CredentialsError, DeniedError, ProcessingFailedError, RateLimitedError, UploadsGoneError
from state.kaggle.records import BlobType

_MOST_SENDS = 3
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_DENIED_PAUSE_S = 15.0
_RATE_PAUSE_S = 60.0  # Kaggle does not publish its limits; users report that a minute is enough

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class LocalFile:
    """A file to publish, and its name on Kaggle."""

    path: Path
    name: str
    size_bytes: int


class _Sent(Document):
    """Mark of a request that was sent, or was about to be sent."""

    schema_version: Literal[1] = 1
    sent_at: datetime
    is_accepted: bool


class SentMark:
    """A durable mark that a version was sent; it outlives the process."""

    def __init__(self, folder: Path, slug: str, notes: str, clock: Clock) -> None:
        # The name depends on slug and notes only, so that a later process finds it. The file is written atomically, and its
        # content does not depend on the process.
        self._path = folder / f"sent-{hashlib.sha256(f'{slug} {notes}'.encode()).hexdigest()[:32]}.json"
        self._clock = clock

    def write(self, *, is_accepted: bool) -> None:
        """Write the mark: before the request with `is_accepted=False`, after Kaggle's yes with True."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write_atomically(self._path, _Sent(sent_at=self._clock.now(), is_accepted=is_accepted).to_json())

    def remove(self) -> None:
        """Remove the mark: the request had no effect for certain, or a wrong one."""
        self._path.unlink(missing_ok=True)

    def left_s(self, limit_s: float) -> float:
        """Return the seconds left until `limit_s` after sending; 0 or less if that has passed, or there is no mark."""
        sent = self._read()
        return 0.0 if sent is None else limit_s - (self._clock.now() - sent.sent_at).total_seconds()

    def is_written(self) -> bool:
        """Return whether there is a readable mark."""
        return self._read() is not None

    def is_accepted(self) -> bool:
        """Return whether Kaggle accepted the request."""
        sent = self._read()
        return sent is not None and sent.is_accepted

    def _read(self) -> _Sent | None:
        try:
            return _Sent.from_json(self._path.read_bytes(), str(self._path))
        except (FileNotFoundError, DataError):
            return None


@dataclass(frozen=True)
class Uploads:
    """The uploads of a version's files."""

    api: KaggleApi
    files: Sequence[LocalFile]
    resume_dir: Path
    deadline_s: float
    clock: Clock
    on_bytes: Callable[[int], None]
    blob_type: BlobType = "DATASET"

    def complete(self) -> list[str]:
        """Upload what is missing; return the tokens in the order of the files."""
        return [
            upload_file(
                self.api,
                file.path,
                file.name,
                resume_dir=self.resume_dir,
                deadline_s=self.deadline_s,
                clock=self.clock,
                on_bytes=self.on_bytes,
                blob_type=self.blob_type,
            )
            for file in self.files
        ]

    def forget(self) -> None:
        """Delete the uploads' state, so that the next upload sends every file from its beginning."""
        for file in self.files:
            forget_upload(file.path, file.name, self.resume_dir)


@dataclass
class Sending:
    """Sends a request that uses uploads; after a lost answer, looks for its effect as long as reads may lag, then sends again."""

    clock: Clock
    deadline_s: float
    settle_s: float
    uploads: Uploads
    send: Callable[[Sequence[str]], None]
    has_happened: Callable[[], bool]
    mark: SentMark | None = None
    """The durable mark of the request; none: sending it twice has the effect of sending it once."""

    def do(self) -> None:
        """Send the request until it has taken effect.

        Raises:
            AmbiguousError: it is unknown whether it has taken effect.
            TemporaryError: it could not be sent before the deadline.
            UserError: Kaggle refuses the request.
        """
        if self.mark is not None and (left_s := self.mark.left_s(self.settle_s)) > 0 and self._appears(left_s):
            return
        tokens = self.uploads.complete()
        refused_until = None
        sends, is_ambiguous, was_gone = 0, False, False
        while True:
            if self.mark is not None:
                self.mark.write(is_accepted=False)
            try:
                self.send(tokens)
            except RateLimitedError as error:
                self._unmark(unless=is_ambiguous)
                self._sleep_or_raise(error.retry_after_s or _RATE_PAUSE_S, error)
            except AmbiguousError:
                sends, is_ambiguous = sends + 1, True
                if self._appears(self.settle_s):
                    break
                if sends >= _MOST_SENDS or self._is_late():
                    raise
            except UploadsGoneError:
                if is_ambiguous:  # the request whose answer was lost has used the uploads, so it took effect
                    break
                self._unmark()
                self.uploads.forget()
                if was_gone:
                    raise
                was_gone, tokens = True, self.uploads.complete()
            except DeniedError as error:  # Kaggle may refuse only because another version is still processed: retry for a while
                self._unmark(unless=is_ambiguous)
                now = self.clock.monotonic()
                refused_until = now + self.settle_s if refused_until is None else refused_until
                if now >= refused_until:
                    raise
                self._sleep_or_raise(min(_DENIED_PAUSE_S, refused_until - now), error)
                if is_ambiguous and self._appears(self.settle_s):
                    break
            except UserError as error:
                self._unmark(unless=is_ambiguous)
                if not isinstance(error, CredentialsError):  # Kaggle refused these uploads: the next call must send new ones
                    self.uploads.forget()
                raise
            else:
                break
        if self.mark is not None:
            self.mark.write(is_accepted=True)
        self.uploads.forget()

    def _unmark(self, *, unless: bool = False) -> None:
        if self.mark is not None and not unless:
            self.mark.remove()

    def _is_late(self) -> bool:
        return self.clock.monotonic() >= self.deadline_s

    def _appears(self, for_s: float) -> bool:
        """Poll for the effect for that long; a failed poll proves nothing and extends the time."""
        ends_at = min(self.clock.monotonic() + for_s, self.deadline_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if self.has_happened():
                    return True
            except TemporaryError:
                ends_at = min(ends_at + pause_s, self.deadline_s)
            left_s = ends_at - self.clock.monotonic()
            if left_s <= 0:
                return False
            self.clock.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _sleep_or_raise(self, seconds: float, error: Exception) -> None:
        if self.clock.monotonic() + seconds >= self.deadline_s:
            raise error
        self.clock.sleep(seconds)


def patiently(look: Callable[[], _Found], clock: Clock, deadline_s: float) -> _Found:
    """Return the result of `look`; if it fails with TemporaryError, retry until the deadline."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return look()
        except ProcessingFailedError:
            raise
        except TemporaryError:
            if clock.monotonic() + pause_s >= deadline_s:
                raise
        clock.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def wait_for(look: Callable[[], _Found | None], what: str, clock: Clock, limit_s: float) -> _Found:
    """Poll until `look` returns a value; tolerate TemporaryError until the limit.

    Raises:
        TemporaryError: no value within `limit_s`; the message begins with `what`.
    """
    ends_at = clock.monotonic() + limit_s
    pause_s = _FIRST_PAUSE_S
    why = ""
    while True:
        try:
            found = look()
        except ProcessingFailedError:
            raise
        except TemporaryError as error:
            found, why = None, f": {error.what}"
        else:
            why = ""
        if found is not None:
            return found
        left_s = ends_at - clock.monotonic()
        if left_s <= 0:
            raise TemporaryError(f"{what} after {limit_s:.0f} s{why}", remedy="try again later")
        clock.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
