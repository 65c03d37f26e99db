from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from state.clock import ManualClock
from state.errors import DataError, TemporaryError
from state.kaggle.api import KaggleApi
from state.kaggle.blobs import PIECE_BYTES, forget_upload, upload_file
from state.kaggle.credentials import Credentials
from state.kaggle.errors import DeniedError
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S
from tests.repository import ROOT

_SIZE = 1_000_000
_GRANULE = 256 * 1024


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    with connected(tmp_path_factory.mktemp("kaggle"), processing_s=60.0) as connection:
        yield connection


@pytest.fixture
def no_faults(sdk: Sdk) -> Iterator[None]:
    yield
    sdk.emulator.faults.remove()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state.bin"
    path.write_bytes(os.urandom(_SIZE))
    return path


class Uploads:
    """Uploads of one file to the emulator, and what arrived."""

    def __init__(self, sdk: Sdk, folder: Path, *, read_timeout_s: float = 20.0) -> None:
        self.sdk = sdk
        self.clock = ManualClock()
        key = sdk.emulator.settings.key
        self.api = KaggleApi(Credentials("a test", user=USER, key=key), read_timeout_s=read_timeout_s, clock=self.clock)
        self.resume_dir = folder / "resume"
        self.counted: list[int] = []
        self.before = len(sdk.emulator.journal.of("BlobPut"))

    def upload(self, path: Path, *, for_s: float = 600.0) -> str:
        deadline_s = self.clock.monotonic() + for_s
        return upload_file(
            self.api,
            path,
            path.name,
            resume_dir=self.resume_dir,
            deadline_s=deadline_s,
            clock=self.clock,
            on_bytes=self.counted.append,
        )

    def ranges(self) -> list[str]:
        """Headers of the PUTs, in order; empty when there was none."""
        return [entry.body["contentRange"] for entry in self.sdk.emulator.journal.of("BlobPut")[self.before :]]

    def arrived(self, token: str) -> bytes:
        blob = self.sdk.emulator.blobs.find(token)
        assert blob is not None
        assert blob.complete
        return blob.path.read_bytes()


@pytest.fixture
def uploads(sdk: Sdk, no_faults: None, tmp_path: Path) -> Uploads:
    return Uploads(sdk, tmp_path)


def test_a_file_goes_up_in_one_request(uploads: Uploads, file: Path) -> None:
    token = uploads.upload(file)
    assert uploads.arrived(token) == file.read_bytes()
    assert uploads.ranges() == [f"bytes 0-{_SIZE - 1}/{_SIZE}"]
    assert sum(uploads.counted) == _SIZE


@pytest.mark.parametrize("size", [0, 1, _GRANULE, PIECE_BYTES, PIECE_BYTES + 1])
def test_files_of_all_sizes_go_up(uploads: Uploads, tmp_path: Path, size: int) -> None:
    path = tmp_path / f"{size}.bin"
    path.write_bytes(os.urandom(size))
    assert uploads.arrived(uploads.upload(path)) == path.read_bytes()
    assert uploads.arrived(uploads.upload(path)) == path.read_bytes()
    assert len(uploads.ranges()) == 2, "the second call only asked"


def test_a_broken_connection_is_resumed_where_the_storage_says(uploads: Uploads, file: Path) -> None:
    uploads.sdk.emulator.faults.add(Fault("BlobPut", "drop_body", calls=(1,), after_bytes=600_000))
    assert uploads.arrived(uploads.upload(file)) == file.read_bytes()
    kept = 2 * _GRANULE
    assert uploads.ranges() == [f"bytes 0-{_SIZE - 1}/{_SIZE}", f"bytes */{_SIZE}", f"bytes {kept}-{_SIZE - 1}/{_SIZE}"]
    assert sum(uploads.counted) == _SIZE


@pytest.mark.parametrize(
    "fault",
    [
        Fault("BlobPut", "status", calls=(1,), status=429, html=True),
        Fault("BlobPut", "status", calls=(1, 2, 3), status=503),
        Fault("BlobPut", "status_after", calls=(1,), status=500),
        Fault("BlobPut", "drop_before", calls=(1, 2)),
        Fault("BlobPut", "drop_after", calls=(1,)),
        Fault("BlobPut", "truncate", calls=(1,)),
        Fault("BlobPut", "status", calls=(1,), status=404),
        Fault("BlobPut", "status", calls=(1,), status=410),
        Fault("BlobPut", "status", calls=(1, 2), status=403),
        Fault("StartBlobUpload", "status", calls=(1,), status=503),
        Fault("StartBlobUpload", "drop_after", calls=(1,)),
        Fault("StartBlobUpload", "status", calls=(1,), status=429, html=True),
    ],
    ids=lambda fault: f"{fault.route} {fault.kind} {fault.status}",
)
def test_an_upload_survives(uploads: Uploads, file: Path, fault: Fault) -> None:
    uploads.sdk.emulator.faults.add(fault)
    assert uploads.arrived(uploads.upload(file)) == file.read_bytes()
    assert sum(uploads.counted) == _SIZE


