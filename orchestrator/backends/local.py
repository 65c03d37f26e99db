"""Runs sessions as processes of this machine.

An attempt is alive while its process holds a lock; a pid would not prove it. The launching process takes the lock before it
starts the worker, and the worker inherits it. So an attempt that is alive never looks missing, even if either process is killed.

The lock comes from `flock`: it belongs to the open file, and so to every process that inherits the file. The library filelock
cannot pass a lock to a child, and Windows has no lock that a child inherits. So local sessions need Linux or macOS.
"""

from __future__ import annotations

import contextlib
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
    AttemptStatus,
    ConfigWishes,
    Finding,
    Observation,
    Ports,
    Quota,
    Services,
)
from orchestrator.signals import signal_group
from orchestrator.worker_process.command import require_training_extra
from state import crash_points, files
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
    """The note of an attempt's launch: the process that was started."""

    process: ProcessIdentity


class LocalBackend:
    """Runs each attempt as `python -m worker session.json`, in its own session and process group."""

    name = "local"
    poll_interval_s = 0.25  # a poll is cheap: it reads a lock and a few names
    can_be_run_by_hand = True
    lag_s = 0.0
    kill_note = ""

    def __init__(
        self,
        home: HomeLayout,
        environment: dict[str, str],
        command: Sequence[str] = (),
        bring_here: Callable[[str, str], object] = lambda _run, _checkpoint_id: None,
    ) -> None:
        """Use the home's attempt folders.

        Args:
            home: The home whose runs it serves.
            environment: The environment variables of the workers.
            command: The command that runs a session; empty: the worker. The path of the spec is appended.
            bring_here: Copies a checkpoint into the run's folder if it is not there; gets the run's name and the checkpoint's id.
        """
        self._home = home
        self._environment = environment
        self._command = command or command_of("worker")
        self._bring_here = bring_here
        self._children: dict[tuple[str, int, int], subprocess.Popen[bytes]] = {}

    def quota(self, now: datetime) -> Quota:
        """Return that another session is always possible: a run has one at a time."""
        return Quota(available=True)

    def make_ready(self, spec: SessionSpec) -> None:
        """Copy the session's start checkpoint into the run's folder, if an earlier session saved it elsewhere.

        Raises:
            CorruptCheckpointError: the checkpoint is corrupt.
            TemporaryError: it cannot be copied now.
        """
        if spec.start is not None:
            self._bring_here(spec.run, spec.start.id)

    def launch(self, spec: SessionSpec) -> str:
        """Start an attempt's process and return its pid.

        Raises:
            AmbiguousError: it was launched before, or its lock is held, by its worker or by a process that polls it now.
            TemporaryError: the process could not be started.
        """
        folder = self._home.run(spec.run).attempt(spec.session, spec.attempt)
        try:
            child = self._start(folder, spec)
        except OSError as error:
            raise TemporaryError(f"the worker's process could not be started: {error}") from error
        self._children[spec.run, spec.session, spec.attempt] = child
        crash_points.done("launch", folder.root.name)
        try:
            files.write_atomically(folder.launched, Launched(process=identify(child.pid)).to_json())
        except OSError as error:
            raise AmbiguousError(f"the worker was started, but its launch could not be recorded: {error}") from error
        return str(child.pid)

    def _start(self, folder: AttemptLayout, spec: SessionSpec) -> subprocess.Popen[bytes]:
        files.make_folder(folder.root)
        lock = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _take(lock, shared=False) or folder.launched.exists():
                raise AmbiguousError(f"session {spec.session} attempt {spec.attempt} is launched already")
            files.write_atomically(folder.spec, spec.to_json())
            with open(folder.log, "ab") as log:
                return subprocess.Popen(
                    [*self._command, str(folder.spec)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, LOCK_FD_VARIABLE: str(lock), "PYTHONUNBUFFERED": "1"},
                    pass_fds=(lock,),
                    start_new_session=True,  # so that Ctrl-C at the terminal reaches the controller only
                )
        finally:
            os.close(lock)  # the child's copy of the descriptor keeps the lock

    def observe(self, ref: AttemptRef) -> Observation:
        """Return whether an attempt's process is running, has ended, or was never started."""
        folder = self._folder(ref)
        child = self._children.get((ref.run, ref.session, ref.attempt))
        exit_code = child.poll() if child is not None else None  # this also reaps a dead child
        if _is_locked(folder.lock):
            return Observation(AttemptStatus.RUNNING, "" if child is not None else self._elsewhere(ref))
        traces = (folder.launched, folder.heartbeat, folder.report)
        if not any(path.exists() for path in traces):
            return Observation(AttemptStatus.MISSING)
        return Observation(AttemptStatus.ENDED, _how_it_ended(exit_code), _last_sign(folder))

    def _elsewhere(self, ref: AttemptRef) -> str:
        """Describe where the process of an attempt runs, if it is not visible from here; else return an empty text."""
        launched, _ = self._processes(ref)
        if launched is None or certainly_alive(launched) or certainly_dead(launched):
            return ""
        return _whereabouts(launched)

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, if it has written one."""
        data = _read(self._folder(ref).report)
        return SessionReport.from_json(data, "the session's report") if data is not None else None

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return the last heartbeat of an attempt, if it can be read."""
        data = _read(self._folder(ref).heartbeat)
        try:
            return Heartbeat.from_json(data, "the heartbeat") if data is not None else None
        except DataError:
            return None  # it is only shown, and a worker of another version may write another form

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Ask an attempt to save at its next step boundary and end."""
        path = self._folder(ref).stop
        if not path.exists():
            files.write_atomically(path, b"")

    def kill(self, ref: AttemptRef) -> None:
        """Kill an attempt's process and its children, if it is certainly the process that was started for the attempt.

        Otherwise ask the worker to save and end; it reads the request from its folder, wherever it runs.

        Raises:
            OutOfReachError: the worker is another process, or is not visible from here; the error names it.
            TemporaryError: the worker's process is not known yet.
        """
        launched, beating = self._processes(ref)
        # A controller that was killed right after the launch left no note of it; then use the process named in the heartbeat.
        process = launched or beating
        if self._kill_child(ref) or (process is not None and signal_group(process, signal.SIGKILL)):
            crash_points.done("signal", "SIGKILL")
            return
        known = [each for each in (beating, launched) if each is not None]
        living = [each for each in known if not certainly_dead(each)]
        lock = self._folder(ref).lock
        if not _is_locked(lock) or (known and not living):  # it has ended, or will within a moment
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
        """Kill the process group of an attempt that this process started; return whether it did.

        Until this process reaps its child, the system gives the child's pid to no other process.
        """
        child = self._children.get((ref.run, ref.session, ref.attempt))
        if child is None or child.poll() is not None:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended; macOS says so with EPERM
            os.killpg(child.pid, signal.SIGKILL)
        return True

    def _processes(self, ref: AttemptRef) -> tuple[ProcessIdentity | None, ProcessIdentity | None]:
        """Return the process that was started for an attempt and the one that writes its heartbeat; None if unknown."""
        data, heartbeat = _read(self._folder(ref).launched), self.heartbeat(ref)
        launched = Launched.from_json(data, "the note of the launch").process if data is not None else None
        return launched, heartbeat.process if heartbeat is not None else None

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return the attempt's log from an offset on, and the offset after it."""
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
    """Return the command that kills a process on its own machine.

    Earlier versions recorded no PID namespace; then the user must check the process first.
    """
    look = "" if process.pid_namespace else f"ps -fp {process.pid} there shows whether it still is the worker; "
    return f"{look}kill -KILL {process.pid} there ends it at once"


