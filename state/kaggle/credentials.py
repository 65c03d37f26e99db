"""Finds Kaggle credentials, and chooses which of them is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from state.errors import UserError

SESSION_TOKEN_VARIABLE = "KAGGLE_API_V1_TOKEN"  # noqa: S105 -- names the variable that holds the path of a file
_HOW_TO_GET_ONE = (
    "make an API token at https://www.kaggle.com/settings/api, and put it into ~/.kaggle/access_token or KAGGLE_API_TOKEN; "
    "or put kaggle.json into ~/.kaggle"
)
_ENVIRONMENTS = ("PROD", "LOCALHOST", "TEST", "QA")


@dataclass(frozen=True)
class Credentials:
    """Credentials of one account: a legacy key, an access token, or the file of an OAuth login."""

    source: str
    """The place where they were found; never their value."""
    user: str | None = None
    """The account's user name, if known."""
    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    oauth_file: Path | None = None
    instead: Credentials | None = None
    """The credentials to fall back to if Kaggle says that the token is not, or no longer, valid."""

    def of(self, user: str) -> Credentials:
        """Return a copy with the user name set."""
        return replace(self, user=user)


@dataclass(frozen=True)
class Source:
    """A place that holds credentials."""

    name: str
    user: str | None
    is_chosen: bool


def find_credentials(environment: Mapping[str, str], home: Path) -> Credentials:
    """Return the credentials that the official client would choose: tokens before keys before an OAuth login.

    Args:
        environment: The environment variables.
        home: The user's home folder.

    Raises:
        UserError: credentials are missing, or a file that may hold them cannot be read.
    """
    chosen_environment = environment.get("KAGGLE_API_ENVIRONMENT") or "PROD"
    if chosen_environment not in _ENVIRONMENTS:
        raise UserError(
            f"KAGGLE_API_ENVIRONMENT is invalid: {chosen_environment!r}",
            expected=f"one of {', '.join(_ENVIRONMENTS)}",
            remedy="unset it",
        )
    found = list(_all(environment, home))
    if not found:
        raise UserError("no Kaggle credentials were found", remedy=_HOW_TO_GET_ONE)
    chosen = found[0]
    key = next((other for other in found[1:] if other.token is None), None)
    return replace(chosen, instead=key) if chosen.token is not None else chosen


def describe_sources(environment: Mapping[str, str], home: Path) -> tuple[Source, ...]:
    """Return every place that holds credentials; the first one is in use.

    Raises:
        UserError: a file that may hold credentials cannot be read.
    """
    return tuple(Source(found.source, found.user, number == 0) for number, found in enumerate(_all(environment, home)))


def session_credentials(environment: Mapping[str, str], user: str | None = None) -> Credentials:
    """Return the credentials that Kaggle gives to a kernel's session.

    Args:
        environment: The session's environment variables.
        user: The account's user name, if known.

    Raises:
        UserError: the token is missing, or this process is not a session on Kaggle.
    """
    path = environment.get(SESSION_TOKEN_VARIABLE, "")
    token = _text_of(Path(path)) if path else None
    if token is None:
        raise UserError(
            f"the session's token is missing: {SESSION_TOKEN_VARIABLE} is {path!r}",
            expected="the path of a file that holds the session's API token",
            remedy="run it as a kernel on Kaggle, with the internet switched on",
        )
    return Credentials(f"the session's token, {SESSION_TOKEN_VARIABLE}", user=user, token=token)


def token_credentials(token: str, source: str, user: str | None = None) -> Credentials:
    """Return credentials for an access token."""
    return Credentials(source, user=user, token=token)


def _all(environment: Mapping[str, str], home: Path) -> Iterator[Credentials]:
    if environment.get("KAGGLE_KERNEL_RUN_TYPE") and Path(environment.get(SESSION_TOKEN_VARIABLE, "")).is_file():
        yield session_credentials(environment)
    yield from _access_tokens(environment, home)
    user, key = environment.get("KAGGLE_USERNAME"), environment.get("KAGGLE_KEY")
    if user and key:
        yield Credentials("KAGGLE_USERNAME and KAGGLE_KEY", user=user, key=key)
    yield from _legacy_key(_config_folder(environment, home) / "kaggle.json")
    yield from _oauth_login(home / ".kaggle" / "credentials.json")


def _access_tokens(environment: Mapping[str, str], home: Path) -> Iterator[Credentials]:
    value = environment.get("KAGGLE_API_TOKEN", "").strip()
    if value:
        path = Path(value)
        is_file = len(value) < 1024 and "\n" not in value and path.is_file()
        token = _text_of(path) if is_file else value
        if token is not None:
            yield Credentials(f"KAGGLE_API_TOKEN, the file {path}" if is_file else "KAGGLE_API_TOKEN", token=token)
    for name in ("access_token", "access_token.txt"):
        path = home / ".kaggle" / name
        token = _text_of(path)
        if token is not None:
            yield Credentials(str(path), token=token)


def _legacy_key(path: Path) -> Iterator[Credentials]:
    document = _json_of(path)
    if document is None:
        return
    user, key = document.get("username"), document.get("key")
    if isinstance(user, str) and isinstance(key, str) and user and key:
        yield Credentials(str(path), user=user, key=key)


def _oauth_login(path: Path) -> Iterator[Credentials]:
    document = _json_of(path)
    if document is not None and document.get("refresh_token"):
        user = document.get("username")
        yield Credentials(f"{path}, made by `kaggle auth login`", user=str(user) if user else None, oauth_file=path)


def _config_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Return the folder that the official client reads kaggle.json from."""
    if environment.get("KAGGLE_CONFIG_DIR"):
        return Path(environment["KAGGLE_CONFIG_DIR"])
    if (home / ".kaggle").is_dir():
        return home / ".kaggle"
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"


def _text_of(path: Path) -> str | None:
    """Return a file's text, or None if the file is missing or empty."""
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None  # editors of Windows begin a file with a mark
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, "it cannot be read") from error


def _json_of(path: Path) -> dict[str, object] | None:
    text = _text_of(path)
    if text is None:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        raise _unreadable(path, "it is not JSON") from None  # the error would quote the file
    if not isinstance(document, dict):
        raise _unreadable(path, "it is not a JSON object")
    return document


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path} may hold Kaggle credentials, but {why}", remedy=f"repair or remove it, or {_HOW_TO_GET_ONE}")
