"""Tokens: every rule of the claims, every algorithm, and the old tricks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from crdt.errors import TokenExpired, Unauthenticated
from server.auth import LEEWAY_S, MAX_FRIENDS, MAX_TOKEN_BYTES, Authenticator
from server.settings import Settings, SettingsError

SECRET = "a secret of more than thirty-two bytes"
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
ED448_KEY = ed448.Ed448PrivateKey.generate()
KEYS: dict[str, Any] = {"RS256": RSA_KEY, "ES256": P256_KEY, "EdDSA": ED25519_KEY}


def pem(key: Any) -> str:
    public = key.public_key()
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "ana", "exp": int(time.time()) + 600, **changes}
    return {key: value for key, value in made.items() if value is not ...}


def signed(payload: Any = None, key: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes) if payload is None else payload, key, algorithm=algorithm)


def by_hand(payload: Any, header: dict[str, Any], secret: bytes = SECRET.encode()) -> str:
    """A token that no library would make, with a good HS256 signature."""

    def part(data: Any) -> bytes:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    text = part(header) + b"." + part(payload)
    return (text + b"." + part(hmac.digest(secret, text, hashlib.sha256))).decode()


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(SECRET, "HS256", can_sign=True)


def settings(**values: Any) -> Settings:
    return Settings(**{"jwt_secret": None, "jwt_public_key": None, **values})


# -- who a token speaks for -----------------------------------------------------------------------


def test_a_token_says_who_it_speaks_for_and_until_when(auth: Authenticator) -> None:
    identity = auth.verify(
        signed(name="Ana", role="trainer", friends=["ben", "cleo"], exp=2_000_000_000)
    )
    assert identity.user.id == "ana"
    assert identity.user.name == "Ana"
    assert identity.user.role == "trainer"
    assert identity.user.friends == {"ben", "cleo"}
    assert identity.expires_at_s == 2_000_000_000


def test_what_is_left_out_has_a_default(auth: Authenticator) -> None:
    user = auth.verify(signed()).user
    assert (user.name, user.role, user.friends) == ("ana", "user", frozenset())


@pytest.mark.parametrize("role", ["user", "premium", "trainer", "admin"])
def test_the_roles_are_these(auth: Authenticator, role: str) -> None:
    assert auth.verify(signed(role=role)).user.role == role


def test_claims_that_nobody_knows_are_left_alone(auth: Authenticator) -> None:
    assert auth.verify(signed(scope="x", jti="1", iss="anybody", aud="anything")).user.id == "ana"


def test_an_end_may_have_a_fraction(auth: Authenticator) -> None:
    end = int(time.time()) + 600
    assert int(auth.verify(signed(exp=end + 0.5)).expires_at_s) == end


@pytest.mark.parametrize(
    "name", ["", 1, None, ["Ana"], {"first": "Ana"}], ids=["empty", "number", "null", "list", "map"]
)
def test_a_name_that_is_none_is_the_id(auth: Authenticator, name: Any) -> None:
    assert auth.verify(signed(name=name)).user.name == "ana"


def test_a_long_name_is_cut(auth: Authenticator) -> None:
    assert auth.verify(signed(name="x" * 300)).user.name == "x" * 200


def test_friends_that_are_no_texts_are_left_out(auth: Authenticator) -> None:
    assert auth.verify(signed(friends=["ben", 1, None, ["cleo"]])).user.friends == {"ben"}


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "no sub": {"sub": ...},
    "no exp": {"exp": ...},
    "a sub that is null": {"sub": None},
    "an exp that is null": {"exp": None},
    "an empty sub": {"sub": ""},
    "a sub that is a number": {"sub": 1},
    "a sub that is a list": {"sub": ["ana"]},
    "a sub that is too long": {"sub": "x" * 201},
    "an exp that is a text": {"exp": "tomorrow"},
    "an exp that is a list": {"exp": [2_000_000_000]},
    "an exp that is a map": {"exp": {"at": 2_000_000_000}},
    "a role that there is not": {"role": "king"},
    "a role that is null": {"role": None},
    "a role in other letters": {"role": "Admin"},
    "a role that is a list": {"role": ["admin"]},
    "a role that is a map": {"role": {}},
    "friends that are a text": {"friends": "ben"},
    "friends that are null": {"friends": None},
    "friends that are a map": {"friends": {"ben": True}},
    "a nbf still to come": {"nbf": int(time.time()) + 600},
    "an iat still to come": {"iat": int(time.time()) + 600},
    "an iat that is a text": {"iat": "now"},
}


@pytest.mark.parametrize("changes", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
def test_bad_claims_are_refused(auth: Authenticator, changes: dict[str, Any]) -> None:
    token = by_hand(claims(**changes), {"alg": "HS256"})
    with pytest.raises(Unauthenticated) as refused:
        auth.verify(token)
    assert refused.value.code == "unauthenticated"
    assert token not in str(refused.value)


@pytest.mark.parametrize("end", ["Infinity", "NaN", "1e999", "-Infinity"])
def test_an_end_beyond_all_is_refused(auth: Authenticator, end: str) -> None:
    payload = f'{{"sub":"ana","exp":{end}}}'.encode()
    with pytest.raises(Unauthenticated):
        auth.verify(by_hand(payload, {"alg": "HS256"}))


@pytest.mark.parametrize("payload", [[], "ana", 1, None, b"no json", b"\xff\xfe", b""])
def test_claims_that_are_no_object_are_refused(auth: Authenticator, payload: Any) -> None:
    with pytest.raises(Unauthenticated):
        auth.verify(by_hand(payload, {"alg": "HS256"}))


def test_too_many_friends_do_not_fit_into_a_token() -> None:
    assert len(json.dumps(["x"] * MAX_FRIENDS)) > MAX_TOKEN_BYTES


@pytest.mark.parametrize(
    "token",
    [
        *(None, "", 1, [], {}, b"x.y.z", True),
        *("x", "x.y", "x.y.z", "...", "a.b.c.d", "\x00", "x y z", "\N{SNOWMAN}.\N{SNOWMAN}.z"),
        *("eyJhbGciOiJIUzI1NiJ9..", "=.=.=", "Bearer x.y.z"),
    ],
)
def test_what_is_no_token_is_refused(auth: Authenticator, token: object) -> None:
    with pytest.raises(Unauthenticated):
        auth.verify(token)


def test_half_a_letter_is_no_token(auth: Authenticator) -> None:
    with pytest.raises(Unauthenticated):
        auth.verify("\ud800")


def test_a_token_at_the_limit_is_read_and_one_beyond_is_not(auth: Authenticator) -> None:
    fits = signed(name="x" * 5_000)
    assert auth.verify(fits).user.id == "ana"
    with pytest.raises(Unauthenticated):
        auth.verify(signed(name="x" * MAX_TOKEN_BYTES))
    with pytest.raises(Unauthenticated):
        auth.verify("x" * 10_000_000)


# -- time -----------------------------------------------------------------------------------------


def test_a_token_that_has_run_out_has_its_own_code(auth: Authenticator) -> None:
    with pytest.raises(TokenExpired) as refused:
        auth.verify(signed(exp=int(time.time()) - LEEWAY_S - 5))
    assert refused.value.code == "token_expired"


def test_an_end_is_an_end(auth: Authenticator) -> None:
    with pytest.raises(TokenExpired):
        auth.verify(signed(exp=int(time.time()) - 1))


def test_a_clock_that_runs_behind_may_do_so_by_a_little(auth: Authenticator) -> None:
    soon = int(time.time()) + LEEWAY_S - 3
    assert auth.verify(signed(nbf=soon, iat=soon)).user.id == "ana"


def test_a_forged_token_that_has_run_out_is_no_expired_one(auth: Authenticator) -> None:
    with pytest.raises(Unauthenticated) as refused:
        auth.verify(signed(exp=1, key="another secret of thirty-two bytes"))
    assert refused.value.code == "unauthenticated"


# -- issuer and audience --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"iss": "other"}, {"iss": None}, {"iss": ["app"]}])
def test_an_issuer_is_checked_when_set(changes: dict[str, Any]) -> None:
    auth = Authenticator(SECRET, "HS256", issuer="app", can_sign=True)
    assert auth.verify(signed(iss="app")).user.id == "ana"
    with pytest.raises(Unauthenticated):
        auth.verify(by_hand(claims(**changes), {"alg": "HS256"}))


@pytest.mark.parametrize(
    "changes", [{}, {"aud": "other"}, {"aud": None}, {"aud": ["other"]}, {"aud": 1}, {"aud": {}}]
)
def test_an_audience_is_checked_when_set(changes: dict[str, Any]) -> None:
    auth = Authenticator(SECRET, "HS256", audience="repsync", can_sign=True)
    assert auth.verify(signed(aud="repsync")).user.id == "ana"
    assert auth.verify(signed(aud=["other", "repsync"])).user.id == "ana"
    with pytest.raises(Unauthenticated):
        auth.verify(by_hand(claims(**changes), {"alg": "HS256"}))


# -- algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_checks_its_own_algorithm(algorithm: str) -> None:
    key = KEYS[algorithm]
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(key)))
    assert auth.verify(signed(key=key, algorithm=algorithm)).user.id == "ana"
    assert not auth.can_sign


def test_ed448_is_an_eddsa_key_too() -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(ED448_KEY)))
    assert auth.verify(signed(key=ED448_KEY, algorithm="EdDSA")).user.id == "ana"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("other", ["RS256", "ES256", "EdDSA", "HS256"])
def test_a_public_key_takes_no_other_key_or_algorithm(algorithm: str, other: str) -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(KEYS[algorithm])))
    makers: dict[str, Callable[[], Any]] = {
        "RS256": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "HS256": lambda: SECRET,
    }
    with pytest.raises(Unauthenticated):
        auth.verify(signed(key=makers[other](), algorithm=other))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_secret(algorithm: str, alg: str) -> None:
    """The trick: sign with HMAC, and with the public key's own text as the secret."""
    public = pem(KEYS[algorithm])
    auth = Authenticator.from_settings(settings(jwt_public_key=public))
    for text in (public, public.strip(), public.replace("\n", "\\n")):
        with pytest.raises(Unauthenticated):
            auth.verify(by_hand(claims(), {"alg": alg, "typ": "JWT"}, text.encode()))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 1, [], {}, "HS512"])
