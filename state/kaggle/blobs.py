"""Uploads a file to Kaggle's storage; resumes a broken upload, also in a later process.

The storage accepts a file by PUT to an address that is valid for about a week. After any failure the upload continues in one way:
ask how many bytes have arrived, and send the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from state import files
from state.clock import Clock
from state.document import Document
from state.errors import DataError, TemporaryError
from state.kaggle.api import KaggleApi
from state.kaggle.failures import LostError
from state.kaggle.records import BlobType

PIECE_BYTES = 1024 * 1024
"""Large enough for a fast connection; small enough that a slow one sends a piece within the timeout."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_REFUSALS_IN_A_ROW = 5
_RANGE = re.compile(r"bytes=0-(\d+)")


class _Upload(Document):
    """An unfinished upload; the address is a secret."""

    schema_version: Literal[1] = 1
    name: str
    size_bytes: int
    modified_ns: int
    token: str
    url: str


class _DeadlineError(Exception):
    """The deadline passed while a body was sent."""


def upload_file(
    api: KaggleApi,
    path: Path,
    name: str,
    *,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    on_bytes: Callable[[int], None] = lambda _: None,
    blob_type: BlobType = "DATASET",
) -> str:
    """Upload a file or its missing rest; return the token by which a dataset's version refers to it.

    Args:
        api: The account.
        path: The file; it must not change, and other content must have another name, size or modification time.
        name: The file's name in the dataset.
        resume_dir: Folder that keeps the state of unfinished uploads.
        deadline_s: Monotonic seconds of the clock at which to give up; the bytes that have arrived are kept for the next call.
        clock: Source of time and pauses.
        on_bytes: Called with the number of bytes sent since the last call; negative if bytes did not arrive.
        blob_type: What the file becomes part of; use a `resume_dir` of its own for each.

    Raises:
        TemporaryError: the upload is not complete at the deadline, or was refused repeatedly.
        DeniedError: these credentials may not upload.
        DataError: the file has changed, or cannot be read.
    """
    resume_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _Uploading(api, path, name, resume_dir, deadline_s, clock, on_bytes, blob_type).to_the_end()


def forget_upload(path: Path, name: str, resume_dir: Path) -> None:
    """Delete an upload's state, so that the next call sends the file from its beginning."""
    _state_path(path, name, resume_dir).unlink(missing_ok=True)


