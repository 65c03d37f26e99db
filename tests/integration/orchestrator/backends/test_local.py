from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backends.local import Launched, LocalBackend
from orchestrator.ports import AttemptStatus
from state import crash_points
from state.errors import AmbiguousError, DataError, OutOfReachError, TemporaryError, UserError
from state.layout import AttemptLayout, HomeLayout
from state.process import ProcessIdentity, identify
from state.report import Heartbeat, Phase
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import RUN, START, commit_checkpoint, session_spec
from tests.patience import wait_until
from tests.repository import ROOT
from tests.stages import local_backend, ref, stand_in, wait_until_over


@pytest.fixture
def folder(tmp_path: Path) -> AttemptLayout:
    """Where attempt 1 of session 1 lies."""
    return HomeLayout(tmp_path).run(RUN).attempt(1, 1)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[LocalBackend]:
    """A backend whose sessions wait; whatever it has started is ended in the end."""
    backend = local_backend(tmp_path, "wait")
    yield backend
    backend.kill(ref())
    wait_until(lambda: backend.observe(ref()).sighting is not AttemptStatus.RUNNING)


def has_begun(backend: LocalBackend) -> bool:
    return backend.heartbeat(ref()) is not None


def test_a_worker_gets_its_spec_a_log_and_the_lock(tmp_path: Path, folder: AttemptLayout) -> None:
    backend = local_backend(tmp_path, "finish")
    handle = backend.launch(session_spec())
    wait_until_over(backend)
    assert Launched.from_json(folder.launched.read_bytes(), "").process.pid == int(handle)
    assert folder.spec.read_bytes() == session_spec().to_json()
    text, offset = backend.read_log(ref(), 0)
    assert text == "नमस्ते from the stand-in\n"
    assert backend.read_log(ref(), offset) == ("", offset)


def test_what_a_running_worker_says_can_be_read(waiting: LocalBackend) -> None:
    waiting.launch(session_spec())
    wait_until(lambda: has_begun(waiting))
    heartbeat = waiting.heartbeat(ref())
    assert heartbeat is not None
    assert heartbeat.step == 1


def test_a_heartbeat_of_another_version_is_none_at_all(waiting: LocalBackend, folder: AttemptLayout) -> None:
    folder.root.mkdir(parents=True)
    folder.heartbeat.write_text('{"schema_version": 9}')
    assert waiting.heartbeat(ref()) is None


def test_a_report_that_cannot_be_understood_is_an_error_and_not_no_report(waiting: LocalBackend, folder: AttemptLayout) -> None:
    folder.root.mkdir(parents=True)
    folder.report.write_text("{}")
    with pytest.raises(DataError, match="the session's report is not a valid SessionReport"):
        waiting.report(ref())