@pytest.mark.parametrize("is_signed", [True, False])
def test_the_token_does_not_choose_its_algorithm(
    auth: Authenticator, alg: Any, is_signed: bool
) -> None:
    token = by_hand(claims(), {"alg": alg, "typ": "JWT"})
    if not is_signed:
        token = token.rpartition(".")[0] + "."
    with pytest.raises(Unauthenticated):
        auth.verify(token)


def test_a_token_without_its_signature_is_refused(auth: Authenticator) -> None:
    head, payload, signature = signed().split(".")
    for token in (f"{head}.{payload}.", f"{head}.{payload}", f"{head}.{payload}.{signature[:-2]}"):
        with pytest.raises(Unauthenticated):
            auth.verify(token)


def test_a_token_that_was_changed_is_refused(auth: Authenticator) -> None:
    head, _, signature = signed().split(".")
    _, payload, _ = signed(role="admin").split(".")
    with pytest.raises(Unauthenticated):
        auth.verify(f"{head}.{payload}.{signature}")


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "crit": ["x"], "x": 1},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": "HS256", "kid": 1},
        {},
        [],
    ],
)
def test_a_header_that_asks_for_more_is_refused(auth: Authenticator, header: Any) -> None:
    with pytest.raises(Unauthenticated):
        auth.verify(by_hand(claims(), header))


