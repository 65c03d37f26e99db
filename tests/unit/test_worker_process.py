from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worker.process import StopRequest, let_threads_sleep, lower_priority, process_started_s

ROOT = Path(__file__).parents[2]


def test_the_process_started_before_now_and_not_long_ago():
    now_s = time.monotonic()
    started_s = process_started_s()
    assert started_s < now_s
    code = "import time; time.sleep(0.3); from worker.process import process_started_s as s; print(time.monotonic() - s())"
    age_s = float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert 0.3 <= age_s < 20.0


@pytest.mark.parametrize("stat", [None, "1 (python) S"], ids=["no such file", "another format"])
def test_where_the_kernel_tells_no_start_it_is_now(tmp_path: Path, stat: str | None):
    if stat is not None:
        (tmp_path / "stat").write_text(stat)
    before_s = time.monotonic()
    assert before_s <= process_started_s(tmp_path / "stat") <= time.monotonic()


def test_a_signal_is_remembered_and_nothing_else_happens():
    stop = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop.install()
        assert stop() is None
        signal.raise_signal(signal.SIGTERM)
        assert stop() == "SIGTERM"
        signal.raise_signal(signal.SIGINT)
        assert stop() == "SIGINT"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_users_own_setting_for_waiting_threads_stands(before: dict[str, str], after: dict[str, str]):
    environment = dict(before)
    let_threads_sleep(environment)
    assert environment == after


@pytest.mark.skipif(sys.platform != "linux", reason="only there threads have priorities of their own")
def test_a_thread_lowers_its_own_priority_and_no_others():
    seen: list[int] = []

    def look() -> None:
        lower_priority()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
