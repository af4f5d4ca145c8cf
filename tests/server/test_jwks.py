"""The keys of an identity provider: fetched, kept, rotated, and missed when it is away."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from crdt.errors import Unauthenticated, Unavailable
from server import jwks
from server.auth import Authenticator
from server.jwks import MAX_BODY_BYTES, JwksClient
from server.replay.devices import EventClient, Refused
from tests.helpers.key_servers import KeyServer, key_server, public_jwk, token
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.tickers import Ticker
from tests.helpers.tokens import by_hand, claims

DEADLINE_S = 10.0
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
async def provider() -> AsyncIterator[KeyServer]:
    async with key_server("k1") as running:
        yield running


@pytest.fixture
def ticker() -> Ticker:
    return Ticker()


@asynccontextmanager
async def opened(
    provider: KeyServer, now: Callable[[], float] = time.monotonic, **options: Any
) -> AsyncIterator[tuple[Authenticator, JwksClient]]:
    """What checks tokens by the provider's keys, with the first fetch behind it."""
    settings = {"lifetime_s": 600.0, "stale_s": 600.0, "timeout_s": 5.0, **options}
    client = JwksClient(provider.url, now=now, **settings)
    auth = Authenticator(client, audience="repsync")
    async with auth.open():
        await until(lambda: client.fetches.total() > 0)
        yield auth, client


def good(provider: KeyServer, key_id: str = "k1", **changes: Any) -> str:
    return provider.token("ana", key_id, **{"aud": "repsync", **changes})


def stranger(key_id: str = "nobody") -> str:
    """A token whose key is in no set."""
    return token(ed25519.Ed25519PrivateKey.generate(), kid=key_id, aud="repsync")


async def refusal(auth: Authenticator, made: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await auth.verify(made)
    assert made not in str(refused.value)
    return refused.value.code


# -- who gets in ----------------------------------------------------------------------------------


async def test_a_token_is_checked_by_the_key_that_it_names(provider: KeyServer) -> None:
    provider.keys |= {"rsa": RSA_KEY, "p256": P256_KEY}
    async with opened(provider) as (auth, _):
        for key_id in provider.keys:
            assert (await auth.verify(good(provider, key_id))).user.id == "ana"
    assert provider.hits == 1


async def test_a_token_that_names_no_key_is_good_for_a_lone_one_only(provider: KeyServer) -> None:
    made = token(provider.keys["k1"], aud="repsync")
    async with opened(provider) as (auth, _):
        assert (await auth.verify(made)).user.id == "ana"
    provider.new_key("k2")
    async with opened(provider) as (auth, _):
        hits = provider.hits
        assert await refusal(auth, made) == "unauthenticated"
        assert provider.hits == hits


async def test_the_claims_are_checked_as_with_any_key(provider: KeyServer) -> None:
    async with opened(provider) as (auth, _):
        assert await refusal(auth, good(provider, exp=1)) == "token_expired"
        for changes in ({"aud": "other"}, {"sub": ""}, {"exp": "9999999999"}, {"nbf": 2**40}):
            assert await refusal(auth, good(provider, **changes)) == "unauthenticated"


def pem(key: Any) -> bytes:
    public = key.public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


SHARED = b"a secret of more than thirty-two bytes"
OCT = {"kty": "oct", "kid": "oct", "k": "YSBzZWNyZXQgb2YgbW9yZSB0aGFuIHRoaXJ0eS10d28gYnl0ZXM"}


def aimed(**changes: Any) -> dict[str, Any]:
    return claims(aud="repsync", **changes)


OWN_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
FORGED: dict[str, Callable[[], str]] = {
    "HS256 with the RSA key's PEM": lambda: by_hand(
        aimed(), {"alg": "HS256", "kid": "rsa"}, pem(RSA_KEY)
    ),
    "HS256 with the RSA key's JWK": lambda: by_hand(
        aimed(), {"alg": "HS256", "kid": "rsa"}, json.dumps(public_jwk(RSA_KEY)).encode()
    ),
    "HS512 with the RSA key's PEM": lambda: by_hand(
        aimed(), {"alg": "HS512", "kid": "rsa"}, pem(RSA_KEY)
    ),
    "HS256 with the set's oct key": lambda: by_hand(
        aimed(), {"alg": "HS256", "kid": "oct"}, SHARED
    ),
    "HS256 with the oct key under another id": lambda: by_hand(
        aimed(), {"alg": "HS256", "kid": "rsa"}, SHARED
    ),
    **{
        f"alg {alg!r}": (lambda alg=alg: by_hand(aimed(), {"alg": alg, "kid": "rsa"}))
        for alg in ("none", "None", "NONE", "nOnE", "", None)
    },
    "no signature": lambda: (
        by_hand(aimed(), {"alg": "none", "kid": "rsa"}).rpartition(".")[0] + "."
    ),
    "another key under a known id": lambda: token(OWN_KEY, kid="rsa", aud="repsync"),
    "RS512 with a key for RS256": lambda: jwt.encode(
        aimed(), RSA_KEY, algorithm="RS512", headers={"kid": "rsa"}
    ),
    "PS256 with a key for RS256": lambda: jwt.encode(
        aimed(), RSA_KEY, algorithm="PS256", headers={"kid": "rsa"}
    ),
    "a key for encryption": lambda: token(OWN_KEY, kid="enc", aud="repsync"),
    "a kid that is a number": lambda: by_hand(aimed(), {"alg": "HS256", "kid": 1}),
    "a kid that is null": lambda: by_hand(aimed(), {"alg": "HS256", "kid": None}),
    "a kid that is a list": lambda: by_hand(aimed(), {"alg": "HS256", "kid": ["rsa"]}),
    "a kid that is empty": lambda: token(RSA_KEY, kid="", aud="repsync"),
    "a kid that is very long": lambda: token(RSA_KEY, kid="k" * 4_000, aud="repsync"),
    "no token": lambda: "x.y.z",
    "a huge token": lambda: good_size(10_000),
}


def good_size(length: int) -> str:
    return token(RSA_KEY, kid="rsa", aud="repsync", name="x" * length)


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED.keys())
async def test_no_trick_with_keys_and_algorithms_gets_anybody_in(
    provider: KeyServer, make: Callable[[], str]
) -> None:
    provider.keys["rsa"] = RSA_KEY
    provider.extra = [OCT, public_jwk(OWN_KEY, kid="enc", use="enc")]
    async with opened(provider) as (auth, _):
        assert await refusal(auth, make()) == "unauthenticated"
        assert (await auth.verify(good(provider, "rsa"))).user.id == "ana"


