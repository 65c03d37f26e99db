"""Sessions as processes of this machine.

Whether an attempt lives is told by a lock that its process holds, not by a pid: the lock is taken before the process is
started and inherited by it, so that at no instant can an attempt be alive and look missing, whoever is killed when.

It is flock's lock, which belongs to the open file and so to every process that has inherited it. The library filelock hands no
lock on to a child, and Windows has none that a child inherits: sessions here need Linux or macOS.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.config import TEMPLATE, named_template
from orchestrator.interpreter import command_of
from orchestrator.ports import (
    AttemptRef,
    ConfigWishes,
    Finding,
    Observation,
    Ports,
    Quota,
    Services,
    Sighting,
)
from orchestrator.signals import signal_group
from orchestrator.worker_process.command import require_training_extra
from state import effects, files
from state.document import Document
from state.errors import AmbiguousError, DataError, OutOfReachError, TemporaryError, UserError
from state.layout import AttemptLayout, HomeLayout
from state.ledger import RunRecord
from state.process import ProcessIdentity, certainly_alive, certainly_dead, identify
from state.report import Heartbeat, SessionReport
from state.spec import SessionSpec

LOCK_FD_VARIABLE = "GEMMA_ORCH_LOCK_FD"
_LOG_CHUNK_BYTES = 1_000_000


class Launched(Document):
    """Which process was started for an attempt."""

    process: ProcessIdentity


class LocalBackend:
    """Runs each attempt as `python -m worker session.json`, in a process group of its own."""

    name = "local"
    look_every_s = 0.25  # a look is cheap: a lock, a folder's names
    can_be_run_by_hand = True
    lag_s = 0.0
    killing = ""

    def __init__(
        self,
        home: HomeLayout,
        environment: dict[str, str],
        command: Sequence[str] = (),
        bring_here: Callable[[str, str], object] = lambda _run, _checkpoint_id: None,
    ) -> None:
        """Use the home's attempt folders.

        Args:
            home: Where the runs lie.
            environment: What the workers get as their environment.
            command: What runs a session; none: the worker. The path of its spec is added.
            bring_here: Brings a checkpoint of a run, by the run's name and its id, into the run's folder, unless it lies there.
        """
        self._home = home
        self._environment = environment
        self._command = command or command_of("worker")
        self._bring_here = bring_here
        self._children: dict[tuple[str, int, int], subprocess.Popen[bytes]] = {}

    def quota(self, now: datetime) -> Quota:
        """Return that this machine always takes another session: a run has one at a time."""
        return Quota(available=True)

    def make_ready(self, spec: SessionSpec) -> None:
        """Bring the checkpoint that the session starts from here, should it lie elsewhere: a run may have trained there before.

        Raises:
            CorruptCheckpointError: it is not what it should be.
            TemporaryError: it cannot be brought now.
        """
        if spec.start is not None:
            self._bring_here(spec.run, spec.start.id)

    def launch(self, spec: SessionSpec) -> str:
        """Start an attempt's process, unless it lives already, and return its pid.

        Raises:
            AmbiguousError: it was launched before, or somebody holds its lock: it lives, or is being looked at.
            TemporaryError: the process could not be started.
        """
        folder = self._home.run(spec.run).attempt(spec.session, spec.attempt)
        try:
            child = self._start(folder, spec)
        except OSError as error:
            raise TemporaryError(f"the worker's process could not be started: {error}") from error
        self._children[spec.run, spec.session, spec.attempt] = child
        effects.done("launch", folder.root.name)
        try:
            files.write_atomically(folder.launched, Launched(process=identify(child.pid)).to_json())
        except OSError as error:
            raise AmbiguousError(f"the worker was started, and that cannot be written down: {error}") from error
        return str(child.pid)

    def _start(self, folder: AttemptLayout, spec: SessionSpec) -> subprocess.Popen[bytes]:
        files.make_folder(folder.root)
        lock = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _take(lock, shared=False) or folder.launched.exists():
                raise AmbiguousError(f"session {spec.session} attempt {spec.attempt} was launched already")
            files.write_atomically(folder.spec, spec.to_json())
            with open(folder.log, "ab") as log:
                return subprocess.Popen(
                    [*self._command, str(folder.spec)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, LOCK_FD_VARIABLE: str(lock), "PYTHONUNBUFFERED": "1"},
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C at the terminal is for the controller alone
                )
        finally:
            os.close(lock)  # the child's copy keeps the lock

    def observe(self, ref: AttemptRef) -> Observation:
        """Return whether an attempt's process lives, has ended, or was never started."""
        folder = self._folder(ref)
        child = self._children.get((ref.run, ref.session, ref.attempt))
        exit_code = child.poll() if child is not None else None  # also lets the kernel forget a dead child
        if _is_locked(folder.lock):
            return Observation(Sighting.RUNNING, "" if child is not None else self._elsewhere(ref))
        traces = (folder.launched, folder.heartbeat, folder.report)
        if not any(path.exists() for path in traces):
            return Observation(Sighting.MISSING)
        return Observation(Sighting.ENDED, _how_it_ended(exit_code), _last_sign(folder))

    def _elsewhere(self, ref: AttemptRef) -> str:
        """Return where the process of an attempt runs, in words, when it cannot be seen from here."""
        launched, _ = self._processes(ref)
        if launched is None or certainly_alive(launched) or certainly_dead(launched):
            return ""
        return _whereabouts(launched)

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once there is one."""
        data = _read(self._folder(ref).report)
        return SessionReport.from_json(data, "the session's report") if data is not None else None

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return what a running attempt last said, if it can be read."""
        data = _read(self._folder(ref).heartbeat)
        try:
            return Heartbeat.from_json(data, "the heartbeat") if data is not None else None
        except DataError:
            return None  # it is only shown; a worker of another version may write another one

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Ask an attempt to save at its next step boundary and end."""
        path = self._folder(ref).stop
        if not path.exists():
            files.write_atomically(path, b"")

    def kill(self, ref: AttemptRef) -> None:
        """End an attempt's process at once, and what it has started, when that is surely the process that was started for it.

        Any other worker is asked to save and end, which it hears wherever it runs.

        Raises:
            OutOfReachError: it runs in another process, or in one that cannot be seen from here; the error says in which.
            TemporaryError: which process runs it is not known yet.
        """
        launched, beating = self._processes(ref)
        # A controller that was killed right after the launch has left no note of it: then the worker's own word counts.
        process = launched or beating
        if self._kill_child(ref) or (process is not None and signal_group(process, signal.SIGKILL)):
            effects.done("signal", "SIGKILL")
            return
        known = [each for each in (beating, launched) if each is not None]
        living = [each for each in known if not certainly_dead(each)]
        lock = self._folder(ref).lock
        if not _is_locked(lock) or (known and not living):  # it is over, or will be in a moment
            return
        self.ask_to_stop(ref)
        what = f"session {ref.session} attempt {ref.attempt} of {ref.run} cannot be ended from here, and is asked to save and end"
        if not living:
            raise TemporaryError(f"{what}: its process is not known yet", remedy=f"where it runs, fuser {lock} tells its pid")
        raise OutOfReachError(
            f"{what}: {_whereabouts(living[0])}",
            remedy=f"{_how_to_end(living[0])}; gemma-orch stop {ref.run} waits until it has ended",
        )

    def _kill_child(self, ref: AttemptRef) -> bool:
        """Kill the group of an attempt that this very process has started; its pid cannot be another's before we collect it."""
        child = self._children.get((ref.run, ref.session, ref.attempt))
        if child is None or child.poll() is not None:
            return False
        os.killpg(child.pid, signal.SIGKILL)
        return True

    def _processes(self, ref: AttemptRef) -> tuple[ProcessIdentity | None, ProcessIdentity | None]:
        """Return which process was started for an attempt, and which one writes its heartbeat, as far as either is known."""
        data, heartbeat = _read(self._folder(ref).launched), self.heartbeat(ref)
        launched = Launched.from_json(data, "the note of the launch").process if data is not None else None
        return launched, heartbeat.process if heartbeat is not None else None

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, and the offset after it."""
        path = self._folder(ref).log
        if not path.exists():
            return "", offset
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(_LOG_CHUNK_BYTES)
        return data.decode(errors="replace"), offset + len(data)

    def _folder(self, ref: AttemptRef) -> AttemptLayout:
        return self._home.run(ref.run).attempt(ref.session, ref.attempt)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _whereabouts(process: ProcessIdentity) -> str:
    namespace = f", PID namespace {process.pid_namespace}" if process.pid_namespace else ""
    here = identify(os.getpid())
    return f"its worker is {process}{namespace} (this is {here.host}, {here.pid_namespace or 'in an unknown namespace'})"


def _how_to_end(process: ProcessIdentity) -> str:
    """Return the command that ends a process where it runs; what an earlier version wrote down is to be looked at before."""
    look = "" if process.pid_namespace else f"ps -fp {process.pid} there shows whether it still is the worker; "
    return f"{look}kill -KILL {process.pid} there ends it at once"


def _take(descriptor: int, *, shared: bool) -> bool:
    import fcntl  # here, for Windows has none: every command imports this module

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor, shared=True)  # shared, so that two who look never take each other for a worker
    finally:
        os.close(descriptor)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    if exit_code is not None:
        return f"the worker ended without a report, exit code {exit_code}; gemma-orch logs shows what it printed"
    return "the worker's process is gone without a report: killed, or the machine went down"


def _last_sign(folder: AttemptLayout) -> datetime | None:
    moments = [path.stat().st_mtime for path in (folder.report, folder.heartbeat, folder.log) if path.exists()]
    return datetime.fromtimestamp(max(moments), UTC) if moments else None


def _check_system() -> None:
    """Check that this system has locks that a session's process inherits.

    Raises:
        UserError: it has none.
    """
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("sessions on this machine need Linux or macOS", remedy="--backend kaggle runs everywhere")


class OpenLocal:
    """This machine, opened over a home: one backend serves all runs, and their checkpoints lie in their folders."""

    def __init__(self, services: Services) -> None:
        self._backend = LocalBackend(
            services.home,
            dict(services.environment),
            bring_here=lambda run, checkpoint_id: services.checkpoints(run).folder(checkpoint_id),
        )

    def backend(self, run: str) -> LocalBackend:
        """Return the backend.

        Raises:
            UserError: this system runs no sessions.
        """
        _check_system()
        return self._backend

    def checkpoints(self, run: str) -> None:
        """Return none: the checkpoints of sessions here lie in the run's folder."""


