"""The base class of the calls about kernels, datasets and models: paged listings and deletes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from state.clock import Clock, SystemClock
from state.errors import AmbiguousError, TemporaryError
from state.kaggle import answers
from state.kaggle.credentials import Credentials
from state.kaggle.errors import DeniedError
from state.kaggle.transport import Timeouts, Transport

_WAITS_FOR_DELETE_S = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Pauses before each poll for a deleted thing: a read may be older than the delete."""

_Page = TypeVar("_Page", bound=answers.Page)


class Calls:
    """The connection of one account; see `KaggleApi`."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._transport = Transport(credentials, Timeouts(connect_timeout_s, read_timeout_s), self._clock)

    @property
    def user(self) -> str:
        """The account's user name; if the credentials lack it, Kaggle is asked once.

        Raises:
            CredentialsError: Kaggle does not accept the credentials.
            TemporaryError: Kaggle did not answer.
        """
        return self._transport.user()

    @property
    def source(self) -> str:
        """The place where the credentials in use were found.

        Raises:
            TemporaryError: Kaggle did not answer whether a token is valid.
        """
        return self._transport.source()

    @property
    def transport(self) -> Transport:
        """The transport of the calls, for the other modules of this package."""
        return self._transport

    def _pages(
        self, what: str, model: type[_Page], service: str, method: str, fields: dict[str, Any]
    ) -> tuple[_Page, ...] | None:
        """Return all pages of a listing, or None if the thing whose parts it lists is missing."""
        return _all_of(self._page_after(what, model, service, method, fields))

    def _page_after(
        self, what: str, model: type[_Page], service: str, method: str, fields: dict[str, Any]
    ) -> Iterator[_Page | None]:
        seen = {""}
        token = ""
        while True:
            page = self._transport.read(what, model, service, method, **fields, **({"page_token": token} if token else {}))
            if page is None and token:
                raise TemporaryError(f"{what} failed: a later page is missing")
            yield page
            token = (page.next_page_token or "") if page is not None else ""
            if not token:
                return
            if token in seen:
                raise TemporaryError(f"{what} failed: a page was listed twice")
            seen.add(token)

    def _delete(
        self,
        what: str,
        service: str,
        method: str,
        fields: dict[str, Any],
        *,
        is_shown: Callable[[], bool],
        is_listed: Callable[[], bool],
    ) -> None:
        """Delete a thing, and poll until it is gone.

        Unless Kaggle confirmed the delete, a read that does not show the thing proves nothing, because Kaggle at times refuses to
        show things that exist. Then only a list of all things proves that it is gone.
        """
        refused: str | None = None
        denied: DeniedError | None = None
        try:
            answer = self._transport.write(what, answers.DeleteAnswer, service, method, **fields)
            refused = answer.error_message or answer.error
        except AmbiguousError as error:
            refused = error.what
        except DeniedError as error:
            denied, refused = error, error.what
        for wait_s in _WAITS_FOR_DELETE_S:
            self._clock.sleep(wait_s)
            if not is_shown() and not (refused and is_listed()):
                return
        said = refused or "Kaggle confirmed the delete"
        if denied is not None:
            raise denied
        raise TemporaryError(f"{what} failed: it still exists; {said}", remedy="try again")


def _all_of(pages: Iterator[_Page | None]) -> tuple[_Page, ...] | None:
    found = []
    for page in pages:
        if page is None:
            return None
        found.append(page)
    return tuple(found)


def slug_of(ref: str) -> str:
    """Return the last part of `owner/slug`."""
    return ref.rpartition("/")[2]
