"""Tokens: what they must hold, how they are checked, and how the embedded server signs its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from crdt.access import User
from crdt.errors import TokenExpired, Unauthenticated
from crdt.ids import UserId
from server.settings import Settings, SettingsError, generated_secret

ROLES = ("user", "premium", "trainer", "admin")
LEEWAY_S = 5
MAX_TOKEN_BYTES = 8_192
MAX_FRIENDS = 5_000


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified token: who it speaks for, and until when (seconds since the epoch)."""

    user: User
    expires_at_s: float


class Authenticator:
    """Checks tokens against the one configured key.

    The key decides the algorithm; what a token says of its own is never trusted.
    """

    def __init__(
        self,
        key: Any,
        algorithm: str,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        can_sign: bool,
    ) -> None:
        self._key = key
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience
        self.can_sign = can_sign

    @classmethod
    def from_settings(cls, settings: Settings) -> Authenticator:
        """With the configured key, else with the generated secret of the data folder.

        Raises:
            SettingsError: the key cannot be used.
        """
        expected = {"issuer": settings.jwt_issuer, "audience": settings.jwt_audience}
        if settings.jwt_public_key:
            key, algorithm = _public_key(settings.jwt_public_key)
            return cls(key, algorithm, **expected, can_sign=False)
        secret = (
            settings.jwt_secret.get_secret_value()
            if settings.jwt_secret
            else generated_secret(settings.data_dir)
        )
        return cls(secret, "HS256", **expected, can_sign=True)

    def verify(self, token: object) -> Identity:
        """Who a token speaks for.

        Raises:
            TokenExpired: it was good once.
            Unauthenticated: it is no good.
        """
        if not isinstance(token, str) or not token or len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("a token is needed: auth {token}")
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
            )
        except jwt.ExpiredSignatureError as exc:
            raise TokenExpired("the token has expired") from exc
        except (jwt.InvalidTokenError, ValueError) as exc:
            raise Unauthenticated(f"the token is not valid: {exc}") from exc
        # The leeway is for clocks that run behind, in nbf and iat; an end is an end.
        if claims["exp"] <= time.time():
            raise TokenExpired("the token has expired")
        return _identity(claims)

    def sign(
        self,
        user_id: str,
        *,
        name: str | None = None,
        role: str = "user",
        friends: tuple[str, ...] = (),
        ttl_s: float = 86_400,
    ) -> str:
        """Make a token.

        Raises:
            SettingsError: only a public key is configured.
        """
        if not self.can_sign:
            raise SettingsError("JWT_PUBLIC_KEY can check tokens, not sign them: sign at the host")
        now = time.time()
        claims: dict[str, Any] = {"sub": user_id, "iat": int(now), "exp": now + ttl_s, "role": role}
        if name:
            claims["name"] = name
        if friends:
            claims["friends"] = list(friends)
        if self._issuer:
            claims["iss"] = self._issuer
        if self._audience:
            claims["aud"] = self._audience
        return jwt.encode(claims, self._key, algorithm=self._algorithm)


def _identity(claims: Mapping[str, Any]) -> Identity:
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
    return Identity(user, float(claims["exp"]))


def is_text(text: str) -> bool:
    """Whether it can be written in UTF-8. JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _public_key(pem: str) -> tuple[Any, str]:
    # Platforms that keep variables on one line write line breaks as \n.
    try:
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except ValueError as exc:
        raise SettingsError("JWT_PUBLIC_KEY is not a public key in PEM form") from exc
    if isinstance(key, rsa.RSAPublicKey):
        return key, "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key, "ES256"
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return key, "EdDSA"
    raise SettingsError("JWT_PUBLIC_KEY must be an RSA, P-256 or Ed25519 key")
