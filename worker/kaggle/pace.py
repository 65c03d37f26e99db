"""Estimates how long a delivery takes: a guess before the first upload, measured values afterwards. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_GUESSED_BYTES_PER_S = 20e6
_GUESSED_LEAST_S = 60.0
_GUESSED_MOST_SHARE = 0.1  # of the session: a guess must not use up a short session
_TIMES = 2.0  # time for one upload that breaks off and a second one
_MARGIN_S = 5.0
_MARGIN_SHARE = 0.02
_COPY_BYTES_PER_S = 100e6


@dataclass(frozen=True)
class Pace:
    """The measured speed of uploads."""

    bytes_per_s: float | None = None
    """None: not measured yet."""
    fixed_s: float = 0.0
    """The longest time so far that an upload took in addition to sending its bytes."""

    def after(self, size_bytes: int, sending_s: float, whole_s: float) -> Pace:
        """Return the pace updated with an upload: its bytes, the seconds of sending them, and its seconds in all."""
        speed = size_bytes / sending_s if sending_s > 0.0 else self.bytes_per_s
        return Pace(bytes_per_s=speed, fixed_s=max(self.fixed_s, whole_s - sending_s))

    def reserve_s(self, size_bytes: int, limit_s: float) -> float:
        """Return the seconds to reserve for an upload of `size_bytes` at the end of a session with this time limit."""
        if self.bytes_per_s is None:
            return min(max(_GUESSED_LEAST_S, _TIMES * size_bytes / _GUESSED_BYTES_PER_S), _GUESSED_MOST_SHARE * limit_s)
        return _TIMES * size_bytes / self.bytes_per_s + self.fixed_s + min(_MARGIN_S, _MARGIN_SHARE * limit_s)


def copy_s(size_bytes: int) -> float:
    """Return how long a copy to another disk takes."""
    return size_bytes / _COPY_BYTES_PER_S
