"""Tokens that are refused before their end: who is put out, who stays, and who comes back."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from crdt import ids
from crdt.errors import Unavailable
from crdt.ids import UserId
from crdt.revocations import Revocation
from server.replay.devices import DocumentClient, EventClient, Refused
from server.storage.port import StorageError
from server.storage.sqlite import SqliteStore
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer, ServerProcess, running_server

SECRET = "a secret of more than thirty-two bytes"
WORKOUT = ids.workout("w")
DEADLINE_S = 10.0
ISSUED_S = int(time.time())


def token(user_id: str = "ana", **changes: Any) -> str:
    """A token issued before all that a test revokes."""
    claims = {"sub": user_id, "iat": ISSUED_S, "exp": ISSUED_S + 3600, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not ...}, SECRET)


def later_token(user_id: str = "ana", **changes: Any) -> str:
    """A token of a login that comes after all that was revoked until now."""
    return token(user_id, iat=int(time.time()) + 2, **changes)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path / "data", jwt_secret=SECRET) as running:
        yield running


async def enter(server: RunningServer, made: str, **options: Any) -> EventClient:
    client = EventClient(server.url, made, {"id": "phone", "name": "Phone"})
    server.clients.append(client)
    return await client.connect(**options)


async def open_document(server: RunningServer, made: str) -> DocumentClient:
    client = DocumentClient(server.url, WORKOUT, made)
    server.clients.append(client)
    return await client.connect()


async def admin(server: RunningServer) -> EventClient:
    return await enter(server, token("root", role="admin"))


async def workout_of(client: EventClient) -> None:
    await client.do("workout:create", {"workout_id": WORKOUT.id, "visibility": "public"})


async def refused(server: RunningServer, made: str) -> str:
    """The code with which a token is refused, at both kinds of doors."""
    codes = set()
    for entering in (enter(server, made), open_document(server, made)):
        with pytest.raises(Refused) as refusal:
            await entering
        assert made not in str(refusal.value.error)
        codes.add(refusal.value.error["code"])
    (code,) = codes
    return code


async def ended(*clients: Any) -> None:
    for client in clients:
        await client.wait_until_gone(DEADLINE_S)


# -- who is put out -------------------------------------------------------------------------------


async def test_all_of_a_users_connections_are_told_and_ended(server: RunningServer) -> None:
    root = await admin(server)
    first, second = token(device=1), token(device=2)
    phone = await enter(server, first)
    await workout_of(phone)
    polling = await enter(server, second, transports=("polling",))
    laptop = await open_document(server, second)
    answer = await root.do("auth:revoke", {"user_id": "ana"})
    assert answer == {"ok": True, "durability": "disk", "disconnected": 3}
    for client in (phone, polling):
        told = await client.next("auth:revoked")
        assert told["code"] == "unauthenticated"
        assert told["retryable"] is False
    await ended(phone, polling, laptop)
    for made in (first, second):
        assert await refused(server, made) == "unauthenticated"
    assert root.is_connected
    assert server.parts.gateway.session_counts == {"events": 1, "document": 0}


async def test_a_document_client_is_told_as_well(server: RunningServer) -> None:
    root, owner = await admin(server), await enter(server, token("ben"))
    await workout_of(owner)
    laptop = await open_document(server, token())
    told: list[Any] = []
    assert laptop._socket is not None
    laptop._socket.on("auth:revoked", told.append, namespace=f"/yjs|{WORKOUT}")
    await root.do("auth:revoke", {"user_id": "ana"})
    await ended(laptop)
    assert [error["code"] for error in told] == ["unauthenticated"]


async def test_a_token_is_revoked_by_its_id_and_no_other_is(server: RunningServer) -> None:
    root = await admin(server)
    lost, kept = token(jti="lost"), token(jti="kept")
    phone, watch = await enter(server, lost), await enter(server, kept)
    await workout_of(watch)
    laptop = await open_document(server, lost)
    nameless = await enter(server, token())
    answer = await root.do("auth:revoke", {"token_id": "lost"})
    assert answer["disconnected"] == 2
    await ended(phone, laptop)
    assert await refused(server, lost) == "unauthenticated"
    assert (await enter(server, kept)).is_connected
    for stays in (watch, nameless):
        await stays.do("time:sync", {"t0": 0.0})


async def test_others_notice_nothing(server: RunningServer) -> None:
    root, ben = await admin(server), await enter(server, token("ben"))
    await workout_of(ben)
    laptop = await open_document(server, token("ben"))
    ana = await enter(server, token())
    await root.do("auth:revoke", {"user_id": "ana"})
    await ended(ana)
    await ben.do("workout:sync", {"workout_id": WORKOUT.id})
    await laptop.sync()
    assert "auth:revoked" not in [event for event, _, _ in ben.events]


async def test_who_is_nobody_here_is_revoked_for_when_they_come(server: RunningServer) -> None:
    root = await admin(server)
    await workout_of(root)
    for what in ({"user_id": "ana"}, {"token_id": "t1"}):
        assert (await root.do("auth:revoke", what))["disconnected"] == 0
    assert await refused(server, token()) == "unauthenticated"
    assert await refused(server, token("ben", jti="t1")) == "unauthenticated"
    assert (await enter(server, token("ben"))).is_connected


async def test_a_new_login_gets_in(server: RunningServer) -> None:
    root, phone = await admin(server), await enter(server, token())
    await workout_of(root)
    await root.do("auth:revoke", {"user_id": "ana"})
    await ended(phone)
    again = await enter(server, later_token())
    assert again.welcome["user"]["id"] == "ana"
    laptop = await open_document(server, later_token())
    assert laptop.is_connected
    # A token that does not say when it was issued may be an old one.
    assert await refused(server, token(iat=...)) == "unauthenticated"


async def test_a_token_of_an_issuer_whose_clock_is_ahead_is_put_out_and_stays_out(
    server: RunningServer,
) -> None:
    root = await admin(server)
    await workout_of(root)
    ahead = token(iat=int(time.time()) + 4)
    phone = await enter(server, ahead)
    assert (await root.do("auth:revoke", {"user_id": "ana"}))["disconnected"] == 1
    await ended(phone)
    assert await refused(server, ahead) == "unauthenticated"


async def test_an_admin_who_revokes_their_own_tokens_gets_the_answer_first(
    server: RunningServer,
) -> None:
    made = token("root", role="admin")
    root = await enter(server, made)
    await workout_of(root)
    tablet = await enter(server, made)
    answer = await root.do("auth:revoke", {"user_id": "root", "op_id": OP_ID})
    assert (answer["ok"], answer["disconnected"]) == (True, 2)
    assert (await root.next("auth:revoked"))["code"] == "unauthenticated"
    await ended(root, tablet)
    assert await refused(server, made) == "unauthenticated"


async def test_only_admins_revoke(server: RunningServer) -> None:
    for role in ("user", "premium", "trainer"):
        client = await enter(server, token("ben", role=role))
        answer = await client.ask("auth:revoke", {"user_id": "ana"})
        assert answer["error"]["code"] == "forbidden"
    assert (await enter(server, token())).is_connected


async def test_a_revocation_ends(server: RunningServer) -> None:
    root = await admin(server)
    until_ms = time.time_ns() // 1_000_000 + 400
    await root.do("auth:revoke", {"token_id": "t1", "until": until_ms})
    made = token(jti="t1")
    codes = []
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await enter(server, made)
                break
            except Refused as refusal:
                codes.append(refusal.error["code"])
    assert set(codes) <= {"unauthenticated"}
    assert time.time() * 1_000 >= until_ms


# -- new tokens for old ---------------------------------------------------------------------------


async def test_a_revoked_token_prolongs_nothing(server: RunningServer) -> None:
    root, phone = await admin(server), await enter(server, token(jti="first"))
    await root.do("auth:revoke", {"token_id": "second"})
    answer = await phone.ask("auth:refresh", {"token": token(jti="second")})
    assert answer["error"]["code"] == "unauthenticated"
    await phone.do("time:sync", {"t0": 0.0})


async def test_what_counts_is_the_token_that_a_connection_holds_now(
    server: RunningServer,
) -> None:
    root, phone = await admin(server), await enter(server, token(jti="old"))
    await phone.do("auth:refresh", {"token": token(jti="new")})
    assert (await root.do("auth:revoke", {"token_id": "old"}))["disconnected"] == 0
    await phone.do("time:sync", {"t0": 0.0})
    assert (await root.do("auth:revoke", {"token_id": "new"}))["disconnected"] == 1
    await ended(phone)


# -- at the same time -----------------------------------------------------------------------------


async def test_who_is_at_the_door_when_they_are_revoked_does_not_get_in(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await admin(server)
    await workout_of(root)
    hub = server.parts.hub
    async with hub.lease(WORKOUT) as live:
        hub.leave(WORKOUT, next(iter(live.connections)))
    hub._unload(live)
    assert hub.find(WORKOUT) is None
    load, asked, go_on = server.parts.store.load, asyncio.Event(), asyncio.Event()

    async def slow_load(doc: ids.DocName) -> Any:
        asked.set()
        await go_on.wait()
        return await load(doc)

    monkeypatch.setattr(server.parts.store, "load", slow_load)
    entering = asyncio.ensure_future(open_document(server, token()))
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    assert (await root.do("auth:revoke", {"user_id": "ana"}))["disconnected"] == 0
    go_on.set()
    with pytest.raises(Refused) as refusal:
        await entering
    assert refusal.value.error["code"] == "unauthenticated"
    assert server.parts.gateway.session_counts["document"] == 0


def slow_disk(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Returns: set when a revocation is to be written; to be set when it may be."""
    revoke, asked, synced = server.parts.store.revoke, asyncio.Event(), asyncio.Event()

    async def slow_revoke(*args: Any) -> None:
        asked.set()
        await synced.wait()
        await revoke(*args)

    monkeypatch.setattr(server.parts.store, "revoke", slow_revoke)
    return asked, synced


