"""Real sessions of a very small model: their specs, and ways to run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from state.architecture import Architecture, ModelSpec, resolve_architecture
from state.clock import Clock, SystemClock
from state.data_manifest import DataManifest
from state.errors import DataError
from state.layout import AttemptLayout, RunLayout
from state.manifest import Manifest
from state.report import Heartbeat, SessionReport
from state.spec import ExpectedCheckpoint, SessionData, SessionSpec, TrainingSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.token_data import write_data
from worker.session.runner import Host, run_session

VOCAB = 50
MIXTURE = {"english": 0.6, "konkani": 0.4}
UNLIMITED_S = 10_000.0


def small_architecture(**changes: Any) -> Architecture:
    """Two layers, the second one global, with grouped-query attention: everything that a Gemma 3 has."""
    numbers: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "sliding_window": 4,
        "local_layers_per_global": 1,
        "max_position": 64,
    }
    vocab_size = changes.pop("vocab_size", VOCAB)
    return resolve_architecture(ModelSpec(**{**numbers, **changes}), vocab_size)


def make_data(folder: Path, *, vocab_size: int = VOCAB, seed: int = 1) -> DataManifest:
    """Write a data folder with two languages of random tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(seed)
    languages = {name: random.integers(0, vocab_size, count) for name, count in (("english", 900), ("konkani", 500))}
    return write_data(folder, languages, vocab_size=vocab_size)


class CountingClock:
    """A clock whose every look at it takes a little while: time passes as work is done, the same in every run."""

    def __init__(self, tick_s: float = 0.01) -> None:
        self._tick_s = tick_s
        self._passed_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        self._passed_s += self._tick_s
        return self._passed_s

    def sleep(self, seconds: float) -> None:
        self._passed_s += seconds


class SmallRun:
    """A run's folder, the specs of its sessions, and their results."""

    def __init__(self, root: Path, *, vocab_size: int = VOCAB, **spec_values: Any) -> None:
        self.layout = RunLayout(root)
        self.data = make_data(self.layout.data, vocab_size=vocab_size)
        self.store = DirectoryCheckpointStore(self.layout.checkpoints)
        self.said: list[str] = []
        self._spec_values = spec_values

    def spec(self, session: int = 1, attempt: int = 1, **values: Any) -> SessionSpec:
        """A session's spec, of these values; those of a data version are the first one's."""
        values = {**self._spec_values, **values}
        version = self.version(**{name: values.pop(name) for name in SessionData.model_fields if name in values})
        training = {"threads": 1, "batch_size": 4, "warmup_steps": 3, **values.pop("training", {})}
        return SessionSpec(
            **{
                "run": "small",
                "session": session,
                "attempt": attempt,
                "fence": session,
                "architecture": small_architecture(),
                "training": TrainingSpec(**training),
                "sequence_length": 8,
                "data": (version,),
                "checkpoints_dir": str(self.layout.checkpoints),
                "total_steps": 20,
                "limit_s": UNLIMITED_S,
                "checkpoint_every_s": UNLIMITED_S,
                **values,
            }
        )

    def version(self, **values: Any) -> SessionData:
        """The run's first data version."""
        version = SessionData(first_step=0, data_dir=str(self.layout.data), data_sha256=self.data.data_sha256, mixture=MIXTURE)
        return version.evolve(**values)

    def write(self, spec: SessionSpec) -> Path:
        layout = self.attempt(spec)
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.spec.write_bytes(spec.to_json())
        return layout.spec

    def attempt(self, spec: SessionSpec) -> AttemptLayout:
        return self.layout.attempt(spec.session, spec.attempt)

    def run(self, spec: SessionSpec, *, clock: Clock | None = None, **host: Any) -> int:
        """Run a session in this process."""
        self.write(spec)
        return self.run_again(spec, clock=clock, **host)

    def run_again(self, spec: SessionSpec, *, clock: Clock | None = None, **host: Any) -> int:
        """Run a session whose folder is there already, and touch nothing in it."""
        clock = clock or SystemClock()
        made = Host(clock=clock, started_s=clock.monotonic(), say=self.said.append)
        return run_session(self.attempt(spec).spec, replace(made, **host))

    def start(self, spec: SessionSpec, *, dies_after: str | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a session in a process of its own.

        Args:
            spec: The session.
            dies_after: The name of a file: the process kills itself, SIGKILL, as soon as it has written one.
            options: For the process.
        """
        command = [sys.executable, "-m", "worker" if dies_after is None else "tests.dying_worker", str(self.write(spec))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command if dies_after is None else [*command, dies_after],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parent.parent,
            **options,
        )

    def report(self, spec: SessionSpec) -> SessionReport:
        path = self.attempt(spec).report
        return SessionReport.from_json(path.read_bytes(), str(path))

    def heartbeat(self, spec: SessionSpec) -> Heartbeat | None:
        path = self.attempt(spec).heartbeat
        try:
            return Heartbeat.from_json(path.read_bytes(), str(path))
        except (OSError, DataError):
            return None

    def newest(self) -> Manifest | None:
        """The checkpoint with the highest step."""
        manifests = [self.store.manifest(name)[0] for name in self.store.ids()]
        return max(manifests, key=lambda manifest: manifest.step, default=None)

    def expected(self, checkpoint_id: str | None = None) -> ExpectedCheckpoint | None:
        """What a session is told that starts from a checkpoint, the newest one unless another is named."""
        newest = self.newest()
        if newest is None:
            return None
        manifest, manifest_sha256 = self.store.manifest(checkpoint_id or newest.id)
        return manifest.expected(manifest_sha256)


def another_torch(folder: Path, code: str, *, package: str = "torch") -> str:
    """Lay out a package of another torch, or numpy; return what makes a process import it: its PYTHONPATH."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    return str(folder)


def asked_after(steps: int) -> Callable[[], str | None]:
    """A signal that comes once so many step boundaries have been passed."""
    looked = iter(range(1_000_000))
    return lambda: "SIGTERM" if next(looked) >= steps else None


def let_saver_finish() -> None:
    """Wait for the checkpoint that is being made in this process."""
    for thread in threading.enumerate():
        if thread.name.startswith("saver"):
            thread.join()
