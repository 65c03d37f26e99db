from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state.errors import AmbiguousError, ExitCode, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.datasets import (
    LocalFile,
    begin_version,
    ensure_dataset,
    publish_version,
    published_version,
    wait_until_ready,
)
from state.kaggle.errors import (
    CorruptUploadError,
    CredentialsError,
    DeniedError,
    ProcessingFailedError,
    RateLimitedError,
    SlugTakenError,
)
from state.kaggle.records import KernelPush
from tests.kaggle_accounts import EmulatorTime
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S


class Account:
    """A dataset on the emulator, and what is to be published there."""

    def __init__(self, sdk: Sdk, folder: Path, slug: str) -> None:
        self.sdk, self.folder, self.slug = sdk, folder, slug
        self.faults = sdk.emulator.faults
        self.clock = EmulatorTime(sdk.emulator)
        self.api = KaggleApi(Credentials("a test", user=USER, key=sdk.emulator.settings.key), clock=self.clock)

    def files(self, **contents: bytes) -> list[LocalFile]:
        made = []
        for name, data in contents.items():
            path = self.folder / name
            path.write_bytes(data)
            made.append(LocalFile(path, f"{name}.bin", len(data)))
        return made

    def options(self, **more: Any) -> dict[str, Any]:
        deadline_s = self.clock.monotonic() + 7200.0
        return {"resume_dir": self.folder / "resume", "deadline_s": deadline_s, "clock": self.clock, "settle_s": 600.0, **more}

    def publish(self, files: list[LocalFile], notes: str = "the note", **more: Any) -> int:
        options = {"delete_old": False, "processing_limit_s": 1000.0, **more}
        return publish_version(self.api, self.slug, files, notes, **self.options(**options))

    def made(self) -> int:
        """Versions with the note, whatever became of them."""
        return sum(v.notes == "the note" for d in self.sdk.emulator.datasets.all() if d.slug == self.slug for v in d.versions)

    def puts(self) -> int:
        return len(self.sdk.emulator.journal.of("BlobPut"))


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    with connected(tmp_path_factory.mktemp("kaggle"), processing_s=60.0) as connection:
        yield connection


@pytest.fixture
def account(sdk: Sdk, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Account]:
    slug = f"d-{abs(hash(request.node.name)) % 10**9}"
    made = Account(sdk, tmp_path, slug)
    sdk.create_dataset(slug, {"first.bin": b"first"})
    yield made
    sdk.emulator.faults.remove()


def test_a_kernel_that_has_the_datasets_name_is_a_refusal_and_no_dataset_to_wait_for(account: Account) -> None:
    account.slug += "-k"
    account.sdk.push(account.slug)
    with pytest.raises(SlugTakenError, match=f"making dataset {account.slug} was refused: .*in use by a notebook") as refused:
        ensure_dataset(account.api, account.slug, account.files(a=b"1"), **account.options())
    assert (refused.value.by, refused.value.retryable, refused.value.exit_code) == ("notebook", False, ExitCode.USER)
    assert "delete that notebook on kaggle.com" in refused.value.remedy
    assert account.api.dataset(account.slug) is None


def test_a_dataset_that_has_a_kernels_name_is_a_refusal_and_no_kernel_that_was_pushed_already(account: Account) -> None:
    push = KernelPush(account.slug, "pass", "None", internet=True, timeout_s=60, dataset_sources=())
    with pytest.raises(SlugTakenError, match=f"starting kernel {account.slug} was refused: .*in use by a dataset") as refused:
        account.api.push_kernel(push)
    assert "delete that dataset on kaggle.com" in refused.value.remedy
    assert account.api.kernel(account.slug) is None


def test_a_dataset_that_has_a_models_name_is_a_refusal(account: Account) -> None:
    with pytest.raises(SlugTakenError, match="in use by a dataset") as refused:
        account.api.create_model(account.slug, "weights")
    assert not refused.value.may_be("model")


def test_a_dataset_whose_name_is_taken_and_that_is_never_shown_is_waited_for_an_hour(account: Account) -> None:
    account.faults.add(Fault("GetDataset", "status", status=403, match={"datasetSlug": account.slug}))
    files = account.files(a=b"1")
    began_s = account.clock.monotonic()
    for _ in range(6):
        ensure_dataset(account.api, account.slug, files, **account.options())
        account.clock.sleep(590.0)
    account.clock.sleep(120.0)
    with pytest.raises(SlugTakenError, match="for an hour Kaggle has not shown that dataset") as refused:
        ensure_dataset(account.api, account.slug, files, **account.options())
    assert account.clock.monotonic() - began_s < 2 * 3600.0
    assert "gemma-orch start uses the name of the run's next attempt" in refused.value.remedy


def test_a_dataset_that_was_shown_in_the_end_is_not_held_against_one_of_its_name_later(account: Account) -> None:
    unshown = Fault("GetDataset", "status", status=403, match={"datasetSlug": account.slug})
    files = account.files(a=b"1")
    for _ in range(2):
        account.faults.add(unshown)
        ensure_dataset(account.api, account.slug, files, **account.options())
        account.faults.remove(unshown)
        ensure_dataset(account.api, account.slug, files, **account.options())
        account.clock.sleep(3700.0)


