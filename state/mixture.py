"""The share of the training sequences that each language gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from state.errors import UserError, did_you_mean

DEFAULT_ALPHA = 0.7
DEFAULT_MAX_EPOCHS = 4.0  # up to about four readings, repeated text is worth nearly as much as new text (Muennighoff et al. 2023)

Mixing = Literal["alpha", "unimax"]
"""A rule for the weights: shares in proportion to tokens ** alpha, or as equal as a cap on epochs allows."""


def mixture_weights(
    tokens_by_language: Mapping[str, int],
    alpha: float = DEFAULT_ALPHA,
    given: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return each language's share of the training sequences, in name order; the shares sum to 1.

    Args:
        tokens_by_language: Tokens of each language in the data.
        alpha: Without `given`, shares are proportional to tokens ** alpha: 1 is proportional, 0 is equal.
        given: Weights to use instead, in any unit. A language that it does not name gets the share 0.

    Raises:
        UserError: a language or its tokens are missing, `given` names an unknown language, a weight is negative or not finite, or
            all weights are zero.
    """
    languages = _with_tokens(tokens_by_language)
    if given is None:
        if not (math.isfinite(alpha) and alpha >= 0.0):
            raise UserError(f"alpha is {alpha}", expected="a number from 0 (equal shares) to 1 (shares as the tokens are)")
        return _shares({name: float(tokens_by_language[name]) ** alpha for name in languages})
    _check_given(given, languages)
    return _shares({name: float(given.get(name, 0.0)) for name in languages})


def unimax_weights(
    tokens_by_language: Mapping[str, int], *, budget_tokens: int, max_epochs: float = DEFAULT_MAX_EPOCHS
) -> dict[str, float]:
    """Return equal shares, capped for languages that would be read more than `max_epochs` times.

    From the smallest language to the largest, each gets an equal part of the remaining budget, or its cap if that is less. When
    the budget exceeds the sum of all caps (see `budget_exceeds_caps`), the shares are proportional to the caps.

    Source: Chung et al., "UniMax: Fairer and More Effective Language Sampling for Large-Scale Multilingual Pretraining",
    ICLR 2023, algorithm 1.

    Args:
        tokens_by_language: Tokens of each language in the data.
        budget_tokens: Tokens to train on, over all languages.
        max_epochs: How often a language's text may be read.

    Raises:
        UserError: a language or its tokens are missing, or the budget or the cap is not above zero.
    """
    languages = _with_tokens(tokens_by_language)
    if budget_tokens < 1 or not (math.isfinite(max_epochs) and max_epochs > 0.0):
        raise UserError(
            f"a mixture for {budget_tokens} tokens with at most {max_epochs} epochs a language", expected="numbers above zero"
        )
    left = float(budget_tokens)
    part: dict[str, float] = {}
    for number, name in enumerate(sorted(languages, key=lambda name: (tokens_by_language[name], name))):
        part[name] = min(left / (len(languages) - number), max_epochs * tokens_by_language[name])
        left -= part[name]
    return _shares({name: part[name] for name in languages})


def budget_exceeds_caps(tokens_by_language: Mapping[str, int], *, budget_tokens: int, max_epochs: float) -> bool:
    """Return whether the budget requires reading some text more than `max_epochs` times."""
    return budget_tokens > max_epochs * sum(tokens_by_language.values())


def epochs_by_language(
    tokens_by_language: Mapping[str, int], mixture: Mapping[str, float], *, budget_tokens: int
) -> dict[str, float]:
    """Return how often each language's text is read when the budget is spent in these shares."""
    return {name: budget_tokens * share / tokens_by_language[name] for name, share in mixture.items()}


def _with_tokens(tokens_by_language: Mapping[str, int]) -> list[str]:
    languages = sorted(tokens_by_language)
    empty = [name for name in languages if tokens_by_language[name] < 1]
    if not languages or empty:
        raise UserError(
            f"languages without tokens: {', '.join(empty)}" if empty else "languages are missing",
            expected="at least one language, each with text",
        )
    return languages


def _shares(raw: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(raw.values())
    if not 0.0 < total < math.inf:
        raise UserError(f"the weights {dict(raw)} sum to {total}", expected="at least one weight above zero")
    return {name: weight / total for name, weight in raw.items()}


def _check_given(given: Mapping[str, float], languages: list[str]) -> None:
    for name, weight in given.items():
        if name not in languages:
            raise UserError(
                f"the data has no language {name!r}, for which a weight is given",
                expected=f"only {', '.join(languages)}",
                remedy=did_you_mean(name, languages) or "correct the name, or add text in this language to the corpus",
            )
        if not (math.isfinite(weight) and weight >= 0.0):
            raise UserError(f"the weight of {name!r} is {weight}", expected="a finite number that is not negative")
