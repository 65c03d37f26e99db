"""Sends calls through Kaggle's own client library: each once, with timeouts; returns a validated body or raises."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from state.clock import Clock
from state.errors import AmbiguousError, GemmaOrchError, TemporaryError, UserError
from state.kaggle.answers import IntrospectAnswer, reason_in, refusal
from state.kaggle.credentials import Credentials
from state.kaggle.errors import CredentialsError, DeniedError, RateLimitedError
from state.kaggle.failures import LostError, RefusedError, refused, translated
from state.kaggle.sdk_requests import build_request

if TYPE_CHECKING:
    import requests

_Answer = TypeVar("_Answer", bound=BaseModel)

_CLIENTS = {
    "kernels": "kernels_api_client",
    "datasets": "dataset_api_client",
    "blobs": "blob_api_client",
    "models": "model_api_client",
    "security": "oauth_client",
}
_TOKEN_MARGIN = timedelta(minutes=5)
"""How long before its end an OAuth token is renewed; kagglesdk itself renews it only 30 minutes after the end."""


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of a call: to connect, and for each piece of the answer."""

    connect_s: float
    read_s: float

    @property
    def pair(self) -> tuple[float, float]:
        """Both timeouts, in the form that requests takes."""
        return (self.connect_s, self.read_s)


