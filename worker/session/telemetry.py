"""Writes what a running session shows: metrics (one line a step), a heartbeat, and a log line from time to time.

It never stops the training: if a file cannot be written, it logs that once and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from state import files
from state.clock import Clock
from state.layout import AttemptLayout
from state.process import identify
from state.quantities import format_duration
from state.report import Heartbeat, Phase

if TYPE_CHECKING:
    from state.manifest import Manifest
    from state.spec import SessionSpec
    from worker.checkpoint.saver import Saved
    from worker.train.trainer import StepResult

_HEARTBEAT_EVERY_S = 1.0
_TELL_EVERY_S = 30.0
_STEPS_REMEMBERED = 20


def begins(spec: SessionSpec, end_step: int) -> str:
    """Return the log line of a session's begin."""
    start_step = spec.start.step if spec.start else 0
    return (
        f"session {spec.session}, attempt {spec.attempt}: begins, from step {start_step} to {end_step} at most, "
        f"limit {format_duration(spec.limit_s)}"
    )


def goes_on_from(start: Manifest | None, spec: SessionSpec) -> str:
    """Return the log line that names the origin of the training state and the size of the model."""
    origin = f"restored from checkpoint {start.id}" if start else f"starts from the seed {spec.training.seed}"
    return f"{origin}, {spec.architecture.num_parameters():,} parameters"


def is_saved(saved: Saved) -> str:
    """Return the log line of a committed checkpoint."""
    return f"checkpoint {saved.checkpoint_id} is saved, {format_duration(saved.seconds)}"


class Telemetry:
    """Writes an attempt's `metrics.jsonl` and `heartbeat.json`.

    Args:
        layout: The attempt's folder.
        clock: The clock.
        left_s: Returns the seconds that the session has left.
        start_step: The step of the checkpoint that the session starts from; 0 for a new run.
        tokens_per_step: Tokens that a step trains on.
        say: Called with log lines: how the training goes, and files that cannot be written.
    """

    def __init__(
        self,
        layout: AttemptLayout,
        clock: Clock,
        *,
        left_s: Callable[[], float],
        start_step: int,
        tokens_per_step: int,
        say: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._clock = clock
        self._left_s = left_s
        self._start_step = start_step
        self._tokens_per_step = tokens_per_step
        self._say = say
        self._process = identify(os.getpid())
        self._phase = Phase.STARTING
        self._step = start_step
        self._saved_step: int | None = None
        self._loss: float | None = None
        self._recent_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._beat_s: float | None = None
        self._told_s = clock.monotonic()
        self._metrics: IO[str] | None = None
        self._complained = False

    def phase(self, phase: Phase) -> None:
        """Note the worker's new phase and write a heartbeat."""
        self._phase = phase
        self._beat()

    def resumed(self, step: int) -> None:
        """Note that the training continues from this attempt's own checkpoint of a step."""
        self._step = self._saved_step = step

    def saved(self, step: int) -> None:
        """Note that the checkpoint of a step is committed."""
        self._saved_step = step

    def step(self, result: StepResult, seconds: float) -> None:
        """Write a step's metrics; write a heartbeat and a log line if they are due."""
        self._step, self._loss = result.step, result.loss
        self._recent_s.append(seconds)
        self._write_line(
            {
                "step": result.step,
                "loss": result.loss,
                "learning_rate": result.learning_rate,
                "grad_norm": result.grad_norm,
                "tokens": self._tokens_per_step,
                "tokens_per_s": self._tokens_per_step / seconds if seconds else None,
                "seconds": seconds,
                "at": self._clock.now().isoformat(),
            }
        )
        now_s = self._clock.monotonic()
        if self._beat_s is None or now_s - self._beat_s >= _HEARTBEAT_EVERY_S:
            self._beat()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            tokens_per_s = self._tokens_per_step * (self._steps_per_s() or 0.0)
            self._say(f"step {result.step}: loss {result.loss:.4f}, {tokens_per_s:,.0f} tokens/s")

    def close(self) -> None:
        """Write a last heartbeat and close the metrics file."""
        self._beat()
        if self._metrics is not None:
            with self._never_stopping():
                self._metrics.close()

    def _write_line(self, values: dict[str, object]) -> None:
        with self._never_stopping():
            if self._metrics is None:
                self._metrics = _open_after_last_line(self._layout)
            self._metrics.write(json.dumps(values) + "\n")

    def _beat(self) -> None:
        self._beat_s = self._clock.monotonic()
        steps_per_s = self._steps_per_s()
        heartbeat = Heartbeat(
            at=self._clock.now(),
            pid=self._process.pid,
            process=self._process,
            phase=self._phase,
            start_step=self._start_step,
            step=self._step,
            loss=self._loss,
            tokens_per_s=steps_per_s and steps_per_s * self._tokens_per_step,
            steps_per_s=steps_per_s,
            saved_step=self._saved_step,
            left_s=self._left_s(),
        )
        with self._never_stopping():
            if self._metrics is not None:
                self._metrics.flush()
        with self._never_stopping():
            files.write_atomically(self._layout.heartbeat, heartbeat.to_json(), durable=False)

    def _steps_per_s(self) -> float | None:
        return len(self._recent_s) / sum(self._recent_s) if sum(self._recent_s) else None

    @contextlib.contextmanager
    def _never_stopping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._complained:
                self._say(f"metrics and heartbeat cannot be written: {error}")
            self._complained = True


def _open_after_last_line(layout: AttemptLayout) -> IO[str]:
    """Open the metrics file to append lines; if a killed process left its last line unfinished, end that line first."""
    cut_short = False
    with contextlib.suppress(FileNotFoundError), open(layout.metrics, "rb") as file:
        cut_short = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
    metrics = layout.metrics.open("a", encoding="utf-8")
    if cut_short:
        metrics.write("\n")
    return metrics