def _take(descriptor: int, *, shared: bool) -> bool:
    import fcntl  # not at the top: every command imports this module, and Windows has no fcntl

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
        return not _take(descriptor, shared=True)  # shared, so that two processes that poll do not take each other for a worker
    finally:
        os.close(descriptor)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    if exit_code is not None:
        return f"the worker ended without a report, exit code {exit_code}; gemma-orch logs shows what it printed"
    return "the worker ended without a report: it was killed, or the machine went down"


def _last_sign(folder: AttemptLayout) -> datetime | None:
    moments = [path.stat().st_mtime for path in (folder.report, folder.heartbeat, folder.log) if path.exists()]
    return datetime.fromtimestamp(max(moments), UTC) if moments else None


def _check_system() -> None:
    """Check that this system has locks that a child process inherits.

    Raises:
        UserError: it has none.
    """
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("sessions on this machine need Linux or macOS", remedy="--backend kaggle runs everywhere")


class OpenLocal:
    """The local backend for one home: it serves all runs, and checkpoints are in the runs' folders."""

    def __init__(self, services: Services) -> None:
        self._backend = LocalBackend(
            services.home,
            dict(services.environment),
            bring_here=lambda run, checkpoint_id: services.checkpoints(run).folder(checkpoint_id),
        )

    def backend(self, run: str) -> LocalBackend:
        """Return the backend.

        Raises:
            UserError: sessions cannot run on this system.
        """
        _check_system()
        return self._backend

    def checkpoints(self, run: str) -> None:
        """Return None: the checkpoints of local sessions are in the run's folder."""


class LocalKind:
    """The kind of backend that runs sessions as processes of this machine."""

    name = "local"
    trains_here = True
    has_live_check = False
    before_start = ""
    after_doctor = "gemma-orch start --total-steps 200"

    def check_run(self, name: str) -> None:
        """Check that sessions can run on this system and that the training extra is installed; every name is valid.

        Raises:
            UserError: sessions cannot run here, or the extra is missing.
        """
        _check_system()
        require_training_extra()

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        """Return the text of a config file, with the run's name if one is given.

        Raises:
            UserError: an owner is given, or the run's name is invalid.
        """
        if wishes.owner is not None:
            raise UserError(
                f"--owner {wishes.owner} is invalid: sessions on this machine have no account",
                remedy="leave --owner out, or choose another backend with --backend",
            )
        return TEMPLATE if wishes.name is None else named_template(wishes.name)

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        """Check whether sessions can run on this system; `doctor` checks their other needs for every backend."""
        try:
            _check_system()
        except UserError as error:
            return (Finding(subject="system", found=error.what, ok=False, remedy=error.remedy),)
        return ()

    def advice(self, ports: Ports, record: RunRecord) -> str:
        """Return an empty text: nothing needs to be fetched from elsewhere."""
        return ""

    def open(self, services: Services) -> OpenLocal:
        """Return the local backend for a home."""
        return OpenLocal(services)
