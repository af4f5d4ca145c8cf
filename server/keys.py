"""The keys that tokens are checked with. A key decides its algorithm; what a token says of its own
algorithm, or brings along as a key, is never used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

from server.settings import SettingsError

MIN_RSA_BITS = 2_048
MAX_KEYS = 100

_ALGORITHMS: dict[str, Sequence[str]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Type of a JWK -> what it may be used for. Secrets (`oct`) have no place in a public set."""

_UNNAMED: dict[tuple[str, str | None], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""(type, curve) of a JWK that names no algorithm -> its algorithm."""


class KeySetError(Exception):
    """A key set, or a key of it, cannot be used; the text says why, and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key as pyjwt takes it, and the one algorithm that it is used with."""

    key: Any
    algorithm: str


@dataclass(frozen=True, slots=True)
class GivenKey:
    """The one key of a server that was given, or has made, one."""

    verifying: VerifyingKey
    setting: str

    @property
    def is_secret(self) -> bool:
        """Whether it signs as well."""
        return self.verifying.algorithm == "HS256"

    async def find(self, token: str) -> VerifyingKey:
        """The key, whatever the token says."""
        return self.verifying

    @classmethod
    def secret(cls, secret: str) -> GivenKey:
        """A shared secret, for HS256.

        Raises:
            SettingsError: it is a key of another kind, which would be no secret.
        """
        try:
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
        except InvalidKeyError as exc:
            raise SettingsError(
                "JWT_SECRET is a key in PEM, SSH or JWK form, not a secret;"
                " a public key goes into JWT_PUBLIC_KEY"
            ) from exc
        return cls(VerifyingKey(secret, "HS256"), "JWT_SECRET")

    @classmethod
    def public(cls, pem: str) -> GivenKey:
        """A public key in PEM form.

        Raises:
            SettingsError: it cannot be used.
        """
        # Platforms that keep variables on one line write line breaks as \n.
        try:
            key = load_pem_public_key(pem.replace("\\n", "\n").encode())
        except ValueError as exc:
            raise SettingsError("JWT_PUBLIC_KEY is not a public key in PEM form") from exc
        if isinstance(key, rsa.RSAPublicKey):
            if key.key_size < MIN_RSA_BITS:
                raise SettingsError(f"JWT_PUBLIC_KEY has fewer than {MIN_RSA_BITS} bits")
            algorithm = "RS256"
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            algorithm = "ES256"
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            algorithm = "EdDSA"
        else:
            raise SettingsError("JWT_PUBLIC_KEY must be an RSA, P-256 or Ed25519 key")
        return cls(VerifyingKey(key, algorithm), "JWT_PUBLIC_KEY")


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of a JWK Set that tokens may be signed with, and why others were left out."""

    by_id: Mapping[str, VerifyingKey]
    count: int
    lone: VerifyingKey | None
    """The key, if there is only one."""
    left_out: Sequence[str] = ()

    def find(self, key_id: str | None) -> VerifyingKey | None:
        """The key of this id. A token without a key id may be signed with a lone key."""
        return self.lone if key_id is None else self.by_id.get(key_id)


def read_key_set(body: bytes) -> KeySet:
    """Read a JWK Set (RFC 7517). Keys that are of no use here are left out.

    Raises:
        KeySetError: it is none, or holds no key that can be used.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise KeySetError("it is no JSON") from exc
    listed = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise KeySetError("it is no JWK Set")
    if len(listed) > MAX_KEYS:
        raise KeySetError(f"it holds more than {MAX_KEYS} keys")
    keys: list[VerifyingKey] = []
    by_id: dict[str, VerifyingKey] = {}
    left_out: list[str] = []
    for jwk in listed:
        try:
            key_id, key = _read_jwk(jwk)
            if key_id in by_id:
                raise KeySetError("has the same id as another one")
        except KeySetError as exc:
            left_out.append(str(exc))
            continue
        keys.append(key)
        if key_id is not None:
            by_id[key_id] = key
    if not keys:
        raise KeySetError("it holds no key that tokens may be signed with")
    return KeySet(by_id, len(keys), keys[0] if len(keys) == 1 else None, left_out)


def _read_jwk(jwk: Any) -> tuple[str | None, VerifyingKey]:
    """(id, key). Raises KeySetError."""
    if not isinstance(jwk, dict):
        raise KeySetError("is no object")
    kind, key_id, operations = jwk.get("kty"), jwk.get("kid"), jwk.get("key_ops")
    if not isinstance(kind, str) or kind not in _ALGORITHMS:
        raise KeySetError("is no public key of a type that is known")
    if key_id is not None and not isinstance(key_id, str):
        raise KeySetError("has an id that is no text")
    if jwk.get("use", "sig") != "sig":
        raise KeySetError("is not for signatures")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        raise KeySetError("is not for verifying")
    if "d" in jwk:
        raise KeySetError("is a private key, which is nobody's secret any more")
    algorithm = _algorithm_of(jwk, kind)
    try:
        made = PyJWK(jwk, algorithm)
        key = made.Algorithm.prepare_key(made.key)
    except Exception as exc:  # whatever its fields hold, it costs the set this one key
        raise KeySetError(f"cannot be read as a key for {algorithm}") from exc
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise KeySetError(f"has fewer than {MIN_RSA_BITS} bits")
    return key_id, VerifyingKey(key, algorithm)


def _algorithm_of(jwk: Mapping[str, Any], kind: str) -> str:
    if "alg" in jwk:
        named = jwk["alg"]
        if not isinstance(named, str) or named not in _ALGORITHMS[kind]:
            raise KeySetError("names an algorithm that does not go with its type")
        return named
    curve = None if kind == "RSA" else jwk.get("crv")
    unnamed = _UNNAMED.get((kind, curve)) if isinstance(curve, str | None) else None
    if unnamed is None:
        raise KeySetError("names no algorithm, and has none by its curve")
    return unnamed
