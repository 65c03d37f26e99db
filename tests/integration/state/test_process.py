from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from state.process import ProcessIdentity, ProcessStatus, certainly_alive, certainly_dead, identify, look_through_psutil
from tests.repository import ROOT

_CAN_MAKE_NAMESPACES = (
    shutil.which("unshare") is not None and subprocess.run(["unshare", "-p", "-f", "true"], check=False).returncode == 0
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its standard input is closed."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield child
    child.communicate()


def end(child: subprocess.Popen[bytes]) -> None:
    """Let a process end, and leave it a zombie."""
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_living_process_is_alive_and_not_dead() -> None:
    me = identify(os.getpid())
    assert me.pid == os.getpid()
    assert (certainly_alive(me), certainly_dead(me)) == (True, False)


@pytest.mark.parametrize(
    ("changed", "dead"),
    [
        ({"started": "1"}, True),  # its pid is another process's by now
        ({"started": ""}, False),  # the kernel did not tell
        ({"host": "elsewhere"}, False),
        ({"boot_id": "an earlier one"}, False),  # or another machine of the same name
        ({"pid_namespace": "pid:[1]"}, False),  # there the pid means another process
        ({"boot_id": "", "pid_namespace": ""}, False),  # an earlier version wrote it
    ],
    ids=["reused pid", "unknown start", "other host", "other boot", "other namespace", "earlier version"],
)
@pytest.mark.parametrize("ended", [False, True], ids=["pid is in use", "pid is free"])
def test_only_a_process_that_could_be_seen_from_here_is_ever_called_dead_or_alive(
    child: subprocess.Popen[bytes], changed: dict[str, str], dead: bool, ended: bool
) -> None:
    identity = identify(child.pid).evolve(**changed)
    seen_from_here = set(changed) == {"started"}
    if ended:
        child.communicate()
    assert not certainly_alive(identity)
    assert certainly_dead(identity) == (dead or (ended and seen_from_here))


def test_a_process_that_has_ended_is_dead_even_before_its_parent_has_noticed(child: subprocess.Popen[bytes]) -> None:
    identity = identify(child.pid)
    assert not certainly_dead(identity)
    end(child)
    assert (certainly_alive(identity), certainly_dead(identity)) == (False, True)
    assert identify(child.pid).started == ""
    child.wait()
    assert (certainly_alive(identity), certainly_dead(identity)) == (False, True)


def test_what_an_earlier_version_wrote_is_still_read() -> None:
    old = ProcessIdentity.from_json('{"host": "desk", "pid": 7, "started": "10"}', "an old note")
    assert (old.boot_id, old.pid_namespace) == ("", "")


def test_a_process_that_belongs_to_somebody_else_may_live() -> None:
    init = identify(1)
    assert not certainly_dead(init)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not signal process 1")
def test_a_process_that_we_may_not_signal_is_told_by_its_start_time() -> None:
    program = (
        "import os\n"
        "from state.process import certainly_dead, identify\n"
        "init = identify(1)\n"
        "os.setuid(65534)\n"
        "assert not certainly_dead(init)\n"
        "assert certainly_dead(init.evolve(started='long ago'))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_process_that_never_was_has_no_start() -> None:
    for pid in (2**22 + 1, 2**40):
        never = identify(os.getpid()).evolve(pid=pid)
        assert identify(pid).started == ""
        assert (certainly_alive(never), certainly_dead(never)) == (False, True)


def test_on_linux_the_start_time_is_the_one_that_earlier_versions_wrote() -> None:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert identify(os.getpid()).started == fields[19]


def test_a_process_is_told_by_what_psutil_says_where_there_is_no_proc(child: subprocess.Popen[bytes]) -> None:
    look = look_through_psutil(psutil)
    identity = identify(child.pid, look)
    assert float(identity.started) == pytest.approx(psutil.Process(child.pid).create_time(), abs=0.001)
    assert (certainly_alive(identity, look), certainly_dead(identity, look)) == (True, False)
    reused = identity.evolve(started=f"{float(identity.started) - 100:.3f}")
    assert (certainly_alive(reused, look), certainly_dead(reused, look)) == (False, True)
    end(child)
    assert (certainly_alive(identity, look), certainly_dead(identity, look)) == (False, True)
    child.wait()
    assert (certainly_alive(identity, look), certainly_dead(identity, look)) == (False, True)


class PlayedProcess:
    """A process of a system whose clock can be set, as psutil shows it on macOS."""

    clock_moved_s = 0.0

    def __init__(self, pid: int = 7) -> None:
        self.pid = pid

    def create_time(self) -> float:
        if self.pid == 1:
            raise psutil.AccessDenied(1)
        return 1_800_000_000.25 + self.pid + self.clock_moved_s

    def status(self) -> str:
        return "running"


@pytest.fixture
def played() -> type[PlayedProcess]:
    """A class of its own, so that a clock that is set stays set for one test only."""
    return type("Played", (PlayedProcess,), {})


def test_what_psutil_may_not_see_is_neither_dead_nor_alive(played: type[PlayedProcess]) -> None:
    look = look_through_psutil(played_psutil(played))
    assert look(1) is None
    init = identify(1, look)
    assert init.started == ""
    assert (certainly_alive(init, look), certainly_dead(init, look)) == (False, False)


def test_when_the_clock_was_set_no_start_time_of_psutil_is_believed(played: type[PlayedProcess]) -> None:
    look = look_through_psutil(played_psutil(played))
    identity = identify(8, look)
    assert look(8) == ProcessStatus(started="1800000008.250")
    assert certainly_alive(identity, look)
    played.clock_moved_s = 5.0
    assert (certainly_alive(identity, look), certainly_dead(identity, look)) == (False, False)
    assert identify(8, look).started == ""


def played_psutil(process: type[PlayedProcess]) -> SimpleNamespace:
    return SimpleNamespace(
        Process=process, NoSuchProcess=psutil.NoSuchProcess, Error=psutil.Error, STATUS_ZOMBIE=psutil.STATUS_ZOMBIE
    )


def identified_below(*command: str) -> ProcessIdentity:
    """What a process that is started below a command says of itself."""
    program = "import os; from state.process import identify; print(identify(os.getpid()).to_json().decode())"
    said = subprocess.run([*command, sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout
    return ProcessIdentity.from_json(said, "what it says")


@pytest.mark.skipif(not _CAN_MAKE_NAMESPACES, reason="only root can make PID namespaces")
def test_a_process_of_a_container_is_not_taken_for_the_one_that_has_its_pid_here() -> None:
    inside, here = identified_below("unshare", "-p", "-f", "--mount-proc"), identify(1)
    assert (inside.host, inside.boot_id, inside.pid) == (here.host, here.boot_id, here.pid)
    assert inside.pid_namespace not in ("", here.pid_namespace)
    assert (certainly_alive(inside), certainly_dead(inside)) == (False, False)


@pytest.mark.skipif(not _CAN_MAKE_NAMESPACES, reason="only root can make PID namespaces")
def test_where_proc_shows_the_processes_of_another_namespace_nothing_is_believed() -> None:
    misled = identified_below("unshare", "-p", "-f")
    assert (misled.pid, misled.pid_namespace) == (1, "")
    assert (certainly_alive(misled), certainly_dead(misled)) == (False, False)


@pytest.mark.skipif(not _CAN_MAKE_NAMESPACES, reason="only root can take /proc away")
def test_where_the_kernel_tells_nothing_nothing_is_certain() -> None:
    unknown = identified_below("unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$0" "$@"')
    assert (unknown.started, unknown.boot_id, unknown.pid_namespace) == ("", "", "")
    assert (certainly_alive(unknown), certainly_dead(unknown)) == (False, False)