@pytest.mark.parametrize("kind", ["hang_before", "hang_after"])
def test_an_upload_survives_a_storage_that_says_nothing(sdk: Sdk, no_faults: None, tmp_path: Path, file: Path, kind: str) -> None:
    impatient = Uploads(sdk, tmp_path, read_timeout_s=2.0)
    sdk.emulator.faults.add(Fault("BlobPut", kind, calls=(1,), seconds=PATIENCE_S))
    assert impatient.arrived(impatient.upload(file)) == file.read_bytes()


def test_an_address_that_has_run_out_is_replaced(uploads: Uploads, file: Path) -> None:
    uploads.sdk.emulator.faults.add(Fault("BlobPut", "drop_body", calls=(1,), after_bytes=600_000))
    with pytest.raises(TemporaryError, match="not complete at the deadline"):
        uploads.upload(file, for_s=0.5)
    uploads.sdk.emulator.blobs.expire(file.name)
    assert uploads.arrived(uploads.upload(file)) == file.read_bytes()
    assert uploads.ranges()[-1] == f"bytes 0-{_SIZE - 1}/{_SIZE}"


def test_another_process_goes_on_where_one_was_killed(uploads: Uploads, file: Path) -> None:
    uploads.sdk.emulator.faults.add(Fault("BlobPut", "drop_body", calls=(1,), after_bytes=600_000))
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from state.clock import ManualClock\n"
        "from state.kaggle.api import KaggleApi\n"
        "from state.kaggle.blobs import upload_file\n"
        "from state.kaggle.credentials import Credentials\n"
        "class Killed(ManualClock):\n"
        "    def sleep(self, seconds): os._exit(9)\n"
        "api = KaggleApi(Credentials('a test', user=sys.argv[1], key=sys.argv[2]))\n"
        "path = Path(sys.argv[3])\n"
        "upload_file(api, path, path.name, resume_dir=Path(sys.argv[4]), deadline_s=60.0, clock=Killed())\n"
    )
    arguments = [USER, uploads.sdk.emulator.settings.key, str(file), str(uploads.resume_dir)]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, env=dict(os.environ), check=False)
    assert killed.returncode == 9
    assert uploads.arrived(uploads.upload(file)) == file.read_bytes()
    assert uploads.ranges()[1:] == [f"bytes */{_SIZE}", f"bytes {2 * _GRANULE}-{_SIZE - 1}/{_SIZE}"]
    assert sum(uploads.counted) == _SIZE


def test_other_content_is_another_upload(uploads: Uploads, file: Path) -> None:
    first = uploads.upload(file)
    file.write_bytes(os.urandom(_SIZE))
    second = uploads.upload(file)
    assert first != second
    assert uploads.arrived(second) == file.read_bytes()
    forget_upload(file, file.name, uploads.resume_dir)
    assert uploads.upload(file) not in (first, second)


def test_a_broken_record_of_an_upload_is_passed_over(uploads: Uploads, file: Path) -> None:
    first = uploads.upload(file)
    [record] = uploads.resume_dir.iterdir()
    record.write_text("{")
    assert uploads.upload(file) != first
    assert uploads.resume_dir.stat().st_mode & 0o077 == 0, "its addresses are secrets"


def test_the_deadline_ends_it_also_in_the_middle_of_a_body(uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(8 * PIECE_BYTES))

    def slowly(count: int) -> None:
        uploads.counted.append(count)
        if count > 0:
            uploads.clock.advance(10.0)

    with pytest.raises(TemporaryError, match="deadline"):
        upload_file(
            uploads.api,
            path,
            path.name,
            resume_dir=uploads.resume_dir,
            deadline_s=25.0,
            clock=uploads.clock,
            on_bytes=slowly,
        )
    assert uploads.clock.monotonic() == 30.0


def test_a_storage_that_refuses_over_and_over_ends_it(uploads: Uploads, file: Path) -> None:
    uploads.sdk.emulator.faults.add(Fault("BlobPut", "status", status=412))
    with pytest.raises(TemporaryError, match="refused 5 times: the storage answered HTTP 412"):
        uploads.upload(file)


def test_credentials_that_may_not_upload_end_it_at_once(uploads: Uploads, file: Path) -> None:
    uploads.sdk.emulator.faults.add(Fault("StartBlobUpload", "status", status=403))
    with pytest.raises(DeniedError):
        uploads.upload(file)
    assert uploads.clock.monotonic() == 0.0


def test_a_file_that_shrinks_meanwhile_is_an_error_of_its_own(uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "shrinking.bin"
    path.write_bytes(bytes(3 * PIECE_BYTES))

    def shrink(_: int) -> None:
        os.truncate(path, PIECE_BYTES)

    with pytest.raises(DataError, match="as when its upload began"):
        upload_file(
            uploads.api, path, path.name, resume_dir=uploads.resume_dir, deadline_s=60.0, clock=uploads.clock, on_bytes=shrink
        )
