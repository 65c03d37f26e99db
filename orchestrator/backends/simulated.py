"""A backend for tests: it plays sessions from a script, including faults, and writes real checkpoints.

Its state is in files, so it outlives the controller like a real platform. Each poll advances a session by one checkpoint: the
first poll finds it running with its first checkpoint; the poll after its last checkpoint finds it ended.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.ports import AttemptRef, AttemptStatus, Observation, Quota
from state import crash_points, files
from state.clock import Clock
from state.document import Document
from state.errors import AmbiguousError, ErrorClass, NotLaunchedError, TemporaryError
from state.layout import attempt_name, checkpoint_id
from state.manifest import DataPosition, Environment, FileEntry, Manifest, state_sha256
from state.report import Heartbeat, Outcome, SessionReport
from state.spec import ORDER_VERSION, SessionSpec
from state.stores.checkpoint_store import CheckpointStore
from state.tensor_files import tensor_entries

_TENSOR_FILE = "state.safetensors"


@dataclass(frozen=True)
class Scenario:
    """The script of one attempt."""

    save_after: tuple[int, ...] = (10, 20)
    """Saves after these numbers of steps, counted from its start."""
    killed: bool = False
    """Ends without a report."""
    error_class: ErrorClass | None = None
    """Fails with an error of this class."""
    lost_answer: bool = False
    """Starts, but the answer to the launch is lost."""
    refused: int = 0
    """Number of launches that fail with TemporaryError before one succeeds."""
    unready: int = 0
    """Number of polls that find it not ready for launch."""
    full: int = 0
    """Number of launches that find the platform full."""
    unknown_looks: int = 0
    """Number of polls that answer UNKNOWN."""
    rots_after: int | None = None
    """Corrupts the checkpoint that it saves after this number of steps."""
    refuses_start: bool = False
    """Finds its start checkpoint corrupt."""


class _Play(Document):
    """The stored state of an attempt."""

    spec: SessionSpec
    looks: int = 0
    launches: int = 1
    refusals: int = 0
    killed: bool = False
    asked_to_stop: bool = False
    saved_steps: tuple[int, ...] = ()


class SimulatedBackend:
    """Simulates sessions from a script."""

    name = "simulated"
    poll_interval_s = 1.0
    can_be_run_by_hand = True
    lag_s = 0.0
    kill_note = ""

    def __init__(
        self,
        root: Path,
        store: CheckpointStore,
        clock: Clock,
        script: Callable[[int, int], Scenario] = lambda _s, _a: Scenario(),
    ) -> None:
        """Open a simulated platform.

        Args:
            root: The folder of the platform's state.
            store: Receives the sessions' checkpoints.
            clock: Gives the times in checkpoints and reports.
            script: Returns the course of an attempt, by (session, attempt).
        """
        self._root = root
        self._store = store
        self._clock = clock
        self._script = script

    def quota(self, now: datetime) -> Quota:
        """Return that quota is always available."""
        return Quota(available=True)

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Return a reason to wait while the script says that the attempt is not ready."""
        name = attempt_name(spec.session, spec.attempt)
        unready = self._script(spec.session, spec.attempt).unready
        return f"{name} to be made ready" if self._is_due(f"{name}.unready", unready) else None

    def launch(self, spec: SessionSpec) -> str:
        """Start to play an attempt.

        Raises:
            AmbiguousError: the script loses the answer.
            NotLaunchedError: the script says that the platform is full.
            TemporaryError: the script refuses the launch.
        """
        course = self._script(spec.session, spec.attempt)
        play = self._load(spec.run, spec.session, spec.attempt)
        name = attempt_name(spec.session, spec.attempt)
        if play is None and self._is_due(f"{name}.full", course.full):
            raise NotLaunchedError(f"the simulated backend is full: {name} waits")
        if play is None and self._is_due(f"{name}.refused", course.refused):
            raise TemporaryError(f"the simulated backend refuses {name}")
        if play is not None:
            self._save(play.evolve(launches=play.launches + 1))
            return name
        self._save(_Play(spec=spec))
        crash_points.done("launch", name)
        if course.lost_answer:
            raise AmbiguousError(f"the answer to the launch of {name} was lost")
        return name

    def observe(self, ref: AttemptRef) -> Observation:
        """Advance an attempt by one checkpoint, and return its state."""
        play = self._load(ref.run, ref.session, ref.attempt)
        if play is None:
            return Observation(AttemptStatus.MISSING)
        course = self._script(ref.session, ref.attempt)
        play = play.evolve(looks=play.looks + 1)
        if play.looks <= course.unknown_looks:
            self._save(play)
            return Observation(AttemptStatus.UNKNOWN, "the simulated backend does not answer")
        if self._is_over(play, course):
            return Observation(AttemptStatus.ENDED, "killed" if play.killed or course.killed else "")
        step = self._due(play, course)[0]
        self._train_to(play, step, rots=course.rots_after == step - _start_step(play.spec))
        self._save(play.evolve(saved_steps=(*play.saved_steps, step)))
        return Observation(AttemptStatus.RUNNING)

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt that has ended and was not killed."""
        play = self._load(ref.run, ref.session, ref.attempt)
        course = self._script(ref.session, ref.attempt)
        if play is None or play.killed or course.killed or not self._is_over(play, course):
            return None
        return self._report(play, course)

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return None: a simulated session has no heartbeat."""
        return None

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Let an attempt end after its next checkpoint."""
        play = self._load(ref.run, ref.session, ref.attempt)
        if play is not None and not play.asked_to_stop:
            self._save(play.evolve(asked_to_stop=True))

    def kill(self, ref: AttemptRef) -> None:
        """Kill an attempt."""
        play = self._load(ref.run, ref.session, ref.attempt)
        if play is not None:
            self._save(play.evolve(killed=True))

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return nothing: a simulated session prints nothing."""
        return "", offset

    def launches(self) -> dict[str, int]:
        """Return how often each attempt was launched."""
        return {path.stem: _Play.from_json(path.read_bytes(), path.name).launches for path in self._root.glob("*.json")}

    def alive(self) -> tuple[str, ...]:
        """Return the names of the attempts that have not ended, without advancing them."""
        plays = (_Play.from_json(path.read_bytes(), path.name) for path in self._root.glob("*.json"))
        return tuple(
            attempt_name(play.spec.session, play.spec.attempt)
            for play in plays
            if not self._is_over(play, self._script(play.spec.session, play.spec.attempt))
        )

    def _is_due(self, name: str, times: int) -> bool:
        """Count a fault that is scripted to happen `times` times; return whether it happens now."""
        if not times:
            return False
        counter = self._root / name
        count = int(counter.read_text()) if counter.exists() else 0
        if count >= times:
            return False
        self._root.mkdir(parents=True, exist_ok=True)
        files.write_atomically(counter, str(count + 1).encode())
        return True

    def _path(self, session: int, attempt: int) -> Path:
        return self._root / f"{attempt_name(session, attempt)}.json"

    def _load(self, run: str, session: int, attempt: int) -> _Play | None:
        path = self._path(session, attempt)
        return _Play.from_json(path.read_bytes(), path.name) if path.exists() else None

    def _save(self, play: _Play) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._path(play.spec.session, play.spec.attempt), play.to_json())

    def _is_over(self, play: _Play, course: Scenario) -> bool:
        return play.killed or not self._due(play, course) or (play.asked_to_stop and bool(play.saved_steps))

    @staticmethod
    def _due(play: _Play, course: Scenario) -> list[int]:
        spec = play.spec
        if course.error_class is not None or (course.refuses_start and spec.start is not None):
            return []
        start = _start_step(spec)
        last = min(spec.total_steps, start + (spec.max_steps or spec.total_steps))
        return sorted({min(start + steps, last) for steps in course.save_after} - set(play.saved_steps))

    def _report(self, play: _Play, course: Scenario) -> SessionReport:
        spec = play.spec
        start = _start_step(spec)
        saved = max(play.saved_steps, default=None)
        corrupt = spec.start.id if course.refuses_start and spec.start is not None else None
        error_class = ErrorClass.DATA if corrupt is not None else course.error_class
        if corrupt is not None:
            outcome, reason = Outcome.FAILED, f"the simulated session found checkpoint {corrupt} corrupt"
        elif course.error_class is not None:
            outcome, reason = Outcome.FAILED, f"a simulated error of class {course.error_class}"
        elif saved == spec.total_steps:
            outcome, reason = Outcome.COMPLETED, f"step {saved} is the last one"
        elif play.asked_to_stop and saved is not None:
            outcome, reason = Outcome.STOPPED, "asked to stop"
        else:
            outcome, reason = Outcome.BUDGET, "the simulated time is used up"
        return SessionReport(
            run=spec.run,
            session=spec.session,
            attempt=spec.attempt,
            fence=spec.fence,
            outcome=outcome,
            reason=reason,
            error_class=error_class,
            error_fingerprint=f"simulated {error_class}" if error_class is not None else None,
            corrupt_checkpoint=corrupt,
            start_step=start,
            end_step=saved or start,
            saved_step=saved,
            head=checkpoint_id(saved, spec.session, spec.attempt) if saved is not None else None,
            started_at=self._clock.now(),
            ended_at=self._clock.now(),
        )

    def _train_to(self, play: _Play, step: int, *, rots: bool) -> None:
        """Write the checkpoint of a step; its one tensor is a pure function of the seed and the step."""
        spec = play.spec
        new_id = checkpoint_id(step, spec.session, spec.attempt)
        if new_id in self._store.ids():
            return
        staged = self._store.stage(new_id)
        path = staged / _TENSOR_FILE
        files.write_atomically(path, _tensor_file(hashlib.sha256(f"{spec.training.seed} {step}".encode()).digest()))
        position = DataPosition(samples=step * spec.training.batch_size)
        tensors = tensor_entries([path])
        entry = FileEntry(name=path.name, size_bytes=path.stat().st_size, sha256=files.sha256_of_file(path))
        if rots:
            files.write_atomically(path, bytes(entry.size_bytes))
        parent = (
            checkpoint_id(play.saved_steps[-1], spec.session, spec.attempt)
            if play.saved_steps
            else (spec.start.id if spec.start is not None else None)
        )
        self._store.commit(
            staged,
            Manifest(
                id=new_id,
                run=spec.run,
                session=spec.session,
                attempt=spec.attempt,
                fence=spec.fence,
                branch=spec.branch,
                step=step,
                parent=parent,
                created_at=self._clock.now(),
                trajectory_sha256=spec.trajectory_sha256(step),
                order_version=ORDER_VERSION,
                data_sha256=spec.data_until(step)[-1].data_sha256,
                data_position=position,
                next_loss=1.0 / step,
                train_s=1.0,
                environment=Environment(
                    torch="none", python="none", device="simulated", threads=1, compiled=False, code_sha256=""
                ),
                state_sha256=state_sha256(tensors, step, position),
                tensors=tensors,
                files=(entry,),
            ),
        )


def _start_step(spec: SessionSpec) -> int:
    return spec.start.step if spec.start is not None else 0


def _tensor_file(content: bytes) -> bytes:
    header = json.dumps({"model.weight": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    return struct.pack("<Q", len(header)) + header + content
