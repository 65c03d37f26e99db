from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import Finish, GiveUp, Wait
from orchestrator.monitoring.watch import drive, follow
from orchestrator.ports import AttemptRef, Ports
from state.errors import DataError, OutOfReachError, TemporaryError
from state.ledger import DataRecord, StopWish
from state.process import ProcessIdentity
from state.report import Outcome
from state.session import RunState
from state.spec import RunSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import DATA, RUN
from tests.simulation import Simulation

RIVAL = ProcessIdentity(host="elsewhere", pid=1, started="1")


def ports_of(simulation: Simulation) -> Ports:
    return simulation.controller._ports


class Stumbling:
    """A preparer that fails so many times before it succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        if self._errors:
            raise self._errors.pop(0)
        return DATA


def test_driving_a_run_ticks_it_to_its_end_and_says_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = drive(ports_of(Simulation(tmp_path).create(total_steps=40)), RUN)
    assert isinstance(verdict.decision, Finish)
    assert (verdict.view.state, verdict.view.step) == ("finished", 40)
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{RUN}: session 1 attempt 1 budget" in said.err
    assert said.err.count("session 1 attempt 1 budget") == 1


def test_a_run_that_is_given_up_says_so(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, lambda _session, _attempt: Scenario(save_after=(), killed=True)).create()
    verdict = drive(ports_of(simulation), RUN)
    assert isinstance(verdict.decision, GiveUp)
    assert verdict.view.exit_code == 3


def test_what_may_work_later_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulation = Simulation(tmp_path, prepare=Stumbling(TemporaryError("the network is down"))).create(total_steps=20)
    assert drive(ports_of(simulation), RUN).view.step == 20
    assert "the network is down; retrying" in capsys.readouterr().err


class OutOfReach(SimulatedBackend):
    """A backend whose sessions run where they cannot be ended from here."""

    def kill(self, ref: AttemptRef) -> None:
        self.ask_to_stop(ref)
        raise OutOfReachError("its worker is process 7 on box", remedy="kill -KILL 7 there ends it at once")


def out_of_reach(tmp_path: Path) -> Simulation:
    simulation = Simulation(tmp_path, backend=OutOfReach).create()
    simulation.run_until_launch(1)
    simulation.runs.set_stop(RUN, StopWish.NOW)
    return simulation


def test_a_session_that_cannot_be_ended_from_here_is_said_and_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = out_of_reach(tmp_path)
    view = drive(ports_of(simulation), RUN).view
    assert (view.state, simulation.record.attempts[0].outcome) == (RunState.STOPPED, Outcome.STOPPED)
    assert "its worker is process 7 on box\nNext: kill -KILL 7 there ends it at once; retrying" in capsys.readouterr().err


def test_stop_now_does_not_wait_for_it_and_leaves_the_run_to_who_can_end_it(tmp_path: Path) -> None:
    simulation = out_of_reach(tmp_path)
    with pytest.raises(OutOfReachError, match="process 7 on box"):
        drive(ports_of(simulation), RUN, patient=False)
    record = simulation.record
    assert (record.header.state, record.wishes.stop) == (RunState.ACTIVE, StopWish.NOW)
    assert record.live_attempt is not None
    assert simulation.runs.lease(RUN) is None


def test_a_tick_that_dies_unexpectedly_is_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulation = Simulation(tmp_path, prepare=Stumbling(RuntimeError("odd"), RuntimeError("odd"))).create(total_steps=20)
    assert drive(ports_of(simulation), RUN).view.step == 20
    assert capsys.readouterr().err.count("unexpected RuntimeError: odd; retrying") == 2


def test_what_fails_unexpectedly_every_time_is_not_hidden(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, prepare=Stumbling(*[RuntimeError("odd")] * 3)).create()
    with pytest.raises(RuntimeError, match="odd"):
        drive(ports_of(simulation), RUN)


def test_data_that_only_the_user_can_mend_ends_the_run_and_the_status_says_why(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, prepare=Stumbling(DataError("the corpus is broken"))).create()
    view = drive(ports_of(simulation), RUN).view
    assert (view.state, view.message, view.exit_code) == ("failed", "the corpus is broken", 4)
    assert view.waiting_for is None
    simulation.controller.activate(RUN)
    assert drive(ports_of(simulation), RUN).view.state == "finished"


class UnreadableStore(DirectoryCheckpointStore):
    """A store in which nothing makes sense."""

    def ids(self) -> tuple[str, ...]:
        raise DataError("the store makes no sense")


def test_what_trying_again_does_not_mend_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the store makes no sense"):
        drive(ports_of(Simulation(tmp_path, store=UnreadableStore).create()), RUN)


def test_a_second_controller_says_once_who_holds_the_run_watches_and_takes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = Simulation(tmp_path).create(total_steps=20)
    simulation.runs.acquire(RUN, RIVAL, simulation.clock.now(), ttl_s=30.0)
    assert drive(ports_of(simulation), RUN).view.step == 20
    assert capsys.readouterr().err.count("another controller holds this run until") == 1
    assert simulation.clock.monotonic() >= 30.0


def test_driving_ends_when_what_was_asked_for_is_done(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path).create(total_steps=100)
    verdict = drive(ports_of(simulation), RUN, until=lambda record: record.head_step >= 10)
    assert isinstance(verdict.decision, Wait)
    assert 10 <= verdict.view.step < 100


def test_following_a_run_changes_nothing_and_ends_when_it_is_over(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path).create(total_steps=20)
    simulation.run_until_over()
    before = simulation.record
    follow(ports_of(simulation), RUN)
    assert simulation.record == before
