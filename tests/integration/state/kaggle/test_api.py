from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from state import files
from state.clock import ManualClock
from state.errors import AmbiguousError, GemmaOrchError, TemporaryError, UserError
from state.kaggle.api import KaggleApi, KernelPush, OutputFile, SessionStatus
from state.kaggle.credentials import Credentials
from state.kaggle.errors import (
    BusyError,
    CredentialsError,
    DeniedError,
    InvalidSourcesError,
    KaggleQuotaError,
    RateLimitedError,
    SlugTakenError,
)
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault, refused_reads

_KEY = "an-api-key-that-nobody-may-see"
_PUSH = KernelPush("a-kernel", "print()", "None", internet=False, timeout_s=60, dataset_sources=())


@contextmanager
def answering(body: str, *, status: int = 200, kind: str = "application/json") -> Iterator[KaggleApi]:
    """A Kaggle that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with at(server.server_port):
            yield KaggleApi(Credentials("a test", user=USER, key=_KEY), read_timeout_s=10.0, clock=ManualClock())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def at(port: int, **more: str) -> Iterator[None]:
    """Point the client library at a port, as the official client can be pointed."""
    address = f"http://127.0.0.1:{port}"
    told = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": address, "HTTP_PROXY": address, "no_proxy": "", "NO_PROXY": ""}
    with patch.dict(os.environ, {**told, **more}):
        yield


READS: dict[str, Callable[[KaggleApi], Any]] = {
    "kernel": lambda api: api.kernel("a-kernel"),
    "session_status": lambda api: api.session_status("a-kernel", 1),
    "session_outputs": lambda api: api.session_outputs("a-kernel", 1),
    "kernels": lambda api: api.kernels(""),
    "quota": lambda api: api.quota(),
    "dataset": lambda api: api.dataset("a-dataset"),
    "dataset_status": lambda api: api.dataset_status("a-dataset"),
    "dataset_files": lambda api: api.dataset_files("a-dataset", 1),
    "datasets": lambda api: api.datasets(""),
}
WRITES: dict[str, Callable[[KaggleApi], Any]] = {
    "push_kernel": lambda api: api.push_kernel(_PUSH),
    "create_dataset": lambda api: api.create_dataset("a-dataset", ["token"]),
    "create_version": lambda api: api.create_version("a-dataset", ["token"], "notes", delete_old=False),
}
GARBAGE = {
    "a list": "[1]",
    "a string": '"ready"',
    "a number": "7",
    "nothing": "",
    "null": "null",
    "an empty object": "{}",
    "another object": '{"colour": "blue"}',
    "a code that is a string": '{"code": "many", "message": "no"}',
    "half an object": '{"status": "REA',
    "a list of strings where objects belong": '{"kernels": ["a"], "datasets": ["a"], "datasetFiles": ["a"], "files": ["a"]}',
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_body_that_is_not_what_was_asked_for_is_no_answer(garbage: str) -> None:
    with answering(GARBAGE[garbage]) as api:
        for call in READS.values():
            with pytest.raises(TemporaryError):
                call(api)
        for call in WRITES.values():
            with pytest.raises(AmbiguousError, match="look before trying again"):
                call(api)


def test_an_answer_about_something_else_is_no_answer() -> None:
    with answering('{"ref": "tester/other", "metadata": {"ref": "tester/other", "currentVersionNumber": 3}}') as api:
        for name in ("kernel", "dataset"):
            with pytest.raises(TemporaryError, match="tester/other"):
                READS[name](api)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ('"QUEUED"', SessionStatus.QUEUED),
        ('"NEW_SCRIPT"', SessionStatus.QUEUED),
        ('"newScript"', SessionStatus.QUEUED),
        ('"running"', SessionStatus.RUNNING),
        ('"CANCEL_REQUESTED"', SessionStatus.RUNNING),
        ('"COMPLETE"', SessionStatus.COMPLETE),
        ('"ERROR"', SessionStatus.ERROR),
        ('"cancelAcknowledged"', SessionStatus.CANCELLED),
        ('"KERNEL_WORKER_STATUS_RUNNING"', SessionStatus.RUNNING),
        ('"HIBERNATING"', SessionStatus.UNKNOWN),
        ('""', SessionStatus.UNKNOWN),
        ("3", SessionStatus.UNKNOWN),
    ],
)
def test_a_status_word_is_read_in_all_its_spellings_and_an_unknown_one_is_unknown(word: str, status: SessionStatus) -> None:
    with answering(f'{{"status": {word}, "failureMessage": ""}}') as api:
        assert api.session_status("a-kernel", 1) is status
    assert status.is_terminal == (status.value in ("complete", "error", "cancelled"))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Maximum batch GPU session count of 2 reached.", BusyError),
        ("Maximum batch CPU session count of 5 reached", BusyError),
        ("Maximum weekly GPU quota of 30.00 hours reached.", KaggleQuotaError),
        ("Notebook not found", UserError),
    ],
)
def test_a_push_that_is_refused_in_the_body_says_why(said: str, error: type[GemmaOrchError]) -> None:
    body = {"ref": "", "url": "", "versionNumber": 0, "error": said, "hasError": True, "kernelId": 0}
    with answering(json.dumps(body)) as api, pytest.raises(error, match=said.split(".")[0]) as caught:
        api.push_kernel(_PUSH)
    assert type(caught.value) is error


def test_a_push_without_an_error_and_without_a_version_proves_nothing() -> None:
    with answering('{"versionNumber": 0, "error": ""}') as api, pytest.raises(AmbiguousError, match="version 0"):
        api.push_kernel(_PUSH)


def test_a_kernel_that_runs_without_its_inputs_is_an_error_that_names_them_and_the_version() -> None:
    body = '{"versionNumber": 4, "error": "", "invalidDatasetSources": ["tester/gone"], "invalidKernelSources": ["tester/k"]}'
    with answering(body) as api, pytest.raises(InvalidSourcesError, match="tester/gone, tester/k") as caught:
        api.push_kernel(_PUSH)
    assert (caught.value.slug, caught.value.version, caught.value.sources) == ("a-kernel", 4, ("tester/gone", "tester/k"))


def test_a_dataset_of_the_same_name_is_told_from_other_refusals() -> None:
    body = '{"status": "error", "error": "The requested title \\"a\\" is already in use by a dataset."}'
    with answering(body) as api, pytest.raises(SlugTakenError):
        api.create_dataset("a-dataset", ["token"])
    with answering('{"status": "error", "error": "The file count exceeds the maximum of 50"}') as api:
        with pytest.raises(UserError, match="maximum of 50") as caught:
            api.create_dataset("a-dataset", ["token"])
        assert type(caught.value) is UserError
    with answering('{"status": "pending"}') as api, pytest.raises(AmbiguousError, match="pending"):
        api.create_dataset("a-dataset", ["token"])


FORMATS = {
    "nested": '{"error": {"code": %d, "message": "the reason", "status": "X"}}',
    "flat": '{"code": %d, "message": "the reason"}',
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("in_spite_of", [True, False])
def test_the_reason_is_read_in_both_formats_whatever_the_status_line_says(form: str, in_spite_of: bool) -> None:
    def saying(status: int) -> Any:
        return answering(FORMATS[form] % status, status=200 if in_spite_of else status)

    with saying(500) as api:
        with pytest.raises(TemporaryError, match="the reason"):
            api.dataset("a-dataset")
        with pytest.raises(AmbiguousError, match="the reason"):
            api.push_kernel(_PUSH)
    with saying(404) as api:
        assert api.dataset("a-dataset") is None
        with pytest.raises(DeniedError, match="the reason"):
            api.create_version("a-dataset", ["token"], "notes", delete_old=False)
    with saying(400) as api, pytest.raises(UserError, match="the reason"):
        api.push_kernel(_PUSH)
    with saying(401) as api:
        for call in (READS["dataset"], WRITES["push_kernel"]):
            with pytest.raises(CredentialsError, match="the credentials of a test"):
                call(api)
    with saying(429) as api:
        for call in (READS["dataset"], WRITES["push_kernel"]):
            with pytest.raises(RateLimitedError, match="the reason"):
                call(api)


def test_a_page_of_something_in_between_is_never_taken_for_missing() -> None:
    with answering("<html>Blocked</html>", status=403, kind="text/html") as api:
        for call in READS.values():
            with pytest.raises(TemporaryError, match="403"):
                call(api)


def test_a_kaggle_that_is_not_reachable_says_so_without_addresses() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with at(unused.getsockname()[1]):
            api = KaggleApi(Credentials("a test", user=USER, key=_KEY))
            with pytest.raises(TemporaryError, match="Connection refused") as caught:
                api.dataset("a-dataset")
    assert "127.0.0.1" not in str(caught.value)


# Against the emulator.


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    settings = {"processing_s": 60.0, "queue_s": 0.0, "zip_downloads_over_bytes": 200_000}
    with connected(tmp_path_factory.mktemp("kaggle"), **settings) as connection:
        yield connection


@pytest.fixture
def api(sdk: Sdk) -> KaggleApi:
    return KaggleApi(Credentials("a test", user=USER, key=sdk.emulator.settings.key), read_timeout_s=20.0, clock=ManualClock())


def test_a_status_is_asked_for_by_the_label_of_its_version_and_never_of_the_newest(sdk: Sdk, api: KaggleApi) -> None:
    sdk.push("two-versions", "print('first')")
    sdk.emulator.wait_for_session("two-versions")
    sdk.push("two-versions", "import time; time.sleep(30)")
    assert api.session_status("two-versions", 1) is SessionStatus.COMPLETE
    assert api.session_status("two-versions", 2) is not SessionStatus.COMPLETE
    asked = sdk.emulator.journal.of("GetKernelSessionStatus")
    assert [entry.body["versionLabel"] for entry in asked] == ["v1", "v2"]


def test_a_kernel_lives_and_is_deleted(sdk: Sdk, api: KaggleApi, tmp_path: Path) -> None:
    source = "print('hello')\nopen('out.txt', 'w').write('result')"
    push = KernelPush("kernel-of-a-life", source, "NvidiaTeslaT4", internet=True, timeout_s=3600, dataset_sources=())
    assert api.kernel(push.slug) is None
    assert api.session_status(push.slug, 1) is None
    assert api.session_outputs(push.slug, 1) is None
    assert api.follow_log(push.slug, 1, for_s=5.0) == ""
    assert api.push_kernel(push) == 1
    sdk.emulator.wait_for_session(push.slug)
    assert api.session_status(push.slug, 1) is SessionStatus.COMPLETE
    kernel = api.kernel(push.slug)
    assert kernel is not None
    assert (kernel.version, kernel.machine_shape, kernel.source) == (1, "NvidiaTeslaT4", source)
    assert kernel.last_run_at is not None
    assert kernel.last_run_at.tzinfo is UTC
    found = api.session_outputs(push.slug, 1)
    assert found is not None
    [output], log = found
    assert (output.name, log) == ("out.txt", "hello\n")
    assert "http" not in repr(output)
    api.download_output(output, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "result"
    assert api.follow_log(push.slug, 1, for_s=5.0) == "hello\n"
    assert [found.slug for found in api.kernels("kernel-of-")] == [push.slug]
    assert api.quota().gpu_allowed_s == 108_000.0
    api.delete_kernel(push.slug)
    assert api.kernels("kernel-of-") == ()
    api.delete_kernel(push.slug)


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_listed_is_not_deleted_because_kaggle_refuses_to_show_and_to_delete_it(
    sdk: Sdk, api: KaggleApi, status: int
) -> None:
    slug = f"deleted-with-{status}"
    sdk.create_dataset(slug, {"a.bin": b"a"})
    faults = refused_reads(slug, status=status, deletes=True)
    sdk.emulator.faults.add(*faults)
    try:
        with pytest.raises(DeniedError, match=str(status)):
            api.delete_dataset(slug)
    finally:
        sdk.emulator.faults.remove(*faults)
    assert api.dataset(slug) is not None
    for _ in range(2):  # what is not there is deleted
        api.delete_dataset(slug)
    assert api.dataset(slug) is None


def test_a_running_log_is_followed_for_a_while_only(sdk: Sdk, api: KaggleApi) -> None:
    source = "import time\nprint('first', flush=True)\ntime.sleep(60)"
    api.push_kernel(KernelPush("kernel-that-talks", source, "None", internet=False, timeout_s=3600, dataset_sources=()))
    sdk.emulator.wait(lambda: "first" in api.follow_log("kernel-that-talks", 1, for_s=0.2))
    api.delete_kernel("kernel-that-talks")


def test_the_refusal_for_the_quota_tells_when_it_is_refreshed(sdk: Sdk, api: KaggleApi) -> None:
    fault = Fault("SaveKernel", "refuse", value="Maximum weekly GPU quota of 30.00 hours reached.")
    sdk.emulator.faults.add(fault)
    with pytest.raises(KaggleQuotaError) as caught:
        api.push_kernel(_PUSH)
    assert caught.value.until == datetime(2026, 11, 28, tzinfo=UTC)
    sdk.emulator.faults.add(Fault("GetAcceleratorQuotaStatistics", "status"))
    with pytest.raises(KaggleQuotaError) as caught:
        api.push_kernel(_PUSH)
    assert caught.value.until is None
    sdk.emulator.faults.remove()


def test_all_pages_of_a_list_are_read(sdk: Sdk, api: KaggleApi) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(201):
            archive.writestr(f"{number}.bin", bytes(number))
    sdk.create_dataset("many-files", {"many.zip": packed.getvalue()})
    assert api.dataset_files("many-files", 1) == {f"many/{number}.bin": number for number in range(201)}
    assert api.dataset_files("many-files", 2) is None


def test_a_list_whose_pages_go_round_in_circles_is_no_list(sdk: Sdk, api: KaggleApi) -> None:
    sdk.create_dataset("circles", {"a": b"a"})
    sdk.emulator.faults.add(Fault("ListDatasetFiles", "rewrite", body={"nextPageToken": "1"}))
    with pytest.raises(TemporaryError, match="circles"):
        api.dataset_files("circles", 1)
    sdk.emulator.faults.remove()


def test_a_broken_download_goes_on_where_it_broke_off(sdk: Sdk, api: KaggleApi, tmp_path: Path) -> None:
    data = os.urandom(150_000)
    sdk.create_dataset("resumed", {"a.bin": data})
    sdk.emulator.faults.add(Fault("Download", "truncate", calls=(1, 2)))
    counted: list[int] = []
    api.download("resumed", 1, "a.bin", tmp_path / "a.bin", size_bytes=len(data), on_bytes=counted.append)
    sdk.emulator.faults.remove()
    assert (tmp_path / "a.bin").read_bytes() == data
    asked = [entry.body["range"] for entry in sdk.emulator.journal.of("Download")][-3:]
    assert asked == ["", "bytes=75000-", "bytes=112500-"]
    assert sum(counted) == len(data)


def test_a_download_that_cannot_be_had_leaves_nothing(sdk: Sdk, api: KaggleApi, tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="6 times in a row"):
        api.download("not-there", 1, "a.bin", tmp_path / "a.bin")
    sdk.create_dataset("too-short", {"a.bin": b"abc"})
    with pytest.raises(TemporaryError, match="3 bytes, but 4 are listed"):
        api.download("too-short", 1, "a.bin", tmp_path / "a.bin", size_bytes=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [3, 300_000], ids=["as it is", "zipped"])
def test_two_that_download_one_file_at_once_both_get_it_and_leave_nothing_else(
    sdk: Sdk, api: KaggleApi, tmp_path: Path, size: int
) -> None:
    slug, data = f"twice-{size}", bytes(size)
    sdk.create_dataset(slug, {"a.bin": data})
    both = threading.Barrier(2)
    target = tmp_path / "a.bin"

    def download(_: int) -> str:
        waited = False

        def meet(_count: int) -> None:
            nonlocal waited
            if not waited:
                waited = True
                both.wait(30.0)

        return api.download(slug, 1, "a.bin", target, on_bytes=meet)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(download, range(2))) == [hashlib.sha256(data).hexdigest()] * 2
    assert target.read_bytes() == data
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_replaces_a_link_and_removes_what_a_killed_one_left(sdk: Sdk, api: KaggleApi, tmp_path: Path) -> None:
    sdk.create_dataset("not-followed", {"a.bin": b"new"})
    (tmp_path / "precious").write_text("precious")
    target = tmp_path / "folder" / "a.bin"
    target.parent.mkdir()
    target.symlink_to(tmp_path / "precious")
    left = files.temporary_beside(target)
    left.touch()
    os.utime(left, (0.0, 0.0))
    api.download("not-followed", 1, "a.bin", target)
    assert not target.is_symlink()
    assert target.read_bytes() == b"new"
    assert (tmp_path / "precious").read_text() == "precious"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_is_served_as_a_zip_is_unpacked(sdk: Sdk, api: KaggleApi, tmp_path: Path) -> None:
    data = bytes(300_000)
    sdk.create_dataset("zipped", {"a.bin": data})
    api.download("zipped", 1, "a.bin", tmp_path / "a.bin", size_bytes=len(data))
    assert sdk.emulator.journal.of("Download")[-1].body["name"] == "a.bin.zip"
    assert (tmp_path / "a.bin").read_bytes() == data
    with pytest.raises(TemporaryError, match="unpacked, it has 300000 bytes"):
        api.download("zipped", 1, "a.bin", tmp_path / "b.bin", size_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_only_the_chosen_credentials_are_sent_whatever_else_lies_around(sdk: Sdk) -> None:
    key = Credentials("a test", user=USER, key=sdk.emulator.settings.key)
    with patch.dict(os.environ, {"KAGGLE_API_TOKEN": "KGAT_stale"}):
        assert KaggleApi(key).datasets("nothing-") == ()
        token = Credentials("a test", token=sdk.emulator.settings.access_token)
        assert KaggleApi(token).user == USER


def test_a_token_that_kaggle_does_not_know_gives_way_to_the_key_beside_it(sdk: Sdk) -> None:
    key = Credentials("kaggle.json", user=USER, key=sdk.emulator.settings.key)
    assert KaggleApi(Credentials("a file", token="stale", instead=key)).datasets("nothing-") == ()
    good = Credentials("a file", token=sdk.emulator.settings.access_token, instead=Credentials("x", user="other", key="bad"))
    assert KaggleApi(good).user == USER
    assert KaggleApi(good).datasets("nothing-") == ()


def test_credentials_that_kaggle_does_not_accept_are_the_users_to_mend(sdk: Sdk) -> None:
    for bad in (Credentials("a file", token="stale"), Credentials("a file", user=USER, key="wrong")):
        with pytest.raises(CredentialsError, match="the credentials of a file"):
            KaggleApi(bad).dataset("read-data")


def test_an_oauth_login_is_renewed_in_memory(sdk: Sdk, tmp_path: Path) -> None:
    login = tmp_path / "credentials.json"
    kept = {"refresh_token": sdk.emulator.accounts.issue_refresh_token(USER), "username": USER, "access_token": "old"}
    login.write_text(json.dumps(kept))
    clock = ManualClock()
    api = KaggleApi(Credentials("a login", user=USER, oauth_file=login), clock=clock)
    for hours in (0.0, 1.0, 12.0):
        clock.advance(hours * 3600.0)
        assert api.datasets("nothing-") == ()
    assert len(sdk.emulator.journal.of("GenerateAccessToken")) == 2
    assert json.loads(login.read_text()) == kept
    login.write_text(json.dumps({**kept, "refresh_token": "revoked"}))
    with pytest.raises(CredentialsError, match="a login"):
        KaggleApi(Credentials("a login", user=USER, oauth_file=login), clock=clock).dataset("nothing")


def test_nothing_that_is_secret_is_shown_or_logged(sdk: Sdk, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    sdk.create_dataset("logged", {"a.bin": b"abc"})
    credentials = Credentials("a test", user=USER, key=sdk.emulator.settings.key, token=None)
    api = KaggleApi(credentials, clock=ManualClock())
    api.download("logged", 1, "a.bin", tmp_path / "a.bin")
    token, url = api.start_upload("a.bin", 3, 1_700_000_000)
    sdk.emulator.faults.add(Fault("*", "drop_before"))
    with pytest.raises(TemporaryError) as caught:
        api.download_output(OutputFile("a.bin", url), tmp_path / "b.bin")
    sdk.emulator.faults.remove()
    shown = f"{credentials!r} {caught.value!r} {api!r} {caught.value.__cause__}"
    assert sdk.emulator.settings.key not in shown + caplog.text
    assert token not in shown
    assert url not in shown


def test_threads_may_share_an_account(sdk: Sdk, api: KaggleApi) -> None:
    sdk.create_dataset("shared", {"a.bin": b"abc"})
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: api.dataset_files("shared", 1), range(40)))
    assert found == [{"a.bin": 3}] * 40