def test_a_dataset_is_made_once_and_left_as_it_is(account: Account) -> None:
    account.slug += "-new"
    files = account.files(a=b"abc")
    ensure_dataset(account.api, account.slug, files, **account.options())
    dataset = account.api.dataset(account.slug)
    assert dataset is not None
    assert (dataset.is_private, dataset.current_version) == (True, None)
    wait_until_ready(account.api, account.slug, clock=account.clock, processing_limit_s=1000.0)
    assert account.api.dataset_files(account.slug, 1) == {"a.bin": 3}
    ensure_dataset(account.api, account.slug, account.files(a=b"other"), **account.options())
    assert account.api.dataset_files(account.slug, 1) == {"a.bin": 3}


def test_a_dataset_that_cannot_be_processed_is_not_waited_for(account: Account) -> None:
    account.slug += "-new"
    account.faults.add(Fault("CreateDataset", "fail_processing"))
    ensure_dataset(account.api, account.slug, account.files(a=b"abc"), **account.options())
    with pytest.raises(ProcessingFailedError, match=account.slug):
        wait_until_ready(account.api, account.slug, clock=account.clock, processing_limit_s=1000.0)


def test_a_dataset_that_is_not_ready_in_time_is_an_error_that_may_pass(account: Account) -> None:
    account.faults.add(Fault("GetDatasetStatus", "rewrite", body={"status": "BLOBS_RECEIVED"}))
    with pytest.raises(TemporaryError, match="not READY after 100 s"):
        wait_until_ready(account.api, account.slug, clock=account.clock, processing_limit_s=100.0)


def test_a_version_is_published_with_exactly_its_files(account: Account) -> None:
    files = account.files(a=b"abc", b=b"", c=bytes(1000))
    assert published_version(account.api, account.slug, files, "the note") is None
    assert account.publish(files) == 2
    assert account.api.dataset_files(account.slug, 2) == {"a.bin": 3, "b.bin": 0, "c.bin": 1000}
    assert published_version(account.api, account.slug, files, "the note") == 2
    assert list((account.folder / "resume").iterdir()) == []


def test_publishing_again_makes_no_second_version_and_sends_no_byte(account: Account) -> None:
    files = account.files(a=b"abc")
    account.publish(files)
    before = account.puts()
    assert account.publish(files) == 2
    assert (account.made(), account.puts()) == (1, before)


def test_a_version_that_is_begun_is_not_there_before_it_is_processed(account: Account) -> None:
    files = account.files(a=b"abc")
    begin_version(account.api, account.slug, files, "the note", delete_old=False, **account.options())
    assert published_version(account.api, account.slug, files, "the note") is None
    begin_version(account.api, account.slug, files, "the note", delete_old=False, **account.options())
    account.clock.sleep(60.0)
    assert published_version(account.api, account.slug, files, "the note") == 2
    assert account.made() == 1


def test_older_versions_go_when_that_is_wanted(account: Account) -> None:
    assert account.publish(account.files(a=b"abc"), delete_old=True) == 2
    dataset = account.api.dataset(account.slug)
    assert dataset is not None
    assert [version.number for version in dataset.versions] == [2]


@pytest.mark.parametrize(
    ("processing_s", "kind"), [(60.0, "drop_after"), (300.0, "hang_after"), (60.0, "drop_before"), (60.0, "truncate")]
)
def test_a_lost_answer_is_made_up_for_by_looking(account: Account, processing_s: float, kind: str) -> None:
    account.api = KaggleApi(
        Credentials("a test", user=USER, key=account.sdk.emulator.settings.key),
        clock=account.clock,
        read_timeout_s=2.0 if kind == "hang_after" else 20.0,
    )
    slow = Fault("CreateDatasetVersion", "slow_processing", seconds=processing_s)
    account.faults.add(slow, Fault("CreateDatasetVersion", kind, calls=(1,), seconds=PATIENCE_S))
    assert account.publish(account.files(a=b"abc")) == 2
    assert account.made() == 1


def test_a_process_that_died_after_sending_is_made_up_for(account: Account) -> None:
    """Its end is an exception here that nothing of ours catches."""

    class KilledError(BaseException):
        pass

    class Dying(EmulatorTime):
        def sleep(self, seconds: float) -> None:
            raise KilledError

    files = account.files(a=b"abc")
    account.faults.add(Fault("CreateDatasetVersion", "drop_after", calls=(1,)))
    with pytest.raises(KilledError):
        account.publish(files, clock=Dying(account.sdk.emulator))
    assert account.publish(files) == 2
    assert account.made() == 1


def test_answers_that_are_lost_over_and_over_leave_it_unknown(account: Account) -> None:
    account.faults.add(Fault("CreateDatasetVersion", "drop_before"))
    with pytest.raises(AmbiguousError):
        account.publish(account.files(a=b"abc"))
    account.faults.remove()
    assert account.publish(account.files(a=b"abc")) == 2
    assert account.made() == 1


