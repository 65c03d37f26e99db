from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from state.errors import UserError
from worker.process import (
    StopRequest,
    deaf_to_interrupts,
    lower_priority,
    process_started_s,
    settle_threads,
)


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
    assert settle_threads(environment) == ""
    assert environment == {**after, "OMP_DYNAMIC": "FALSE"}


@pytest.mark.parametrize("setting", ["TRUE", " true ", "1"])
def test_a_setting_that_gives_fewer_threads_than_were_asked_for_is_overridden_and_said(setting: str):
    environment = {"OMP_DYNAMIC": setting}
    assert f"OMP_DYNAMIC={setting} makes products of matrices wrong" in settle_threads(environment)
    assert environment["OMP_DYNAMIC"] == "FALSE"


@pytest.mark.parametrize("setting", ["FALSE", "false", ""])
def test_the_right_setting_is_no_news(setting: str):
    assert settle_threads({"OMP_DYNAMIC": setting}, loaded={"torch"}) == ""


def test_when_torch_is_loaded_already_it_is_too_late_to_override_it():
    with pytest.raises(UserError, match="torch is loaded already"):
        settle_threads({"OMP_DYNAMIC": "TRUE"}, loaded={"torch"})


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


def test_ctrl_c_reaches_the_parent_again_afterwards() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with deaf_to_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
