"""The seconds that a session may use: pure values, asked at every step boundary.

All moments are seconds of one monotonic clock. The session must be over `limit_s` after its process started, its last
checkpoint on the disk: what that takes is kept in reserve, and learned from the saves that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_FIRST_WRITE_BYTES_PER_S = 100e6  # a slow disk and two passes of sha256 beside it
_FIRST_SAVE_S = 1.0
_SAVE_MARGIN = 1.25  # a save may take this many times what the longest one took
_EXIT_S = 0.5  # report, closing files, the interpreter's own end
_STEPS_REMEMBERED = 16


def first_save_estimate_s(state_bytes: int) -> float:
    """Return how long a save is taken to be while none has been measured."""
    return _FIRST_SAVE_S + state_bytes / _FIRST_WRITE_BYTES_PER_S


@dataclass(frozen=True)
class Budget:
    """What a session has, what it needs at its end, and how long its steps are."""

    started_s: float
    """When the process started."""
    limit_s: float
    """Seconds from then on until the process must be gone."""
    checkpoint_every_s: float
    save_s: float
    """The longest save, measured or estimated."""
    last_save_s: float
    """When the last checkpoint was taken; before the first one, when training began."""
    forward_s: float = 0.0
    """The last forward pass over a batch; the session's end makes one more, for its last checkpoint's `next_loss`."""
    delivery_s: float = 0.0
    """What bringing the last checkpoint away from the machine takes, where it must be away when the process ends."""
    recent_steps_s: tuple[float, ...] = ()

    @property
    def step_s(self) -> float:
        """The longest of the recent steps; 0 before the first one."""
        return max(self.recent_steps_s, default=0.0)

    @property
    def reserve_s(self) -> float:
        """What the session's end takes: the last save, its canary, its delivery, and the process's exit."""
        return self.save_s * _SAVE_MARGIN + self.forward_s + self.delivery_s + _EXIT_S

    def left_s(self, now_s: float) -> float:
        """Return the seconds until the process must be gone; negative when it is late."""
        return self.started_s + self.limit_s - now_s

    def needed_s(self, *, saving: bool = False) -> float:
        """Return what one more step and the session's end take together.

        Args:
            saving: Whether a checkpoint is being written now; the last one must wait for it.
        """
        return self.step_s + self.reserve_s + (self.save_s * _SAVE_MARGIN if saving else 0.0)

    def may_train_another_step(self, now_s: float, *, saving: bool = False) -> bool:
        """Return whether a step begun now leaves enough time to save and to end."""
        return self.left_s(now_s) >= self.needed_s(saving=saving)

    def may_still_save(self, now_s: float) -> bool:
        """Return whether a checkpoint begun now is finished in time."""
        return self.left_s(now_s) >= self.reserve_s

    def save_is_due(self, now_s: float) -> bool:
        """Return whether to take a checkpoint now; never so late that the session's last one would have to wait for it."""
        return now_s - self.last_save_s >= self.checkpoint_every_s and self.may_train_another_step(now_s, saving=True)

    def sufficient_limit_s(self, now_s: float) -> float:
        """Return a limit that would let this session train: what it has used, and twice what a step and its end take."""
        return now_s - self.started_s + 2 * self.needed_s()

    def after_step(self, seconds: float, forward_s: float) -> Budget:
        """Return the budget that knows one more step, and how long its forward pass was."""
        recent = (*self.recent_steps_s, seconds)[-_STEPS_REMEMBERED:]
        return replace(self, recent_steps_s=recent, forward_s=forward_s)

    def with_delivery(self, seconds: float) -> Budget:
        """Return the budget that keeps so much for the delivery of the last checkpoint."""
        return self if seconds == self.delivery_s else replace(self, delivery_s=seconds)

    def after_save_began(self, now_s: float) -> Budget:
        """Return the budget that counts the time to the next checkpoint from now on."""
        return replace(self, last_save_s=now_s)

    def after_save(self, seconds: float) -> Budget:
        """Return the budget that knows how long one more save took."""
        return replace(self, save_s=max(self.save_s, seconds))