class LocalKind:
    """Sessions as processes of this machine."""

    name = "local"
    trains_here = True
    has_live_check = False
    before_start = ""
    after_doctor = "gemma-orch start --total-steps 200"

    def check_run(self, name: str) -> None:
        """Check that this system runs sessions, and that what runs one is installed; any name will do.

        Raises:
            UserError: it does not, or something is missing.
        """
        _check_system()
        require_training_extra()

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        """Return the config file of every run.

        Raises:
            UserError: an owner is named, or the name cannot name a run.
        """
        if wishes.owner is not None:
            raise UserError(
                f"--owner {wishes.owner} is given, and sessions on this machine have no account",
                remedy="leave --owner out, or say with --backend where sessions shall run",
            )
        return TEMPLATE if wishes.name is None else named_template(wishes.name)

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        """Return what is wrong with this system; what sessions here need beside it is what `doctor` always looks at."""
        try:
            _check_system()
        except UserError as error:
            return (Finding(subject="system", found=error.what, ok=False, remedy=error.remedy),)
        return ()

    def advice(self, ports: Ports, record: RunRecord) -> str:
        """Return nothing: what was saved here lies here."""
        return ""

    def open(self, services: Services) -> OpenLocal:
        """Open this machine over a home."""
        return OpenLocal(services)
