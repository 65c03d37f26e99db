"""The emulator's datasets, as the unmodified SDK sees them (contract 3.5)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from kagglesdk.datasets.types.dataset_api_service import (
    ApiCreateDatasetVersionByIdRequest,
    ApiCreateDatasetVersionRequestBody,
    ApiDatasetNewFile,
    ApiDeleteDatasetRequest,
    ApiGetDatasetFilesSummaryRequest,
    ApiGetDatasetMetadataRequest,
    ApiListDatasetFilesRequest,
    ApiListDatasetsRequest,
    ApiListTreeDatasetFilesRequest,
    ApiUpdateDatasetMetadataRequest,
    ApiUploadDirectoryInfo,
)
from kagglesdk.datasets.types.dataset_types import DatasetSettings

from tests.kaggle_clients import USER, Sdk, connected, sdk
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S

SLUG = "checkpoints"


@pytest.fixture
def kaggle(ram_path: Path) -> Iterator[Sdk]:
    with connected(ram_path) as connection:
        yield connection


def refusal(error: pytest.ExceptionInfo[requests.HTTPError]) -> tuple[int, str]:
    return error.value.response.status_code, error.value.response.json()["error"]["message"]


def test_a_dataset_is_processed_before_it_can_be_seen_and_a_second_version_is_refused_until_then(kaggle: Sdk) -> None:
    assert kaggle.create_dataset(SLUG, {"a.bin": b"1"}, ready=False).status == "ok"
    assert kaggle.dataset_status(SLUG) == "BLOBS_RECEIVED"
    assert kaggle.dataset(SLUG).current_version_number == 0
    with pytest.raises(requests.HTTPError) as refused:
        kaggle.new_version(SLUG, {"a.bin": b"2"})
    assert refusal(refused) == (403, "Permission 'datasets.update' was denied")
    kaggle.emulator.clock.advance(60)
    assert kaggle.dataset_status(SLUG) == "READY"
    assert kaggle.new_version(SLUG, {"a.bin": b"2"}).status == "ok"


def test_while_a_new_version_is_processed_everything_speaks_of_the_old_one(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"old.bin": b"1"})
    kaggle.new_version(SLUG, {"new.bin": b"22"}, "step 2", ready=False)
    assert kaggle.dataset_status(SLUG) == "READY"
    assert (kaggle.dataset(SLUG).current_version_number, kaggle.files(SLUG)) == (1, {"old.bin": 1})
    kaggle.emulator.clock.advance(60)
    seen = kaggle.dataset(SLUG)
    assert (seen.current_version_number, kaggle.files(SLUG)) == (2, {"new.bin": 2})
    assert [(v.version_number, v.version_notes) for v in seen.versions] == [(2, "step 2"), (1, "Initial release")]
    assert kaggle.files(SLUG, version=1) == {"old.bin": 1}


def test_a_version_may_be_shown_while_it_is_processed(ram_path: Path) -> None:
    with connected(ram_path, list_pending_versions=True) as kaggle:
        kaggle.create_dataset(SLUG, {"a.bin": b"1"})
        kaggle.new_version(SLUG, {"a.bin": b"2"}, "two", ready=False)
        assert [version.version_notes for version in kaggle.dataset(SLUG).versions] == ["two", "Initial release"]


def test_deleting_old_versions_leaves_only_the_new_one_and_frees_their_bytes(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1" * 100})
    kaggle.new_version(SLUG, {"a.bin": b"2" * 10}, delete_old=True, ready=False)
    now = kaggle.emulator.clock.now
    assert kaggle.files(SLUG, version=1) == {"a.bin": 100}
    assert kaggle.emulator.datasets.used_bytes(USER, now()) == 110
    kaggle.emulator.clock.advance(60)
    assert [version.version_number for version in kaggle.dataset(SLUG).versions] == [2]
    assert kaggle.emulator.datasets.used_bytes(USER, now()) == 10
    with pytest.raises(requests.HTTPError):
        kaggle.files(SLUG, version=1)


def test_what_does_not_exist_and_what_is_not_yours_are_both_denied(ram_path: Path) -> None:
    with connected(ram_path, other_users={"rival": "k"}) as kaggle:
        kaggle.create_dataset(SLUG, {"a.bin": b"1"})
        with pytest.raises(requests.HTTPError) as unknown:
            kaggle.dataset("nothing-here")
        with sdk(kaggle.emulator, ram_path, username="rival", password="k") as rival:
            with pytest.raises(requests.HTTPError) as foreign:
                rival.dataset(SLUG)
            with pytest.raises(requests.HTTPError) as written:
                rival.new_version(SLUG, {"a.bin": b"2"})
        assert refusal(unknown) == refusal(foreign) == (403, "Permission 'datasets.get' was denied")
        assert refusal(written)[0] == 403


def test_a_title_in_use_is_refused_in_the_body(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    again = kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    assert (again.status, "already in use" in again.error) == ("error", True)


def test_too_many_files_and_too_many_bytes_are_refused_in_the_body(ram_path: Path) -> None:
    with connected(ram_path, private_quota_bytes=10, max_top_level_files=2) as kaggle:
        assert kaggle.create_dataset(SLUG, {"a.bin": b"1" * 6}).status == "ok"
        too_big = kaggle.new_version(SLUG, {"a.bin": b"2" * 6})
        assert (too_big.status, too_big.error) == ("error", "The size of your files is 6 bytes, it exceeds the maximum of 4")
        too_many = kaggle.new_version(SLUG, {"a": b"", "b": b"", "c": b""})
        assert too_many.error == "The file count exceeds the maximum of 2"
        assert kaggle.dataset(SLUG).current_version_number == 1


def test_files_of_an_upload_that_is_not_complete_cannot_be_used(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    file = ApiDatasetNewFile()
    file.token, _ = kaggle.start_upload("half.bin", 10)
    request = ApiCreateDatasetVersionByIdRequest()
    request.id, request.body = kaggle.dataset(SLUG).id, ApiCreateDatasetVersionRequestBody()
    request.body.files = [file]
    assert kaggle.datasets.create_dataset_version_by_id(request).status == "error"


def test_a_version_that_is_sent_twice_is_made_twice(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    file = ApiDatasetNewFile()
    file.token = kaggle.upload("b.bin", b"once")
    request = ApiCreateDatasetVersionByIdRequest()
    request.id, request.body = kaggle.dataset(SLUG).id, ApiCreateDatasetVersionRequestBody()
    request.body.files = [file]
    assert [kaggle.datasets.create_dataset_version_by_id(request).status for _ in range(2)] == ["ok", "ok"]
    kaggle.emulator.clock.advance(60)
    assert kaggle.dataset(SLUG).current_version_number == 3
    assert kaggle.download(SLUG, "b.bin", version=2).content == kaggle.download(SLUG, "b.bin", version=3).content == b"once"


def test_archives_are_unpacked_on_arrival_and_folders_kept(kaggle: Sdk) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x/deep.txt", "deep")
        archive.writestr("flat.txt", "flat!")
    kaggle.create_dataset(SLUG, {"bundle.zip": packed.getvalue(), "plain.txt": b"p"})
    assert kaggle.files(SLUG) == {"bundle/flat.txt": 5, "bundle/x/deep.txt": 4, "plain.txt": 1}
    request = ApiListTreeDatasetFilesRequest()
    request.owner_slug, request.dataset_slug = USER, SLUG
    top = kaggle.datasets.list_tree_dataset_files(request)
    assert ([d.name for d in top.directories], [f.name for f in top.files], top.total_children) == (["bundle"], ["plain.txt"], 2)
    request.path = "bundle"
    inside = kaggle.datasets.list_tree_dataset_files(request)
    assert [(f.name, f.relative_url) for f in inside.files] == [("flat.txt", "bundle/flat.txt")]


def test_folders_that_the_request_names_are_made(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    file, folder = ApiDatasetNewFile(), ApiUploadDirectoryInfo()
    file.token, folder.name, folder.files = kaggle.upload("b.bin", b"2"), "sub", [file]
    request = ApiCreateDatasetVersionByIdRequest()
    request.id, request.body = kaggle.dataset(SLUG).id, ApiCreateDatasetVersionRequestBody()
    request.body.directories = [folder]
    kaggle.datasets.create_dataset_version_by_id(request)
    kaggle.emulator.clock.advance(60)
    assert kaggle.files(SLUG) == {"sub/b.bin": 1}


def test_lists_come_in_pages_and_in_sum(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {f"f{n}.bin": b"12" for n in range(5)})
    request = ApiListDatasetFilesRequest()
    request.owner_slug, request.dataset_slug, request.page_size = USER, SLUG, 2
    names = []
    for _ in range(3):
        answer = kaggle.datasets.list_dataset_files(request)
        names.append([file.name for file in answer.files])
        request.page_token = answer.next_page_token
    assert names == [["f0.bin", "f1.bin"], ["f2.bin", "f3.bin"], ["f4.bin"]]
    assert request.page_token == ""
    summary = ApiGetDatasetFilesSummaryRequest()
    summary.owner_slug, summary.dataset_slug = USER, SLUG
    (kind,) = kaggle.datasets.get_dataset_files_summary(summary).file_summary_info.file_types
    assert (kind.extension, kind.file_count, kind.total_size) == (".bin", 5, 10)
    assert [d.ref for d in kaggle.datasets.list_datasets(ApiListDatasetsRequest()).datasets] == [f"{USER}/{SLUG}"]


def test_metadata_can_be_read_and_changed(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    change = ApiUpdateDatasetMetadataRequest()
    change.owner_slug, change.dataset_slug, change.settings = USER, SLUG, DatasetSettings()
    change.settings.title, change.settings.subtitle, change.settings.is_private = "Better title", "of a run", True
    assert kaggle.datasets.update_dataset_metadata(change).errors == []
    ask = ApiGetDatasetMetadataRequest()
    ask.owner_slug, ask.dataset_slug = USER, SLUG
    info = kaggle.datasets.get_dataset_metadata(ask).info
    assert (info.title, info.subtitle, info.is_private, info.dataset_slug) == ("Better title", "of a run", True, SLUG)


def test_a_deleted_dataset_is_gone_and_its_name_free(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    request = ApiDeleteDatasetRequest()
    request.owner_slug, request.dataset_slug = USER, SLUG
    kaggle.datasets.delete_dataset(request)
    with pytest.raises(requests.HTTPError):
        kaggle.dataset(SLUG)
    assert kaggle.create_dataset(SLUG, {"a.bin": b"1"}).status == "ok"


def test_a_download_is_a_redirect_to_another_authority_with_everything_to_verify_and_resume_by(kaggle: Sdk) -> None:
    data = bytes(range(256)) * 10
    kaggle.create_dataset(SLUG, {"a.bin": data})
    whole = kaggle.download(SLUG, "a.bin")
    assert whole.history[0].status_code == 302
    assert whole.request.url is not None
    assert whole.request.url.startswith(kaggle.emulator.url)
    assert "Authorization" not in whole.request.headers
    assert whole.content == data
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Last-Modified"].endswith("GMT")
    assert whole.headers["x-goog-hash"].startswith("md5=")
    part = requests.get(whole.url, headers={"Range": "bytes=100-199", "If-Range": whole.headers["ETag"]}, timeout=PATIENCE_S)
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["Content-Range"] == "bytes 100-199/2560"
    assert requests.get(whole.url, headers={"Range": "bytes=-10"}, timeout=PATIENCE_S).content == data[-10:]
    changed = requests.get(whole.url, headers={"Range": "bytes=100-", "If-Range": '"another"'}, timeout=PATIENCE_S)
    assert (changed.status_code, changed.content) == (200, data)
    beyond = requests.get(whole.url, headers={"Range": "bytes=2560-"}, timeout=PATIENCE_S)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */2560")


def test_a_whole_dataset_comes_as_a_zip_and_a_large_file_may_too(ram_path: Path) -> None:
    with connected(ram_path, zip_downloads_over_bytes=100) as kaggle:
        kaggle.create_dataset(SLUG, {"big.bin": b"b" * 200, "small.bin": b"s"})
        whole = zipfile.ZipFile(io.BytesIO(kaggle.download(SLUG).content))
        assert whole.namelist() == ["big.bin", "small.bin"]
        big = kaggle.download(SLUG, "big.bin")
        assert big.url.endswith("/big.bin.zip")
        assert zipfile.ZipFile(io.BytesIO(big.content)).read("big.bin") == b"b" * 200
        assert kaggle.download(SLUG, "small.bin").content == b"s"


def test_a_version_can_lose_a_file_or_spoil_one_silently(kaggle: Sdk) -> None:
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    kaggle.emulator.faults.add(Fault("CreateDatasetVersion", "lose_file", calls={1}, files="b.*"))
    kaggle.emulator.faults.add(Fault("CreateDatasetVersion", "corrupt_file", calls={2}, files="a.*"))
    assert kaggle.new_version(SLUG, {"a.bin": b"123", "b.bin": b"2"}).status == "ok"
    assert kaggle.files(SLUG) == {"a.bin": 3}
    assert kaggle.new_version(SLUG, {"a.bin": b"123", "b.bin": b"2"}).status == "ok"
    assert kaggle.files(SLUG) == {"a.bin": 3, "b.bin": 1}
    assert kaggle.download(SLUG, "a.bin").content == b"1\xcd3"


def test_processing_can_fail_or_take_its_time(kaggle: Sdk) -> None:
    kaggle.emulator.faults.add(Fault("CreateDataset", "fail_processing"))
    kaggle.emulator.faults.add(Fault("CreateDatasetVersion", "slow_processing", seconds=3600))
    kaggle.create_dataset("broken-one", {"a.bin": b"1"})
    assert kaggle.dataset_status("broken-one") == "FAILED"
    kaggle.emulator.faults.remove()
    kaggle.create_dataset(SLUG, {"a.bin": b"1"})
    kaggle.emulator.faults.add(Fault("CreateDatasetVersion", "slow_processing", seconds=3600))
    kaggle.new_version(SLUG, {"a.bin": b"2"})
    assert kaggle.dataset(SLUG).current_version_number == 1
    kaggle.emulator.clock.advance(3600)
    assert kaggle.dataset(SLUG).current_version_number == 2


def test_parallel_versions_may_be_refused(ram_path: Path) -> None:
    with connected(ram_path, refuse_parallel_versions=True) as kaggle:
        kaggle.create_dataset(SLUG, {"a.bin": b"1"})
        kaggle.new_version(SLUG, {"a.bin": b"2"}, ready=False)
        with pytest.raises(requests.HTTPError):
            kaggle.new_version(SLUG, {"a.bin": b"3"})
