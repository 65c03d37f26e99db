"""Errors for Kaggle's refusals; each derives from the class by which the retry policy decides."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from state.errors import DataError, QuotaError, TemporaryError, UserError


class BusyError(TemporaryError):
    """The account's limit of running sessions is reached; one of them will end in minutes or hours."""


class RateLimitedError(TemporaryError):
    """Too many calls; this one certainly had no effect."""

    def __init__(self, what: str, *, retry_after_s: float | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.retry_after_s = retry_after_s


class KaggleQuotaError(QuotaError):
    """The week's accelerator hours are used up."""

    def __init__(self, what: str, *, until: datetime | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.until = until
        """When the quota is refreshed; None: unknown."""


class CredentialsError(UserError):
    """Kaggle does not accept the credentials."""


class DeniedError(UserError):
    """These credentials may not do this, or its object does not exist: Kaggle does not tell which."""


class SlugTakenError(UserError):
    """A thing on the account already has this name."""

    def __init__(self, what: str, *, by: str | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.by = by
        """Kind of the thing that has the name, in Kaggle's word (`dataset`, `notebook`, `model`); None: unknown."""

    def may_be(self, kind: str) -> bool:
        """Return whether a thing of this kind may have the name; it may then be the very one that was to be created."""
        return self.by in (None, kind)


class InvalidSourcesError(UserError):
    """A kernel runs, but Kaggle started it without some of its inputs; it must be deleted."""

    def __init__(self, slug: str, version: int, sources: Sequence[str]) -> None:
        super().__init__(
            f"kernel {slug} version {version} was started without {', '.join(sources)}",
            expected="sources that exist, are processed, and may be read by this account",
            remedy="delete the kernel, then check whether these sources are READY",
        )
        self.slug = slug
        self.version = version
        self.sources = tuple(sources)


class UploadsGoneError(TemporaryError):
    """Kaggle does not have, or no longer has, the uploaded bytes for a version."""


class ProcessingFailedError(TemporaryError):
    """Kaggle accepted a dataset's files, and then failed to process them."""

    def __init__(self, slug: str, version: int | None, *, remedy: str = "") -> None:
        which = f"version {version} of dataset {slug}" if version is not None else f"dataset {slug}"
        super().__init__(f"Kaggle failed to process {which}", remedy=remedy)
        self.slug = slug
        self.version = version


class CorruptUploadError(DataError):
    """A dataset version exists, but its files are not those that were uploaded."""

    def __init__(self, slug: str, version: int, what: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.slug = slug
        self.version = version
