"""Tokens: what they must hold, how they are checked, and how the embedded server signs its own."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import jwt

from crdt.access import User
from crdt.errors import TokenExpired, Unauthenticated
from crdt.ids import UserId, is_text
from crdt.revocations import TokenFacts
from server.jwks import JwksClient
from server.keys import GivenKey, VerifyingKey
from server.settings import Settings, SettingsError, generated_secret

log = logging.getLogger(__name__)

ROLES = ("user", "premium", "trainer", "admin")
LEEWAY_S = 5
MAX_TOKEN_BYTES = 8_192
MAX_FRIENDS = 5_000
MAX_TIME_S = 2**53 / 1_000
"""Beyond it, a time in milliseconds is no number that a JavaScript client can read exactly."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified token: who it speaks for, until when (seconds since the epoch), and which one it
    is."""

    user: User
    expires_at_s: float
    token: TokenFacts


class Authenticator:
    """Checks tokens against the configured key, or keys.

    A key decides the algorithm; what a token says of its own is never trusted.
    """

    def __init__(
        self,
        keys: GivenKey | JwksClient,
        *,
        issuer: str | None = None,
        audience: str | None = None,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    @classmethod
    def from_settings(cls, settings: Settings) -> Authenticator:
        """With the configured key, else with the generated secret of the data folder.

        Raises:
            SettingsError: the key cannot be used.
        """
        return cls(_keys(settings), issuer=settings.jwt_issuer, audience=settings.jwt_audience)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have the keys at hand for as long as the block runs."""
        if isinstance(self._keys, GivenKey):
            yield
            return
        if self._audience is None:
            log.warning(
                "JWT_AUDIENCE is not set: what the owner of JWT_JWKS_URL signs for other"
                " services is let in here as well"
            )
        async with self._keys.open():
            yield

    @property
    def key_set(self) -> JwksClient | None:
        """The keys, if they are fetched from somewhere."""
        return self._keys if isinstance(self._keys, JwksClient) else None

    @property
    def can_sign(self) -> bool:
        return isinstance(self._keys, GivenKey) and self._keys.is_secret

    async def verify(self, token: object) -> Identity:
        """Who a token speaks for. It waits only where the token names a key that must be fetched.

        Raises:
            TokenExpired: it was good once.
            Unauthenticated: it is no good.
            Unavailable: there are no keys to check it with.
        """
        if not isinstance(token, str) or not token or len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("a token is needed: auth {token}")
        try:
            claims = self._claims(token, await self._keys.find(token))
        except jwt.ExpiredSignatureError as exc:
            raise TokenExpired("the token has expired") from exc
        except (jwt.PyJWTError, ValueError) as exc:
            raise Unauthenticated(f"the token is not valid: {exc}") from exc
        return _identity(claims)

    def _claims(self, token: str, key: VerifyingKey) -> Mapping[str, Any]:
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
        )

    def sign(
        self,
        user_id: str,
        *,
        name: str | None = None,
        role: str = "user",
        friends: tuple[str, ...] = (),
        ttl_s: float = 86_400,
        token_id: str | None = None,
    ) -> str:
        """Make a token, with an id of its own unless one is given.

        Raises:
            SettingsError: no secret is configured.
        """
        if not isinstance(self._keys, GivenKey) or not self._keys.is_secret:
            raise SettingsError(
                f"{self._keys.setting} can check tokens, not sign them: sign at the host"
            )
        now = time.time()
        claims: dict[str, Any] = {
            "sub": user_id,
            "jti": token_id or uuid4().hex,
            "iat": int(now),
            "exp": now + ttl_s,
            "role": role,
        }
        if name:
            claims["name"] = name
        if friends:
            claims["friends"] = list(friends)
        if self._issuer:
            claims["iss"] = self._issuer
        if self._audience:
            claims["aud"] = self._audience
        secret = self._keys.verifying
        return jwt.encode(claims, secret.key, algorithm=secret.algorithm)


def _keys(settings: Settings) -> GivenKey | JwksClient:
    if settings.jwt_jwks_url:
        return JwksClient(
            settings.jwt_jwks_url,
            lifetime_s=settings.jwt_jwks_lifetime_s,
            stale_s=settings.jwt_jwks_stale_s,
        )
    if settings.jwt_public_key:
        return GivenKey.public(settings.jwt_public_key)
    if settings.jwt_secret:
        return GivenKey.secret(settings.jwt_secret.get_secret_value())
    return GivenKey.secret(generated_secret(settings.data_dir))


def _identity(claims: Mapping[str, Any]) -> Identity:
    expires_at_s, issued_at_s = _seconds(claims, "exp"), _seconds(claims, "iat")
    _seconds(claims, "nbf")
    # The leeway is for clocks that run behind, in nbf and iat; an end is an end.
    if expires_at_s is None or expires_at_s <= time.time():
        raise TokenExpired("the token has expired")
    subject, role = claims["sub"], claims.get("role", "user")
    name, friends = claims.get("name"), claims.get("friends", [])
    if not isinstance(subject, str) or not 0 < len(subject) <= 200 or not is_text(subject):
        raise Unauthenticated("the token's sub must be a text of 1 to 200 characters")
    if role not in ROLES:
        raise Unauthenticated(f"the token's role must be one of {', '.join(ROLES)}")
    if not isinstance(friends, list) or len(friends) > MAX_FRIENDS:
        raise Unauthenticated("the token's friends must be a list of user ids")
    user = User(
        UserId(subject),
        name[:200] if isinstance(name, str) and name and is_text(name) else subject,
        role,
        frozenset(friend for friend in friends if isinstance(friend, str)),
    )
    issued_at_ms = None if issued_at_s is None else int(issued_at_s * 1_000)
    return Identity(user, expires_at_s, TokenFacts(user.id, claims.get("jti"), issued_at_ms))


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """A time among the claims. pyjwt takes texts, truths and numbers without end as well."""
    value = claims.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < MAX_TIME_S:  # NaN is in no range
        raise Unauthenticated(f"the token's {name} must be a number of seconds since the epoch")
    return float(value)
