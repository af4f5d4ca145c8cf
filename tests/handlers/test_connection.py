"""Events about the connection, and the dashboards' streams."""

from __future__ import annotations

import pytest

from crdt.ids import ConnectionId
from tests.helpers.rooms import NOW_MS, Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_new_token_prolongs_the_connection(desk: Desk) -> None:
    answer = await desk.do("ana", "auth:refresh", token="new")
    assert answer == {"ok": True, "expires_at": NOW_MS + 3_600_000}


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
