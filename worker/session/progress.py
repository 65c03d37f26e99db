"""Counts a session's steps, seconds and checkpoints, and makes its report from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from state.manifest import Manifest
from state.report import Outcome, Seconds, SessionReport
from state.spec import SessionSpec
from worker.checkpoint.saver import Saved
from worker.failure import Failure


@dataclass
class Progress:
    """A session's counters: steps, checkpoints and seconds so far."""

    start_step: int
    step: int
    head: str | None
    """The checkpoint that the current training continues; the parent of the next one."""
    started_at: datetime
    saved_step: int | None = None
    head_of_attempt: str | None = None
    steps_trained: int = 0
    """By this process; earlier processes of the attempt are not counted."""
    last_loss: float | None = None
    longest_save_s: float | None = None
    train_s: float = 0.0
    """Seconds trained by this attempt, including its earlier processes."""
    seconds: Seconds = field(default_factory=Seconds)

    def resume(self, own: Manifest) -> None:
        """Continue from a checkpoint that an earlier process of this attempt committed."""
        self.step = self.saved_step = own.step
        self.head = self.head_of_attempt = own.id
        self.train_s = own.train_s

    def is_unsaved(self) -> bool:
        """Return whether the current step is in no checkpoint yet."""
        return self.step not in (self.start_step, self.saved_step)

    def trained(self, step: int, loss: float, seconds: float) -> None:
        """Count one more step."""
        self.step, self.last_loss = step, loss
        self.steps_trained += 1
        self.train_s += seconds

    def committed(self, saved: Saved, *, behind: bool) -> None:
        """Count one more checkpoint.

        Args:
            saved: The checkpoint.
            behind: Whether it was saved beside the training. Such a save waits while the training uses the processor, so
                its duration is no estimate for the session's last save and is counted separately.
        """
        self.saved_step = saved.step
        self.head = self.head_of_attempt = saved.checkpoint_id
        if behind:
            self.spend(saving_behind=saved.seconds)
        else:
            self.longest_save_s = max(saved.seconds, self.longest_save_s or 0.0)

    def spend(self, **seconds: float) -> None:
        """Add seconds to the named kinds of time."""
        self.seconds = self.seconds.evolve(**({name: getattr(self.seconds, name) + amount for name, amount in seconds.items()}))

    def seconds_until(self, whole_s: float) -> Seconds:
        """Return the seconds by kind; training gets all that no other kind has taken."""
        spent_s = self.seconds.startup + self.seconds.restore + self.seconds.save
        return self.seconds.evolve(whole=whole_s, train=max(0.0, whole_s - spent_s))

    def report(
        self, spec: SessionSpec, outcome: Outcome, reason: str, *, ended_at: datetime, whole_s: float, failure: Failure | None
    ) -> SessionReport:
        """Return the session's report.

        Args:
            spec: The session's spec.
            outcome: How it ended.
            reason: Why it ended, in words for the user.
            ended_at: When it ended.
            whole_s: Seconds since the process started.
            failure: The failure, if there was one.
        """
        return SessionReport(
            run=spec.run,
            session=spec.session,
            attempt=spec.attempt,
            fence=spec.fence,
            outcome=outcome,
            reason=reason,
            error_class=failure.error_class if failure else None,
            error_fingerprint=failure.fingerprint if failure else None,
            corrupt_checkpoint=failure.corrupt_checkpoint if failure else None,
            start_step=self.start_step,
            end_step=self.step,
            saved_step=self.saved_step,
            head=self.head_of_attempt,
            started_at=self.started_at,
            ended_at=ended_at,
            tokens=self.steps_trained * spec.training.batch_size * spec.sequence_length,
            last_loss=self.last_loss,
            longest_save_s=self.longest_save_s,
            seconds=self.seconds_until(whole_s),
        )
