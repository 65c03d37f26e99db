"""Parses and formats durations (`11h30m`), sizes (`256MB`) and numbers per language (`konkani=0.2`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from state.errors import UserError

_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LONGEST_S = 10 * 365 * 86_400  # anything longer is a typing error, and datetime cannot reach far moments
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_UNIT_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_LARGEST_BYTES = 2**60  # anything larger is a typing error
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?i?b)")


def parse_duration_s(text: str) -> float:
    """Return the seconds of a duration such as `90s`, `10m`, `1.5h` or `11h30m`.

    Raises:
        UserError: the text is not a duration, or is zero or longer than ten years.
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
    """Return a duration as text: `4.2s`, `1m05s`, `11h30m`, `3d04h`."""
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


def parse_size_bytes(text: str) -> int:
    """Return the bytes of a size such as `256MB` (10**6 each), `512MiB` (2**20 each) or `1.5GB`.

    Raises:
        UserError: the text is not a size, or is zero or larger than any disk.
    """
    compact = text.strip().lower().replace(" ", "")
    match = _SIZE.fullmatch(compact)
    if match is None or match[2] not in _UNIT_BYTES:
        raise UserError(f"{text[:40]!r} is not a size", expected="a number with its unit, such as 256MB, 20GB or 512MiB")
    size_bytes = round(float(match[1]) * _UNIT_BYTES[match[2]]) if len(match[1]) < 20 else _LARGEST_BYTES + 1
    if size_bytes < 1:
        raise UserError(f"the size {text!r} is zero", expected="at least 1B")
    if size_bytes > _LARGEST_BYTES:
        raise UserError(f"the size {text[:40]!r} is too large", expected="at most 1048576TiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return a size as text: a binary unit where that is exact (`256MiB`), else a decimal one (`812B`, `4.1MB`, `20GB`)."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}{unit}" if value == round(value) or value >= 99.95 else f"{value:.1f}{unit}"


def numbers_by_language(option: str, texts: Iterable[str]) -> dict[str, float]:
    """Return the number of each language, parsed from texts such as `konkani=0.2`.

    Args:
        option: The option that gave the texts, such as `--weight`, for messages.
        texts: The option's values; each names another language.

    Raises:
        UserError: a text has another form, a number is negative or not finite, or a language occurs twice.
    """
    numbers: dict[str, float] = {}
    for text in texts:
        language, equals, number = text.rpartition("=")
        if not (language and equals):
            raise _refusal(option, text)
        try:
            value = float(number)
        except ValueError as error:
            raise _refusal(option, text) from error
        if not (math.isfinite(value) and value >= 0.0):
            raise _refusal(option, text)
        if language in numbers:
            raise UserError(f"{option} names {language!r} twice", expected="each language once")
        numbers[language] = value
    return numbers


def _refusal(option: str, text: str) -> UserError:
    return UserError(f"{option} is invalid: {text!r}", expected=f"a language and a number, such as {option} konkani=0.2")
