from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestrator.signals import TO_THE_GROUP, _send, signal_group
from state.process import certainly_dead, identify
from tests.patience import wait_until
from tests.repository import ROOT

UNKNOWN_TO_ANY_KERNEL = 1 << 30
_LEADER = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'input()'], stdin=subprocess.PIPE)\n"
    "print(child.pid, flush=True)\n"
    "input()\n"
)


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    """A process that leads a session of its own and has started another one, whose pid it prints."""
    leader = subprocess.Popen(
        [sys.executable, "-S", "-c", _LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield leader
    leader.kill()
    leader.communicate()


@pytest.mark.parametrize("flags", [(), (UNKNOWN_TO_ANY_KERNEL,)], ids=["this kernel", "an older kernel"])
def test_a_session_leader_and_what_it_has_started_get_the_signal(leader: subprocess.Popen[str], flags: tuple[int, ...]) -> None:
    assert leader.stdout is not None
    follower = identify(int(leader.stdout.readline()))
    assert signal_group(identify(leader.pid), signal.SIGKILL, *flags)
    assert leader.wait() == -signal.SIGKILL
    wait_until(lambda: certainly_dead(follower))


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace", "started"])
def test_a_process_that_differs_in_anything_gets_no_signal(leader: subprocess.Popen[str], field: str) -> None:
    for value in ("", "another"):
        assert not signal_group(identify(leader.pid).evolve(**{field: value}), signal.SIGKILL)
    assert leader.poll() is None


def test_a_process_that_leads_no_session_gets_no_signal() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, process_group=0)
    assert not signal_group(identify(child.pid), signal.SIGKILL)
    child.communicate(b"\n")
    assert child.returncode == 0


def test_a_process_that_is_gone_gets_no_signal(leader: subprocess.Popen[str]) -> None:
    identity = identify(leader.pid)
    leader.kill()
    leader.wait()
    assert not signal_group(identity, signal.SIGKILL)


def test_a_process_that_ends_after_the_look_is_not_sent_a_signal_by_its_number(
    leader: subprocess.Popen[str],
) -> None:
    descriptor = os.pidfd_open(leader.pid)
    leader.kill()
    leader.wait()
    try:
        with pytest.raises(ProcessLookupError):
            _send(descriptor, os.getpgrp(), signal.SIGKILL, TO_THE_GROUP)  # by number, this very test would be killed
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_left_alone(leader: subprocess.Popen[str]) -> None:
    program = (
        "import os, signal, sys\n"
        "from orchestrator.signals import signal_group\n"
        "from state.process import identify\n"
        "root = identify(int(sys.argv[1]))\n"
        "os.setuid(65534)\n"
        "assert not signal_group(root, signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(leader.pid)], cwd=ROOT, check=True)
    assert leader.poll() is None


def test_a_python_that_was_built_without_process_descriptors_signals_by_the_number(leader: subprocess.Popen[str]) -> None:
    """Such builds are in use; there `stop --now` ended with a stack trace."""
    program = (
        "import os, signal, sys\n"
        "del os.pidfd_open, signal.pidfd_send_signal\n"
        "from orchestrator.signals import signal_group\n"
        "from state.process import identify\n"
        "sys.exit(0 if signal_group(identify(int(sys.argv[1])), signal.SIGKILL) else 1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(leader.pid)], cwd=ROOT, check=True)
    assert leader.wait() == -signal.SIGKILL
