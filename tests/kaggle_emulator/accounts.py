"""Who may call: users with their keys and tokens, and running sessions with theirs."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.kaggle_emulator.calls import Actor, Answer, Call, Handler
from tests.kaggle_emulator.clock import parse_duration
from tests.kaggle_emulator.errors import ApiError
from tests.kaggle_emulator.settings import Settings

_TOKEN_LIFE_S = 12 * 3600.0


@dataclass(frozen=True)
class _Token:
    actor: Actor
    expires_at: float


class Accounts:
    """Keys and tokens, and the calls that are about them."""

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self._now = now
        self._keys = {settings.user: settings.key, **settings.other_users}
        self._tokens: dict[str, _Token] = {settings.access_token: _Token(Actor(settings.user), float("inf"))}
        self._refresh_tokens: dict[str, str] = {}
        self._issued: dict[str, str] = {}
        self._lock = threading.Lock()

    def routes(self) -> dict[str, Handler]:
        return {"Hello": self.hello, "IntrospectToken": self.introspect, "GenerateAccessToken": self.generate}

    def secrets(self) -> dict[str, str]:
        """Give everything that must not be found anywhere: a name for it, and the secret."""
        with self._lock:
            keys = {f"key of {user}": key for user, key in self._keys.items()}
            basic = {f"Basic credentials of {user}": _basic(user, key) for user, key in self._keys.items()}
            return {**keys, **basic, **self._issued, **{f"token of {t.actor.user}": s for s, t in self._tokens.items()}}

    def issue(self, actor: Actor, *, prefix: str, life_s: float = float("inf")) -> str:
        """Make a token that speaks for the actor."""
        token = prefix + secrets.token_hex(20)
        with self._lock:
            self._tokens[token] = _Token(actor, self._now() + life_s)
            self._issued[f"token of {actor.user}'s session {actor.session} ({token[:12]})"] = token
        return token

    def issue_refresh_token(self, user: str) -> str:
        """Make what `kaggle auth login` would have stored in credentials.json."""
        token = "KGRT_" + secrets.token_hex(20)
        with self._lock:
            self._refresh_tokens[token] = user
            self._issued[f"refresh token of {user}"] = token
        return token

    def revoke(self, *tokens: str) -> None:
        """End tokens, as the end of a session does."""
        with self._lock:
            for token in tokens:
                self._tokens.pop(token, None)

    def identify(self, headers: Mapping[str, str]) -> Actor | None:
        """Give who sends these headers; None for nobody at all.

        Raises:
            ApiError: 401, when there are credentials and they are bad.
        """
        authorization = headers.get("Authorization") or headers.get("X-Kaggle-Authorization")
        if not authorization:
            return None
        kind, _, value = authorization.partition(" ")
        actor = self._by_key(value) if kind == "Basic" else self._by_token(value) if kind == "Bearer" else None
        if actor is None:
            raise ApiError(401, "Unauthenticated")
        return actor

    def hello(self, call: Call) -> Answer:
        return {"userName": call.actor.user}

    def introspect(self, call: Call) -> Answer:
        token = call.text("token")
        actor = self._by_token(token)
        if actor is None:
            raise ApiError(403, "Permission 'oauth.introspect' was denied")
        expires_at = self._tokens[token].expires_at
        exp = {} if expires_at == float("inf") else {"exp": int(expires_at)}
        return {
            "active": True,
            "clientId": "kaggle-api",
            "username": actor.user,
            "userId": 1,
            "scope": "resources.admin:*",
            **exp,
        }

    def generate(self, call: Call) -> Answer:
        refresh_token = call.text("refreshToken")
        user = self._refresh_tokens.get(refresh_token, "") if refresh_token else call.actor.user
        if not user:
            raise ApiError(401, "Unauthenticated")
        asked = call.text("expirationDuration")
        life_s = parse_duration(asked).total_seconds() if asked else _TOKEN_LIFE_S
        token = self.issue(Actor(user), prefix="KGAT_", life_s=life_s)
        return {"token": token, "expiresIn": int(life_s), "userName": user, "userId": 1}

    def _by_key(self, value: str) -> Actor | None:
        try:
            user, _, key = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        known = self._keys.get(user)
        return Actor(user) if known is not None and hmac.compare_digest(known.encode(), key.encode()) else None

    def _by_token(self, token: str) -> Actor | None:
        with self._lock:
            known = self._tokens.get(token)
        return known.actor if known is not None and self._now() < known.expires_at else None


def _basic(user: str, key: str) -> str:
    return base64.b64encode(f"{user}:{key}".encode()).decode()
