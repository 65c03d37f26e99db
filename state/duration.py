"""Durations as people write them: `90s`, `10m`, `11h30m`."""

from __future__ import annotations

import re

from state.errors import UserError

_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def parse_duration_s(text: str) -> float:
    """Return the seconds that a text such as `90s`, `10m`, `1.5h` or `11h30m` means.

    Raises:
        UserError: the text is no duration, or is not greater than zero.
    """
    compact = text.strip().lower().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UserError(f"{text!r} is not a duration", expected="numbers with units, such as 90s, 10m or 11h30m")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"the duration {text!r} is zero", expected="more than 0s")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as people read them: `4.2s`, `1m05s`, `11h30m`, `3d04h`."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 and seconds != int(seconds) else f"{seconds:.0f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02d}s" if rest_s else f"{minutes}m"
    hours, rest_m = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{rest_m:02d}m" if rest_m else f"{hours}h"
    days, rest_h = divmod(hours, 24)
    return f"{days}d{rest_h:02d}h"
