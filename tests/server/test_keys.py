"""Keys: which of a set are taken, for which algorithm, and why the others are left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from server.keys import MAX_KEYS, KeySetError, read_key_set
from tests.helpers.key_servers import public_jwk

RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SHORT_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())
K1_KEY = ec.generate_private_key(ec.SECP256K1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
ED448_KEY = ed448.Ed448PrivateKey.generate()
GOOD = public_jwk(ED25519_KEY, kid="good")


def body(*keys: Any, **members: Any) -> bytes:
    return json.dumps({"keys": list(keys), **members}).encode()


# -- which algorithm ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jwk", "algorithm"),
    [
        (public_jwk(RSA_KEY), "RS256"),
        (public_jwk(RSA_KEY, alg="RS512"), "RS512"),
        (public_jwk(RSA_KEY, alg="PS256"), "PS256"),
        (public_jwk(P256_KEY), "ES256"),
        (public_jwk(P256_KEY, alg="ES256"), "ES256"),
        (public_jwk(P384_KEY, alg="ES384"), "ES384"),
        (public_jwk(ED25519_KEY), "EdDSA"),
        (public_jwk(ED448_KEY, alg="EdDSA"), "EdDSA"),
    ],
)
def test_a_key_has_the_algorithm_that_it_names_or_that_goes_with_its_type(
    jwk: dict[str, Any], algorithm: str
) -> None:
    found = read_key_set(body({**jwk, "kid": "k", "use": "sig"})).find("k")
    assert found is not None
    assert found.algorithm == algorithm


# -- which keys -----------------------------------------------------------------------------------

LEFT_OUT: dict[str, Any] = {
    "a text": "key",
    "null": None,
    "a list": [],
    "nothing": {},
    "a secret": {"kty": "oct", "kid": "k", "k": "c2VjcmV0" * 8},
    "a secret for HS256": {"kty": "oct", "kid": "k", "k": "c2VjcmV0" * 8, "alg": "HS256"},
    "a secret that says RS256": {"kty": "oct", "kid": "k", "k": "c2VjcmV0" * 8, "alg": "RS256"},
    "a type that there is not": {"kty": "XYZ", "kid": "k"},
    "a type that is a list": {"kty": ["RSA"], "kid": "k"},
    "a key for encryption": public_jwk(RSA_KEY, kid="k", use="enc"),
    "a use that is no text": public_jwk(RSA_KEY, kid="k", use=["sig"]),
    "a use that is null": public_jwk(RSA_KEY, kid="k", use=None),
    "a key for wrapping": public_jwk(RSA_KEY, kid="k", key_ops=["wrapKey"]),
    "operations that are a text": public_jwk(RSA_KEY, kid="k", key_ops="verify"),
    "no algorithm": public_jwk(RSA_KEY, kid="k", alg="none"),
    "no algorithm in capitals": public_jwk(RSA_KEY, kid="k", alg="None"),
    "an algorithm for secrets": public_jwk(RSA_KEY, kid="k", alg="HS256"),
    "an algorithm for encryption": public_jwk(RSA_KEY, kid="k", alg="RSA-OAEP"),
    "an algorithm of another type": public_jwk(RSA_KEY, kid="k", alg="ES256"),
    "an algorithm of another curve": public_jwk(P384_KEY, kid="k", alg="ES256"),
    "an algorithm that is a list": public_jwk(RSA_KEY, kid="k", alg=["RS256"]),
    "an algorithm that is null": public_jwk(RSA_KEY, kid="k", alg=None),
    "P-384 without an algorithm": public_jwk(P384_KEY, kid="k"),
    "Ed448 without an algorithm": public_jwk(ED448_KEY, kid="k"),
    "secp256k1": public_jwk(K1_KEY, kid="k"),
    "a curve that is a list": public_jwk(P256_KEY, kid="k", crv=["P-256"]),
    "a curve of another length": public_jwk(P256_KEY, kid="k", crv="P-384", alg="ES384"),
    "a point that is not on the curve": public_jwk(P256_KEY, kid="k", x="A" * 43),
    "RSA of 1024 bits": public_jwk(SHORT_KEY, kid="k"),
    "RSA without n": public_jwk(RSA_KEY, kid="k", n=...),
    "RSA whose n is a number": public_jwk(RSA_KEY, kid="k", n=5),
    "RSA whose n is no base64": public_jwk(RSA_KEY, kid="k", n="!"),
    "RSA whose e is one": public_jwk(RSA_KEY, kid="k", e="AQ"),
    "Ed25519 without x": public_jwk(ED25519_KEY, kid="k", x=...),
    "Ed25519 that is too short": public_jwk(ED25519_KEY, kid="k", x="AAAA"),
    "X25519, which signs nothing": {"kty": "OKP", "crv": "X25519", "kid": "k", "x": "A" * 43},
    "a private RSA key": {**RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "k", "key_ops": ...},
    "a private P-256 key": {**ECAlgorithm.to_jwk(P256_KEY, as_dict=True), "kid": "k"},
    "a private Ed25519 key": {**OKPAlgorithm.to_jwk(ED25519_KEY, as_dict=True), "kid": "k"},
    "an id that is a number": public_jwk(RSA_KEY, kid=1),
    "an id that is a list": public_jwk(RSA_KEY, kid=["k"]),
    "an id that is taken": public_jwk(RSA_KEY, kid="good"),
}


@pytest.mark.parametrize("jwk", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_a_key_that_is_of_no_use_is_left_out_and_costs_the_set_nothing_else(jwk: Any) -> None:
    if isinstance(jwk, dict):
        jwk = {name: value for name, value in jwk.items() if value is not ...}
    keys = read_key_set(body(GOOD, jwk))
    assert keys.by_id.keys() == {"good"}
    assert keys.count == 1
    assert len(keys.left_out) == 1
    assert keys.find("k") is None
    found = keys.find("good")
    assert found is not None
    assert found.algorithm == "EdDSA"
    if isinstance(jwk, dict) and jwk.get("kid") == "k":
        with pytest.raises(KeySetError, match="no key"):
            read_key_set(body(jwk))


def test_no_reason_repeats_what_a_key_holds() -> None:
    secret = "hunter2hunter2"
    listed = [{"kty": "oct", "k": secret}, {"kty": secret}, public_jwk(RSA_KEY, n=secret)]
    assert secret not in " ".join(read_key_set(body(GOOD, *listed)).left_out)


# -- which one ------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_id_alone() -> None:
    keys = read_key_set(body(GOOD, public_jwk(RSA_KEY, kid="other")))
    assert keys.find("good") == read_key_set(body(GOOD)).find("good")
    for unknown in ("", "Good", "none", "\ud800"):
        assert keys.find(unknown) is None


def test_a_lone_key_needs_no_id() -> None:
    assert read_key_set(body(GOOD)).find(None) is not None
    assert read_key_set(body(public_jwk(RSA_KEY))).find(None) is not None
    assert read_key_set(body(GOOD, public_jwk(RSA_KEY, kid="e", use="enc"))).find(None) is not None


@pytest.mark.parametrize("ids", [("a", "b"), (..., "b"), (..., ...)])
def test_of_several_keys_none_is_meant_without_an_id(ids: tuple[Any, Any]) -> None:
    keys = read_key_set(body(public_jwk(ED25519_KEY, kid=ids[0]), public_jwk(RSA_KEY, kid=ids[1])))
    assert keys.count == 2
    assert keys.find(None) is None


# -- what is no set -------------------------------------------------------------------------------

NO_SETS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "no UTF-8": b"\xff\xfe\x00",
    "gzip": b"\x1f\x8b\x08\x00",
    "null": b"null",
    "a list": b"[]",
    "no keys": b"{}",
    "keys that are null": b'{"keys": null}',
    "keys that are a map": b'{"keys": {"a": {}}}',
    "an empty set": b'{"keys": []}',
    "a deep nest": b"[" * 100_000,
    "a number without end": b'{"keys": ' + b"9" * 5_000 + b"}",
    "too many keys": body(*[GOOD] * (MAX_KEYS + 1)),
    "a lone key": json.dumps(GOOD).encode(),
}


@pytest.mark.parametrize("data", NO_SETS.values(), ids=NO_SETS.keys())
def test_what_is_no_key_set_is_refused(data: bytes) -> None:
    with pytest.raises(KeySetError):
        read_key_set(data)