@pytest.mark.parametrize("header", ["jku", "x5u"])
async def test_nothing_is_fetched_from_where_a_token_says(provider: KeyServer, header: str) -> None:
    async with key_server("own") as attacker, opened(provider) as (auth, _):
        key = attacker.keys["own"]
        for key_id in ("own", "k1"):
            headers = {"kid": key_id, header: attacker.url, "jwk": public_jwk(key)}
            made = jwt.encode(aimed(), key, algorithm="EdDSA", headers=headers)
            assert await refusal(auth, made) == "unauthenticated"
        assert attacker.hits == 0


# -- rotation -------------------------------------------------------------------------------------


async def test_a_new_key_is_looked_for_when_a_token_names_it(provider: KeyServer) -> None:
    async with opened(provider) as (auth, _):
        provider.new_key("k2")
        assert (await auth.verify(good(provider, "k2"))).user.id == "ana"
        assert (await auth.verify(good(provider, "k1"))).user.id == "ana"
    assert provider.hits == 2


async def test_a_key_that_was_taken_back_is_good_no_more_once_the_set_is_fetched(
    provider: KeyServer,
) -> None:
    async with opened(provider) as (auth, _):
        old = good(provider, "k1")
        provider.new_key("k2")
        del provider.keys["k1"]
        await auth.verify(good(provider, "k2"))
        assert await refusal(auth, old) == "unauthenticated"


async def test_unknown_keys_make_for_one_fetch_in_each_cool_down(
    provider: KeyServer, ticker: Ticker
) -> None:
    async with opened(provider, ticker, cool_down_s=10) as (auth, _):
        for round_ in range(1, 4):
            made = [stranger(f"{round_}-{number}") for number in range(30)]
            codes = await asyncio.gather(*(refusal(auth, each) for each in made))
            assert set(codes) == {"unauthenticated"}
            assert await refusal(auth, stranger()) == "unauthenticated"
            assert provider.hits == 1 + round_
            ticker.advance(9)
            assert await refusal(auth, stranger()) == "unauthenticated"
            assert provider.hits == 1 + round_
            ticker.advance(2)


