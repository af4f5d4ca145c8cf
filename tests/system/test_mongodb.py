"""A server with its log in MongoDB: restarts, crashes of either of the two, and a whole replay."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from crdt import ids
from server.auth import Authenticator
from server.keys import GivenKey
from server.replay.devices import DocumentClient, EventClient, Lost
from server.replay.play import replay
from server.settings import Settings
from tests.chaos.clients import Device, Phone, TemplateLaptop, WorkoutLaptop
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.rooms import until
from tests.helpers.servers import ServerProcess
from tests.system.test_crash_safety import (
    SECRET,
    TEMPLATE,
    WORKOUT,
    OneServer,
    cast_of,
    check_world,
    chosen_seed,
    connected,
    live_through,
    prepare,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

DEADLINE_S = 60.0
HEVY = Path(__file__).parents[1] / "data" / "hevy.csv"

DIES_AFTER_THE_COMMIT = """
import os, signal, sys
from server.storage import mongo_projection
from server.__main__ import main

project = mongo_projection.project

async def die(db, record):
    if record.get("scores"):
        os.kill(os.getpid(), signal.SIGKILL)
    await project(db, record)

mongo_projection.project = die
sys.exit(main([]))
"""


@asynccontextmanager
async def serving(
    folder: Path, uri: str, *, log_level: str = "WARNING", **options: Any
) -> AsyncIterator[ServerProcess]:
    env = {"JWT_SECRET": SECRET, "MONGODB_URI": uri, "LOG_LEVEL": log_level}
    server = ServerProcess(folder, env, **options)
    try:
        yield await server.start()
    finally:
        await server.stop()


def token(user_id: str = "ana") -> str:
    return Authenticator(GivenKey.secret(SECRET)).sign(user_id)


def phone(server: ServerProcess, user_id: str = "ana") -> connected:
    return connected(EventClient(server.url, token(user_id)))


def op(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "op_id": str(uuid4())}


async def health(server: ServerProcess) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession(server.url) as http, http.get("/health") as response:
        return response.status, await response.json()


async def until_health(server: ServerProcess, status: int) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found, report = await health(server)
            if found == status:
                return report
            await asyncio.sleep(0.05)


async def test_a_server_on_mongodb_keeps_nothing_else(tmp_path: Path, mongo_uri: str) -> None:
    made = op({"workout_id": "w", "title": "Leg day"})
    set_done = op({"workout_id": "w", "exercise_id": "x", "set": {"weight_kg": 100, "reps": 5}})
    async with serving(tmp_path / "one", mongo_uri) as server:
        async with phone(server) as ana:
            created = await ana.do("workout:create", made)
            assert created["durability"] == "cluster"
            await ana.do("workout:start", {"workout_id": "w"})
            await ana.do(
                "workout:exercise:add",
                {"workout_id": "w", "exercise_id": "x", "exercise": {"name": "Squat"}},
            )
            first = await ana.do("workout:set:complete", set_done)
            await ana.do("template:create", {"template_id": "t", "title": "Plan"})
            before = (await ana.do("workout:sync", {"workout_id": "w"}))["workout"]
        _, report = await health(server)
        store = report["dependencies"]["store"]
        assert (store["kind"], store["state"]) == ("mongodb", "healthy")
        assert store["latency_ms"] > 0
        assert await server.terminate() == 0
    assert not list(tmp_path.rglob("repsync.db"))

    # Another machine, which has nothing but the address of the database.
    async with serving(tmp_path / "two", mongo_uri) as server:
        async with phone(server) as ana:
            assert await ana.ask("workout:create", made) == created
            assert await ana.ask("workout:set:complete", set_done) == first
            after = (await ana.do("workout:sync", {"workout_id": "w"}))["workout"]
            assert {**after, "server_time": 0, "members": 0} == {
                **before,
                "server_time": 0,
                "members": 0,
            }
            assert len((await ana.do("template:list"))["templates"]) == 1
            assert ana.welcome["active_workout"] == "w"
            async with connected(DocumentClient(server.url, ids.workout("w"), token())) as laptop:
                assert laptop.content()["meta"]["title"] == "Leg day"
        assert await server.terminate() == 0


async def test_the_log_shows_nothing_of_what_is_stored(tmp_path: Path, mongo_uri: str) -> None:
    with open(tmp_path / "log", "w+b") as log:
        async with serving(tmp_path, mongo_uri, log_level="DEBUG", stderr=log) as server:
            async with phone(server) as ana:
                await ana.do("workout:create", {"workout_id": "w", "title": "Leg day"})
            assert await server.terminate() == 0
        log.seek(0)
        text = log.read()
    assert text
    assert b"Leg day" not in text


async def test_a_training_export_plays_on_mongodb(
    tmp_path: Path, mongo_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "mine", jwt_secret=SECRET)
    async with serving(tmp_path / "data", mongo_uri) as server:
        outcome = await replay(settings, HEVY, urls=[server.url])
        assert outcome == 0, capsys.readouterr().out
        assert await server.terminate() == 0


async def test_what_was_acked_survives_kills_of_the_server(tmp_path: Path, mongo_uri: str) -> None:
    world = OneServer(tmp_path, chosen_seed(), durability="cluster", MONGODB_URI=mongo_uri)
    lives = [{"COMPACT_AFTER": "1000000" if life <= 4 else "20"} for life in range(9)]
    await world.start(**lives[0])
    phones = [Phone(world, "ana-phone", "ana"), Phone(world, "ben-phone", "ben")]
    laptops = [
        WorkoutLaptop(world, "cleo-laptop", "cleo", WORKOUT),
        TemplateLaptop(world, "ana-laptop", "ana", TEMPLATE),
    ]
    devices: list[Device] = [*phones, *laptops]
    try:
        await prepare(world)
        await live_through(world, devices, lives, lambda: None)
        await check_world(world, cast_of(phones, laptops))
        for device in devices:
            await device.close()
        assert await world.server.terminate() == 0
    finally:
        for device in devices:
            await device.close()
        await world.server.stop()


async def test_a_server_that_dies_right_after_the_commit_has_carried_it_out_once(
    tmp_path: Path, mongo_uri: str
) -> None:
    here = {"workout_id": "w"}
    set_done = op({**here, "exercise_id": "x", "set": {"weight_kg": 100, "reps": 5}})
    program = ("-c", DIES_AFTER_THE_COMMIT)
    async with serving(tmp_path, mongo_uri, program=program) as server, phone(server) as ana:
        await ana.do("workout:create", here)
        squat = {**here, "exercise_id": "x", "exercise": {"name": "Squat"}}
        await ana.do("workout:exercise:add", squat)
        with pytest.raises(Lost):
            await ana.ask("workout:set:complete", set_done)
    async with serving(tmp_path, mongo_uri) as server, phone(server) as ana:
        answer = await ana.do("workout:set:complete", set_done)
        assert answer["is_pr"]
        shown = (await ana.do("workout:sync", here))["workout"]
        assert [item["id"] for item in shown["sets"]] == [answer["set_id"]]
        won = shown["progress"]["ana"]["records"]
        assert {record["type"] for record in won} == {"weight", "volume", "e1rm"}
        # The record book knows of it in other workouts, too.
        await ana.do("workout:create", {"workout_id": "v"})
        await ana.do("workout:exercise:add", {**squat, "workout_id": "v"})
        again = await ana.do("workout:set:complete", op({**set_done, "workout_id": "v"}))
        assert not again["is_pr"]


class Lifter:
    """Logs sets into a workout of their own, one after the other, until each has been acked."""

    def __init__(self, server: ServerProcess, user_id: str) -> None:
        self.user_id = user_id
        self.workout = {"workout_id": f"of-{user_id}"}
        self.client = EventClient(server.url, token(user_id))
        self.acked: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.is_over = False

    async def prepare(self) -> None:
        await self.client.connect()
        await self.client.do("workout:create", self.workout)
        squat = {"exercise_id": "x", "exercise": {"name": "Squat"}}
        await self.client.do("workout:exercise:add", {**self.workout, **squat})

    async def run(self) -> None:
        for number in itertools.count():
            if self.is_over:
                return
            done = {"exercise_id": "x", "set_id": f"s{number}", "set": {"reps": 1 + number % 9}}
            data = op({**self.workout, **done})
            while not (answer := await self.client.ask("workout:set:complete", data))["ok"]:
                self.refusals[answer["error"]["code"]] += 1
                assert answer["error"]["retryable"]
                await asyncio.sleep(answer["error"].get("retry_after_ms", 100) / 10_000)
            self.acked.append(answer["set_id"])


async def test_a_server_outlives_its_mongodb_and_loses_nothing_that_was_acked(
    tmp_path: Path, mongo_process: MongoProcess
) -> None:
    uri = f"{mongo_process.uri}/?timeoutMS=1000"
    async with serving(tmp_path / "data", uri) as server:
        lifters = [Lifter(server, f"lifter-{number}") for number in range(6)]
        for lifter in lifters:
            await lifter.prepare()
        working = asyncio.gather(*(lifter.run() for lifter in lifters))

        async def until_all_have_logged(more: int) -> None:
            wanted = [len(lifter.acked) + more for lifter in lifters]
            await until(
                lambda: (
                    working.done()
                    or all(
                        len(lifter.acked) >= n for lifter, n in zip(lifters, wanted, strict=True)
                    )
                ),
                DEADLINE_S,
            )

        for _ in range(2):
            await until_all_have_logged(5)
            mongo_process.kill()
            report = await until_health(server, 503)
            assert report["dependencies"]["store"]["state"] == "unhealthy"
            assert "127.0.0.1" not in report["dependencies"]["store"]["error"]
            await asyncio.to_thread(mongo_process.start)
            await until_health(server, 200)
        await until_all_have_logged(5)
        for lifter in lifters:
            lifter.is_over = True
        async with asyncio.timeout(DEADLINE_S):
            await working
        for lifter in lifters:
            assert lifter.refusals.keys() == {"unavailable"}
            shown = (await lifter.client.do("workout:sync", lifter.workout))["workout"]
            assert [item["id"] for item in shown["sets"]] == lifter.acked
            await lifter.client.close()
        assert await server.terminate() == 0
