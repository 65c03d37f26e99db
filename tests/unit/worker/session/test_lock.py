from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from state.clock import ManualClock
from state.errors import UserError
from state.layout import AttemptLayout
from state.report import Phase
from worker.session.lock import SessionRunsError, held_alive
from worker.session.telemetry import Telemetry


@pytest.fixture
def layout(tmp_path: Path) -> AttemptLayout:
    return AttemptLayout(tmp_path)


def is_held(layout: AttemptLayout) -> bool:
    with open(layout.lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_lock_is_held_while_the_session_runs(layout: AttemptLayout):
    with held_alive(layout, None):
        assert is_held(layout)
    assert not is_held(layout)


def test_a_second_process_is_told_who_runs_the_session(layout: AttemptLayout):
    with held_alive(layout, None):
        with pytest.raises(SessionRunsError, match="this session is running already\n"), held_alive(layout, None):
            raise AssertionError("two at once")
        layout.heartbeat.write_text("{")
        with pytest.raises(SessionRunsError, match="this session is running already\n"):
            held_alive(layout, None).__enter__()
        Telemetry(layout, ManualClock(), left_s=lambda: 1.0, start_step=7, tokens_per_step=1, say=print).phase(Phase.TRAINING)
        with pytest.raises(SessionRunsError, match=rf"running already \(process {os.getpid()} on .+, at step 7\)") as caught:
            held_alive(layout, None).__enter__()
    assert caught.value.exit_code == 3


def test_the_lock_that_the_launcher_took_is_kept_and_not_handed_on(layout: AttemptLayout):
    launcher = os.open(layout.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(launcher, fcntl.LOCK_EX)
    inherited = os.dup(launcher)
    os.set_inheritable(inherited, True)
    os.close(launcher)
    with held_alive(layout, inherited):
        assert not os.get_inheritable(inherited)
        assert is_held(layout)
    assert not is_held(layout)


@pytest.mark.parametrize("descriptor", [10_000, 0], ids=["a closed descriptor", "another file's"])
def test_a_variable_left_over_from_elsewhere_is_no_lock(layout: AttemptLayout, descriptor: int):
    with held_alive(layout, descriptor):
        assert is_held(layout)


def test_a_folder_that_is_not_there_is_the_users_to_change(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written to"):
        held_alive(AttemptLayout(tmp_path / "missing"), None).__enter__()