async def test_many_who_wait_for_a_new_key_share_one_fetch(provider: KeyServer) -> None:
    async with opened(provider) as (auth, _):
        provider.new_key("k2")
        provider.answering.clear()
        made = good(provider, "k2")
        waiting = [asyncio.ensure_future(auth.verify(made)) for _ in range(20)]
        await until(lambda: provider.hits == 2)
        hasty = waiting.pop()
        hasty.cancel()
        provider.answering.set()
        assert {identity.user.id for identity in await asyncio.gather(*waiting)} == {"ana"}
        assert provider.hits == 2


async def test_keys_are_fetched_anew_before_their_lifetime_is_over(provider: KeyServer) -> None:
    async with opened(provider, lifetime_s=0.4, stale_s=0) as (auth, client):
        provider.new_key("k2")
        await until(lambda: provider.hits >= 4)
        await until(lambda: client.report()["keys"] == 2)
        await until(lambda: client.report()["state"] == "healthy")
        assert (await auth.verify(good(provider, "k2"))).user.id == "ana"


# -- a provider that is away ----------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "an error": {"status": 500},
    "not found": {"status": 404},
    "nothing": {"status": 204},
    "a redirect to itself": {"status": 302, "headers": {"Location": "/keys"}},
    "no JSON": {"body": b"<html>"},
    "no key set": {"body": b"{}"},
    "an empty set": {"body": b'{"keys": []}'},
    "a set of secrets": {"body": json.dumps({"keys": [OCT]}).encode()},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_what_is_no_answer_leaves_the_keys_at_hand(
    provider: KeyServer, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(provider) as (auth, client):
        for name, value in fault.items():
            setattr(provider, name, value)
        assert await refusal(auth, stranger()) == "unauthenticated"
        assert (await auth.verify(good(provider))).user.id == "ana"
        report = client.report()
        assert (report["state"], report["keys"]) == ("degraded", 1)
        assert report["error"]
        assert client.fetches["ok"] == 1
        assert client.fetches["failed"]
    assert "the key set cannot be fetched" in caplog.text


@pytest.mark.parametrize("is_packed", [False, True])
async def test_a_set_that_is_too_large_is_not_read(provider: KeyServer, is_packed: bool) -> None:
    async with opened(provider) as (auth, client):
        provider.new_key("k2")
        provider.body = provider.key_set() + b" " * MAX_BODY_BYTES
        if is_packed:
            provider.body = gzip.compress(provider.body + b" " * 20_000_000)
            provider.headers = {"Content-Encoding": "gzip"}
        assert await refusal(auth, good(provider, "k2")) == "unauthenticated"
        assert client.report()["state"] == "degraded"
        assert (await auth.verify(good(provider))).user.id == "ana"


async def test_a_set_that_is_just_large_enough_is_read(provider: KeyServer) -> None:
    provider.body = provider.key_set().ljust(MAX_BODY_BYTES)
    async with opened(provider) as (auth, _):
        assert (await auth.verify(good(provider))).user.id == "ana"


async def test_a_redirect_is_not_followed(provider: KeyServer) -> None:
    async with key_server("own") as attacker, opened(provider) as (auth, _):
        provider.status, provider.headers = 302, {"Location": attacker.url}
        made = attacker.token("ana", "own", aud="repsync")
        assert await refusal(auth, made) == "unauthenticated"
        assert attacker.hits == 0


async def test_keys_outlast_a_provider_that_is_away_for_a_while_and_no_longer(
    provider: KeyServer, ticker: Ticker, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"lifetime_s": 100, "stale_s": 1_000, "cool_down_s": 10}
    async with opened(provider, ticker, **options) as (auth, client):
        made = good(provider, exp=int(time.time()) + 90_000)
        provider.status = 503
        ticker.advance(1_090)  # 10 s before the end
        assert await refusal(auth, stranger()) == "unauthenticated"
        assert (await auth.verify(made)).user.id == "ana"
        assert client.is_ready
        assert client.report()["state"] == "degraded"
        ticker.advance(20)
        with pytest.raises(Unavailable) as refused:
            await auth.verify(made)
        assert refused.value.retryable
        assert refused.value.retry_after_ms
        assert not client.is_ready
        assert client.report()["keys"] == 0
        assert "there are no keys" in caplog.text
        provider.status = 200
        ticker.advance(10)
        assert (await auth.verify(made)).user.id == "ana"
        assert client.report()["state"] == "healthy"
        assert "error" not in client.report()


async def test_a_provider_that_hangs_holds_nobody_up_whose_key_is_known(
    provider: KeyServer,
) -> None:
    async with opened(provider, timeout_s=1.5) as (auth, client):
        provider.answering.clear()
        waiting = asyncio.ensure_future(refusal(auth, stranger()))
        await until(lambda: provider.hits == 2)
        assert (await auth.verify(good(provider))).user.id == "ana"
        assert not waiting.done()
        assert await waiting == "unauthenticated"
        assert "no answer" in client.report()["error"]


async def test_an_answer_that_trickles_in_is_given_up(provider: KeyServer) -> None:
    provider.is_trickling = True
    async with opened(provider, timeout_s=0.2) as (_, client):
        assert "no answer" in client.report()["error"]


async def test_without_any_keys_a_client_is_told_to_come_back(
    provider: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FIRST_RETRY_S", 0.01)
    provider.status = 503
    async with opened(provider) as (auth, client):
        made = good(provider)
        with pytest.raises(Unavailable):
            await auth.verify(made)
        assert not client.is_ready
        provider.status = 200
        await until(lambda: client.is_ready)  # it goes on asking by itself
        assert (await auth.verify(made)).user.id == "ana"


async def test_who_comes_before_the_first_answer_waits_for_it(provider: KeyServer) -> None:
    provider.answering.clear()
    client = JwksClient(provider.url, lifetime_s=600, stale_s=600)
    auth = Authenticator(client, audience="repsync")
    async with auth.open():
        early = [asyncio.ensure_future(auth.verify(good(provider))) for _ in range(5)]
        await until(lambda: provider.hits == 1)
        provider.answering.set()
        assert len(await asyncio.gather(*early)) == 5
    assert provider.hits == 1


async def test_closing_does_not_wait_for_a_provider_that_hangs(provider: KeyServer) -> None:
    provider.answering.clear()
    client = JwksClient(provider.url, lifetime_s=600, stale_s=600, timeout_s=60)
    async with asyncio.timeout(DEADLINE_S), client.open():
        await until(lambda: provider.hits == 1)


async def test_a_fault_of_our_own_does_not_end_the_refreshing(
    provider: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FIRST_RETRY_S", 0.01)

    def fail(body: bytes) -> Any:
        raise RuntimeError("nobody foresaw this")

    with monkeypatch.context() as patch:
        patch.setattr(jwks, "read_key_set", fail)
        client = JwksClient(provider.url, lifetime_s=600, stale_s=600)
        opening = client.open()
        await opening.__aenter__()
        await until(lambda: client.fetches["failed"] >= 2)
    await until(lambda: client.is_ready)
    await opening.__aexit__(None, None, None)


# -- a server -------------------------------------------------------------------------------------


@asynccontextmanager
async def served(
    provider: KeyServer, folder: Path, **settings: Any
) -> AsyncIterator[RunningServer]:
    settings = {"jwt_jwks_url": provider.url, "jwt_audience": "repsync", **settings}
    async with running_server(folder, **settings) as server:
        yield server


async def enter(server: RunningServer, made: str) -> EventClient:
    client = EventClient(server.url, made)
    server.clients.append(client)
    return await client.connect()


async def health(server: RunningServer) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.get(f"{server.url}/health") as response:
        return response.status, await response.json()


async def ready(server: RunningServer) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{server.url}/ready") as response:
        return response.status


async def test_a_server_lets_in_whom_the_provider_vouches_for(
    provider: KeyServer, tmp_path: Path
) -> None:
    async with served(provider, tmp_path) as server:
        phone = await enter(server, good(provider, name="Ana", role="trainer"))
        assert phone.welcome["user"] == {"id": "ana", "name": "Ana", "role": "trainer"}
        with pytest.raises(Refused) as refused:
            await enter(server, stranger())
        assert refused.value.error["code"] == "unauthenticated"
        status, report = await health(server)
        assert status == 200
        assert report["dependencies"]["jwks"]["keys"] == 1
        assert provider.url not in json.dumps(report)
        assert not (tmp_path / "jwt_secret").exists()


async def test_a_connection_lives_on_over_a_rotation(provider: KeyServer, tmp_path: Path) -> None:
    async with served(provider, tmp_path) as server:
        phone = await enter(server, good(provider))
        provider.new_key("k2")
        del provider.keys["k1"]
        answer = await phone.do("auth:refresh", {"token": good(provider, "k2")})
        assert answer["expires_at"] > time.time() * 1_000
        assert (await enter(server, good(provider, "k2"))).is_connected
        assert phone.is_connected


async def test_a_server_shows_that_its_provider_is_away_and_works_on(
    provider: KeyServer, tmp_path: Path
) -> None:
    async with served(provider, tmp_path) as server:
        await until_status(server, 200)
        provider.status = 500
        with pytest.raises(Refused):
            await enter(server, stranger())
        status, report = await health(server)
        assert (status, report["status"]) == (206, "degraded")
        assert report["dependencies"]["jwks"]["state"] == "degraded"
        assert report["dependencies"]["jwks"]["error"] == "it answered with status 500"
        assert await ready(server) == 200
        assert (await enter(server, good(provider))).is_connected
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/metrics") as response:
            assert 'repsync_jwks_fetches_total{outcome="failed"}' in await response.text()


async def until_status(server: RunningServer, status: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await health(server))[0] != status:
            pass


async def test_a_server_starts_without_its_provider_and_is_not_ready_until_it_answers(
    provider: KeyServer, tmp_path: Path
) -> None:
    provider.answering.clear()
    async with asyncio.timeout(DEADLINE_S), served(provider, tmp_path) as server:
        assert await ready(server) == 503
        assert (await health(server))[0] == 206
        entering = asyncio.ensure_future(enter(server, good(provider)))
        await until(lambda: provider.hits == 1)
        provider.answering.set()
        assert (await entering).is_connected
        assert await ready(server) == 200


async def test_a_server_without_any_key_tells_clients_to_come_back(
    provider: KeyServer, tmp_path: Path
) -> None:
    provider.status = 500
    async with served(provider, tmp_path) as server:
        with pytest.raises(Refused) as refused:
            await enter(server, good(provider))
        assert refused.value.error["code"] == "unavailable"
        assert refused.value.error["retryable"] is True
        assert refused.value.error["retry_after_ms"] > 0


async def test_a_connection_that_waits_for_the_provider_holds_up_nobody_else(
    provider: KeyServer, tmp_path: Path
) -> None:
    async with served(provider, tmp_path) as server:
        phone = await enter(server, good(provider))
        provider.answering.clear()
        entering = asyncio.ensure_future(enter(server, stranger()))
        await until(lambda: provider.hits == 2)
        await phone.do("workout:create", {"workout_id": "w"})
        assert (await enter(server, good(provider))).is_connected
        assert not entering.done()
        provider.answering.set()
        with pytest.raises(Refused):
            await entering


async def test_a_connection_that_ends_while_its_new_token_is_checked_leaves_no_trace(
    provider: KeyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(provider, tmp_path) as server:
        phone = await enter(server, good(provider))
        provider.new_key("k2")
        provider.answering.clear()
        asking = asyncio.ensure_future(phone.ask("auth:refresh", {"token": good(provider, "k2")}))
        await until(lambda: provider.hits == 2)
        await phone.drop()
        await until(lambda: server.parts.gateway.session_counts["events"] == 0)
        provider.answering.set()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await enter(server, good(provider, "k1"))).is_connected
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_without_an_audience_the_operator_is_warned(
    provider: KeyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(provider, tmp_path, jwt_audience=None) as server:
        assert (await enter(server, good(provider, aud=...))).is_connected
    assert "JWT_AUDIENCE is not set" in caplog.text
