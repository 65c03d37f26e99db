from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from state.session import RunState
from tests.patience import PATIENCE_S
from tests.repository import ROOT
from tests.simulation import Simulation

_HELD = re.compile(r"held: another controller holds this run until \d\d:\d\d:\d\d \(process \d+ on \S+\)")


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chain.rival_controller", str(folder), mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(controller: subprocess.Popen[str]) -> list[str]:
    """Wait for a controller, and return what its user has seen."""
    out, err = controller.communicate(timeout=PATIENCE_S)
    assert (controller.returncode, err) == (0, "")
    return out.splitlines()


@pytest.mark.parametrize("mode", ["stay", "cron"])
def test_two_controllers_of_one_run_bring_it_to_its_end_one_session_at_a_time(ram_path: Path, mode: str) -> None:
    run = Simulation(ram_path).create(total_steps=200)
    seen = [lines_of(controller) for controller in [start(ram_path, mode), start(ram_path, mode)]]
    for line in (line for lines in seen for line in lines):
        assert line.startswith("ticked: ") or _HELD.fullmatch(line), line
    record = run.record
    assert record.header.state is RunState.FINISHED
    assert [attempt.fence for attempt in record.attempts] == list(range(1, 11))
    assert [attempt.session for attempt in record.attempts] == list(range(1, 11))
    assert set(run.backend.launches().values()) == {1}
    run.close()


def test_when_the_controller_at_work_is_killed_the_one_that_waits_takes_over(ram_path: Path) -> None:
    run = Simulation(ram_path).create(total_steps=100_000)  # more than the first one can do before it is killed
    first = start(ram_path, "stay")
    assert first.stdout is not None
    assert first.stdout.readline() == "ticked: Launch\n"
    second = start(ram_path, "stay")
    assert second.stdout is not None
    assert _HELD.fullmatch(second.stdout.readline().strip())
    first.kill()
    first.wait()
    while "ticked" not in second.stdout.readline():
        assert second.poll() is None
    head_step = run.record.head_step
    run.runs.set_spec("tamil", run.record.spec.evolve(total_steps=head_step + 20), seen=run.record)
    lines_of(second)
    assert run.record.header.state is RunState.FINISHED
    assert set(run.backend.launches().values()) == {1}
    for stream in (first.stdout, first.stderr):
        assert stream is not None
        stream.close()
    run.close()
