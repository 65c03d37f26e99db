"""The test that defines the project: N short sessions equal one long session, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from state.layout import MANIFEST_NAME
from state.report import Outcome, Phase
from state.spec import SessionSpec
from tests.patience import wait_until
from tests.sessions import CountingClock, SmallRun, asked_after

STEPS = 40


@pytest.fixture(scope="module")
def straight_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The state that one uninterrupted session ends with."""
    run = SmallRun(tmp_path_factory.mktemp("straight"), total_steps=STEPS)
    assert run.run(run.spec()) == 0
    newest = run.newest()
    assert newest is not None
    assert newest.step == STEPS
    return newest.state_sha256


def next_spec(run: SmallRun, session: int, **values: object) -> SessionSpec:
    return run.spec(session, start=run.expected(), total_steps=STEPS, **values)


def end_by_steps(run: SmallRun, session: int, steps: int) -> None:
    spec = next_spec(run, session, max_steps=steps)
    assert run.run(spec) == 0
    assert run.report(spec).outcome in (Outcome.BUDGET, Outcome.COMPLETED)


def end_by_budget(run: SmallRun, session: int, steps: int) -> None:
    # Every step looks at the clock about ten times.
    spec = next_spec(run, session, limit_s=2.0 + steps * 0.1, save_estimate_s=0.5)
    assert run.run(spec, clock=CountingClock(0.01)) == 0
    report = run.report(spec)
    assert report.outcome is Outcome.BUDGET
    assert "time to save" in report.reason


def end_by_signal(run: SmallRun, session: int, steps: int) -> None:
    spec = next_spec(run, session)
    assert run.run(spec, asked_to_stop=asked_after(steps)) == 0
    assert run.report(spec).outcome is Outcome.STOPPED


def end_by_stop_file(run: SmallRun, session: int, steps: int) -> None:
    """Checkpoints all the time; one of them is being made when the stop file appears."""
    spec = next_spec(run, session, checkpoint_every_s=1e-6)
    asked = asked_after(steps)

    def appear() -> None:
        if asked():
            run.attempt(spec).stop.touch()

    assert run.run(spec, asked_to_stop=appear) == 0
    assert run.report(spec).outcome is Outcome.STOPPED


def end_by_sigterm(run: SmallRun, session: int) -> None:
    """A process of its own, stopped by a real signal while it trains."""
    spec = next_spec(run, session)
    with run.start(spec) as process:
        wait_until(lambda: is_training(run, spec) or process.poll() is not None, "it trains, or has been quick")
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    assert run.report(spec).outcome in (Outcome.STOPPED, Outcome.COMPLETED)


def end_by_sigkill(run: SmallRun, session: int) -> SessionSpec:
    """A process of its own, killed as soon as it has made a checkpoint; nothing of it remains but that."""
    spec = next_spec(run, session, checkpoint_every_s=1e-6)
    with run.start(spec, dies_after=MANIFEST_NAME) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, said
    assert not run.attempt(spec).report.exists()
    return spec


def is_training(run: SmallRun, spec: SessionSpec) -> bool:
    heartbeat = run.heartbeat(spec)
    return heartbeat is not None and heartbeat.phase is Phase.TRAINING


def finish(run: SmallRun, session: int) -> str:
    if (newest := run.newest()) is None or newest.step < STEPS:
        assert run.run(next_spec(run, session)) == 0
    newest = run.newest()
    assert newest is not None
    assert newest.step == STEPS
    return newest.state_sha256


def test_one_session_run_twice_gives_the_same_bits(ram_path: Path, straight_sha256: str):
    assert finish(SmallRun(ram_path), 1) == straight_sha256


def test_two_sessions_equal_one(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    end_by_steps(run, 1, 17)
    assert finish(run, 2) == straight_sha256


def test_three_sessions_ended_by_budget_signal_and_steps_equal_one(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    end_by_budget(run, 1, 8)
    end_by_signal(run, 2, 9)
    assert finish(run, 3) == straight_sha256


def test_seven_sessions_some_of_them_really_killed_equal_one(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    end_by_sigkill(run, 1)
    end_by_steps(run, 2, 2)
    end_by_sigterm(run, 3)
    end_by_stop_file(run, 4, 1)
    end_by_budget(run, 5, 3)
    end_by_sigkill(run, 6)
    assert finish(run, 7) == straight_sha256


def test_twenty_sessions_of_every_kind_equal_one(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    for session in range(1, 20):
        end = (end_by_steps, end_by_signal)[session % 2]
        if session == 7:
            end_by_sigkill(run, session)
        elif session == 13:
            end_by_budget(run, session, 2)
        else:
            end(run, session, 1)
    assert finish(run, 20) == straight_sha256


def test_a_killed_session_goes_on_from_its_own_checkpoint_when_run_again(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    end_by_steps(run, 1, 5)
    spec = end_by_sigkill(run, 2)
    saved = run.newest()
    assert saved is not None
    assert saved.session == 2
    assert run.run(spec) == 0
    report = run.report(spec)
    assert report.start_step == 5
    assert report.tokens == (STEPS - saved.step) * 4 * 8
    assert finish(run, 3) == straight_sha256
