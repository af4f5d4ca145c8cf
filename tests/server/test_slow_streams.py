"""A thousand watch one stream, and one of them has stopped reading."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
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
    settings = {
        "max_sessions_per_user": WATCHERS + 10,
        "max_user_events_burst": 4 * WATCHERS,
        "send_budget_bytes": BUDGET_BYTES,
        "stall_timeout_s": 2.0,
    }
    async with running_server(tmp_path / "data", **settings) as server:
        await make_wide_workout(server)
        streams, stats = server.parts.streams, server.parts.sockets.stats
        crowd = Crowd()
        try:
            await crowd.come(server.url, server.token("ben"), [STREAM], WATCHERS)
            await crowd.until(lambda one: one.values > 0)
            assert streams.stats.made == 1
            stalled = crowd.watchers[0]
            assert stalled.transport is not None
            stalled.transport.pause_reading()
            await keep_changing(server, crowd)
            # Told apart from the changes: nothing of what they cost is for each watcher.
            made = streams.stats.made
            values = {one.values for one in crowd.watchers[1:]}
            assert values == {made}
            assert all(one.seqs_go_up for one in crowd.watchers)
            assert {one.last["seq"] for one in crowd.watchers[1:]} == {made}
            await until(lambda: stats.closed["stalled"] == 1, timeout_s=30.0)
            assert streams.watcher_count == WATCHERS - 1
            assert stats.closed.total() == 1
        finally:
            await crowd.go()


async def keep_changing(server: RunningServer, crowd: Crowd) -> None:
    """Change the workout for 60 values in a row, as often as the stream shows any; meanwhile no
    client is owed more than its budget, and all of them together next to nothing."""
    ana = server.clients[0]
    connections = server.parts.sockets.eio.sockets
    gc.collect()
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        most_owed_bytes = 0
        for number in range(60):
            made = server.parts.streams.stats.made
            changed = {"exercise_id": "e0", "set": {"reps": number + 1, "weight_kg": 20}}
            await ana.do("workout:set:complete", {"workout_id": WORKOUT.id, **changed})
            await until(lambda made=made: server.parts.streams.stats.made > made)
            owed = [connection.backlog_bytes for connection in connections.values()]
            most_owed_bytes = max(most_owed_bytes, *owed)
        await crowd.until(
            lambda one: one is crowd.watchers[0] or one.last["version"] == 1 + 2 * SETS + 60
        )
        now_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    value_bytes = len(str(crowd.watchers[1].last))
    assert value_bytes > 10_000
    assert most_owed_bytes <= BUDGET_BYTES + 2 * value_bytes
    # What a thousand clients of our own keep is in here as well: their last values.
    assert now_bytes - before_bytes < 2 * WATCHERS * 10 * value_bytes
    assert server.parts.streams.stats.made == 61


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
            await crowd.until(lambda one: one.last["seq"] >= made + 20)
            assert {one.values for one in crowd.watchers} == {hub.stats.made}
        finally:
            await crowd.go()