def test_whoever_holds_the_lock_is_running_even_when_nothing_else_is_known(waiting: LocalBackend, folder: AttemptLayout) -> None:
    folder.root.mkdir(parents=True)
    with open(folder.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert waiting.observe(ref()).sighting is AttemptStatus.RUNNING
        with pytest.raises(AmbiguousError):
            waiting.launch(session_spec())
    assert waiting.observe(ref()).sighting is AttemptStatus.MISSING


def test_two_who_look_at_once_do_not_take_each_other_for_a_worker(waiting: LocalBackend, folder: AttemptLayout) -> None:
    folder.root.mkdir(parents=True)
    with open(folder.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert waiting.observe(ref()).sighting is AttemptStatus.MISSING


def test_a_worker_outlives_the_controller_that_launched_it_at_every_instant(tmp_path: Path, folder: AttemptLayout) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from state import crash_points\n"
        "from tests.factories import session_spec\n"
        "from tests.stages import local_backend\n"
        "def die(kind, what):\n"
        "    if kind == 'launch': os.kill(os.getpid(), signal.SIGKILL)\n"
        "crash_points.observe(die)\n"
        "local_backend(Path(sys.argv[1]), 'wait').launch(session_spec())\n"
    )
    dead = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert not folder.launched.exists()
    backend = local_backend(tmp_path, "wait")
    assert backend.observe(ref()).sighting is AttemptStatus.RUNNING
    with pytest.raises(AmbiguousError):
        backend.launch(session_spec())
    wait_until(lambda: has_begun(backend))
    backend.kill(ref())  # its process is known from its heartbeat alone
    wait_until(lambda: backend.observe(ref()).sighting is AttemptStatus.ENDED)


def test_how_it_ended_is_said_as_far_as_it_is_known(tmp_path: Path) -> None:
    vanishing = local_backend(tmp_path, "vanish")
    vanishing.launch(session_spec())
    wait_until_over(vanishing)
    assert "exit code 7" in vanishing.observe(ref()).detail
    assert vanishing.observe(ref()).ended_at is not None
    stranger = local_backend(tmp_path, "vanish")
    assert "it was killed, or the machine went down" in stranger.observe(ref()).detail


def test_a_signal_is_named(waiting: LocalBackend) -> None:
    waiting.launch(session_spec())
    waiting.kill(ref())
    wait_until_over(waiting)
    assert waiting.observe(ref()).detail == "killed by SIGKILL"


def test_a_process_that_has_got_the_pid_of_a_dead_worker_is_not_killed(
    waiting: LocalBackend, folder: AttemptLayout, innocent: subprocess.Popen[bytes]
) -> None:
    dead = identify(innocent.pid).evolve(started="long ago")
    folder.root.mkdir(parents=True)
    folder.launched.write_bytes(Launched(process=dead).to_json())
    waiting.kill(ref())


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this host that leads a session, and must be alive in the end."""
    innocent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield innocent
    assert innocent.poll() is None
    innocent.communicate(b"\n")
    assert innocent.returncode == 0


@pytest.fixture
def held(waiting: LocalBackend, folder: AttemptLayout) -> Iterator[None]:
    """The lock of the attempt, held by its worker wherever that is, and let go before the backend ends what runs."""
    folder.root.mkdir(parents=True)
    with open(folder.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def heartbeat_of(pid: int, process: ProcessIdentity | None) -> bytes:
    beat = Heartbeat(at=START, pid=pid, process=process, phase=Phase.TRAINING, start_step=0, step=1, left_s=1.0)
    return beat.to_json()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(
    "changed",
    [{"host": "box"}, {"boot_id": "another"}, {"pid_namespace": "pid:[7]"}, {"boot_id": "", "pid_namespace": ""}],
    ids=["another host", "another boot", "a container", "an earlier version"],
)
def test_a_worker_that_runs_elsewhere_is_told_of_and_asked_to_stop_and_nothing_here_is_killed(
    waiting: LocalBackend, folder: AttemptLayout, innocent: subprocess.Popen[bytes], changed: dict[str, str]
) -> None:
    elsewhere = identify(innocent.pid).evolve(**changed)
    folder.launched.write_bytes(Launched(process=elsewhere).to_json())
    with pytest.raises(OutOfReachError) as caught:
        waiting.kill(ref())
    where = f"its worker is process {innocent.pid} on {elsewhere.host}"
    where += f", PID namespace {elsewhere.pid_namespace} (this is" if elsewhere.pid_namespace else " (this is"
    assert where in caught.value.what
    assert f"kill -KILL {innocent.pid} there ends it at once" in caught.value.remedy
    assert ("shows whether it still is the worker" in caught.value.remedy) == (elsewhere.pid_namespace == "")
    assert caught.value.exit_code == 3
    assert folder.stop.exists()
    assert waiting.observe(ref()).sighting is AttemptStatus.RUNNING
    assert where in waiting.observe(ref()).detail


@pytest.mark.usefixtures("held")
def test_a_worker_that_is_run_by_hand_is_told_of_and_not_killed(waiting: LocalBackend, folder: AttemptLayout) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = identify(child.pid).evolve(started="long ago")
    folder.launched.write_bytes(Launched(process=dead).to_json())
    folder.heartbeat.write_bytes(heartbeat_of(child.pid, identify(child.pid)))
    with pytest.raises(OutOfReachError, match=f"its worker is process {child.pid} on"):
        waiting.kill(ref())
    assert child.poll() is None
    child.communicate(b"\n")


@pytest.mark.usefixtures("held")
def test_a_worker_that_has_just_been_killed_is_waited_for(waiting: LocalBackend, folder: AttemptLayout) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = identify(child.pid)
    child.wait()
    folder.launched.write_bytes(Launched(process=process).to_json())
    waiting.kill(ref())
    assert not folder.stop.exists()


@pytest.mark.usefixtures("held")
def test_a_pid_in_a_heartbeat_is_no_proof_of_anything(
    waiting: LocalBackend, folder: AttemptLayout, innocent: subprocess.Popen[bytes]
) -> None:
    folder.heartbeat.write_bytes(heartbeat_of(innocent.pid, process=None))
    with pytest.raises(TemporaryError, match="its process is not known yet") as caught:
        waiting.kill(ref())
    assert not isinstance(caught.value, OutOfReachError)
    assert str(folder.lock) in caught.value.remedy


def test_killing_what_is_over_is_harmless(
    waiting: LocalBackend, folder: AttemptLayout, innocent: subprocess.Popen[bytes]
) -> None:
    folder.root.mkdir(parents=True)
    folder.heartbeat.write_bytes(heartbeat_of(innocent.pid, process=None))
    waiting.kill(ref())
    assert not folder.stop.exists()


def test_a_command_that_does_not_exist_was_certainly_not_launched(tmp_path: Path) -> None:
    backend = LocalBackend(HomeLayout(tmp_path), {}, ["/nowhere/python"])
    with pytest.raises(TemporaryError, match="could not be started") as caught:
        backend.launch(session_spec())
    assert not isinstance(caught.value, AmbiguousError)
    assert backend.observe(ref()).sighting is AttemptStatus.MISSING


def test_a_link_in_the_place_of_a_sessions_folder_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", HomeLayout(tmp_path).run(RUN).attempt(1, 1).root
    outside.mkdir()
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    with pytest.raises(UserError, match="is a link, or a file"):
        local_backend(tmp_path, "finish").launch(session_spec())
    assert list(outside.iterdir()) == []


def test_what_a_session_starts_from_is_brought_here_first(tmp_path: Path) -> None:
    brought: list[tuple[str, str]] = []
    backend = LocalBackend(
        HomeLayout(tmp_path), {}, stand_in("finish"), bring_here=lambda run, checkpoint_id: brought.append((run, checkpoint_id))
    )
    start = commit_checkpoint(DirectoryCheckpointStore(tmp_path / "elsewhere"), 10).expected("0" * 64)
    backend.make_ready(session_spec())
    backend.make_ready(session_spec(2, start=start))
    assert brought == [(RUN, start.id)]


def test_a_home_that_cannot_be_written_launches_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, where a folder should be")
    with pytest.raises(TemporaryError, match="could not be started"):
        local_backend(tmp_path, "finish").launch(session_spec())


def test_a_launch_that_cannot_be_noted_is_ambiguous(tmp_path: Path, folder: AttemptLayout) -> None:
    backend = local_backend(tmp_path, "vanish")

    def lose_the_disk(kind: crash_points.EffectKind, what: str) -> None:
        if kind == "launch":
            shutil.rmtree(folder.root)

    crash_points.observe(lose_the_disk)
    try:
        with pytest.raises(AmbiguousError, match="could not be recorded"):
            backend.launch(session_spec())
    finally:
        crash_points.observe(None)
    child = backend._children[RUN, 1, 1]
    child.wait()
