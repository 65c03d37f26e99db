"""Tells whether a kernel or dataset that Kaggle refuses to show is missing.

A read answers 403 or 404 for things that do not exist, and at times for things that do (a running kernel, a dataset that was
read a minute ago). Only a whole list of the account's kernels or datasets tells the two apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from state.errors import TemporaryError
from state.ledger import AttemptRecord

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi


_BACKEND = "kaggle"


def listed_kernel(
    api: KaggleApi, slugs: Collection[str], attempts: Iterable[AttemptRecord], session: int, attempt: int
) -> str | None:
    """Return the kernel of an attempt that the list of the account's kernels shows, or None.

    Args:
        api: The account.
        slugs: The names that the kernel may have.
        attempts: All attempts of the run. If others were pushed, an empty list must be wrong, because their kernels are kept.
        session: Number of the attempt's session.
        attempt: Number of the attempt.

    Raises:
        TemporaryError: Kaggle does not answer, or its list is wrong.
    """
    listed = {kernel.slug for kernel in api.kernels("")}
    pushed = ((one.session, one.attempt) for one in attempts if one.backend == _BACKEND and one.handle is not None)
    if not listed and any(other != (session, attempt) for other in pushed):
        raise TemporaryError("Kaggle's list of the account's kernels is empty, which is wrong: the run has pushed kernels")
    return next((slug for slug in slugs if slug in listed), None)


def dataset_is_listed(api: KaggleApi, slug: str, *, owner: str | None = None) -> bool:
    """Return whether the list of the account's datasets shows a dataset.

    Args:
        api: The account.
        slug: The dataset's slug.
        owner: The dataset's owner; None: this account.

    Raises:
        TemporaryError: Kaggle does not answer, its list is wrong, or the dataset belongs to another account, which has no list.
    """
    if owner not in (None, api.user):
        raise TemporaryError(f"Kaggle refuses to show the dataset {owner}/{slug} (403 or 404)")
    listed = api.datasets("")
    if not listed:  # a run with sessions has its control dataset at least
        raise TemporaryError("Kaggle's list of the account's datasets is empty, which is wrong: the run has datasets")
    return slug in listed
