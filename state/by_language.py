"""Numbers for single languages as people write them: `konkani=0.2`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from state.errors import UserError


def numbers_by_language(option: str, texts: Iterable[str]) -> dict[str, float]:
    """Return the number of each language from texts such as `konkani=0.2`.

    Args:
        option: What they were given with, such as `--weight`, for messages.
        texts: What was given; each language once.

    Raises:
        UserError: a text is of another form, its number is negative or not finite, or a language comes twice.
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
    return UserError(f"{option} {text!r} is not understood", expected=f"a language and a number, such as {option} konkani=0.2")
