"""Runs pushed scripts as processes, each in folders of its own, until they end or their time is up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from tests.kaggle_emulator import sandbox
from tests.kaggle_emulator.accounts import Accounts
from tests.kaggle_emulator.calls import Actor, Call
from tests.kaggle_emulator.clock import EmulatorClock
from tests.kaggle_emulator.faults import Fault, FaultPlan
from tests.kaggle_emulator.machines import nvidia_smi
from tests.kaggle_emulator.session_model import NEVER, OutputFile, Session
from tests.kaggle_emulator.settings import Settings

ROOT_VARIABLE = "KAGGLE_EMULATOR_ROOT"
"""The one deviation: where no namespace may be made, this folder's `input` and `working` play those of /kaggle."""

_KILL_GRACE_REAL_S = 60.0
_POLL_REAL_S = 0.02
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")


class Mounts(Protocol):
    """Fills a session's input folder with what its sources hold at that moment."""

    def __call__(self, session: Session, faults: Sequence[Fault], now: float) -> None:
        """Link the sources' files under `session.folder / "input"` and say in `session.mounted` what was taken."""
        ...


class Sessions:
    """All sessions, those that ended too."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        clock: EmulatorClock,
        accounts: Accounts,
        faults: FaultPlan,
        url: Callable[[], str],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._accounts = accounts
        self._faults = faults
        self._url = url
        self._all: list[Session] = []
        self._lock = threading.Lock()
        self._namespace: bool | None = {"namespace": True, "variable": False}.get(settings.sandbox)
        self.mount: Mounts | None = None

    def all(self) -> list[Session]:
        with self._lock:
            return list(self._all)

    def next_id(self) -> int:
        return len(self.all()) + 1

    def folder_of(self, session_id: int) -> Path:
        return self._folder / str(session_id)

    def start(self, session: Session, source: str) -> None:
        """Queue a session; its own thread does the rest."""
        struck = [fault for fault, _ in self._faults.strike(_world_call("SessionStart", session))]
        queue_s = next((fault.seconds or NEVER for fault in struck if fault.kind == "queue"), self._settings.queue_s)
        session.turn_at = session.pushed_at + queue_s
        with self._lock:
            self._all.append(session)
        threading.Thread(target=self._live, args=(session, source, struck), name=f"session-{session.id}", daemon=True).start()

    def close(self) -> None:
        """Kill every session and wait until nothing of it runs."""
        for session in self.all():
            session.stop.set()
        self._clock.advance(0)  # who waits for a moment hears of it
        for session in self.all():
            session.done.wait(_KILL_GRACE_REAL_S)

    def send_signal(self, session: Session, number: int = signal.SIGTERM) -> None:
        """Send a signal to the script's process group."""
        assert session.process_id is not None, "the session has no process"
        session.num_signals += 1
        os.killpg(session.process_id, number)

    def cut_off(self, session: Session) -> None:
        """End a session as its limit does, now."""
        session.limit_s = 0.0

    def max_live(self, prefix: str = "") -> int:
        """Give the most sessions of kernels whose slug begins so that were queued or running at one instant."""
        mine = [session for session in self.all() if session.slug.startswith(prefix)]
        return max((sum(other.is_live(session.pushed_at) for other in mine) for session in mine), default=0)

    def live(self, prefix: str = "") -> list[Session]:
        now = self._clock.now()
        return [session for session in self.all() if session.slug.startswith(prefix) and session.is_live(now)]

    # One session's life, in its own thread.

    def _live(self, session: Session, source: str, struck: Sequence[Fault]) -> None:
        try:
            if self._clock.wait_until(session.turn_at, session.stop):
                self._run(session, source, struck)
            else:
                self._end(session, "CANCEL_ACKNOWLEDGED")
        finally:
            if session.ended_at == NEVER:
                self._end(session, "ERROR", "The emulator failed.")
            self._accounts.revoke(session.token, session.secrets_token)
            session.done.set()

    def _run(self, session: Session, source: str, struck: Sequence[Fault]) -> None:
        for name in ("working", "input", "home", "temp", "src", "bin", "secrets", "root"):
            (session.folder / name).mkdir(parents=True, exist_ok=True)
        shape = next((fault.value or "None" for fault in struck if fault.kind == "shape"), session.shape)
        session.shape = shape
        assert self.mount is not None, "the emulator says how to mount"
        self.mount(session, struck, self._clock.now())
        process = self._spawn(session, source)
        session.started_at = self._clock.now()
        session.process_id = process.pid
        readers = [
            threading.Thread(target=self._read, args=(session, name, pipe), daemon=True)
            for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr))
            if pipe is not None
        ]
        for reader in readers:
            reader.start()
        in_time = self._wait(session, process, ends=not any(fault.kind == "never_end" for fault in struck))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        _kill_strays(_token_file(session))
        for reader in readers:
            reader.join(_KILL_GRACE_REAL_S)
        if session.stop.is_set() or not in_time:
            self._end(session, "CANCEL_ACKNOWLEDGED")
        elif code != 0:
            self._end(session, "ERROR", f"Your notebook was stopped because it exited with code {code}.")
        elif sum(file.size for file in _walk(session.working)) > self._settings.working_limit_bytes:
            self._end(session, "ERROR", "Your notebook tried to use more disk space than is available.")
        else:
            self._end(session, "COMPLETE")

    def _wait(self, session: Session, process: subprocess.Popen[bytes], *, ends: bool) -> bool:
        """Wait for the process; False at the limit. A session that must never end is RUNNING long after its process is gone."""
        grace_s = self._settings.sigterm_grace_s
        warned = False
        while not session.stop.is_set():
            now = self._clock.now()
            deadline = session.started_at + session.limit_s if ends else NEVER
            if now >= deadline:
                return False
            if grace_s is not None and not warned and now >= deadline - grace_s:
                warned = True
                self.send_signal(session)
            session.looked_at = now
            pause_s = min(max(self._clock.real(deadline - now), 0.001), _POLL_REAL_S)
            try:
                if ends:
                    process.wait(pause_s)
                    return True
                session.stop.wait(pause_s)
            except subprocess.TimeoutExpired:
                continue
        return True

    def _end(self, session: Session, outcome: str, failure_message: str = "") -> None:
        struck = [fault for fault, _ in self._faults.strike(_world_call("SessionEnd", session))]
        lost = any(fault.kind == "lose_outputs" for fault in struck)
        kept = outcome == "COMPLETE" or (outcome == "CANCEL_ACKNOWLEDGED" and self._settings.cancelled_outputs_kept)
        session.outputs = list(_walk(session.working)) if kept and not lost else []
        if not session.outputs:
            shutil.rmtree(session.working, ignore_errors=True)
        _set_writable(session.folder / "input", writable=True)
        for name in ("input", "temp"):
            shutil.rmtree(session.folder / name, ignore_errors=True)
        session.outcome, session.failure_message = outcome, failure_message
        session.ended_at = self._clock.now()

    def _spawn(self, session: Session, source: str) -> subprocess.Popen[bytes]:
        script = session.folder / "src" / "script.py"
        script.write_text(source, encoding="utf-8")
        smi = session.folder / "bin" / "nvidia-smi"
        smi.write_text(nvidia_smi(session.shape), encoding="ascii")
        smi.chmod(0o755)
        token_file = _token_file(session)
        token_file.write_text(session.token, encoding="ascii")
        token_file.chmod(0o600)
        if self.uses_namespaces():
            argv = self._namespaced(session)
            cwd, variables = session.folder, {}
        else:
            _set_writable(session.folder / "input", writable=False)
            argv, cwd = [self._settings.python, str(script)], session.working
            variables = {ROOT_VARIABLE: str(session.folder), "KAGGLE_CACHE_MOUNT_FOLDER": str(session.folder / "input")}
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env={**self._environment(session, token_file), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _namespaced(self, session: Session) -> list[str]:
        folders = {"working": True, "input": False, "temp": True, "src": True}
        plan = {
            "root": str(session.folder / "root"),
            "binds": {f"/kaggle/{name}": (str(session.folder / name), writable) for name, writable in folders.items()},
            "network": session.internet,
            "cwd": "/kaggle/working",
            "argv": [self._settings.python, "/kaggle/src/script.py"],
        }
        return [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(plan)]

    def _environment(self, session: Session, token_file: Path) -> dict[str, str]:
        url = self._url()
        # Without a namespace a session without internet finds a proxy that nobody listens at.
        proxy = url if session.internet else "http://127.0.0.1:9"
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        return {
            **kept,
            "PATH": f"{session.folder / 'bin'}:{kept.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(session.folder / "home"),
            "TMPDIR": str(session.folder / "temp"),
            "PYTHONUNBUFFERED": "1",
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_API_V1_TOKEN": str(token_file),
            "KAGGLE_USER_SECRETS_TOKEN": session.secrets_token,
            "KAGGLE_DATA_PROXY_URL": url,
            "KAGGLE_DATA_PROXY_TOKEN": f"data-proxy-{session.id}",
            "KAGGLE_DATA_PROXY_PROJECT": "kaggle-emulator",
            "KAGGLE_URL_BASE": url,
            "KAGGLE_DOCKER_IMAGE": "gcr.io/kaggle-images/python@sha256:emulated",
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_EMULATOR_ACCELERATOR": session.shape,
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
            **self._settings.session_environment,
        }

    def _read(self, session: Session, name: str, pipe: IO[bytes]) -> None:
        started_at = session.started_at
        for line in pipe:
            seconds = round(self._clock.now() - started_at, 6)
            session.log.append({"stream_name": name, "time": seconds, "data": line.decode("utf-8", "replace")})
        pipe.close()

    def uses_namespaces(self) -> bool:
        """Say whether sessions have a /kaggle of their own; found out once, with a program that does nothing."""
        with self._lock:
            if self._namespace is None:
                with tempfile.TemporaryDirectory() as root:
                    plan = {
                        "root": root,
                        "binds": {},
                        "network": False,
                        "cwd": "/",
                        "argv": [shutil.which("true") or "/bin/true"],
                    }
                    tried = [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(plan)]
                    self._namespace = subprocess.run(tried, capture_output=True, check=False).returncode == 0
            return self._namespace


def session_actor(session: Session) -> Actor:
    return Actor(session.owner, session.id)


def _world_call(route: str, session: Session) -> Call:
    """Give what the fault plan sees of an act of the platform itself."""
    body = {"userName": session.owner, "kernelSlug": session.slug, "version": session.version, "outcome": session.outcome}
    return Call(route, session_actor(session), body, session.pushed_at)


def _token_file(session: Session) -> Path:
    return session.folder / "secrets" / "api-v1-token"


def _kill_strays(token_file: Path) -> None:
    """Kill what left the process group, as the end of a container does: whoever inherited the session's own token variable."""
    mark = f"KAGGLE_API_V1_TOKEN={token_file}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def _set_writable(folder: Path, *, writable: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755 if writable else 0o555)


def _walk(folder: Path) -> list[OutputFile]:
    found = []
    for at, _, names in os.walk(folder):
        for name in names:
            path = Path(at, name)
            if path.is_file() and not path.is_symlink():
                found.append(OutputFile(path.relative_to(folder).as_posix(), path, path.stat().st_size))
    return sorted(found, key=lambda file: file.name)
