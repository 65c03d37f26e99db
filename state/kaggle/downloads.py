"""Downloads files, resumes broken connections, and leaves a whole file or none."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from state import files
from state.errors import TemporaryError
from state.kaggle.failures import LostError, RefusedError, pieces
from state.kaggle.transport import Transport

if TYPE_CHECKING:
    import requests

_PIECE_BYTES = 4 * 1024 * 1024
_FAILURES_IN_A_ROW = 6
_LONGEST_PAUSE_S = 30.0

_Open = Callable[[], AbstractContextManager["requests.Response"]]


def fetch_dataset_file(
    transport: Transport,
    owner: str,
    slug: str,
    version: int,
    name: str,
    target: Path,
    *,
    size_bytes: int | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> str:
    """Download a file of a dataset's version; return its sha256. See `KaggleApi.download`."""
    what = f"downloading {name} of dataset {slug} version {version}"

    def open_it() -> AbstractContextManager[requests.Response]:
        return transport.stream(
            "datasets",
            "download_dataset",
            owner_slug=owner,
            dataset_slug=slug,
            file_name=name,
            dataset_version_number=version,
        )

    return _Download(transport, what, name, open_it, size_bytes, on_bytes).into(target)


def fetch_address(transport: Transport, name: str, url: str, target: Path) -> str:
    """Download from a signed address; return the sha256."""
    return _Download(transport, f"downloading {name}", name, lambda: transport.get(url, {}), None, lambda _: None).into(target)


class _Download:
    """The download of one file."""

    def __init__(
        self,
        transport: Transport,
        what: str,
        name: str,
        open_it: _Open,
        size_bytes: int | None,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._transport = transport
        self._what = what
        self._name = name
        self._open = open_it
        self._size_bytes = size_bytes
        self._on_bytes = on_bytes
        self._got = _Got()

    def into(self, target: Path) -> str:
        """Download the whole file, then rename it to the target; return its sha256."""
        files.remove_abandoned(target.parent)
        with files.temporary_file(target) as part, files.temporary_file(target) as unpacked:
            with open(part, "xb") as file:
                self._fetch(file)
            if self._got.is_zipped:
                digest = self._unpack(part, unpacked)
                files.rename(unpacked, target)
            else:
                digest = self._got.digest.hexdigest()
                files.rename(part, target)
        return digest

    def _fetch(self, file: IO[bytes]) -> None:
        failures = 0
        while True:
            before = self._got.count
            try:
                self._attempt(file)
            except RefusedError as error:
                failure = self._transport.failed_read(self._what, error)
                if not isinstance(failure, TemporaryError):
                    raise failure from None
                why = str(error)
                self._got.url = None  # the signed address may have expired
            except LostError as error:
                why = str(error)
            else:
                return
            failures = 1 if self._got.count > before else failures + 1
            if failures >= _FAILURES_IN_A_ROW:
                raise TemporaryError(f"{self._what} failed {failures} times in a row, the last time: {why}")
            self._transport.clock.sleep(min(2.0 ** (failures - 1), _LONGEST_PAUSE_S))

    def _attempt(self, file: IO[bytes]) -> None:
        """Resume at the end of the last try.

        Raises:
            RefusedError: the request was refused.
            LostError: the connection broke, or the size is wrong.
        """
        got = self._got
        with self._opened() as response:
            if got.count and (response.status_code != 206 or _start_of(response) != got.count):
                self._on_bytes(-got.count)
                got.restart(file)
            if not got.count:
                got.is_zipped = _is_zip_of(self._name, response)
                got.total = _total_of(response)
                if self._size_bytes is not None and not got.is_zipped and got.total not in (None, self._size_bytes):
                    raise LostError(f"it has {got.total} bytes, but {self._size_bytes} are listed")
            for piece in pieces(response, _PIECE_BYTES):
                file.write(piece)
                got.digest.update(piece)
                got.count += len(piece)
                self._on_bytes(len(piece))
        wanted = self._size_bytes if self._size_bytes is not None and not got.is_zipped else got.total
        if wanted is not None and got.count != wanted:
            count = got.count
            self._on_bytes(-count)
            got.restart(file)
            raise LostError(f"{count} of {wanted} bytes arrived")

    @contextmanager
    def _opened(self) -> Iterator[requests.Response]:
        """Open the body at its beginning, or at the first missing byte after a break."""
        got = self._got
        if got.url is None or not got.count:
            with self._open() as response:
                got.url = response.url
                if not got.count:
                    got.tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
                    yield response
                    return
        assert got.url is not None
        with self._transport.get(got.url, got.range_headers()) as response:
            yield response

    def _unpack(self, packed: Path, target: Path) -> str:
        """Unpack the zip's only file; return its sha256."""
        digest = hashlib.sha256()
        count = 0
        try:
            with zipfile.ZipFile(packed) as archive:
                [inside] = archive.infolist()
                with archive.open(inside) as source, open(target, "xb") as file:
                    while piece := source.read(_PIECE_BYTES):
                        file.write(piece)
                        digest.update(piece)
                        count += len(piece)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise TemporaryError(f"{self._what} failed: Kaggle sent a zip that cannot be unpacked: {error}") from error
        if self._size_bytes is not None and count != self._size_bytes:
            raise TemporaryError(f"{self._what} failed: unpacked, it has {count} bytes, but {self._size_bytes} are listed")
        return digest.hexdigest()


@dataclass
class _Got:
    """The state of a download: bytes received so far, their digest, and where the rest is."""

    count: int = 0
    total: int | None = None
    url: str | None = None
    tag: str | None = None
    is_zipped: bool = False

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def restart(self, file: IO[bytes]) -> None:
        """Discard all bytes received so far."""
        file.seek(0)
        file.truncate()
        self.count, self.total, self.url, self.digest = 0, None, None, hashlib.sha256()

    def range_headers(self) -> dict[str, str]:
        """Return headers that ask for the rest, or for the whole file if it has changed."""
        return {"Range": f"bytes={self.count}-"} | ({"If-Range": self.tag} if self.tag else {})


def _total_of(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _start_of(response: requests.Response) -> int | None:
    """Return the offset at which a partial body begins."""
    _, _, described = response.headers.get("Content-Range", "").partition(" ")
    first, _, _ = described.partition("-")
    return int(first) if first.isdigit() else None


def _is_zip_of(name: str, response: requests.Response) -> bool:
    """Return whether Kaggle serves the file as a zip, as it does with some large files."""
    packed = f"{name.rpartition('/')[2]}.zip"
    served = unquote(urlsplit(response.url).path).rpartition("/")[2]
    return served == packed or packed in response.headers.get("Content-Disposition", "")
