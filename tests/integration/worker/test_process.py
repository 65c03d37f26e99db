from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.repository import ROOT
from worker.process import belong_to_the_parent, deaf_to_interrupts, process_started_s


def test_the_process_started_before_now_and_not_long_ago():
    now_s = time.monotonic()
    started_s = process_started_s()
    assert started_s < now_s
    code = "import time; time.sleep(0.3); from worker.process import process_started_s as s; print(time.monotonic() - s())"
    begun_s = time.monotonic()
    age_s = float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert 0.3 <= age_s <= time.monotonic() - begun_s + 0.02  # the system counts in hundredths of a second


_IS_DYNAMIC = """
import ctypes, os, sys
from worker.process import settle_threads
if sys.argv[1] == "settled":
    settle_threads(os.environ, sys.modules)
import torch
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(*(ctypes.CDLL(path).omp_get_dynamic() for path in libraries))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where else the libraries of a process are listed is not known")
@pytest.mark.parametrize(("how", "dynamic"), [("as it was", 1), ("settled", 0)])
def test_openmp_itself_hears_of_the_setting(how: str, dynamic: int):
    child = subprocess.run(
        [sys.executable, "-c", _IS_DYNAMIC, how],
        cwd=ROOT,
        env={**os.environ, "OMP_DYNAMIC": "TRUE"},
        capture_output=True,
        check=True,
    )
    found = {int(answer) for answer in child.stdout.split()}
    assert found in ({dynamic}, set())  # none: a torch that comes with another OpenMP


def test_ctrl_c_does_not_reach_a_child_that_is_only_beginning() -> None:
    child = multiprocessing.get_context("spawn").Process(target=belong_to_the_parent)
    with deaf_to_interrupts():
        child.start()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 0
