"""Sizes as people write them: `256MB`, `20GB`, `512MiB`."""

from __future__ import annotations

import re

from state.errors import UserError

_UNITS = {
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
_LARGEST_BYTES = 2**60  # more is a slip of the hand
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?i?b)")


def parse_size_bytes(text: str) -> int:
    """Return the bytes that a text such as `256MB` (10**6 each), `512MiB` (2**20 each) or `1.5GB` means.

    Raises:
        UserError: the text is no size, or is zero or beyond all disks.
    """
    compact = text.strip().lower().replace(" ", "")
    match = _SIZE.fullmatch(compact)
    if match is None or match[2] not in _UNITS:
        raise UserError(f"{text[:40]!r} is not a size", expected="a number with its unit, such as 256MB, 20GB or 512MiB")
    size_bytes = round(float(match[1]) * _UNITS[match[2]]) if len(match[1]) < 20 else _LARGEST_BYTES + 1
    if size_bytes < 1:
        raise UserError(f"the size {text!r} is zero", expected="at least 1B")
    if size_bytes > _LARGEST_BYTES:
        raise UserError(f"the size {text[:40]!r} is too large", expected="at most 1048576TiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return bytes as people read them: `256MiB` where that is exact, else in units of ten: `812B`, `4.1MB`, `20GB`."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}{unit}" if value == round(value) or value >= 99.95 else f"{value:.1f}{unit}"
