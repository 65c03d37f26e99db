"""The one namespace of an account: a kernel cannot have the slug of a dataset or a model, nor one of these that of another."""

from __future__ import annotations

from collections.abc import Callable

from tests.kaggle_emulator.errors import ApiError
from tests.kaggle_emulator.settings import Settings


class Namespace:
    """Asks those who have the things of each kind; kinds are called as in Kaggle's refusals."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exists: dict[str, Callable[[str, float], bool]] = {}

    def add(self, kind: str, exists: Callable[[str, float], bool]) -> None:
        """Take in a kind, and how to ask whether there is such a thing `owner/slug` at a moment."""
        self._exists[kind] = exists

    def check_free(self, kind: str, ref: str, title: str, now: float) -> None:
        """Check that nothing of another kind has a slug.

        Raises:
            ApiError: something has.
        """
        for other, exists in self._exists.items():
            if self._settings.one_namespace and other != kind and exists(ref, now):
                raise ApiError(409, f'The requested title "{title}" is already in use by a {other}. Please choose another title.')
