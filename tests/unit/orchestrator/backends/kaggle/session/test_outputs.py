from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ports import AttemptStatus
from state import files
from state.kaggle.records import SessionStatus
from state.layout import attempt_name
from tests.factories import RUN, report
from tests.kaggle_stage import Stage, ref


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_log_of_a_running_session_is_followed_not_more_often_than_people_read(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "step 1\n"
    assert stage.backend.read_log(ref(), 0) == ("step 1\n", 7)
    stage.kernel.log += "step 2\n"
    for _ in range(4):
        assert stage.backend.read_log(ref(), 7) == ("", 7)
        stage.clock.advance(1.0)
    stage.clock.advance(2.0)
    assert stage.backend.read_log(ref(), 7) == ("step 2\n", 14)
    assert stage.account.count("follow_log") == 2


def test_the_log_of_a_session_that_is_over_is_kept_here(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "வணக்கம்\n"
    stage.kernel.status = SessionStatus.COMPLETE
    stage.look()
    stage.look()
    assert stage.backend.read_log(ref(), 0)[0] == "வணக்கம்\n"
    stage.account.kernel_table.clear()
    before = stage.account.count()
    assert stage.backend.read_log(ref(), 0) == ("வணக்கம்\n", 8)
    assert stage.account.count() == before
    assert stage.home.run(RUN).attempt(1, 1).log.name == "worker.log"
    assert attempt_name(1, 1) in str(stage.home.run(RUN).attempt(1, 1).log)


def test_a_stream_that_breaks_off_does_not_take_back_what_was_printed(stage: Stage) -> None:
    stage.running()
    stage.look()
    stage.kernel.log = "one two three"
    assert stage.backend.read_log(ref(), 0) == ("one two three", 13)
    stage.kernel.log = "one"
    stage.clock.advance(6.0)
    assert stage.backend.read_log(ref(), 13) == ("", 13)


def test_a_report_that_an_earlier_version_kept_and_this_one_does_not_believe_is_none(stage: Stage) -> None:
    stage.running()
    folder = stage.home.run(RUN).attempt(1, 1)
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.report.write_bytes(report(1).to_json().replace(b"step-00000020-s001a1", b"../x"))
    assert stage.backend.report(ref()) is None
    assert stage.look().sighting is AttemptStatus.RUNNING


def test_a_link_in_the_place_of_a_sessions_folder_is_not_followed(stage: Stage, tmp_path: Path) -> None:
    stage.running(SessionStatus.COMPLETE)
    stage.deliver(10, last=True)
    outside, folder = tmp_path / "outside", stage.home.run(RUN).attempt(1, 1).root
    outside.mkdir()
    files.remove_tree(folder)
    folder.symlink_to(outside)
    for _ in range(3):
        stage.look()
    assert list(outside.iterdir()) == []


def test_a_report_is_fetched_beside_its_place_and_leaves_nothing_else(stage: Stage) -> None:
    stage.running(SessionStatus.COMPLETE)
    stage.deliver(10, last=True)
    for _ in range(3):
        stage.look()
    folder = stage.home.run(RUN).attempt(1, 1)
    assert folder.report.exists()
    assert [path.name for path in folder.root.iterdir() if path.name.startswith(".")] == []
