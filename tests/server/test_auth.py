"""Tokens: every rule of the claims, every algorithm, and the old tricks."""

from __future__ import annotations

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
from crdt.revocations import TokenFacts
from server.auth import LEEWAY_S, MAX_FRIENDS, MAX_TOKEN_BYTES, Authenticator
from server.keys import GivenKey
from server.settings import Settings, SettingsError
from tests.helpers.tokens import SECRET, by_hand, claims, signed

RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
ED448_KEY = ed448.Ed448PrivateKey.generate()
OWN_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
KEYS: dict[str, Any] = {"RS256": RSA_KEY, "ES256": P256_KEY, "EdDSA": ED25519_KEY}


def pem(key: Any) -> str:
    public = key.public_key()
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(GivenKey.secret(SECRET))


def settings(**values: Any) -> Settings:
    return Settings(**{"jwt_secret": None, "jwt_public_key": None, **values})


# -- who a token speaks for -----------------------------------------------------------------------


async def test_a_token_says_who_it_speaks_for_and_until_when(auth: Authenticator) -> None:
    identity = await auth.verify(
        signed(name="Ana", role="trainer", friends=["ben", "cleo"], exp=2_000_000_000)
    )
    assert identity.user.id == "ana"
    assert identity.user.name == "Ana"
    assert identity.user.role == "trainer"
    assert identity.user.friends == {"ben", "cleo"}
    assert identity.expires_at_s == 2_000_000_000


async def test_what_is_left_out_has_a_default(auth: Authenticator) -> None:
    identity = await auth.verify(signed())
    user = identity.user
    assert (user.name, user.role, user.friends) == ("ana", "user", frozenset())
    assert identity.token == TokenFacts(user.id)


async def test_a_token_says_which_one_it_is_and_since_when(auth: Authenticator) -> None:
    identity = await auth.verify(signed(jti="t1", iat=1_700_000_000.25))
    assert identity.token == TokenFacts(identity.user.id, "t1", 1_700_000_000_250)


@pytest.mark.parametrize("role", ["user", "premium", "trainer", "admin"])
async def test_the_roles_are_these(auth: Authenticator, role: str) -> None:
    assert (await auth.verify(signed(role=role))).user.role == role


async def test_claims_that_nobody_knows_are_left_alone(auth: Authenticator) -> None:
    token = signed(scope="x", iss="anybody", aud="anything")
    assert (await auth.verify(token)).user.id == "ana"


async def test_an_end_may_have_a_fraction(auth: Authenticator) -> None:
    end = int(time.time()) + 600
    assert int((await auth.verify(signed(exp=end + 0.5))).expires_at_s) == end


@pytest.mark.parametrize(
    "name", ["", 1, None, ["Ana"], {"first": "Ana"}], ids=["empty", "number", "null", "list", "map"]
)
async def test_a_name_that_is_none_is_the_id(auth: Authenticator, name: Any) -> None:
    assert (await auth.verify(signed(name=name))).user.name == "ana"


async def test_a_long_name_is_cut(auth: Authenticator) -> None:
    assert (await auth.verify(signed(name="x" * 300))).user.name == "x" * 200


async def test_friends_that_are_no_texts_are_left_out(auth: Authenticator) -> None:
    assert (await auth.verify(signed(friends=["ben", 1, None, ["cleo"]]))).user.friends == {"ben"}


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
    "an exp that is a text of digits": {"exp": "9999999999"},
    "an exp that is beyond all floats": {"exp": 10**400},
    "an exp that no client can read": {"exp": 1e300},
    "an exp in the wrong unit, and then some": {"exp": 2**53},
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
    "a nbf that is a text of digits": {"nbf": "1"},
    "a nbf that is a truth": {"nbf": True},
    "a nbf before all": {"nbf": -(10**400)},
    "an iat still to come": {"iat": int(time.time()) + 600},
    "an iat that is a text": {"iat": "now"},
    "an iat that is a text of digits": {"iat": "1"},
    "an iat that is a truth": {"iat": True},
    "an iat before all": {"iat": -(10**400)},
    "an iat that is null": {"iat": None},
    "a jti that is a number": {"jti": 1},
    "a jti that is null": {"jti": None},
    "a jti that is a list": {"jti": ["1"]},
}


