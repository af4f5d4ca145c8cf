"""Two instances that are looked after: what each says of Redis, MongoDB and the other one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import pytest
from redis.asyncio import Redis

from server import VERSION
from server.cluster.peers import Peers
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.proxies import proxied
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer, running_server

SECRET = "a secret of more than thirty-two bytes"
PATIENCE_S = 30.0
HERE = {"workout_id": "w"}


@dataclass
class Two:
    a: RunningServer
    b: RunningServer
    redis: RedisProcess
    mongo: MongoProcess
    prefix: str


@pytest.fixture
async def two(
    tmp_path: Path, redis_process: RedisProcess, mongo_process: MongoProcess
) -> AsyncIterator[Two]:
    prefix = f"t{uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(
                running_server(
                    tmp_path / name,
                    jwt_secret=SECRET,
                    redis_url=redis_process.url,
                    redis_prefix=prefix,
                    mongodb_uri=f"{mongo_process.uri}/?timeoutMS=500&directConnection=true",
                )
            )
            for name in ("a", "b")
        ]
        yield Two(a, b, redis_process, mongo_process, prefix)


def dependencies(server: RunningServer) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = server.parts.health.report()["dependencies"]
    return found


def is_well(server: RunningServer) -> bool:
    return server.parts.health.report()["status"] == "healthy"


def instances(server: RunningServer) -> dict[str, dict[str, Any]]:
    found = server.parts.watch.overview.value()["instances"]
    return {one["instance"]: one for one in found}


def name(server: RunningServer) -> str:
    return str(server.parts.health.report()["instance"])


async def test_each_instance_shows_the_other_as_that_says_it_is(two: Two) -> None:
    phone = await two.b.events("ana")
    await phone.do("workout:create", HERE)
    a, b = name(two.a), name(two.b)
    await until(lambda: instances(two.a).keys() == {a, b}, PATIENCE_S)
    await until(lambda: instances(two.a)[b]["connections"] == 1, PATIENCE_S)
    await until(lambda: instances(two.a)[b]["status"] == "healthy", PATIENCE_S)
    seen = instances(two.a)[b]
    assert (seen["rooms"], seen["version"]) == (1, VERSION)
    assert 0 <= seen["seen_ms_ago"] < 5_000
    assert instances(two.a)[a]["seen_ms_ago"] == 0


async def test_a_redis_that_is_away_is_seen_with_an_open_breaker_until_it_is_back(
    two: Two,
) -> None:
    phone = await two.a.events("ana")
    await phone.do("workout:create", HERE)
    squat = {**HERE, "exercise_id": "squat", "exercise": {"name": "Squat"}}
    await phone.do("workout:exercise:add", squat)
    await until(lambda: is_well(two.a), PATIENCE_S)
    report = dependencies(two.a)
    assert report.keys() == {"store", "event_loop", "disk", "redis", "bus", "backlog"}
    assert report["redis"]["breaker"] == report["store"]["breaker"] == "closed"
    two.redis.kill()
    await until(lambda: dependencies(two.a)["redis"]["state"] == "degraded", PATIENCE_S)
    done = await phone.do(
        "workout:set:complete", {**HERE, "exercise_id": "squat", "set": {"reps": 5}}
    )
    assert done["durability"] == "local"
    report = two.a.parts.health.report()
    assert report["dependencies"]["redis"]["breaker"] == "open"
    assert report["dependencies"]["redis"]["spool_bytes"] == report["spool_bytes"] > 0
    assert report["dependencies"]["bus"]["state"] == "degraded"
    assert report["dependencies"]["disk"]["state"] == "healthy"
    await until(lambda: two.a.parts.health.report()["oldest_unflushed_ms"] > 100, PATIENCE_S)
    firing = two.a.parts.watch.alerts.firing
    await until(lambda: [one["key"] for one in firing()] == ["dependency:redis"], PATIENCE_S)
    two.redis.start()
    await until(lambda: is_well(two.a) and is_well(two.b), PATIENCE_S)
    report = two.a.parts.health.report()
    assert report["dependencies"]["redis"]["breaker"] == "closed"
    await until(lambda: two.a.parts.health.report()["spool_bytes"] == 0, PATIENCE_S)
    await until(lambda: not firing(), PATIENCE_S)


async def test_a_redis_that_answers_too_slowly_is_half_open_while_it_is_tried(
    tmp_path: Path, redis_process: RedisProcess, mongo_uri: str
) -> None:
    async with (
        proxied("127.0.0.1", redis_process.port) as proxy,
        running_server(
            tmp_path / "a",
            redis_url=proxy.url(redis_process.url),
            redis_prefix=f"t{uuid4().hex[:8]}",
            mongodb_uri=mongo_uri,
        ) as server,
    ):
        phone = await server.events("ana")
        await phone.do("workout:create", HERE)
        squat = {**HERE, "exercise_id": "squat", "exercise": {"name": "Squat"}}
        proxy.latency(0.15)
        done = await phone.do("workout:exercise:add", squat)
        assert done["durability"] == "local"
        await until(lambda: dependencies(server)["redis"]["breaker"] == "half_open", PATIENCE_S)
        assert dependencies(server)["redis"]["state"] == "degraded"
        proxy.heal()
        await until(lambda: dependencies(server)["redis"]["breaker"] == "closed", PATIENCE_S)
        await until(lambda: is_well(server), PATIENCE_S)


async def test_a_mongodb_that_is_away_is_left_alone_until_it_is_back(two: Two) -> None:
    phone = await two.a.events("ana")
    await phone.do("workout:create", HERE)
    two.mongo.kill()
    refused = []
    while dependencies(two.a)["store"]["breaker"] != "open":
        refused.append(await phone.ask("workout:list", {}))
    assert {answer["error"]["code"] for answer in refused} == {"unavailable"}
    answer = await phone.ask("workout:list", {})
    assert answer["error"]["code"] == "unavailable"
    assert answer["error"]["retry_after_ms"] >= 1_000
    await until(lambda: dependencies(two.a)["store"]["state"] == "degraded", PATIENCE_S)
    await asyncio.to_thread(two.mongo.start)
    await until(lambda: dependencies(two.a)["store"]["breaker"] == "closed", PATIENCE_S)
    await until(lambda: is_well(two.a), PATIENCE_S)
    assert (await phone.do("workout:list", {}))["workouts"]


async def test_an_instance_of_another_version_is_shown_with_what_it_says(two: Two) -> None:
    async with Redis.from_url(two.redis.url) as redis:

        async def say(instance: str, state: Any) -> None:
            beat = msgpack.packb([1, "h", instance, state])
            await redis.publish(f"{two.prefix}:alive", beat)

        await say("older", None)
        await say("newer", {"status": "healthy", "rooms": 3, "mood": "fine"})
        await say("odd", {"status": "<script>", "rooms": -1})
        await say("odder", [1, 2])
    await until(lambda: {"older", "newer", "odd", "odder"} <= instances(two.a).keys(), PATIENCE_S)
    seen = instances(two.a)
    assert (seen["newer"]["status"], seen["newer"]["rooms"]) == ("healthy", 3)
    assert "mood" not in seen["newer"]
    for instance in ("older", "odd", "odder"):
        assert seen[instance]["status"] is None
        assert seen[instance]["rooms"] is None
    assert two.a.parts.health.report()["status"] == "healthy"


def test_an_instance_that_is_gone_is_forgotten() -> None:
    peers = Peers()
    peers.heard("b", {"rooms": 3})
    assert [one["rooms"] for one in peers.shown({"b": 1.0}, 3.0)] == [3]
    peers.gone("b")
    assert [one["rooms"] for one in peers.shown({"b": 1.0}, 3.0)] == [None]