def test_a_key_that_the_token_brings_along_is_not_used() -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(RSA_KEY)))
    own = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key(), as_dict=True)
    token = jwt.encode(
        claims(), own, algorithm="RS256", headers={"jwk": jwk, "jku": "https://x.example/k"}
    )
    with pytest.raises(Unauthenticated):
        auth.verify(token)


# -- keys -----------------------------------------------------------------------------------------


def test_a_public_key_may_stand_on_one_line() -> None:
    auth = Authenticator.from_settings(
        settings(jwt_public_key=pem(ED25519_KEY).replace("\n", "\\n"))
    )
    assert auth.verify(signed(key=ED25519_KEY, algorithm="EdDSA")).user.id == "ana"


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        pem(ED25519_KEY)[:50],
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["no PEM", "cut short", "P-384", "secp256k1"],
)
def test_a_public_key_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="JWT_PUBLIC_KEY") as refused:
        Authenticator.from_settings(settings(jwt_public_key=text))
    assert "hunter2" not in str(refused.value)


def test_without_a_key_the_folders_secret_is_used(tmp_path: Path) -> None:
    first = Authenticator.from_settings(settings(data_dir=tmp_path))
    second = Authenticator.from_settings(settings(data_dir=tmp_path))
    assert second.verify(first.sign("ana")).user.id == "ana"
    stranger = Authenticator.from_settings(settings(data_dir=tmp_path / "other"))
    with pytest.raises(Unauthenticated):
        stranger.verify(first.sign("ana"))


# -- signing --------------------------------------------------------------------------------------


def test_what_is_signed_is_verified_whole() -> None:
    auth = Authenticator(SECRET, "HS256", issuer="app", audience="repsync", can_sign=True)
    identity = auth.verify(auth.sign("ana", name="Ana", role="admin", friends=("ben",), ttl_s=100))
    assert (identity.user.id, identity.user.name) == ("ana", "Ana")
    assert (identity.user.role, identity.user.friends) == ("admin", {"ben"})
    assert identity.expires_at_s == pytest.approx(time.time() + 100, abs=5)


def test_a_public_key_signs_nothing() -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(ED25519_KEY)))
    with pytest.raises(SettingsError, match="JWT_PUBLIC_KEY"):
        auth.sign("ana")


# -- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: signed(exp=1),
        lambda: signed(key="another secret of thirty-two bytes"),
        lambda: signed(sub=...),
        lambda: signed(role="king"),
        lambda: by_hand(claims(), {"alg": "none"}),
        lambda: by_hand(claims(secret_claim="hunter2"), {"alg": "hunter2"}),
        lambda: "hunter2." + signed(),
        lambda: signed() + "hunter2",
        lambda: by_hand(b'{"hunter2": ', {"alg": "HS256"}),
        lambda: by_hand(claims(iat="hunter2"), {"alg": "HS256"}),
        lambda: by_hand(claims(aud="hunter2", iss="hunter2"), {"alg": "HS256"}),
    ],
)
def test_no_refusal_repeats_the_token_or_the_secret(make: Callable[[], str]) -> None:
    auth = Authenticator(SECRET, "HS256", issuer="app", audience="repsync", can_sign=True)
    token = make()
    with pytest.raises(Unauthenticated) as refused:
        auth.verify(token)
    told = json.dumps(refused.value.to_wire())
    assert SECRET not in told
    assert "hunter2" not in told
    assert not any(part and part in told for part in token.split("."))
