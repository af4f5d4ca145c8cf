"""Events about the connection, and the dashboards' streams."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from crdt.errors import Unavailable
from crdt.ids import ConnectionId, UserId
from crdt.revocations import Revocation, TokenFacts
from tests.helpers.rooms import NOW_MS, Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_new_token_prolongs_the_connection(desk: Desk) -> None:
    answer = await desk.do("ana", "auth:refresh", token="new")
    assert answer == {"ok": True, "expires_at": NOW_MS + 3_600_000}


# -- revoking ---------------------------------------------------------------------------------

ANA = UserId("ana")
MONTH_MS = 30 * 86_400_000


@pytest.fixture
def office(desk: Desk) -> Desk:
    """A desk with an admin, and with ana on two devices."""
    desk.knows("root", role="admin")
    desk.sessions.held = [
        TokenFacts(ANA, "t1", NOW_MS - 5_000),
        TokenFacts(ANA, "t2", NOW_MS - 1_000),
        TokenFacts(UserId("ben"), "t3", NOW_MS - 1_000),
    ]
    return desk


async def test_all_that_a_user_was_issued_up_to_now_is_revoked(office: Desk) -> None:
    answer = await office.do("root", "auth:revoke", user_id="ana")
    assert answer == {"ok": True, "durability": "memory", "disconnected": 2}
    revocation = Revocation("user", "ana", NOW_MS + MONTH_MS, NOW_MS)
    assert office.sessions.revoked == [revocation]
    assert await office.store.revocations(NOW_MS) == [revocation]


async def test_a_token_is_revoked_by_its_id(office: Desk) -> None:
    answer = await office.do("root", "auth:revoke", token_id="t2", until=NOW_MS + 1)
    assert answer["disconnected"] == 1
    assert office.sessions.revoked == [Revocation("token", "t2", NOW_MS + 1)]
    assert await office.store.revocations(NOW_MS) == office.sessions.revoked


async def test_what_is_in_use_counts_as_issued_whatever_it_says(office: Desk) -> None:
    office.sessions.held += [TokenFacts(ANA, "ahead", NOW_MS + 4_000), TokenFacts(ANA)]
    answer = await office.do("root", "auth:revoke", user_id="ana")
    assert answer["disconnected"] == 4
    assert office.sessions.revoked[0].issued_until_ms == NOW_MS + 4_000


async def test_a_revocation_lasts_as_long_as_the_server_is_told(office: Desk) -> None:
    office.services.revocation_lifetime_s = 60
    await office.do("root", "auth:revoke", user_id="ana")
    assert office.sessions.revoked[0].until_ms == NOW_MS + 60_000


@pytest.mark.parametrize("role", ["user", "premium", "trainer"])
async def test_nobody_but_an_admin_revokes(office: Desk, role: str) -> None:
    office.knows("eve", role=role)
    for wish in ({"user_id": "ana"}, {"user_id": "eve"}, {"token_id": "t1"}, {}):
        assert (await office.refused("eve", "auth:revoke", **wish))["code"] == "forbidden"
    assert office.sessions.revoked == []
    assert await office.store.revocations(NOW_MS) == []


@pytest.mark.parametrize(
    ("wish", "path"),
    [
        ({}, "user_id"),
        ({"user_id": "ana", "token_id": "t1"}, "user_id"),
        ({"user_id": "ana", "until": NOW_MS}, "until"),
        ({"user_id": "ana", "until": 0}, "until"),
    ],
)
async def test_a_wish_that_makes_no_sense_revokes_nothing(
    office: Desk, wish: dict[str, Any], path: str
) -> None:
    error = await office.refused("root", "auth:revoke", **wish)
    assert error["code"] == "invalid"
    assert [detail["path"] for detail in error["details"]] == [path]
    assert office.sessions.revoked == []


async def test_a_revocation_sent_again_is_no_second_one(office: Desk) -> None:
    op_id = str(uuid4())
    first = await office.do("root", "auth:revoke", user_id="ana", op_id=op_id)
    office.bench.clock.advance(60_000)
    office.sessions.held = []
    assert await office.do("root", "auth:revoke", user_id="ana", op_id=op_id) == first
    assert len(office.sessions.revoked) == 1
    assert [one.issued_until_ms for one in await office.store.revocations(NOW_MS)] == [NOW_MS]


async def test_a_revocation_that_cannot_be_kept_is_not_applied(office: Desk) -> None:
    office.store.fail("revoke", Unavailable("full"))
    error = await office.refused("root", "auth:revoke", user_id="ana")
    assert error["code"] == "unavailable"
    assert office.sessions.revoked == []


# -- time and streams -------------------------------------------------------------------------


async def test_the_servers_time_is_told_beside_the_clients(desk: Desk) -> None:
    answer = await desk.do("ana", "time:sync", t0=5.5)
    assert answer == {"ok": True, "t0": 5.5, "t1": NOW_MS, "t2": NOW_MS}


async def test_streams_are_given_or_denied_one_by_one(desk: Desk) -> None:
    workout_id = await desk.workout()
    mine, theirs = f"workout:{workout_id}:progress", "workout:other:progress"
    streams = [mine, theirs, "system:health", "nothing", mine]
    answer = await desk.do("ana", "subscribe", streams=streams)
    assert answer["subscribed"] == [mine]
    assert answer["denied"] == [theirs, "system:health", "nothing"]
    codes = [answer["errors"][stream]["code"] for stream in answer["denied"]]
    assert codes == ["not_found", "forbidden", "not_found"]
    assert desk.streams.watched == {ConnectionId("ana-phone"): [mine]}


async def test_a_stranger_cannot_watch_a_private_workout(desk: Desk) -> None:
    stream = f"workout:{await desk.workout()}:progress"
    assert (await desk.do("ben", "subscribe", streams=[stream]))["denied"] == [stream]


async def test_the_systems_health_is_for_admins(desk: Desk) -> None:
    desk.knows("root", role="admin")
    answer = await desk.do("root", "subscribe", streams=["system:health"])
    assert answer["subscribed"] == ["system:health"]


async def test_unsubscribing_tells_what_was_subscribed(desk: Desk) -> None:
    stream = f"workout:{await desk.workout()}:progress"
    await desk.do("ana", "subscribe", streams=[stream])
    answer = await desk.do("ana", "unsubscribe", streams=[stream, "nothing"])
    assert answer["unsubscribed"] == [stream]


@pytest.mark.parametrize("stream", ["workout:a,b:progress", "template:t:progress", "progress", ""])
async def test_a_stream_that_there_is_not_is_denied(desk: Desk, stream: str) -> None:
    answer = await desk.do("ana", "subscribe", streams=[stream])
    assert answer["errors"][stream]["code"] == "not_found"
