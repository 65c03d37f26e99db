"""What Kaggle says no with; each derives from the error by which the policy decides."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from state.errors import DataError, QuotaError, TemporaryError, UserError


class BusyError(TemporaryError):
    """As many sessions run as the account may have; one of them ends in minutes or hours."""


class RateLimitedError(TemporaryError):
    """Too many calls: this one certainly had no effect."""

    def __init__(self, what: str, *, retry_after_s: float | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.retry_after_s = retry_after_s


class KaggleQuotaError(QuotaError):
    """The week's accelerator hours are used up."""

    def __init__(self, what: str, *, until: datetime | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.until = until
        """When the quota is refreshed; None: Kaggle did not tell."""


class CredentialsError(UserError):
    """Kaggle does not accept the credentials."""


class DeniedError(UserError):
    """Kaggle does not let these credentials do this, or what it should be done to does not exist."""


class SlugTakenError(UserError):
    """Something of the account has this name already."""

    def __init__(self, what: str, *, by: str | None = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.by = by
        """What has it, in Kaggle's word: `dataset`, `notebook`, `model`; None: Kaggle did not tell."""

    def may_be(self, kind: str) -> bool:
        """Return whether a thing of this kind may have the name: then it may be the one that was to be made."""
        return self.by in (None, kind)


class InvalidSourcesError(UserError):
    """A kernel was started without some of its inputs, and runs: it must be deleted."""

    def __init__(self, slug: str, version: int, sources: Sequence[str]) -> None:
        super().__init__(
            f"kernel {slug} version {version} was started without {', '.join(sources)}",
            expected="sources that exist, are processed, and may be read by this account",
            remedy="delete the kernel, then look whether these sources are READY",
        )
        self.slug = slug
        self.version = version
        self.sources = tuple(sources)


class UploadsGoneError(TemporaryError):
    """Kaggle does not have the uploaded bytes (any more) that a version should be made of."""


class ProcessingFailedError(TemporaryError):
    """Kaggle took a dataset's files, and then failed to process them."""

    def __init__(self, slug: str, version: int | None, *, remedy: str = "") -> None:
        which = f"version {version} of dataset {slug}" if version is not None else f"dataset {slug}"
        super().__init__(f"Kaggle failed to process {which}", remedy=remedy)
        self.slug = slug
        self.version = version


class CorruptUploadError(DataError):
    """A dataset version stands, and its files are not those that were uploaded."""

    def __init__(self, slug: str, version: int, what: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.slug = slug
        self.version = version
