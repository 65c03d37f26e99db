"""Uploads: StartBlobUpload, and resumable sessions that behave like those of Google Cloud Storage."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.kaggle_emulator.calls import Answer, Call, Handler
from tests.kaggle_emulator.errors import denied
from tests.kaggle_emulator.settings import Settings

GRANULE_BYTES = 256 * 1024
"""What an interrupted upload keeps, and all parts but the last, are multiples of this."""

_BUFFER_BYTES = 4 * 1024**2
_SLOW_BUFFER_BYTES = 256 * 1024
_SESSION_LIFE_S = 7 * 24 * 3600.0
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Body(Protocol):
    """The body of a request, read piece by piece."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer as far as possible at once; 0 at the end, and when the sender is gone."""
        ...


@dataclass
class Blob:
    """One upload session, and in the end a file."""

    token: str
    name: str
    declared_bytes: int
    user: str
    path: Path
    expires_at: float
    received_bytes: int = 0
    complete: bool = False
    in_version: bool = False
    """The bytes lie in a dataset's version now."""
    kind: str = ""
    """What it was opened for: DATASET or MODEL."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class PutAnswer:
    """The storage's answer to a PUT."""

    status: int
    range: str | None = None
    message: str = ""


class Blobs:
    """Blobs by token; the token is also the upload session's address."""

    def __init__(self, folder: Path, settings: Settings, now: Callable[[], float], storage_url: Callable[[], str]) -> None:
        self._folder = folder
        self._settings = settings
        self._now = now
        self._storage_url = storage_url
        self._blobs: dict[str, Blob] = {}
        folder.mkdir(parents=True)

    def routes(self) -> dict[str, Handler]:
        return {"StartBlobUpload": self.start}

    def start(self, call: Call) -> Answer:
        if call.actor.session is not None and not self._settings.session_token_can_write:
            raise denied("blobs.create")
        token = secrets.token_urlsafe(24)
        name = Path(call.text("name")).name
        size = call.number("contentLength") or 0
        blob = Blob(token, name, size, call.actor.user, self._folder / token, call.now + _SESSION_LIFE_S, kind=call.text("type"))
        self._blobs[token] = blob
        call.effect = f"opened an upload of {name}, {size} bytes"
        return {"token": token, "createUrl": f"{self._storage_url()}/upload/{token}"}

    def find(self, token: str) -> Blob | None:
        """Give the blob, unless its address has expired or its bytes went with the dataset version that held them."""
        blob = self._blobs.get(token)
        if blob is None or (blob.complete and not blob.path.exists()) or (not blob.complete and self._now() > blob.expires_at):
            return None
        return blob

    def expire(self, name: str = "") -> None:
        """Let the addresses of uploads that are not complete expire, as a week does."""
        for blob in self._blobs.values():
            if not name or blob.name == name:
                blob.expires_at = self._now() - 1

    def put(self, token: str, content_range: str | None, length: int | None, body: Body) -> PutAnswer:
        """Take a PUT to an upload session: a whole file, a part, or the question how much has arrived.

        Args:
            token: The session's address.
            content_range: The header of that name.
            length: Bytes that the body says it has; None when it is chunked.
            body: The bytes.
        """
        blob = self.find(token)
        if blob is None:
            return PutAnswer(404, message="No such upload session")
        with blob.lock:
            if blob.complete:
                return PutAnswer(200)
            if content_range is None:
                return self._receive(blob, 0, length, None, body)
            parsed = _RANGE.fullmatch(content_range)
            if parsed is None:
                return PutAnswer(400, message=f"Invalid Content-Range: {content_range}")
            first, last, total = parsed.groups()
            size = None if total == "*" else int(total)
            if first is None:
                return self._finish(blob) if size == 0 else self._progress(blob)
            if int(first) > blob.received_bytes:
                return PutAnswer(400, message=f"Byte {blob.received_bytes} is expected next, not byte {first}")
            return self._receive(blob, int(first), int(last) - int(first) + 1, size, body)

    def _receive(self, blob: Blob, start: int, length: int | None, total: int | None, body: Body) -> PutAnswer:
        """Write the body from `start`. Without a total, the body is the whole rest of the file."""
        end = self._write(blob, start, body)
        cut = length is not None and end - start < length
        whole = total if total is not None else start + (length if length is not None else end - start)
        if blob.declared_bytes and whole != blob.declared_bytes:
            return PutAnswer(400, message=f"The upload was opened for {blob.declared_bytes} bytes, not {whole}")
        if not cut and end == whole:
            return self._finish(blob)
        blob.received_bytes = end - end % GRANULE_BYTES
        with blob.path.open("r+b") as file:
            file.truncate(blob.received_bytes)
        if not cut and (end - start) % GRANULE_BYTES:
            return PutAnswer(400, message=f"Parts must be multiples of {GRANULE_BYTES} bytes")
        return self._progress(blob)

    def _write(self, blob: Blob, start: int, body: Body) -> int:
        speed = self._settings.upload_bytes_per_real_s
        buffer = memoryview(bytearray(_BUFFER_BYTES if speed is None else _SLOW_BUFFER_BYTES))
        begun_s = time.monotonic()
        blob.path.touch()
        with blob.path.open("r+b", buffering=0) as file:
            file.truncate(start)
            file.seek(start)
            end = start
            while count := body.readinto(buffer):
                file.write(buffer[:count])
                end += count
                if speed is not None:
                    time.sleep(max(0.0, begun_s + (end - start) / speed - time.monotonic()))
        return end

    def _finish(self, blob: Blob) -> PutAnswer:
        blob.path.touch()
        blob.received_bytes = blob.path.stat().st_size
        blob.complete = True
        return PutAnswer(200)

    def _progress(self, blob: Blob) -> PutAnswer:
        return PutAnswer(308, range=f"bytes=0-{blob.received_bytes - 1}" if blob.received_bytes else None)
