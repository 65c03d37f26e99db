"""How far a session has come, and the report that is made of it."""

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
    """How far the session has come; the report is made of it."""

    start_step: int
    step: int
    head: str | None
    """The checkpoint that what is trained now goes on from."""
    started_at: datetime
    saved_step: int | None = None
    head_of_attempt: str | None = None
    steps_trained: int = 0
    """By this process."""
    last_loss: float | None = None
    longest_save_s: float | None = None
    train_s: float = 0.0
    """Of this attempt, earlier processes of it included."""
    seconds: Seconds = field(default_factory=Seconds)

    def resume(self, own: Manifest) -> None:
        """Go on from a checkpoint that an earlier process of this attempt has committed."""
        self.step = self.saved_step = own.step
        self.head = self.head_of_attempt = own.id
        self.train_s = own.train_s

    def is_unsaved(self) -> bool:
        """Return whether steps have been trained that no checkpoint holds."""
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
            behind: Whether it was made beside the training. Such a save waits for the processor as long as anything else
                wants it, and tells nothing of what the session's last one takes.
        """
        self.saved_step = saved.step
        self.head = self.head_of_attempt = saved.checkpoint_id
        if behind:
            self.spend(saving_behind=saved.seconds)
        else:
            self.longest_save_s = max(saved.seconds, self.longest_save_s or 0.0)

    def spend(self, **seconds: float) -> None:
        """Add to the session's seconds."""
        self.seconds = self.seconds.evolve(**({name: getattr(self.seconds, name) + amount for name, amount in seconds.items()}))

    def seconds_until(self, whole_s: float) -> Seconds:
        """Return where the time went; training is what nothing else has taken."""
        spent_s = self.seconds.startup + self.seconds.restore + self.seconds.save
        return self.seconds.evolve(whole=whole_s, train=max(0.0, whole_s - spent_s))

    def report(
        self, spec: SessionSpec, outcome: Outcome, reason: str, *, ended_at: datetime, whole_s: float, failure: Failure | None
    ) -> SessionReport:
        """Return what the session says at its end.

        Args:
            spec: What it was told.
            outcome: How it ended.
            reason: Why, in the user's words.
            ended_at: When.
            whole_s: Seconds since the process started.
            failure: What went wrong, if anything.
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