def _state_path(path: Path, name: str, resume_dir: Path) -> Path:
    # The name depends on the file only, so that a later process resumes. Two processes may send the same file at once: both ask
    # the storage how much has arrived.
    stat = path.stat()
    return resume_dir / (hashlib.sha256(f"{name}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()[:32] + ".json")


class _Body:
    """A body of pieces with a known total length. requests sends the pieces as they are; it would cut a file far smaller."""

    def __init__(self, size_bytes: int, pieces: Iterator[bytes]) -> None:
        self._size_bytes = size_bytes
        self._pieces = pieces

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


class _Uploading:
    """The upload of one file."""

    def __init__(
        self,
        api: KaggleApi,
        path: Path,
        name: str,
        resume_dir: Path,
        deadline_s: float,
        clock: Clock,
        on_bytes: Callable[[int], None],
        blob_type: BlobType,
    ) -> None:
        self._api = api
        self._path = path
        self._name = name
        self._deadline_s = deadline_s
        self._clock = clock
        self._on_bytes = on_bytes
        self._blob_type = blob_type
        stat = path.stat()
        self._size_bytes, self._modified_ns = stat.st_size, stat.st_mtime_ns
        self._state_path = _state_path(path, name, resume_dir)
        self._arrived = 0
        self._told = 0
        self._pauses = 0
        self._refusals = 0
        self._why = ""

    def to_the_end(self) -> str:
        """Send until the upload is complete; return the token."""
        with self._api.transport.plain_session() as session:
            self._session = session
            upload = self._begun()
            while True:
                self._check()
                try:
                    if upload is None:
                        upload = self._begin()
                        is_done = self._send(upload, 0)
                    else:
                        is_done = self._go_on(upload)
                except (TemporaryError, LostError, _DeadlineError) as error:
                    self._why = error.what if isinstance(error, TemporaryError) else str(error) or self._why
                    is_done = False
                if is_done and upload is not None:
                    self._tell(self._size_bytes)
                    return upload.token
                if not self._state_path.exists():  # the storage no longer knows the upload
                    upload = None
                self._pause()

    def _begun(self) -> _Upload | None:
        """Return the unfinished upload of an earlier call, if there is one."""
        with contextlib.suppress(FileNotFoundError, DataError):
            return _Upload.from_json(self._state_path.read_bytes(), str(self._state_path))
        return None

    def _begin(self) -> _Upload:
        self._arrived = 0
        self._tell(0)
        modified_s = self._modified_ns // 1_000_000_000
        token, url = self._api.start_upload(self._name, self._size_bytes, modified_s, blob_type=self._blob_type)
        upload = _Upload(name=self._name, size_bytes=self._size_bytes, modified_ns=self._modified_ns, token=token, url=url)
        files.write_atomically(self._state_path, upload.to_json(), durable=False)
        return upload

    def _go_on(self, upload: _Upload) -> bool:
        """Ask how much has arrived, and send the rest; return whether the upload is complete."""
        headers = {"Content-Range": f"bytes */{self._size_bytes}"}
        status, answer = self._api.transport.put(self._session, upload.url, b"", headers)
        done = self._judge(status, answer.get("Range"))
        if done or status != 308:
            return done
        return self._send(upload, self._arrived)

    def _send(self, upload: _Upload, start: int) -> bool:
        """Send the file from `start` on; return whether the upload is complete."""
        before = self._arrived
        headers = {"Content-Type": "application/octet-stream"}
        body: bytes | _Body = b""
        if start < self._size_bytes:
            headers["Content-Range"] = f"bytes {start}-{self._size_bytes - 1}/{self._size_bytes}"
            body = _Body(self._size_bytes - start, self._pieces(start))
        status, answer = self._api.transport.put(self._session, upload.url, body, headers)
        done = self._judge(status, answer.get("Range"))
        if self._arrived > before:
            self._pauses = 0
        return done

    def _judge(self, status: int, arrived: str | None) -> bool:
        """Update the state from the storage's answer; return whether the upload is complete.

        Raises:
            LostError: the storage failed; a retry may help.
        """
        if status in (200, 201):
            return True
        if status == 308:
            match = _RANGE.fullmatch(arrived or "")
            self._arrived = min(int(match[1]) + 1 if match else 0, self._size_bytes)
            self._tell(self._arrived)
            self._why = f"the storage has {self._arrived} bytes"
            return False
        if status in (408, 429) or status >= 500:
            raise LostError(f"the storage answered HTTP {status}")
        self._why = f"the storage answered HTTP {status}"
        if status not in (404, 410):  # they mean that the address has expired, which is no refusal
            self._refusals += 1
        self._state_path.unlink(missing_ok=True)
        return False

    def _pieces(self, start: int) -> Iterator[bytes]:
        """Yield the file from `start` on, in pieces.

        Raises:
            DataError: the file has become shorter, or cannot be read.
            _DeadlineError: the deadline has passed.
        """
        sent = start
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(start)
                while sent < self._size_bytes and (piece := file.read(min(PIECE_BYTES, self._size_bytes - sent))):
                    if self._clock.monotonic() >= self._deadline_s:
                        raise _DeadlineError
                    yield piece
                    sent += len(piece)
                    self._tell(sent)
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error.strerror}") from error
        if sent < self._size_bytes:
            raise DataError(f"{self._path} has {sent} bytes", expected=f"{self._size_bytes} bytes, as when its upload began")

    def _tell(self, count: int) -> None:
        if count != self._told:
            self._on_bytes(count - self._told)
            self._told = count

    def _pause(self) -> None:
        """Sleep; the pause doubles as long as no bytes arrive."""
        pause_s = min(_FIRST_PAUSE_S * 2.0**self._pauses, _LONGEST_PAUSE_S)
        self._pauses += 1
        self._clock.sleep(max(min(pause_s, self._deadline_s - self._clock.monotonic()), 0.0))

    def _check(self) -> None:
        """Raise TemporaryError after too many refusals, or at the deadline."""
        if self._refusals >= _REFUSALS_IN_A_ROW:
            raise TemporaryError(f"the upload of {self._name} was refused {self._refusals} times: {self._why}")
        if self._clock.monotonic() >= self._deadline_s:
            raise TemporaryError(
                f"the upload of {self._name} was not complete at the deadline: "
                f"{self._arrived} of {self._size_bytes} bytes have arrived" + (f"; {self._why}" if self._why else ""),
                remedy="try again: the upload resumes where it broke off",
            )
