"""Durations as people write them: `90s`, `10m`, `11h30m`."""

from __future__ import annotations

import re

from state.errors import UserError

_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LONGEST_S = 10 * 365 * 86_400  # longer is a slip of the hand, and far moments cannot be computed
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def parse_duration_s(text: str) -> float:
    """Return the seconds that a text such as `90s`, `10m`, `1.5h` or `11h30m` means.

    Raises:
        UserError: the text is no duration, or is zero or longer than ten years.
    """
    compact = text.strip().lower().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UserError(f"{text!r} is not a duration", expected="numbers with units, such as 90s, 10m or 11h30m")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"the duration {text!r} is zero", expected="more than 0s")
    if seconds > _LONGEST_S:
        raise UserError(f"the duration {text[:20]!r} is too long", expected="at most 3650d")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as people read them: `4.2s`, `1m05s`, `11h30m`, `3d04h`."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest_s}s"
    if minutes < 60:
        return f"{minutes}m{rest_s:02d}s" if rest_s else f"{minutes}m"
    hours, rest_m = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{rest_m:02d}m" if rest_m else f"{hours}h"
    days, rest_h = divmod(hours, 24)
    return f"{days}d{rest_h:02d}h" if rest_h else f"{days}d"