@pytest.mark.parametrize("changes", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
async def test_bad_claims_are_refused(auth: Authenticator, changes: dict[str, Any]) -> None:
    token = by_hand(claims(**changes), {"alg": "HS256"})
    with pytest.raises(Unauthenticated) as refused:
        await auth.verify(token)
    assert refused.value.code == "unauthenticated"
    assert token not in str(refused.value)


@pytest.mark.parametrize("end", ["Infinity", "NaN", "1e999", "-Infinity"])
async def test_an_end_beyond_all_is_refused(auth: Authenticator, end: str) -> None:
    payload = f'{{"sub":"ana","exp":{end}}}'.encode()
    with pytest.raises(Unauthenticated):
        await auth.verify(by_hand(payload, {"alg": "HS256"}))


@pytest.mark.parametrize("payload", [[], "ana", 1, None, b"no json", b"\xff\xfe", b""])
async def test_claims_that_are_no_object_are_refused(auth: Authenticator, payload: Any) -> None:
    with pytest.raises(Unauthenticated):
        await auth.verify(by_hand(payload, {"alg": "HS256"}))


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
async def test_what_is_no_token_is_refused(auth: Authenticator, token: object) -> None:
    with pytest.raises(Unauthenticated):
        await auth.verify(token)


async def test_half_a_letter_is_no_token(auth: Authenticator) -> None:
    with pytest.raises(Unauthenticated):
        await auth.verify("\ud800")


async def test_a_token_at_the_limit_is_read_and_one_beyond_is_not(auth: Authenticator) -> None:
    fits = signed(name="x" * 5_000)
    assert (await auth.verify(fits)).user.id == "ana"
    with pytest.raises(Unauthenticated):
        await auth.verify(signed(name="x" * MAX_TOKEN_BYTES))
    with pytest.raises(Unauthenticated):
        await auth.verify("x" * 10_000_000)


# -- time -----------------------------------------------------------------------------------------


async def test_a_token_that_has_run_out_has_its_own_code(auth: Authenticator) -> None:
    with pytest.raises(TokenExpired) as refused:
        await auth.verify(signed(exp=int(time.time()) - LEEWAY_S - 5))
    assert refused.value.code == "token_expired"


@pytest.mark.parametrize("end", [0, -1, True, -1e300])
async def test_an_end_long_ago_is_an_end(auth: Authenticator, end: Any) -> None:
    with pytest.raises(TokenExpired):
        await auth.verify(by_hand(claims(exp=end), {"alg": "HS256"}))


async def test_an_end_is_an_end(auth: Authenticator) -> None:
    with pytest.raises(TokenExpired):
        await auth.verify(signed(exp=int(time.time()) - 1))


async def test_a_clock_that_runs_behind_may_do_so_by_a_little(auth: Authenticator) -> None:
    soon = int(time.time()) + LEEWAY_S - 3
    assert (await auth.verify(signed(nbf=soon, iat=soon))).user.id == "ana"
    later = int(time.time()) + LEEWAY_S + 30
    for changes in ({"nbf": later}, {"iat": later}):
        with pytest.raises(Unauthenticated, match="not yet valid"):
            await auth.verify(signed(**changes))


async def test_a_forged_token_that_has_run_out_is_no_expired_one(auth: Authenticator) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await auth.verify(signed(exp=1, key="another secret of thirty-two bytes"))
    assert refused.value.code == "unauthenticated"


# -- issuer and audience --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"iss": "other"}, {"iss": None}, {"iss": ["app"]}])
async def test_an_issuer_is_checked_when_set(changes: dict[str, Any]) -> None:
    auth = Authenticator(GivenKey.secret(SECRET), issuer="app")
    assert (await auth.verify(signed(iss="app"))).user.id == "ana"
    with pytest.raises(Unauthenticated):
        await auth.verify(by_hand(claims(**changes), {"alg": "HS256"}))


@pytest.mark.parametrize(
    "changes", [{}, {"aud": "other"}, {"aud": None}, {"aud": ["other"]}, {"aud": 1}, {"aud": {}}]
)
async def test_an_audience_is_checked_when_set(changes: dict[str, Any]) -> None:
    auth = Authenticator(GivenKey.secret(SECRET), audience="repsync")
    assert (await auth.verify(signed(aud="repsync"))).user.id == "ana"
    assert (await auth.verify(signed(aud=["other", "repsync"]))).user.id == "ana"
    with pytest.raises(Unauthenticated):
        await auth.verify(by_hand(claims(**changes), {"alg": "HS256"}))


# -- algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_checks_its_own_algorithm(algorithm: str) -> None:
    key = KEYS[algorithm]
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(key)))
    assert (await auth.verify(signed(key=key, algorithm=algorithm))).user.id == "ana"
    assert not auth.can_sign


