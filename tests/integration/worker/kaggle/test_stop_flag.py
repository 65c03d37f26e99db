from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.job import KaggleJob, StopFlag
from state.kaggle.names import STOP_FLAG_NAME
from tests.factories import session_spec
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.kaggle_jobs import job_of
from worker.kaggle.stop_flag import StopFlagWatch

JOB = job_of(session_spec())
NOBODY, ME, ANOTHER = StopFlag(), StopFlag(session=1, attempt=1), StopFlag(session=1, attempt=2)


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[Sdk]:
    with connected(tmp_path, processing_s=10.0) as connection:
        yield connection


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch(kaggle: Sdk, tmp_path: Path, said: list[str]) -> StopFlagWatch:
    return watch_of(JOB, kaggle, tmp_path, said)


def watch_of(job: KaggleJob, kaggle: Sdk, tmp_path: Path, said: list[str]) -> StopFlagWatch:
    api = KaggleApi(Credentials("key", user=USER, key=kaggle.emulator.settings.key))
    return StopFlagWatch(api, job, tmp_path / "stop", tmp_path, said.append)


@pytest.fixture
def put(kaggle: Sdk) -> Callable[[StopFlag | bytes], None]:
    """Make the next version of the control dataset."""

    def version(flag: StopFlag | bytes) -> None:
        files = {"run.json": b"{}", STOP_FLAG_NAME: flag if isinstance(flag, bytes) else flag.to_json()}
        if kaggle.emulator.journal.of("CreateDataset"):
            kaggle.new_version(JOB.control, files)
        else:
            kaggle.create_dataset(JOB.control, files)

    return version


def test_the_flag_for_this_attempt_asks_it_to_stop(watch: StopFlagWatch, put: Callable[..., None], tmp_path: Path):
    put(NOBODY)
    assert not watch.look()
    put(ANOTHER)
    assert not watch.look()
    assert not (tmp_path / "stop").exists()
    put(ME)
    assert watch.look()
    assert (tmp_path / "stop").exists()


def test_the_flag_is_fetched_only_when_its_version_has_changed(watch: StopFlagWatch, put: Callable[..., None], kaggle: Sdk):
    put(NOBODY)
    for _ in range(5):
        watch.look()
    assert len(kaggle.emulator.journal.of("GetDataset")) == 5
    assert len(kaggle.emulator.journal.of("DownloadDataset")) == 1


def test_a_run_without_a_control_dataset_goes_on(watch: StopFlagWatch, said: list[str]):
    assert not watch.look()
    assert said == []


def test_what_cannot_be_read_is_told_once_and_read_later(
    watch: StopFlagWatch, put: Callable[..., None], kaggle: Sdk, said: list[str]
):
    put(ME)
    kaggle.emulator.faults.add(Fault("GetDataset", "status", status=500))
    assert [watch.look(), watch.look()] == [False, False]
    assert len(said) == 1
    assert "the stop flag cannot be read now" in said[0]
    kaggle.emulator.faults.remove()
    assert watch.look()


def test_a_flag_that_makes_no_sense_stops_nobody(watch: StopFlagWatch, put: Callable[..., None], said: list[str]):
    put(b"{")
    assert not watch.look()
    assert "is not a valid StopFlag" in said[0]


def test_a_stop_file_that_cannot_be_made_is_told(kaggle: Sdk, put: Callable[..., None], tmp_path: Path, said: list[str]):
    put(ME)
    api = KaggleApi(Credentials("key", user=USER, key=kaggle.emulator.settings.key))
    watch = StopFlagWatch(api, JOB, tmp_path / "nowhere" / "stop", tmp_path, said.append)
    assert not watch.look()
    assert "No such file" in said[-1]


def test_the_watch_looks_by_itself_until_it_is_closed(kaggle: Sdk, put: Callable[..., None], tmp_path: Path, said: list[str]):
    put(NOBODY)
    watch = watch_of(JOB.evolve(stop_poll_every_s=0.01), kaggle, tmp_path, said)
    watch.start()
    put(ME)
    kaggle.emulator.wait(lambda: (tmp_path / "stop").exists())
    watch.close()
    assert "stop flag" not in {thread.name for thread in threading.enumerate()}


def test_a_watch_that_was_never_started_can_be_closed(watch: StopFlagWatch):
    watch.close()
