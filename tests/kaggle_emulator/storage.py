"""The storage host: signed addresses of files, served whole or in ranges, with the headers that clients verify by."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.kaggle_emulator.calls import Redirect
from tests.kaggle_emulator.clock import http_date
from tests.kaggle_emulator.settings import Settings

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Piece:
    """What to send: a status, headers, and a stretch of a file (none when `length` is 0)."""

    status: int
    headers: Mapping[str, str]
    path: Path | None = None
    start: int = 0
    length: int = 0


@dataclass
class Storage:
    """Files by signed address."""

    folder: Path
    settings: Settings
    url: Callable[[], str]
    _signed: dict[str, Redirect] = field(default_factory=dict)
    _md5: dict[tuple[int, int, int], str] = field(default_factory=dict)
    _zip_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)

    def sign(self, redirect: Redirect) -> str:
        """Give an address under which the file can be fetched without credentials."""
        key = secrets.token_urlsafe(24)
        self._signed[key] = redirect
        return f"{self.url()}/storage/{key}/{quote(redirect.name)}"

    def find(self, key: str) -> Redirect | None:
        found = self._signed.get(key)
        return found if found is not None and found.path.exists() else None

    def zipped(self, name: str, files: Mapping[str, Path]) -> Path:
        """Pack files into a zip of that name; made once."""
        target = self.folder / name
        with self._zip_lock:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(target.with_suffix(".part"), "w") as archive:
                    for inside, path in files.items():
                        archive.write(path, inside)
                target.with_suffix(".part").rename(target)
        return target

    def piece(self, found: Redirect, wanted_range: str | None, if_range: str | None) -> Piece:
        """Say what answers a GET with these headers."""
        info = found.path.stat()
        etag = f'"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Last-Modified": http_date(found.modified_at),
        }
        if info.st_size <= self.settings.md5_limit_bytes:
            headers["x-goog-hash"] = f"md5={self._md5_of(found.path)}"
        whole = Piece(200, {**headers, "Content-Length": str(info.st_size)}, found.path, 0, info.st_size)
        if wanted_range is None or if_range not in (None, etag, headers["Last-Modified"]):
            return whole
        match = _RANGE.fullmatch(wanted_range)
        if match is None or match.groups() == ("", ""):
            return whole
        first, last = match.groups()
        start = int(first) if first else max(info.st_size - int(last), 0)
        end = min(int(last), info.st_size - 1) if first and last else info.st_size - 1
        if start >= info.st_size or end < start:
            return Piece(416, {**headers, "Content-Range": f"bytes */{info.st_size}", "Content-Length": "0"})
        length = end - start + 1
        sent = {**headers, "Content-Range": f"bytes {start}-{end}/{info.st_size}", "Content-Length": str(length)}
        return Piece(206, sent, found.path, start, length)

    def _md5_of(self, path: Path) -> str:
        info = path.stat()
        key = (info.st_ino, info.st_mtime_ns, info.st_size)
        if key not in self._md5:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
            self._md5[key] = base64.b64encode(digest).decode()
        return self._md5[key]
