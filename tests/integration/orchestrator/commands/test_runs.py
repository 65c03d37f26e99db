from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.interpreter import command_of
from tests.patience import PATIENCE_S, wait_until
from tests.repository import ROOT
from tests.sessions import SmallRun


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_session_by_hand_saves_when_it_is_asked_to_end(ram_path: Path, signal_number: signal.Signals) -> None:
    run = SmallRun(ram_path)
    spec = run.spec(total_steps=1_000_000)
    folder = run.write(spec).rename(run.attempt(spec).root / "prepare").parent  # by a name that the worker has a verb of
    by_hand = subprocess.Popen(
        command_of("orchestrator", "session", "prepare"),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with by_hand:
        wait_until(lambda: (beat := run.heartbeat(spec)) is not None and beat.step > beat.start_step, process=by_hand)
        if signal_number is signal.SIGINT:
            os.killpg(by_hand.pid, signal_number)  # as a terminal does
        else:
            by_hand.send_signal(signal_number)
        _, said = by_hand.communicate(timeout=PATIENCE_S)
    assert (by_hand.returncode, b"Traceback" in said) == (0, False), said
    assert (run.report(spec).outcome, run.report(spec).saved_step) != (None, 0)
