"""A thousand watch one stream, and one of them has stopped reading."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from crdt import ids
from server.streams import MIN_INTERVAL_S
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.watchers import Crowd

pytestmark = pytest.mark.timeout(180)

WATCHERS = 1_000
WORKOUT = ids.workout("w")
STREAM = f"{WORKOUT}:progress"
BUDGET_BYTES = 64 * 1024
SETS = 60
VALUES = 25
DEADLINE_S = 60.0


async def make_wide_workout(server: RunningServer) -> None:
    """One whose progress is some 20 kB: that many exercises have a best set."""
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": WORKOUT.id, "visibility": "public"})
    for number in range(SETS):
        name = {"exercise_id": f"e{number}", "exercise": {"name": f"Exercise {number}"}}
        await ana.do("workout:exercise:add", {"workout_id": WORKOUT.id, **name})
        done = {"exercise_id": f"e{number}", "set": {"reps": 5, "weight_kg": 100}}
        await ana.do("workout:set:complete", {"workout_id": WORKOUT.id, **done})


async def test_a_thousand_watchers_cost_one_value_and_a_stalled_one_itself(tmp_path: Path) -> None:
    async with running_server(
        tmp_path / "data",
        max_sessions_per_user=WATCHERS + 10,
        max_user_events_burst=4 * WATCHERS,
        send_budget_bytes=BUDGET_BYTES,
        stall_timeout_s=2.0,
    ) as server:
        await make_wide_workout(server)
        hub, stats = server.parts.streams, server.parts.sockets.stats
        crowd = Crowd()
        try:
            await crowd.come(server.url, server.token("ben"), [STREAM], WATCHERS)
            await crowd.until(lambda one: one.values == 1)
            assert hub.stats.made == 1
            stalled, others = crowd.watchers[0], crowd.watchers[1:]
            assert stalled.transport is not None
            stalled.transport.pause_reading()
            most_owed_bytes = await change(server, times=VALUES)
            await crowd.until(lambda one: one is stalled or one.last_seq == VALUES + 1)
            # One value, encoded once, whoever watches; and everybody but one had all of them.
            assert hub.stats.made == VALUES + 1
            assert {one.values for one in others} == {VALUES + 1}
            assert all(one.seqs_go_up for one in others)
            value = others[-1].last
            assert value["version"] == 1 + 2 * SETS + VALUES
            assert others[0].last == value
            size_bytes = len(json.dumps(value))
            assert size_bytes * VALUES > 4 * BUDGET_BYTES
            assert most_owed_bytes <= BUDGET_BYTES + 2 * size_bytes
            await until(lambda: stats.closed["stalled"] == 1, timeout_s=DEADLINE_S)
            assert stats.closed.total() == 1
            assert hub.watcher_count == WATCHERS - 1
        finally:
            await crowd.go()


async def change(server: RunningServer, *, times: int) -> int:
    """Change the workout as often as its stream shows each change.

    Returns: the most that any client was owed meanwhile, in bytes.
    """
    ana = server.clients[0]
    connections = server.parts.sockets.eio.sockets
    stats = server.parts.streams.stats
    most_owed_bytes = 0
    for number in range(times):
        made = stats.made
        done = {"exercise_id": "e0", "set": {"reps": number + 1, "weight_kg": 20}}
        await ana.do("workout:set:complete", {"workout_id": WORKOUT.id, **done})
        await until(lambda made=made: stats.made > made, timeout_s=DEADLINE_S)
        owed = (connection.backlog_bytes for connection in connections.values())
        most_owed_bytes = max(most_owed_bytes, *owed)
    return most_owed_bytes


async def test_changes_at_full_speed_are_ten_values_a_second(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data") as server:
        await make_wide_workout(server)
        crowd = Crowd()
        try:
            await crowd.come(server.url, server.token("ben"), [STREAM], 20)
            await crowd.until(lambda one: one.values > 0)
            hub, loop = server.parts.streams, asyncio.get_running_loop()
            live = server.parts.hub.find(WORKOUT)
            assert live is not None
            started_s, made = loop.time(), hub.stats.made
            while hub.stats.made < made + 20:
                live.room.view["meta"]["status"] = f"status-{loop.time()}"
                hub.progress_changed(WORKOUT)
                await asyncio.sleep(0)
            took_s = loop.time() - started_s
            assert hub.stats.made - made <= took_s / MIN_INTERVAL_S + 1
            await crowd.until(lambda one: one.last_seq >= made + 20)
            assert {one.values for one in crowd.watchers} == {hub.stats.made}
        finally:
            await crowd.go()
