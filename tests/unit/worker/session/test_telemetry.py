from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from state.clock import ManualClock
from state.layout import AttemptLayout
from state.process import identify
from state.report import Heartbeat, Phase
from worker.session.telemetry import Telemetry
from worker.train.trainer import StepResult


@pytest.fixture
def layout(tmp_path: Path) -> AttemptLayout:
    return AttemptLayout(tmp_path)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def telemetry(layout: AttemptLayout, clock: ManualClock, said: Callable[[str], None] = print) -> Telemetry:
    return Telemetry(layout, clock, left_s=lambda: 50.0 - clock.monotonic(), start_step=10, tokens_per_step=512, say=said)


def result(step: int, loss: float = 4.0) -> StepResult:
    return StepResult(step=step, loss=loss, learning_rate=0.003, grad_norm=0.5)


def heartbeat(layout: AttemptLayout) -> Heartbeat:
    return Heartbeat.from_json(layout.heartbeat.read_bytes(), "heartbeat")


def metrics(layout: AttemptLayout) -> list[dict[str, Any]]:
    return [json.loads(line) for line in layout.metrics.read_text().splitlines()]


def test_every_step_is_one_line_of_metrics(layout: AttemptLayout, clock: ManualClock):
    tells = telemetry(layout, clock)
    for step in (11, 12, 13):
        clock.advance(0.25)
        tells.step(result(step), 0.25)
    tells.close()
    lines = metrics(layout)
    assert [line["step"] for line in lines] == [11, 12, 13]
    assert lines[0] == {
        "step": 11,
        "loss": 4.0,
        "learning_rate": 0.003,
        "grad_norm": 0.5,
        "tokens": 512,
        "tokens_per_s": 2048.0,
        "seconds": 0.25,
        "at": "2026-01-01T00:00:00.250000+00:00",
    }


def test_the_heartbeat_follows_every_change_of_phase(layout: AttemptLayout, clock: ManualClock):
    tells = telemetry(layout, clock)
    for phase in Phase:
        tells.phase(phase)
        assert heartbeat(layout).phase is phase
    assert heartbeat(layout).pid == os.getpid()
    assert heartbeat(layout).process == identify(os.getpid())
    assert heartbeat(layout).step == heartbeat(layout).start_step == 10


def test_steps_move_the_heartbeat_once_a_second_at_most(layout: AttemptLayout, clock: ManualClock):
    tells = telemetry(layout, clock)
    tells.phase(Phase.TRAINING)
    seen = set()
    for number in range(30):
        clock.advance(0.1)
        tells.step(result(11 + number, loss=3.5), 0.1)
        seen.add(heartbeat(layout).step)
    assert len(seen) in (3, 4)
    beat = heartbeat(layout)
    assert beat.steps_per_s == pytest.approx(10.0)
    assert beat.tokens_per_s == pytest.approx(5120.0)
    assert beat.loss == 3.5
    tells.close()
    assert beat.left_s == pytest.approx(50.0 - (beat.at - ManualClock().now()).total_seconds())


def test_the_heartbeat_tells_what_is_saved(layout: AttemptLayout, clock: ManualClock):
    tells = telemetry(layout, clock)
    tells.resumed(12)
    tells.phase(Phase.TRAINING)
    assert (heartbeat(layout).step, heartbeat(layout).saved_step) == (12, 12)
    tells.saved(20)
    tells.close()
    assert heartbeat(layout).saved_step == 20


def test_a_line_that_a_killed_worker_left_unfinished_spoils_no_other(layout: AttemptLayout, clock: ManualClock):
    layout.metrics.write_text('{"step": 11, "lo')
    tells = telemetry(layout, clock)
    tells.step(result(12), 0.1)
    tells.close()
    assert [line[:11] for line in layout.metrics.read_text().splitlines()] == ['{"step": 11', '{"step": 12']


def test_what_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path, clock: ManualClock):
    said: list[str] = []
    tells = telemetry(AttemptLayout(tmp_path / "missing"), clock, said.append)
    tells.phase(Phase.TRAINING)
    for step in (11, 12):
        tells.step(result(step), 0.1)
    tells.close()
    assert len(said) == 1
    assert said[0].startswith("metrics and heartbeat cannot be written: ")


def test_a_disk_that_is_full_when_the_metrics_are_closed_stops_nothing(layout: AttemptLayout, clock: ManualClock):
    said: list[str] = []
    layout.metrics.symlink_to("/dev/full")
    tells = telemetry(layout, clock, said.append)
    tells.step(result(11), 0.1)
    tells.close()
    assert "No space left on device" in said[0]
    assert heartbeat(layout).step == 11


def test_the_training_is_told_of_every_half_minute_at_most(layout: AttemptLayout, clock: ManualClock):
    said: list[str] = []
    tells = telemetry(layout, clock, said.append)
    for number in range(1, 71):
        clock.advance(1.0)
        tells.step(result(10 + number, loss=3.14159), 1.0)
    tells.close()
    assert said == ["step 40: loss 3.1416, 512 tokens/s", "step 70: loss 3.1416, 512 tokens/s"]
