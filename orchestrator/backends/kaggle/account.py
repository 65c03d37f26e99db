"""Find the credentials in a command's environment, and open a client for their Kaggle account."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from state.errors import GemmaOrchError

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi


def user_home(environment: Mapping[str, str]) -> Path:
    """Return the user's home folder, where credentials are searched."""
    return Path(environment["HOME"]) if environment.get("HOME") else Path.home()


def open_account(environment: Mapping[str, str]) -> KaggleApi:
    """Return a client with the credentials that the official client would choose.

    Raises:
        UserError: no credentials are found.
    """
    from state.kaggle.api import KaggleApi
    from state.kaggle.credentials import find_credentials

    return KaggleApi(find_credentials(environment, user_home(environment)))


def find_user(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the account's user name and the source of its credentials; without a name, None and the reason."""
    from state.kaggle.credentials import find_credentials

    try:
        credentials = find_credentials(environment, user_home(environment))
        return credentials.user or open_account(environment).user, credentials.source
    except GemmaOrchError as error:
        return None, str(error)
