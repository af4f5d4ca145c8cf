"""The keys that tokens are checked with, and a token, if there is one to look at."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import jwt

from crdt.errors import RepSyncError, TokenExpired, Unavailable
from server.auth import Authenticator
from server.doctor.finding import Finding, address, failure, ok, warning, within
from server.jwks import JwksClient
from server.settings import KEY_SETTINGS, Settings, SettingsError

JWKS_TIMEOUT_S = 2.5


async def examine(settings: Settings, token: str | None) -> AsyncIterator[Finding]:
    key, auth = signing_key(settings)
    yield key
    if auth is not None and auth.key_set is not None:
        yield await within("keys", "JWT_JWKS_URL", key_set(settings))
    if token is not None and auth is not None:
        async with auth.open():
            yield await within("token", "the token", check_token(auth, settings, token))
    elif token is not None:
        yield failure("token", "it cannot be checked: there is no key yet")


def signing_key(settings: Settings) -> tuple[Finding, Authenticator | None]:
    """Whether there is a key that can be used. Returns: the finding, and who checks with it."""
    named = next((name.upper() for name in KEY_SETTINGS if getattr(settings, name)), None)
    made = settings.data_dir / "jwt_secret"
    if named is None and not made.exists():
        return ok("keys", "a secret will be made in DATA_DIR at the start"), None
    try:
        auth = Authenticator.from_settings(settings)
    except SettingsError as exc:
        return failure("keys", str(exc)), None
    if named is None and settings.redis_url is not None:
        return warning(
            "keys",
            f"tokens are signed with {made}, which is this instance's alone: set the same"
            " JWT_SECRET for all, or a public key",
        ), auth
    if named is None:
        return ok("keys", f"tokens are checked with the secret in {made}"), auth
    if auth.key_set is not None and not settings.jwt_audience:
        return warning(
            "keys",
            f"tokens are checked with {named}, and JWT_AUDIENCE is not set: what the provider signs"
            " for other services is let in here",
        ), auth
    return ok("keys", f"tokens are checked with {named}"), auth


async def key_set(settings: Settings) -> Finding:
    """Whether the provider's keys can be fetched."""
    assert settings.jwt_jwks_url is not None
    client = JwksClient(
        settings.jwt_jwks_url, lifetime_s=60.0, stale_s=0.0, timeout_s=JWKS_TIMEOUT_S
    )
    async with client.open():
        await client.fetch()
        report = client.report()
    where = f"JWT_JWKS_URL at {address(settings.jwt_jwks_url)}"
    if client.is_ready:
        return ok("keys", f"{where} has {report['keys']} keys that can be used")
    return failure(
        "keys",
        f"{where} gives no keys, {report['error']}: look at the provider, or correct the address",
    )


async def check_token(auth: Authenticator, settings: Settings, token: str) -> Finding:
    """Whether a token would be let in, and if not why."""
    try:
        identity = await auth.verify(token)
    except TokenExpired:
        return failure("token", f"it has expired{_ago(token)}: get a new one")
    except Unavailable:
        return failure("token", "it cannot be checked: the provider's keys cannot be fetched")
    except RepSyncError as exc:
        return failure("token", _refusal(exc.__cause__, settings) or f"{exc}: ask who issued it")
    left_s = identity.expires_at_s - time.time()
    user = identity.user
    return ok("token", f"it lets in {user.id!r} as {user.role}, for {left_s:,.0f} s more")


def _refusal(cause: BaseException | None, settings: Settings) -> str | None:
    """Why the library did not take it, and what to do."""
    match cause:
        case jwt.InvalidAlgorithmError():
            return (
                "its algorithm is not that of the configured key: sign it with the key that belongs"
                " to JWT_SECRET (HS256), JWT_PUBLIC_KEY or JWT_JWKS_URL"
            )
        case jwt.InvalidSignatureError():
            return (
                "its signature is wrong, it was signed with another key: give both sides the same"
                " JWT_SECRET, or the public key that belongs to the signer's"
            )
        case jwt.InvalidIssuerError() | jwt.MissingRequiredClaimError(claim="iss"):
            return f"its issuer (iss) is not JWT_ISSUER, {settings.jwt_issuer!r}: correct either"
        case jwt.InvalidAudienceError() | jwt.MissingRequiredClaimError(claim="aud"):
            return (
                f"its audience (aud) is not JWT_AUDIENCE, {settings.jwt_audience!r}: correct either"
            )
        case jwt.MissingRequiredClaimError(claim=claim):
            return f"it lacks the claim {claim}: sign it with sub and exp"
        case jwt.ImmatureSignatureError():
            return "it is not good yet (nbf, iat): look at the clocks of both sides"
        case jwt.DecodeError():
            return "it is no token, or cut short: give the whole of it"
    return None


def _ago(token: str) -> str:
    """How long ago, if that can be told."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})
        return f" {time.time() - float(claims['exp']):,.0f} s ago"
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        return ""
