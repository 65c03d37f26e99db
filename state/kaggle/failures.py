"""The two failures of a request, refused and lost; neither shows an address, which may be a secret."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from state.kaggle.answers import reason_in, shorten

if TYPE_CHECKING:
    import requests


class RefusedError(Exception):
    """Kaggle answered with an error status; internal to this package."""

    def __init__(self, status: int, reason: str, *, is_page: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.is_page = is_page
        """The answer was a web page: it came from a proxy or gateway, not from Kaggle's API."""
        self.retry_after_s = retry_after_s

    @property
    def says_missing(self) -> bool:
        """Whether it says that a thing is missing; Kaggle answers that with 403 as well as 404."""
        return self.status in (403, 404) and not self.is_page

    def __str__(self) -> str:
        return f"HTTP {self.status}" + (f", {shorten(self.reason)}" if self.reason else "")


class LostError(Exception):
    """The answer is missing or invalid; internal to this package."""


class SilentError(LostError):
    """No byte arrived within the timeout; internal to this package."""


def pieces(response: requests.Response, most_bytes: int) -> Iterator[bytes]:
    """Yield a body piece by piece.

    Raises:
        LostError: the connection broke.
    """
    while True:
        with translated():
            piece = response.raw.read(most_bytes)
        if not piece:
            return
        yield piece


def lines(response: requests.Response) -> Iterator[str]:
    """Yield a body line by line, each as soon as it arrives.

    Raises:
        LostError: the connection broke, or no byte arrived within the timeout.
    """
    found = response.iter_lines()
    while True:
        with translated():
            line = next(found, None)
        if line is None:
            return
        yield line.decode(errors="replace")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Translate the errors of requests, urllib3 and kagglesdk into those of this package, without their addresses."""
    import requests
    import urllib3

    try:
        yield
    except requests.HTTPError as error:
        if error.response is None:
            raise LostError(_reason_of(error)) from None
        raise refused(error.response) from None
    except requests.ConnectTimeout:
        raise LostError("no connection within the time limit") from None
    except (requests.Timeout, urllib3.exceptions.ReadTimeoutError):
        raise SilentError("no answer within the time limit") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        if any(isinstance(argument, urllib3.exceptions.ReadTimeoutError) for argument in error.args):  # while a body is read
            raise SilentError("no answer within the time limit") from None
        raise LostError(_reason_of(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):  # kagglesdk raises these for a body that it cannot parse
        raise LostError("the answer cannot be read") from None


def refused(response: requests.Response) -> RefusedError:
    """Return the error for a refusing response."""
    code, reason = reason_in(response.text)
    status = response.status_code if response.status_code >= 400 else code or response.status_code
    kind = response.headers.get("Content-Type", "")
    wait = response.headers.get("Retry-After", "")
    retry_after_s = float(wait) if re.fullmatch(r"\d{1,6}", wait) else None
    return RefusedError(status, reason, is_page="html" in kind, retry_after_s=retry_after_s)


def _reason_of(error: BaseException) -> str:
    """Return why a connection failed, without the address, which may be a secret."""
    import requests

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, requests.RequestException):
            return seen.strerror
        inner = seen.args[0] if seen.args and isinstance(seen.args[0], BaseException) else None
        seen = getattr(inner, "reason", None) or inner or seen.__cause__ or seen.__context__
    return f"the connection broke ({type(error).__name__})"
