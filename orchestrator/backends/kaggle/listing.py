"""Whether a thing that Kaggle refuses to show is gone.

A read of one thing answers 403 or 404 when it does not exist, and at times when it does (a kernel that runs, a dataset that was
read a minute ago). Only a whole list of all that the account has tells the two apart.
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
    """Return which kernel of an attempt the list of the account's kernels shows, or None when it shows none.

    Args:
        api: The account.
        slugs: What the kernel may be called.
        attempts: Those of the run. Where others were pushed, a list without any kernel proves nothing: their kernels stay.
        session: The attempt's session.
        attempt: Its number.

    Raises:
        TemporaryError: that cannot be told now.
    """
    listed = {kernel.slug for kernel in api.kernels("")}
    pushed = ((one.session, one.attempt) for one in attempts if one.backend == _BACKEND and one.handle is not None)
    if not listed and any(other != (session, attempt) for other in pushed):
        raise TemporaryError("Kaggle's list of the account's kernels is empty, and cannot be right")
    return next((slug for slug in slugs if slug in listed), None)


def dataset_is_listed(api: KaggleApi, slug: str, *, owner: str | None = None) -> bool:
    """Return whether the list of the account's datasets shows one; a run that has sessions has others beside it.

    Args:
        api: The account.
        slug: Of the dataset.
        owner: Of the dataset; None: this account.

    Raises:
        TemporaryError: that cannot be told now, or never, because it is another account's.
    """
    if owner not in (None, api.user):
        raise TemporaryError(f"Kaggle refuses to show the dataset {owner}/{slug} (403 or 404)")
    listed = api.datasets("")
    if not listed:
        raise TemporaryError("Kaggle's list of the account's datasets is empty, and cannot be right")
    return slug in listed
