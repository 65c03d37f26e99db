from __future__ import annotations

import os
import subprocess
import sys

import pytest

from state.process import ProcessIdentity, certainly_dead, identify


def test_a_living_process_is_not_dead() -> None:
    me = identify(os.getpid())
    assert me.pid == os.getpid()
    assert not certainly_dead(me)


def test_a_process_that_has_ended_is_dead_even_before_its_parent_has_noticed() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    assert not certainly_dead(identity)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still a zombie
    assert certainly_dead(identity)
    child.wait()
    assert certainly_dead(identity)


def test_another_process_with_the_same_pid_is_another_process() -> None:
    assert certainly_dead(identify(os.getpid()).model_copy(update={"started": "1"}))


def test_of_a_process_of_another_machine_nothing_is_certain() -> None:
    assert not certainly_dead(ProcessIdentity(host="elsewhere", pid=2**22 + 1, started="1"))


def test_a_process_that_belongs_to_somebody_else_may_live() -> None:
    init = identify(1)
    assert not certainly_dead(init)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not signal process 1")
def test_a_process_that_we_may_not_signal_is_told_by_its_start_time() -> None:
    program = (
        "import os\n"
        "from state.process import certainly_dead, identify\n"
        "init = identify(1)\n"
        "os.setuid(65534)\n"
        "assert not certainly_dead(init)\n"
        "assert certainly_dead(init.model_copy(update={'started': 'long ago'}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_process_that_never_was_has_no_start() -> None:
    assert identify(2**22 + 1).started == ""