async def test_nobody_is_put_out_before_the_revocation_is_durable(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, phone = await admin(server), await enter(server, token())
    asked, synced = slow_disk(server, monkeypatch)
    revoking = asyncio.ensure_future(root.do("auth:revoke", {"user_id": "ana"}))
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    await phone.do("time:sync", {"t0": 0.0})
    assert not revoking.done()
    synced.set()
    assert (await revoking)["disconnected"] == 1
    await ended(phone)


async def test_a_revocation_that_cannot_be_kept_changes_nothing_and_may_be_tried_again(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, phone = await admin(server), await enter(server, token())

    async def fail(*_: Any) -> None:
        raise Unavailable("no room on the disk", retry_after_ms=1_000)

    wish = {"user_id": "ana", "op_id": OP_ID}
    with monkeypatch.context() as patch:
        patch.setattr(server.parts.store, "revoke", fail)
        answer = await root.ask("auth:revoke", wish)
        assert answer["error"]["code"] == "unavailable"
        await phone.do("time:sync", {"t0": 0.0})
        assert (await enter(server, token())).is_connected
    assert (await root.do("auth:revoke", wish))["disconnected"] == 2
    await ended(phone)


async def test_a_revocation_goes_through_though_its_admin_has_gone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, phone = await admin(server), await enter(server, token())
    asked, synced = slow_disk(server, monkeypatch)
    revoking = asyncio.ensure_future(root.ask("auth:revoke", {"user_id": "ana"}))
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    await root.drop()
    await asyncio.gather(revoking, return_exceptions=True)
    await until(lambda: server.parts.gateway.session_counts["events"] == 1)
    synced.set()
    await ended(phone)


async def test_a_revocation_of_another_instance_is_applied_here(server: RunningServer) -> None:
    phone, other = await enter(server, token()), await enter(server, token("ben"))
    now_ms = time.time_ns() // 1_000_000
    revocation = Revocation("user", "ana", now_ms + 60_000, now_ms)
    for _ in range(2):  # a bus may deliver twice
        server.parts.gateway.apply_revocation(revocation)
    await ended(phone)
    with pytest.raises(Refused):
        await enter(server, token())
    await other.do("time:sync", {"t0": 0.0})


# -- what lasts -----------------------------------------------------------------------------------

OP_ID = "7f0c2f4e-5c6f-4b57-9d0b-3a3b0c1e2d01"


async def test_a_revocation_outlasts_a_restart_and_so_does_its_answer(tmp_path: Path) -> None:
    made = token()
    wish = {"user_id": "ana", "op_id": OP_ID}
    async with running_server(tmp_path, jwt_secret=SECRET) as server:
        root, phone = await admin(server), await enter(server, made)
        await workout_of(root)
        first = await root.do("auth:revoke", wish)
        await root.do("auth:revoke", {"token_id": "t1"})
        await ended(phone)
    async with running_server(tmp_path, jwt_secret=SECRET) as server:
        assert await refused(server, made) == "unauthenticated"
        assert await refused(server, token("ben", jti="t1")) == "unauthenticated"
        new = await enter(server, later_token())
        root = await admin(server)
        # The same operation again changes nothing: who has logged in since stays.
        assert await root.do("auth:revoke", wish) == first
        await new.do("time:sync", {"t0": 0.0})
        assert server.parts.gateway.revocation_count == 2
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/metrics") as metrics:
            assert "repsync_revocations 2.0" in await metrics.text()


@pytest.mark.system
async def test_a_revocation_that_was_acked_outlasts_kill_9(tmp_path: Path) -> None:
    process = await ServerProcess(tmp_path, {"JWT_SECRET": SECRET}).start()
    made = token(jti="t1")
    root = EventClient(process.url, token("root", role="admin"))
    phone = EventClient(process.url, made)
    try:
        await root.connect()
        await phone.connect()
        assert (await root.do("auth:revoke", {"token_id": "t1"}))["disconnected"] == 1
        await process.kill()
        await process.start()
        with pytest.raises(Refused) as refusal:
            await phone.connect()
        assert refusal.value.error["code"] == "unauthenticated"
        await root.connect()
    finally:
        await root.close()
        await phone.close()
        await process.stop()


async def test_a_server_that_cannot_read_what_was_revoked_does_not_start(tmp_path: Path) -> None:
    await SqliteStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "repsync.db")
    db.execute("DROP TABLE revocations")
    db.close()
    with pytest.raises(StorageError, match="what was revoked cannot be read"):
        async with running_server(tmp_path, jwt_secret=SECRET):
            pass


# -- what is told ---------------------------------------------------------------------------------

BAD: dict[str, dict[str, Any]] = {
    "nobody": {},
    "two": {"user_id": "ana", "token_id": "t1"},
    "nulls": {"user_id": None, "token_id": None},
    "an empty user": {"user_id": ""},
    "an empty token": {"token_id": ""},
    "a user that is a number": {"user_id": 1},
    "a user that is a list": {"user_id": ["ana"]},
    "a user that is too long": {"user_id": "x" * 201},
    "a token that is too long": {"token_id": "x" * 501},
    "half a letter": {"user_id": "\ud800"},
    "an end that has passed": {"user_id": "ana", "until": 1},
    "an end at the beginning": {"user_id": "ana", "until": 0},
    "an end before all": {"user_id": "ana", "until": -1},
    "an end that is a text": {"user_id": "ana", "until": "2040-01-01"},
    "an end with a fraction": {"user_id": "ana", "until": 4e12 + 0.5},
    "an end that is a truth": {"user_id": "ana", "until": True},
    "an end beyond all": {"user_id": "ana", "until": 2**53},
    "a field that there is not": {"user_id": "ana", "reason": "x"},
    "an op_id that is none": {"user_id": "ana", "op_id": "1"},
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_a_wish_that_is_malformed_revokes_nothing(
    server: RunningServer, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    root, phone = await admin(server), await enter(server, token(jti="t1"))
    answer = await root.ask("auth:revoke", data)
    assert answer["error"]["code"] == "invalid"
    assert answer["error"]["details"][0]["message"]
    await phone.do("time:sync", {"t0": 0.0})
    assert server.parts.gateway.revocation_count == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_revocation_is_logged_without_the_token(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = token(jti="t1")
    root, phone = await admin(server), await enter(server, made)
    await root.do("auth:revoke", {"token_id": "t1"})
    await ended(phone)
    (record,) = [r for r in caplog.records if r.getMessage() == "tokens are revoked"]
    assert (record.kind, record.id, record.connections) == ("token", "t1", 1)  # type: ignore[attr-defined]
    assert made not in caplog.text


async def test_a_user_is_still_who_they_are_in_what_they_left(server: RunningServer) -> None:
    root, phone = await admin(server), await enter(server, token())
    await phone.do("workout:create", {"workout_id": WORKOUT.id})
    await root.do("auth:revoke", {"user_id": "ana"})
    await ended(phone)
    again = await enter(server, later_token())
    listed = await again.do("workout:list")
    assert [one["owner_id"] for one in listed["workouts"]] == [UserId("ana")]
