"""Decides whether there is time for another step or a save: pure values, asked at every step boundary.

All moments are seconds of one monotonic clock. The process must be gone `limit_s` seconds after it started, with its last
checkpoint on disk. The budget keeps a reserve for that save, and updates it from the saves that it has measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_FIRST_WRITE_BYTES_PER_S = 100e6  # a slow disk and two passes of sha256 beside it
_FIRST_SAVE_S = 1.0
_SAVE_MARGIN = 1.25  # a save may take up to this many times the longest one so far
_EXIT_S = 0.5  # writing the report, closing files, the interpreter's exit
_STEPS_REMEMBERED = 16


def first_save_estimate_s(state_bytes: int) -> float:
    """Return the estimated duration of a save, used until one has been measured."""
    return _FIRST_SAVE_S + state_bytes / _FIRST_WRITE_BYTES_PER_S


@dataclass(frozen=True)
class Budget:
    """A session's time: its limit, the reserve for its end, and how long its steps take."""

    started_s: float
    """When the process started."""
    limit_s: float
    """Seconds from the start until the process must be gone."""
    checkpoint_every_s: float
    save_s: float
    """The longest save, measured or estimated."""
    last_save_s: float
    """When the last checkpoint was taken; before the first one, when training began."""
    forward_s: float = 0.0
    """Duration of the last forward pass over a batch. The session's end needs one more, for the `next_loss` of its last
    checkpoint."""
    delivery_s: float = 0.0
    """Seconds to upload the last checkpoint, on backends whose disk is lost with the process; else 0."""
    recent_steps_s: tuple[float, ...] = ()

    @property
    def step_s(self) -> float:
        """The longest of the recent steps; 0 before the first one."""
        return max(self.recent_steps_s, default=0.0)

    @property
    def reserve_s(self) -> float:
        """Seconds kept for the session's end: the last save, its canary, its delivery, and the process's exit."""
        return self.save_s * _SAVE_MARGIN + self.forward_s + self.delivery_s + _EXIT_S

    def left_s(self, now_s: float) -> float:
        """Return the seconds until the process must be gone; negative when it is late."""
        return self.started_s + self.limit_s - now_s

    def needed_s(self, *, saving: bool = False) -> float:
        """Return the seconds that one more step and the session's end take together.

        Args:
            saving: Whether a checkpoint is being written now. The last one must wait for it, so its time is added.
        """
        return self.step_s + self.reserve_s + (self.save_s * _SAVE_MARGIN if saving else 0.0)

    def may_train_another_step(self, now_s: float, *, saving: bool = False) -> bool:
        """Return whether a step begun now leaves enough time to save and to end."""
        return self.left_s(now_s) >= self.needed_s(saving=saving)

    def may_still_save(self, now_s: float) -> bool:
        """Return whether a checkpoint begun now finishes in time."""
        return self.left_s(now_s) >= self.reserve_s

    def save_is_due(self, now_s: float) -> bool:
        """Return whether to take a checkpoint now: it is due, and it does not delay the session's last checkpoint."""
        return now_s - self.last_save_s >= self.checkpoint_every_s and self.may_train_another_step(now_s, saving=True)

    def sufficient_limit_s(self, now_s: float) -> float:
        """Return a limit that would let this session train: the time used so far, plus twice a step and the end."""
        return now_s - self.started_s + 2 * self.needed_s()

    def after_step(self, seconds: float, forward_s: float) -> Budget:
        """Return the budget updated with the duration of one more step and of its forward pass."""
        recent = (*self.recent_steps_s, seconds)[-_STEPS_REMEMBERED:]
        return replace(self, recent_steps_s=recent, forward_s=forward_s)

    def with_delivery(self, seconds: float) -> Budget:
        """Return the budget with this reserve for the delivery of the last checkpoint."""
        return self if seconds == self.delivery_s else replace(self, delivery_s=seconds)

    def after_save_began(self, now_s: float) -> Budget:
        """Return the budget that counts the interval to the next checkpoint from now."""
        return replace(self, last_save_s=now_s)

    def after_save(self, seconds: float) -> Budget:
        """Return the budget updated with the duration of one more save."""
        return replace(self, save_s=max(self.save_s, seconds))
