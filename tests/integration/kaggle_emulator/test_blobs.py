"""The emulator's resumable uploads (contract 3.6), asked by hand as the clients ask."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.kaggle_clients import Sdk, connected
from tests.kaggle_emulator import Fault
from tests.kaggle_emulator.blobs import GRANULE_BYTES
from tests.patience import PATIENCE_S

DATA = bytes(range(256)) * 3000  # 768000 bytes: two granules and a rest


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path) as connection:
        yield connection


def put(url: str, data: bytes = b"", content_range: str | None = None) -> requests.Response:
    headers = {"Content-Range": content_range} if content_range is not None else {}
    return requests.put(url, data=data or None, headers={**headers, "Content-Length": str(len(data))}, timeout=PATIENCE_S)


def asked(url: str) -> tuple[int, str | None]:
    response = put(url, content_range=f"bytes */{len(DATA)}")
    return response.status_code, response.headers.get("Range")


def stored(kaggle: Sdk, token: str) -> bytes:
    blob = kaggle.emulator.blobs.find(token)
    assert blob is not None
    return blob.path.read_bytes()


def test_a_file_arrives_with_one_put_with_and_without_a_range(kaggle: Sdk) -> None:
    for content_range in (None, f"bytes 0-{len(DATA) - 1}/{len(DATA)}"):
        token, url = kaggle.start_upload("a.bin", len(DATA))
        assert put(url, DATA, content_range).status_code == 200
        assert stored(kaggle, token) == DATA
        assert asked(url) == (200, None)


def test_empty_files_arrive_with_no_length_and_in_no_chunks(kaggle: Sdk) -> None:
    for data in (None, iter(())):
        token, url = kaggle.start_upload("empty.bin", 0)
        assert requests.put(url, data=data, timeout=PATIENCE_S).status_code == 200
        assert stored(kaggle, token) == b""


def test_a_chunked_body_arrives_whole(kaggle: Sdk) -> None:
    token, url = kaggle.start_upload("a.bin", len(DATA))
    pieces = (DATA[start : start + 100_000] for start in range(0, len(DATA), 100_000))
    assert requests.put(url, data=pieces, timeout=PATIENCE_S).status_code == 200
    assert stored(kaggle, token) == DATA


def test_an_upload_that_breaks_off_keeps_whole_granules_and_goes_on_from_there(kaggle: Sdk) -> None:
    token, url = kaggle.start_upload("a.bin", len(DATA))
    assert asked(url) == (308, None)
    kaggle.emulator.faults.add(Fault("BlobPut", "drop_body", calls={1}, after_bytes=600_000))
    with pytest.raises(requests.ConnectionError):
        put(url, DATA)
    assert asked(url) == (308, f"bytes=0-{2 * GRANULE_BYTES - 1}")
    rest = DATA[2 * GRANULE_BYTES :]
    assert put(url, rest, f"bytes {2 * GRANULE_BYTES}-{len(DATA) - 1}/{len(DATA)}").status_code == 200
    assert stored(kaggle, token) == DATA


def test_a_sender_that_dies_leaves_what_arrived(kaggle: Sdk) -> None:
    _, url = kaggle.start_upload("a.bin", len(DATA))
    target = urlsplit(url)
    with socket.create_connection((str(target.hostname), target.port or 0)) as sender:
        sender.sendall(f"PUT {target.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:300_000])
    kaggle.emulator.wait(lambda: kaggle.emulator.journal.of("BlobPut", where=lambda entry: entry.done))
    assert asked(url) == (308, f"bytes=0-{GRANULE_BYTES - 1}")


def test_parts_are_whole_granules_in_order(kaggle: Sdk) -> None:
    token, url = kaggle.start_upload("a.bin", len(DATA))
    assert put(url, DATA[:1000], f"bytes 0-999/{len(DATA)}").status_code == 400
    gap = put(url, DATA[GRANULE_BYTES:], f"bytes {GRANULE_BYTES}-{len(DATA) - 1}/{len(DATA)}")
    assert gap.status_code == 400
    for start in range(0, len(DATA), GRANULE_BYTES):
        part = DATA[start : start + GRANULE_BYTES]
        answer = put(url, part, f"bytes {start}-{start + len(part) - 1}/{len(DATA)}")
        assert answer.status_code == (200 if start + len(part) == len(DATA) else 308)
    assert stored(kaggle, token) == DATA


def test_a_file_of_another_size_than_announced_is_refused(kaggle: Sdk) -> None:
    _, url = kaggle.start_upload("a.bin", 10)
    assert put(url, b"eleven bytes"[:11]).status_code == 400


def test_an_address_that_nobody_gave_out_or_that_expired_is_not_found(kaggle: Sdk) -> None:
    _, url = kaggle.start_upload("a.bin", 10)
    assert put(f"{kaggle.emulator.url}/upload/unknown", b"x").status_code == 404
    kaggle.emulator.clock.advance(8 * 24 * 3600)
    assert put(url, b"0123456789").status_code == 404


def test_a_large_upload_lies_on_disk_and_never_in_memory(kaggle: Sdk) -> None:
    size = 64 * 1024**2
    token, url = kaggle.start_upload("large.bin", size)
    piece = bytes(1024**2)
    assert requests.put(url, data=(piece for _ in range(64)), timeout=PATIENCE_S).status_code == 200
    blob = kaggle.emulator.blobs.find(token)
    assert blob is not None
    assert blob.path.stat().st_size == size


def test_a_slow_line_takes_an_upload_at_its_own_speed(ram_path: Path) -> None:
    with connected(ram_path, upload_bytes_per_real_s=5e6) as kaggle:
        token, url = kaggle.start_upload("a.bin", len(DATA))
        begun_s = time.monotonic()
        assert put(url, DATA).status_code == 200
        assert time.monotonic() - begun_s >= len(DATA) / 5e6
        assert stored(kaggle, token) == DATA