async def test_ed448_is_an_eddsa_key_too() -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(ED448_KEY)))
    assert (await auth.verify(signed(key=ED448_KEY, algorithm="EdDSA"))).user.id == "ana"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("other", ["RS256", "ES256", "EdDSA", "HS256"])
async def test_a_public_key_takes_no_other_key_or_algorithm(algorithm: str, other: str) -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(KEYS[algorithm])))
    makers: dict[str, Callable[[], Any]] = {
        "RS256": lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "HS256": lambda: SECRET,
    }
    with pytest.raises(Unauthenticated):
        await auth.verify(signed(key=makers[other](), algorithm=other))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_a_public_key_is_no_secret(algorithm: str, alg: str) -> None:
    """The trick: sign with HMAC, and with the public key's own text as the secret."""
    public = pem(KEYS[algorithm])
    auth = Authenticator.from_settings(settings(jwt_public_key=public))
    for text in (public, public.strip(), public.replace("\n", "\\n")):
        with pytest.raises(Unauthenticated):
            await auth.verify(by_hand(claims(), {"alg": alg, "typ": "JWT"}, text.encode()))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 1, [], {}, "HS512"])
@pytest.mark.parametrize("is_signed", [True, False])
async def test_the_token_does_not_choose_its_algorithm(
    auth: Authenticator, alg: Any, is_signed: bool
) -> None:
    token = by_hand(claims(), {"alg": alg, "typ": "JWT"})
    if not is_signed:
        token = token.rpartition(".")[0] + "."
    with pytest.raises(Unauthenticated):
        await auth.verify(token)


async def test_a_token_without_its_signature_is_refused(auth: Authenticator) -> None:
    head, payload, signature = signed().split(".")
    for token in (f"{head}.{payload}.", f"{head}.{payload}", f"{head}.{payload}.{signature[:-2]}"):
        with pytest.raises(Unauthenticated):
            await auth.verify(token)


async def test_a_token_that_was_changed_is_refused(auth: Authenticator) -> None:
    head, _, signature = signed().split(".")
    _, payload, _ = signed(role="admin").split(".")
    with pytest.raises(Unauthenticated):
        await auth.verify(f"{head}.{payload}.{signature}")


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
async def test_a_header_that_asks_for_more_is_refused(auth: Authenticator, header: Any) -> None:
    with pytest.raises(Unauthenticated):
        await auth.verify(by_hand(claims(), header))


def brought_along() -> dict[str, Any]:
    """What a token may say of a key of its own."""
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(OWN_KEY.public_key(), as_dict=True)
    return {
        "jwk": {"jwk": jwk},
        "jku": {"jku": "https://x.example/keys"},
        "x5u": {"x5u": "https://x.example/chain"},
        "x5c": {"x5c": ["MIIB"]},
        "kid that is a path": {"kid": "../../dev/null"},
        "kid that is SQL": {"kid": "x' UNION SELECT 'secret"},
        "all of them": {"jwk": jwk, "jku": "https://x.example/k", "x5u": "https://x.example/c"},
    }


