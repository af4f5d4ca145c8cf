"""Joins, edits, drops and errors for a while; then everything is back where it was.

`make soak` runs it for ten minutes; `SOAK_S` says how long otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Map

from crdt import ids
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost, Refused
from tests.helpers.servers import RunningServer, running_server

SOAK_S = float(os.environ.get("SOAK_S", "6"))
SEED = int(os.environ.get("SOAK_SEED", "7"))
WORKOUTS = [f"soak-{number}" for number in range(6)]
DEADLINE_S = 30.0


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not back where it was: {what}"
        await asyncio.sleep(0.05)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def lifter(server: RunningServer, chance: random.Random, end: float) -> int:
    """One user who comes, does something, and goes, politely or not."""
    rounds = 0
    token = server.token("ana")
    while time.monotonic() < end:
        workout_id = chance.choice(WORKOUTS)
        phone = EventClient(server.url, token)
        laptop = DocumentClient(server.url, ids.workout(workout_id), token)
        try:
            await phone.connect(
                transports=chance.choice([("websocket",), ("polling", "websocket")])
            )
            await phone.ask("workout:join", {"workout_id": workout_id})
            await phone.ask(
                "subscribe", {"streams": [f"workout:{workout_id}:progress", "nonsense"]}
            )
            await phone.ask(
                "workout:set:complete", {"workout_id": workout_id, "set": chance.random()}
            )
            await phone.ask(
                "workout:set:complete",
                {"workout_id": workout_id, "exercise_id": "squat", "set": {"reps": 5}},
            )
            await laptop.connect()
            laptop.map("sets")[f"s{chance.randrange(50)}"] = Map({"user_id": "ana", "reps": 5.0})
            await laptop.send(chance.randbytes(20))
            await laptop.send(b"\x01" * 200_000)
        except (Lost, Refused, CallFailed, TimeoutError):
            pass
        for client in (phone, laptop):
            await (client.drop() if chance.random() < 0.5 else client.close())
        rounds += 1
    return rounds


@pytest.mark.system
@pytest.mark.timeout(SOAK_S + 100)
async def test_after_a_storm_everything_is_back_where_it_was(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data", room_idle_timeout_s=0.2) as server:
        phone = await server.events("ana")
        for workout_id in WORKOUTS:
            await phone.do("workout:create", {"workout_id": workout_id})
            await phone.do(
                "workout:exercise:add",
                {
                    "workout_id": workout_id,
                    "exercise_id": "squat",
                    "exercise": {"name": "Squat"},
                },
            )
        await phone.close()
        parts = server.parts
        measures: dict[str, Callable[[], Any]] = {
            "sessions": lambda: sum(parts.gateway.session_counts.values()),
            "connections": lambda: parts.sockets.connection_count,
            "clients": lambda: len(parts.sockets.manager.clients),
            "rooms": lambda: len(parts.hub),
            "watchers": lambda: parts.streams.watcher_count,
        }
        for name, measure in measures.items():
            await until(lambda measure=measure: measure() == 0, name)
        gc.collect()
        files, tasks = open_files(), len(asyncio.all_tasks())

        end = time.monotonic() + SOAK_S
        chance = random.Random(SEED)
        rounds = await asyncio.gather(
            *(lifter(server, random.Random(chance.random()), end) for _ in range(8))
        )
        assert sum(rounds) > 8
        for name, measure in measures.items():
            await until(lambda measure=measure: measure() == 0, name)
        await until(lambda: len(asyncio.all_tasks()) <= tasks, "tasks")
        with contextlib.suppress(AssertionError):
            await until(lambda: open_files() <= files, "files")
        gc.collect()
        assert open_files() <= files, f"seed {SEED}"
