"""What every backend promises to the controller: one suite, every adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.ports import AttemptRef, AttemptStatus, Backend
from state.clock import ManualClock
from state.errors import AmbiguousError
from state.report import Outcome
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import START, session_spec
from tests.kaggle_stage import kaggle_backend
from tests.patience import wait_until
from tests.stages import local_backend, ref, wait_until_over

Open = Callable[[str], Backend]
"""Opens the adapter over one world, as each new controller does. Its sessions `finish`, `wait` to be stopped, or `vanish`."""


def simulated(root: Path, mode: str) -> Backend:
    courses = {"finish": Scenario((1,)), "wait": Scenario(tuple(range(1, 101))), "vanish": Scenario((), killed=True)}
    store = DirectoryCheckpointStore(root / "checkpoints")
    return SimulatedBackend(root / "world", store, ManualClock(), lambda _s, _a: courses[mode])


@pytest.fixture(
    params=[
        pytest.param(local_backend, id="local", marks=pytest.mark.integration),
        pytest.param(simulated, id="simulated"),
        pytest.param(kaggle_backend, id="kaggle"),
    ]
)
def backend_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[Backend] = []

    def make(mode: str) -> Backend:
        opened.append(request.param(tmp_path, mode))
        return opened[-1]

    yield make
    for backend in opened:
        for session in (1, 2):
            end(backend, ref(session))


def end(backend: Backend, which: AttemptRef) -> None:
    """Leave no process behind."""
    backend.kill(which)
    wait_until(lambda: backend.observe(which).sighting is not AttemptStatus.RUNNING)


def launch_again(backend: Backend) -> None:
    """Launch what was launched before: the answer may be a handle or `look`, and nothing may be started."""
    with contextlib.suppress(AmbiguousError):
        backend.launch(session_spec())


def test_it_has_the_name_that_users_type(backend_of: Open) -> None:
    assert backend_of("finish").name in ("local", "simulated", "kaggle")


def test_quota_is_known(backend_of: Open) -> None:
    assert backend_of("finish").quota(START).available


def test_what_was_never_launched_is_missing_and_has_nothing_to_say(backend_of: Open) -> None:
    backend = backend_of("finish")
    assert backend.observe(ref()).sighting is AttemptStatus.MISSING
    assert backend.report(ref()) is None
    assert backend.heartbeat(ref()) is None
    assert backend.read_log(ref(), 0) == ("", 0)
    backend.kill(ref())
    assert backend.observe(ref()).sighting is AttemptStatus.MISSING


def test_a_launched_attempt_runs_ends_and_reports_as_itself(backend_of: Open) -> None:
    backend = backend_of("finish")
    assert backend.launch(session_spec(fence=7)) != ""
    wait_until_over(backend)
    report = backend.report(ref())
    assert report is not None
    assert (report.session, report.attempt, report.fence, report.outcome) == (1, 1, 7, Outcome.BUDGET)


def test_an_attempt_that_ends_without_a_word_ends_without_a_report(backend_of: Open) -> None:
    backend = backend_of("vanish")
    backend.launch(session_spec())
    wait_until_over(backend)
    assert backend.report(ref()) is None
    assert backend.observe(ref()).detail != ""


def test_a_running_attempt_has_no_report_and_is_started_only_once(backend_of: Open) -> None:
    backend = backend_of("wait")
    backend.launch(session_spec())
    assert backend.observe(ref()).sighting is AttemptStatus.RUNNING
    assert backend.report(ref()) is None
    launch_again(backend)
    assert backend.observe(ref()).sighting is AttemptStatus.RUNNING
    assert backend.observe(ref(2)).sighting is AttemptStatus.MISSING


def test_an_attempt_that_is_over_is_not_started_again(backend_of: Open) -> None:
    backend = backend_of("finish")
    backend.launch(session_spec())
    wait_until_over(backend)
    before = backend.report(ref())
    launch_again(backend)
    assert backend.observe(ref()).sighting is AttemptStatus.ENDED
    assert backend.report(ref()) == before


def test_an_attempt_that_is_asked_to_stop_ends_with_a_report(backend_of: Open) -> None:
    backend = backend_of("wait")
    backend.launch(session_spec())
    backend.observe(ref())
    backend.ask_to_stop(ref())
    backend.ask_to_stop(ref())
    wait_until_over(backend)
    report = backend.report(ref())
    assert report is not None
    assert report.outcome is Outcome.STOPPED


def test_a_killed_attempt_ends_without_a_report(backend_of: Open) -> None:
    backend = backend_of("wait")
    backend.launch(session_spec())
    backend.kill(ref())
    wait_until_over(backend)
    assert backend.report(ref()) is None
    backend.kill(ref())


def test_another_controller_sees_the_same_world(backend_of: Open) -> None:
    first, second = backend_of("wait"), backend_of("wait")
    first.launch(session_spec())
    assert second.observe(ref()).sighting is AttemptStatus.RUNNING
    second.kill(ref())
    wait_until_over(first)
    wait_until_over(second)


def test_attempts_do_not_meet(backend_of: Open) -> None:
    backend = backend_of("wait")
    backend.launch(session_spec(1))
    backend.launch(session_spec(2))
    backend.kill(ref(1))
    wait_until_over(backend, ref(1))
    assert backend.observe(ref(2)).sighting is AttemptStatus.RUNNING
