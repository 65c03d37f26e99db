from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.session.control_dataset import Control, DataRecords
from state.backend_settings import KaggleSettings
from state.errors import AmbiguousError, TemporaryError, UserError
from state.kaggle.errors import DeniedError
from state.kaggle.job import StopFlag
from state.kaggle.names import control_slug
from state.layout import RunLayout
from state.ledger import RunRecord
from state.spec import RunSpec, TrainingSpec
from tests.factories import DATA, RUN, run_record, run_spec
from tests.fake_kaggle import FakeKaggle
from tests.kaggle_stage import kaggle_context

SLUG = control_slug(RUN)
SETTINGS = KaggleSettings(poll_every_s=60.0, settle_s=600.0, processing_limit_s=3600.0)


class Room:
    """A run's control dataset, and its controller."""

    def __init__(self, root: Path, account: FakeKaggle | None = None) -> None:
        self.account = account or FakeKaggle()
        self.layout = RunLayout(root)
        self.record: RunRecord = run_record(spec=run_spec())
        self.open()

    def open(self) -> None:
        self.control = Control(kaggle_context(self.account, self.layout, SETTINGS), lambda: self.record)

    def ready(self, patience: int = 10) -> None:
        for _ in range(patience):
            if self.control.make_ready() is None:
                return
            self.account.clock.advance(10.0)
        raise AssertionError("it does not get ready")

    @property
    def files(self) -> dict[str, bytes]:
        return self.account.dataset_table[SLUG][-1].files

    @property
    def flag(self) -> StopFlag:
        return StopFlag.from_json(self.files["stop.json"], "the flag")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_it_is_made_with_all_that_the_run_is(room: Room) -> None:
    room.ready()
    assert RunSpec.from_json(room.files["run.json"], "") == room.record.spec
    assert DataRecords.from_json(room.files["data.json"], "").records == (DATA,)
    assert room.flag == StopFlag()


def test_what_stands_costs_no_call(room: Room) -> None:
    room.ready()
    before = room.account.count()
    room.open()
    for _ in range(100):
        room.account.clock.advance(60.0)
        assert room.control.make_ready() is None
    assert room.account.count() == before


def test_while_it_is_processed_it_is_looked_at_only_now_and_then(room: Room) -> None:
    room.account.processing = True
    assert room.control.make_ready() == f"the dataset {SLUG} to be processed by Kaggle"
    before = room.account.count()
    for _ in range(60):
        room.account.clock.advance(1.0)
        assert room.control.make_ready() is not None
    assert room.account.count() - before <= 14
    assert room.account.count("create_dataset") == 1
    room.account.process()
    room.ready()


def test_a_change_of_the_run_makes_a_version_with_all_files(room: Room) -> None:
    room.ready()
    room.record = run_record(spec=run_spec(total_steps=500))
    room.ready()
    assert RunSpec.from_json(room.files["run.json"], "").total_steps == 500
    assert room.files.keys() == {"run.json", "data.json", "stop.json"}
    assert room.account.count("create_version") == 1


def test_an_earlier_content_that_comes_back_is_sent_again(room: Room) -> None:
    for steps in (100, 500, 100):
        room.record = run_record(spec=run_spec(total_steps=steps))
        room.ready()
    assert RunSpec.from_json(room.files["run.json"], "").total_steps == 100
    assert len({version.notes for version in room.account.dataset_table[SLUG]}) == 3


def test_asking_to_stop_sends_the_wish_once_however_often_it_is_asked(room: Room) -> None:
    room.ready()
    for _ in range(20):
        room.control.ask_to_stop(3, 2)
        room.account.clock.advance(10.0)
    assert room.flag == StopFlag(session=3, attempt=2)
    assert room.account.count("create_version") == 1
    before = room.account.count()
    room.control.ask_to_stop(3, 2)
    assert room.account.count() == before


def test_a_wish_that_comes_before_the_dataset_is_in_its_first_version(room: Room) -> None:
    room.control.ask_to_stop(1, 1)
    assert room.flag == StopFlag(session=1, attempt=1)


def test_a_wish_that_kaggle_does_not_take_now_is_sent_again_soon(room: Room) -> None:
    room.ready()
    room.account.failures["create_version"] = [DeniedError("Permission 'datasets.update' was denied")] * 9
    with pytest.raises(TemporaryError, match="does not accept a version"):
        room.control.ask_to_stop(1, 1)
    room.account.failures.clear()
    room.account.clock.advance(11.0)
    room.control.ask_to_stop(1, 1)
    assert room.flag == StopFlag(session=1, attempt=1)


def test_a_wish_whose_answer_was_lost_is_looked_for_and_not_sent_again(room: Room) -> None:
    room.ready()
    room.account.failures_after["create_version"] = [AmbiguousError("the answer was lost")]
    room.control.ask_to_stop(1, 1)
    room.open()
    for _ in range(5):
        room.account.clock.advance(60.0)
        room.control.ask_to_stop(1, 1)
    assert room.account.count("create_version") == 1
    assert room.flag == StopFlag(session=1, attempt=1)


def test_a_wish_is_not_lost_while_reads_of_the_dataset_are_refused(room: Room) -> None:
    """As long as its size is that of the wish before, what stood before was taken for the wish."""
    room.ready()
    room.control.ask_to_stop(1, 1)
    room.ready()
    room.account.refused = {"dataset", "dataset_files", "dataset_status"}
    for _ in range(90):
        with contextlib.suppress(TemporaryError):
            room.control.ask_to_stop(2, 1)
        room.account.clock.advance(10.0)
    room.account.refused.clear()
    for _ in range(10):
        room.control.ask_to_stop(2, 1)
        room.account.clock.advance(10.0)
    assert room.flag == StopFlag(session=2, attempt=1)


def test_a_dataset_that_is_refused_when_a_run_begins_is_waited_for(room: Room, tmp_path: Path) -> None:
    room.ready()
    rival = Room(tmp_path / "rival", room.account)
    rival.record = run_record(spec=run_spec(training=TrainingSpec(seed=7)))
    room.account.refused = {"dataset"}
    with pytest.raises(TemporaryError, match=r"lists the dataset .* and refuses to show it"):
        rival.control.make_ready()
    room.account.refused.clear()
    room.account.clock.advance(11.0)
    with pytest.raises(UserError, match="another run 'tamil'"):
        rival.control.make_ready()


def test_a_dataset_of_another_run_of_the_same_name_is_left_alone(room: Room, tmp_path: Path) -> None:
    room.ready()
    rival = Room(tmp_path / "rival", room.account)
    rival.record = run_record(spec=run_spec(training=TrainingSpec(seed=7)))
    with pytest.raises(UserError, match=r"another run 'tamil', with different settings: training\.seed"):
        rival.control.make_ready()
    assert room.account.count("create_version") == 0


def test_the_same_run_on_another_machine_goes_on_with_it(room: Room, tmp_path: Path) -> None:
    room.ready()
    Room(tmp_path / "laptop", room.account).ready()


def test_a_dataset_that_is_none_of_ours_is_left_alone(room: Room) -> None:
    room.account.add_version(SLUG, "mine", {"run.json": b"a diary"})
    with pytest.raises(UserError, match=r"was not made by gemma-orch"):
        room.control.make_ready()


def test_a_version_that_is_never_processed_is_sent_again(room: Room) -> None:
    room.ready()
    room.account.processing = True
    room.control.ask_to_stop(1, 1)
    room.account.clock.advance(3601.0)
    room.account.processing = False
    room.control.ask_to_stop(1, 1)
    assert room.account.count("create_version") == 2