def test_a_lie_is_found_out_after_the_time_for_processing(account: Account) -> None:
    files = account.files(a=b"abc")
    account.faults.add(Fault("CreateDatasetVersion", "lie", calls=(1,)))
    with pytest.raises(TemporaryError, match="is not ready after 1000 s"):
        account.publish(files)
    assert account.publish(files) == 2


def test_bytes_that_kaggle_lost_are_sent_again(account: Account) -> None:
    account.faults.add(Fault("BlobPut", "lie", calls=(1,)))
    assert account.publish(account.files(a=b"abc")) == 2


def test_bytes_that_kaggle_loses_always_are_given_up(account: Account) -> None:
    account.faults.add(Fault("BlobPut", "lie"))
    with pytest.raises(TemporaryError, match="could not be found"):
        account.publish(account.files(a=b"abc"))


def test_a_refusal_while_the_first_version_is_processed_is_waited_for(account: Account) -> None:
    account.slug += "-new"
    ensure_dataset(account.api, account.slug, account.files(a=b"abc"), **account.options())
    assert account.publish(account.files(b=b"bcd")) == 2


def test_a_refusal_that_stays_is_one(account: Account) -> None:
    account.faults.add(Fault("CreateDatasetVersion", "status", status=403, message="Permission 'datasets.update' was denied"))
    with pytest.raises(DeniedError, match=r"datasets\.update"):
        account.publish(account.files(a=b"abc"))


def test_too_many_calls_are_made_fewer(account: Account) -> None:
    account.faults.add(Fault("CreateDatasetVersion", "status", calls=(1, 2), status=429, html=True, retry_after="7"))
    began_s = account.clock.monotonic()
    assert account.publish(account.files(a=b"abc")) == 2
    assert 14.0 + 60.0 <= account.clock.monotonic() - began_s < 14.0 + 180.0
    account.faults.add(Fault("CreateDatasetVersion", "status", status=429))
    with pytest.raises(RateLimitedError):
        account.publish(account.files(b=b"abc"), "another note", deadline_s=account.clock.monotonic() + 100.0)


def test_what_kaggle_refuses_in_words_is_the_users(account: Account) -> None:
    said = "The size of your files is 3 bytes, it exceeds the maximum of 2"
    account.faults.add(Fault("CreateDatasetVersion", "lie", calls=(1,), body={"status": "error", "error": said}))
    account.faults.add(Fault("CreateDatasetVersion", "status", calls=(2,), status=401))
    for error in (UserError, CredentialsError):
        with pytest.raises(error) as caught:
            account.publish(account.files(a=b"abc"))
        assert type(caught.value) is error
    assert account.publish(account.files(a=b"abc")) == 2


def test_a_version_that_lacks_a_file_is_never_taken_and_is_published_again(account: Account) -> None:
    files = account.files(a=b"abc", b=b"bcd")
    account.faults.add(Fault("CreateDatasetVersion", "lose_file", calls=(1,), files="a*"))
    with pytest.raises(CorruptUploadError, match=r"version 2 .*missing: a\.bin") as caught:
        account.publish(files)
    assert (caught.value.slug, caught.value.version) == (account.slug, 2)
    with pytest.raises(CorruptUploadError):
        published_version(account.api, account.slug, files, "the note")
    assert account.publish(files) == 3
    assert published_version(account.api, account.slug, files, "the note") == 3


def test_a_list_that_is_wrong_once_is_no_wrong_version(account: Account) -> None:
    wrong = [{"name": "a.bin", "totalBytes": 4}, {"name": "more.bin", "totalBytes": 1}]
    account.faults.add(Fault("ListDatasetFiles", "rewrite", calls=(1,), body={"datasetFiles": wrong}))
    assert account.publish(account.files(a=b"abc")) == 2
    account.faults.add(Fault("ListDatasetFiles", "rewrite", body={"datasetFiles": wrong}))
    with pytest.raises(CorruptUploadError, match=r"not wanted: more\.bin; of another size: a\.bin \(4 bytes, not 3\)"):
        published_version(account.api, account.slug, account.files(a=b"abc"), "the note")


def test_a_version_that_failed_is_published_again(account: Account) -> None:
    files = account.files(a=b"abc")
    account.publish(files)
    failed = {"versions": [{"versionNumber": 2, "versionNotes": "the note", "status": "Failed"}]}
    account.faults.add(Fault("GetDataset", "rewrite", calls=(1, 2), body=failed))
    with pytest.raises(ProcessingFailedError, match="version 2"):
        published_version(account.api, account.slug, files, "the note")
    assert account.publish(files) in (2, 3)


def test_a_look_that_fails_is_repeated_until_the_deadline(account: Account) -> None:
    account.faults.add(Fault("GetDataset", "status"))
    with pytest.raises(TemporaryError, match="503"):
        account.publish(account.files(a=b"abc"), deadline_s=account.clock.monotonic() + 60.0)
    assert account.made() == 0