class Transport:
    """Sends the calls of one account; each thread has its own client."""

    def __init__(self, credentials: Credentials, timeouts: Timeouts, clock: Clock) -> None:
        self.timeouts = timeouts
        self.clock = clock
        self._credentials = credentials
        self._is_chosen = credentials.instead is None
        self._oauth: tuple[str, datetime] | None = None
        self._choice = threading.Lock()
        self._local = threading.local()

    def user(self) -> str:
        """Return the account's user name.

        Raises:
            CredentialsError: Kaggle does not know the token.
            TemporaryError: Kaggle did not answer.
        """
        credentials = self._choose()
        if credentials.user:
            return credentials.user
        answer = self._introspect(self._token_of(credentials) or "")
        if answer is None:
            raise self._not_accepted(credentials, "asking whose the token is")
        with self._choice:
            self._credentials = credentials.of(str(answer.username))
        return str(answer.username)

    def source(self) -> str:
        """Return the place where the credentials in use were found.

        Raises:
            TemporaryError: Kaggle did not answer whether a token is valid.
        """
        return self._choose().source

    def read(self, what: str, model: type[_Answer], service: str, method: str, **fields: Any) -> _Answer | None:
        """Send a call that reads something of the account.

        Args:
            what: The act, for messages, such as `looking at kernel a-b`.
            model: The model that validates the body.
            service: `kernels`, `datasets`, `blobs`, `models` or `security`.
            method: The call's name in kagglesdk, such as `get_kernel`.
            fields: The fields of the request.

        Returns:
            The answer, or None if Kaggle says that the thing is missing.

        Raises:
            TemporaryError: it is unknown whether the thing exists.
            CredentialsError: Kaggle does not accept the credentials.
        """
        try:
            return self._call(model, service, method, fields)
        except RefusedError as error:
            if error.says_missing:
                return None
            raise self.failed_read(what, error) from None
        except LostError as error:
            raise TemporaryError(f"{what} failed: {error}") from None

    def write(self, what: str, model: type[_Answer], service: str, method: str, **fields: Any) -> _Answer:
        """Send a call that changes something, once.

        Raises:
            AmbiguousError: the answer was lost, or proves nothing.
            RateLimitedError: too many calls; the call had no effect.
            CredentialsError: Kaggle does not accept the credentials; the call had no effect.
            DeniedError: these credentials may not do this; the call had no effect.
            UserError: Kaggle refuses the request; the call had no effect.
        """
        try:
            return self._call(model, service, method, fields)
        except RefusedError as error:
            raise self.failed_write(what, error) from None
        except LostError as error:
            raise AmbiguousError(f"whether {what} happened is unknown: {error}", remedy="look before trying again") from None

    def answered_at(self) -> datetime | None:
        """Return the Date header of this thread's last answer, or None if it is missing or invalid."""
        answered: requests.Response | None = getattr(self._local, "answered", None)
        try:
            return None if answered is None else parsedate_to_datetime(answered.headers.get("Date", ""))
        except ValueError:
            return None

    def failed_read(self, what: str, error: RefusedError) -> GemmaOrchError:
        """Return the error for a refused read; it never means that the thing is missing."""
        if error.status == 401 and not error.is_page:
            return self._not_accepted(self._credentials, what)
        if error.status == 429:
            return _rate_limited(what, error)
        return TemporaryError(f"{what} failed: {error}")

    def failed_write(self, what: str, error: RefusedError) -> GemmaOrchError:
        """Return the error for a refused write."""
        if error.status == 429:
            return _rate_limited(what, error)
        if error.is_page or error.status >= 500 or error.status == 408 or error.status < 400:
            return AmbiguousError(f"whether {what} happened is unknown: {error}", remedy="look before trying again")
        if error.status == 401:
            return self._not_accepted(self._credentials, what)
        meaning = refusal(what, str(error))
        if error.status in (403, 404) and type(meaning) is UserError:
            return DeniedError(meaning.what, remedy=meaning.remedy)
        return meaning

    @contextlib.contextmanager
    def stream(self, service: str, method: str, **fields: Any) -> Iterator[requests.Response]:
        """Open a body at its beginning, to be read with `pieces`.

        Raises:
            RefusedError: Kaggle answered with an error.
            LostError: no answer arrived.
        """
        self._authorize()
        with translated():
            response = self._function(service, method)(build_request(service, method, fields))
        with response:
            yield response

    @contextlib.contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """Open an address that needs no credentials, such as a signed one.

        Raises:
            RefusedError: the server answered with an error.
            LostError: no answer arrived.
        """
        with self.plain_session() as session:
            with translated():
                response = session.get(url, stream=True, headers=headers, timeout=self.timeouts.pair)
            with response:
                if response.status_code >= 400:
                    said = refused(response)  # drop its words: they may repeat the address, which is a secret
                    raise RefusedError(said.status, "", is_page=True, retry_after_s=said.retry_after_s)
                yield response

    @contextlib.contextmanager
    def log_stream(self, owner: str, slug: str, label: str, read_s: float) -> Iterator[requests.Response]:
        """Open the stream of a session's log, as the official client does.

        Raises:
            RefusedError: Kaggle answered with an error.
            LostError: no answer arrived.
        """
        from kagglesdk.kaggle_env import KaggleEnv, get_endpoint, get_env

        self._authorize()
        session: requests.Session = self._local.session
        base = get_endpoint(get_env()) + ("" if get_env() == KaggleEnv.PROD else "/api")
        url = f"{base}/v1/kernels/logs/stream/{owner}/{slug}"
        with translated():
            response = session.get(
                url,
                params={"versionLabel": label},
                stream=True,
                headers={"Accept": "text/event-stream, */*"},
                auth=session.auth,
                timeout=(self.timeouts.connect_s, read_s),
            )
        with response:
            if response.status_code >= 400:
                raise refused(response)
            yield response

    def put(
        self, session: requests.Session, url: str, body: bytes | Iterable[bytes], headers: dict[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Send bytes to an upload's address; return the status and the headers of the answer.

        Raises:
            LostError: no answer arrived.
        """
        # While it sends a body, urllib3 applies the timeout for connecting to each piece.
        limits = (self.timeouts.read_s, self.timeouts.read_s)
        with translated():
            response = session.put(url, data=body, headers=headers, timeout=limits, allow_redirects=False)
            return response.status_code, response.headers

    def plain_session(self) -> requests.Session:
        """Return an HTTP session without credentials, for storage; it uses the environment's proxies. The caller closes it."""
        import requests

        session = requests.Session()
        session.auth = _no_authorization  # otherwise requests reads a password from ~/.netrc
        session.headers.update({"Accept-Encoding": "identity"})  # compression would change sizes and offsets
        return session

    def _call(self, model: type[_Answer], service: str, method: str, fields: dict[str, Any]) -> _Answer:
        self._authorize()
        return self._send(model, service, method, fields)

    def _send(self, model: type[_Answer], service: str, method: str, fields: dict[str, Any]) -> _Answer:
        """Send a call with the current authorization of this thread's session."""
        request = build_request(service, method, fields)
        function = self._function(service, method)
        self._local.answered = None
        try:
            with translated():
                function(request)
        except LostError:
            if self._local.answered is None:
                raise
            # The body has arrived, but kagglesdk could not parse it, for example because of an unknown enum member.
        return _believed(model, self._local.answered)

    def _function(self, service: str, method: str) -> Callable[[Any], Any]:
        self._open()
        function: Callable[[Any], Any] = getattr(getattr(getattr(self._local.client, service), _CLIENTS[service]), method)
        return function

    def _authorize(self) -> None:
        """Set this thread's session to send the chosen credentials and no others."""
        credentials = self._choose()
        token = self._token_of(credentials)
        self._open()
        self._local.session.auth = _Bearer(token) if token is not None else (credentials.user or "", credentials.key or "")

    def _open(self) -> None:
        """Create this thread's client if it does not exist."""
        if getattr(self._local, "client", None) is not None:
            return
        from kagglesdk.kaggle_client import KaggleClient

        from state.kaggle.adapter import TimedAdapter

        # With a token given, kagglesdk does not search the environment and files for others; `_authorize` sets the right one.
        client = KaggleClient(api_token="none", user_agent="gemma-orch", response_processor=self._note)  # noqa: S106
        client.__enter__()
        session = client.http_client()._session
        for scheme in ("https://", "http://"):
            session.mount(scheme, TimedAdapter(self.timeouts.pair))
        # No keep-alive: a write over a dead connection would be ambiguous for no reason.
        session.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
        session.auth = _no_authorization
        self._local.client, self._local.session = client, session

    def _note(self, response: requests.Response) -> None:
        self._local.answered = response

    def _choose(self) -> Credentials:
        """Return the credentials to use; on the first call, replace a token that Kaggle does not know by its fallback."""
        with self._choice:
            if not self._is_chosen:
                credentials = self._credentials
                answer = self._introspect(credentials.token or "")
                known = credentials.of(str(answer.username)) if answer is not None else credentials.instead
                assert known is not None
                self._credentials, self._is_chosen = known, True
            return self._credentials

    def _introspect(self, token: str) -> IntrospectAnswer | None:
        """Return what Kaggle knows about a token, or None if the token is invalid."""
        what = "asking whose the token is"
        try:
            answer = self._without_credentials(IntrospectAnswer, "security", "introspect_token", {"token": token})
        except RefusedError as error:
            if error.status in (400, 401, 403, 404) and not error.is_page:
                return None
            raise self.failed_read(what, error) from None
        except LostError as error:
            raise TemporaryError(f"{what} failed: {error}") from None
        return answer if answer.active and answer.username else None

    def _without_credentials(self, model: type[_Answer], service: str, method: str, fields: dict[str, Any]) -> _Answer:
        self._open()
        self._local.session.auth = _no_authorization
        return self._send(model, service, method, fields)

    def _token_of(self, credentials: Credentials) -> str | None:
        if credentials.oauth_file is None:
            return credentials.token
        with self._choice:
            if self._oauth is None or self._oauth[1] - _TOKEN_MARGIN < self.clock.now():
                self._oauth = self._renewed(credentials)
            return self._oauth[0]

    def _renewed(self, credentials: Credentials) -> tuple[str, datetime]:
        """Return a new access token of an OAuth login, and when it expires; it is kept in memory only."""
        from kagglesdk.kaggle_creds import KaggleCredentials

        what = f"renewing the token of {credentials.source}"
        self._open()
        self._local.session.auth = _no_authorization
        login = KaggleCredentials.load(self._local.client, str(credentials.oauth_file))
        if login is None:
            raise CredentialsError(f"{credentials.oauth_file} holds no OAuth login", remedy="run `kaggle auth login`")
        try:
            with translated():
                answer = login.generate_access_token()
        except RefusedError as error:
            if error.status in (400, 401, 403, 404) and not error.is_page:
                raise self._not_accepted(credentials, what) from None
            raise self.failed_read(what, error) from None
        except LostError as error:
            raise TemporaryError(f"{what} failed: {error}") from None
        if not answer.token:
            raise TemporaryError(f"{what} failed: the answer holds no token")
        return str(answer.token), self.clock.now() + timedelta(seconds=answer.expires_in)

    def _not_accepted(self, credentials: Credentials, what: str) -> CredentialsError:
        return CredentialsError(
            f"{what} failed: Kaggle does not accept the credentials of {credentials.source}",
            remedy="make a new API token at https://www.kaggle.com/settings/api, or remove this one if others should be used",
        )


class _Bearer:
    """Adds a token to a request; its `repr` does not show the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _no_authorization(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _believed(model: type[_Answer], response: requests.Response) -> _Answer:
    """Return the validated body of an answer.

    Raises:
        RefusedError: the body is an error, although the status is not.
        LostError: the body is not an answer to the request.
    """
    try:
        body = json.loads(response.content)
    except ValueError:
        raise LostError("the answer is not JSON") from None
    if not isinstance(body, dict):
        raise LostError("the answer is not a JSON object")
    code, reason = reason_in(response.text)
    if code is not None and code >= 400:
        raise RefusedError(code, reason)
    if not any(field.alias in body for field in model.model_fields.values()):
        raise LostError("the answer holds none of the expected fields")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, problem["loc"])) for problem in error.errors()}))
        raise LostError(f"the answer has invalid fields: {places}") from None


def _rate_limited(what: str, error: RefusedError) -> RateLimitedError:
    return RateLimitedError(f"{what} failed: {error}", retry_after_s=error.retry_after_s, remedy="wait a minute")