@pytest.mark.parametrize("headers", brought_along().values(), ids=brought_along().keys())
async def test_a_key_that_the_token_brings_along_is_not_used(headers: dict[str, Any]) -> None:
    auth = Authenticator.from_settings(settings(jwt_public_key=pem(RSA_KEY)))
    with pytest.raises(Unauthenticated):
        await auth.verify(jwt.encode(claims(), OWN_KEY, algorithm="RS256", headers=headers))
    # A header that nobody asks for does no harm to a token that is good.
    good = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers=headers)
    assert (await auth.verify(good)).user.id == "ana"


# -- keys -----------------------------------------------------------------------------------------


async def test_a_public_key_may_stand_on_one_line() -> None:
    auth = Authenticator.from_settings(
        settings(jwt_public_key=pem(ED25519_KEY).replace("\n", "\\n"))
    )
    assert (await auth.verify(signed(key=ED25519_KEY, algorithm="EdDSA"))).user.id == "ana"


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        pem(ED25519_KEY)[:50],
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ec.generate_private_key(ec.SECP256K1())),
        pem(rsa.generate_private_key(public_exponent=65_537, key_size=1_024)),
    ],
    ids=["no PEM", "cut short", "P-384", "secp256k1", "RSA of 1024 bits"],
)
def test_a_public_key_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="JWT_PUBLIC_KEY") as refused:
        Authenticator.from_settings(settings(jwt_public_key=text))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [pem(RSA_KEY), '{"kty": "oct", "k": "AAAA", "use": "sig"}'],
    ids=["PEM", "JWK"],
)
def test_a_key_in_the_place_of_the_secret_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET") as refused:
        Authenticator.from_settings(settings(jwt_secret=text))
    assert text not in str(refused.value)


async def test_without_a_key_the_folders_secret_is_used(tmp_path: Path) -> None:
    first = Authenticator.from_settings(settings(data_dir=tmp_path))
    second = Authenticator.from_settings(settings(data_dir=tmp_path))
    assert (await second.verify(first.sign("ana"))).user.id == "ana"
    stranger = Authenticator.from_settings(settings(data_dir=tmp_path / "other"))
    with pytest.raises(Unauthenticated):
        await stranger.verify(first.sign("ana"))


# -- signing --------------------------------------------------------------------------------------


async def test_what_is_signed_is_verified_whole() -> None:
    auth = Authenticator(GivenKey.secret(SECRET), issuer="app", audience="repsync")
    identity = await auth.verify(
        auth.sign("ana", name="Ana", role="admin", friends=("ben",), ttl_s=100)
    )
    assert (identity.user.id, identity.user.name) == ("ana", "Ana")
    assert (identity.user.role, identity.user.friends) == ("admin", {"ben"})
    assert identity.expires_at_s == pytest.approx(time.time() + 100, abs=5)


async def test_every_token_that_is_signed_has_an_id_of_its_own(auth: Authenticator) -> None:
    before_ms = int(time.time()) * 1_000
    facts = [(await auth.verify(auth.sign("ana"))).token for _ in range(3)]
    assert len({token.token_id for token in facts}) == 3
    assert all(token.issued_at_ms and token.issued_at_ms >= before_ms for token in facts)
    assert (await auth.verify(auth.sign("ana", token_id="t1"))).token.token_id == "t1"


def test_a_key_set_signs_nothing() -> None:
    auth = Authenticator.from_settings(settings(jwt_jwks_url="https://host.example/jwks"))
    assert not auth.can_sign
    with pytest.raises(SettingsError, match="JWT_JWKS_URL"):
        auth.sign("ana")


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
async def test_no_refusal_repeats_the_token_or_the_secret(make: Callable[[], str]) -> None:
    auth = Authenticator(GivenKey.secret(SECRET), issuer="app", audience="repsync")
    token = make()
    with pytest.raises(Unauthenticated) as refused:
        await auth.verify(token)
    told = json.dumps(refused.value.to_wire())
    assert SECRET not in told
    assert "hunter2" not in told
    assert not any(part and part in told for part in token.split("."))
