"""Going away and coming back: SIGTERM in the middle of the work, and rooms that nobody is in."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pycrdt import Map

from crdt import ids
from crdt.ports import Append, Stored
from server.auth import Authenticator
from server.keys import GivenKey
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost, Refused
from tests.helpers.servers import RunningServer, ServerProcess, running_server

SECRET = "a secret of more than thirty-two bytes"
WORKOUT = ids.workout("w")
DEADLINE_S = 15.0


def token(user_id: str) -> str:
    return Authenticator(GivenKey.secret(SECRET)).sign(user_id)


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[ServerProcess]:
    server = await ServerProcess(folder, {"JWT_SECRET": SECRET}).start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def closing(*clients: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for client in clients:
            await client.close()


async def workout_of(phone: EventClient) -> None:
    await phone.do("workout:create", {"workout_id": WORKOUT.id})
    await phone.do(
        "workout:exercise:add",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
    )


async def sync(server: ServerProcess) -> dict[str, Any]:
    reader = EventClient(server.url, token("ana"))
    async with closing(reader):
        await reader.connect()
        synced: dict[str, Any] = await reader.do("workout:sync", {"workout_id": WORKOUT.id})
        return synced["workout"]


# -- SIGTERM --------------------------------------------------------------------------------------


@pytest.mark.system
async def test_sigterm_in_the_middle_of_edits_loses_nothing_that_was_acked(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        phone = EventClient(server.url, token("ana"))
        polling = EventClient(server.url, token("ana"))
        laptop = DocumentClient(server.url, WORKOUT, token("ana"))
        acked: list[str] = []
        busy = asyncio.Condition()

        async def log_sets(client: EventClient) -> None:
            while True:
                done = await client.do(
                    "workout:set:complete",
                    {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5}},
                )
                acked.append(done["set_id"])
                async with busy:
                    busy.notify_all()

        async def write_sets() -> None:
            number = 0
            while laptop.is_connected:  # else it would go on without the server, and for ever
                number += 1
                laptop.map("sets")[f"y{number}"] = Map(
                    {
                        "user_id": "ana",
                        "exercise": "squat",
                        "order": "a0",
                        "kind": "normal",
                        "reps": 5.0,
                        "completed_at": 1_700_000_000_000.0,
                    }
                )
                await laptop.settled()
                acked.append(f"y{number}")
            raise Lost

        async with closing(phone, polling, laptop):
            await phone.connect()
            await polling.connect(transports=("polling",))
            await workout_of(phone)
            await laptop.connect()
            working = [
                asyncio.ensure_future(work)
                for work in (log_sets(phone), log_sets(phone), log_sets(polling), write_sets())
            ]
            async with asyncio.timeout(DEADLINE_S), busy:
                await busy.wait_for(lambda: len(acked) > 60)
            try:
                assert await server.terminate(timeout_s=10) == 0
            finally:
                await server.stop()
            outcomes = await asyncio.gather(*working, return_exceptions=True)
            for outcome in outcomes:
                refused = isinstance(outcome, CallFailed) and outcome.error["code"] == "unavailable"
                assert refused or isinstance(outcome, Lost)
        last = last_position(tmp_path)
        await server.start()
        found = await sync(server)
        assert set(acked) <= {item["id"] for item in found["sets"]}
        assert found["version"] == last
        assert await server.terminate() == 0
        assert last_position(tmp_path) == last


def last_position(folder: Path) -> int:
    """The last position of the workout's log, in a database that nobody has open."""
    db = sqlite3.connect(folder / "repsync.db")
    try:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        position: int = db.execute(
            "SELECT coalesce(max(log.seq), snapshot_seq) FROM documents LEFT JOIN log USING (doc)"
            " WHERE doc = ?",
            (str(WORKOUT),),
        ).fetchone()[0]
        return position
    finally:
        db.close()


@pytest.mark.system
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_sigterm_tells_idle_clients_and_is_quick(tmp_path: Path, transport: str) -> None:
    async with process(tmp_path) as server:
        clients = [EventClient(server.url, token("ana")) for _ in range(10)]
        async with closing(*clients):
            for client in clients:
                await client.connect(transports=(transport,))
            started = time.monotonic()
            assert await server.terminate(timeout_s=DEADLINE_S) == 0
            assert time.monotonic() - started < 10
            for client in clients:
                await client.wait_until_gone()


@pytest.mark.system
async def test_a_server_that_never_had_a_client_ends_well(tmp_path: Path) -> None:
    async with process(tmp_path) as server, aiohttp.ClientSession() as http:
        async with http.get(f"{server.url}/ready") as ready:
            assert ready.status == 200
        assert await server.terminate() == 0


@pytest.mark.system
async def test_restarts_alone_write_nothing(tmp_path: Path) -> None:
    async with process(tmp_path) as server:
        phone = EventClient(server.url, token("ana"))
        async with closing(phone):
            await phone.connect()
            await workout_of(phone)
        first = await sync(server)
        for _ in range(2):
            assert await server.terminate() == 0
            await server.start()
            again = await sync(server)
            assert again["version"] == first["version"]
            assert again["exercises"] == first["exercises"]


async def test_clients_that_never_pause_do_not_put_off_the_end(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk there is always a change that came while the last one was written."""
    phones = [await server.events("ana", f"d{number}") for number in range(3)]
    await workout_of(phones[0])
    append = server.parts.store.append

    async def slow_append(batch: Append) -> Stored:
        await asyncio.sleep(0.02)
        return await append(batch)

    async def log_sets(client: EventClient) -> None:
        while True:
            await client.do(
                "workout:set:complete",
                {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5}},
            )

    monkeypatch.setattr(server.parts.store, "append", slow_append)
    working = [asyncio.ensure_future(log_sets(phone)) for phone in phones * 2]
    try:
        for _ in range(6):
            await phones[0].next("workout:set:completed")
        async with asyncio.timeout(5):
            await server.parts.hub.close()
    finally:
        for work in working:
            work.cancel()
        await asyncio.gather(*working, return_exceptions=True)


# -- rooms that come and go -----------------------------------------------------------------------


async def rooms(server: RunningServer, http: aiohttp.ClientSession) -> float:
    async with http.get(f"{server.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return next(f.samples[0].value for f in families if f.name == "repsync_rooms")


async def until_rooms(server: RunningServer, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as http:
        while await rooms(server, http) != count:
            pass


async def test_a_room_is_let_go_when_idle_and_read_again_when_somebody_comes(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.05) as server:
        phone = await server.events("ana")
        await workout_of(phone)
        laptop = await server.document("ana", WORKOUT)
        laptop.map("sets")["y1"] = Map({"user_id": "ana", "exercise": "squat", "reps": 5.0})
        await laptop.settled()
        before = await phone.do("workout:sync", {"workout_id": WORKOUT.id})
        await until_rooms(server, 1)
        await laptop.close()
        await phone.do("workout:leave", {"workout_id": WORKOUT.id})
        await until_rooms(server, 0)

        joined = await phone.do("workout:join", {"workout_id": WORKOUT.id})
        for key in ("exercises", "sets", "version", "progress"):
            assert joined["workout"][key] == before["workout"][key]
        newcomer = await server.document("ana", WORKOUT)
        assert newcomer.content() == laptop.content()
        newcomer.map("sets")["y2"] = Map({"user_id": "ana", "exercise": "squat", "reps": 6.0})
        await newcomer.settled()
        told = await phone.next("workout:set:completed", lambda e: e["set_id"] == "y2")
        assert told["set"]["reps"] == 6


async def test_a_room_stays_while_somebody_is_in_it(tmp_path: Path) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.01) as server:
        phone = await server.events("ana")
        await workout_of(phone)
        visitor = await server.events("ana", "watch")
        other = await visitor.do("workout:create", {"workout_id": "other"})
        await visitor.do("workout:leave", {"workout_id": other["workout"]["id"]})
        await until_rooms(server, 1)  # the other one went; ana's is older and still here
        live = server.parts.hub.find(WORKOUT)
        assert live is not None
        assert len(live.connections) == 1


async def test_a_room_goes_when_the_last_connection_breaks(tmp_path: Path) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.05) as server:
        phone = await server.events("ana")
        await workout_of(phone)
        await phone.drop()
        await until_rooms(server, 0)


async def test_a_room_that_is_let_go_is_compacted(tmp_path: Path) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.05) as server:
        phone = await server.events("ana")
        await workout_of(phone)
        await phone.drop()
        await until_rooms(server, 0)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                loaded = await server.parts.store.load(WORKOUT)
                assert loaded is not None
                if loaded.snapshot_seq == loaded.seq:
                    break
        assert loaded.updates == []
        again = await server.events("ana")
        synced = await again.do("workout:sync", {"workout_id": WORKOUT.id})
        assert [item["id"] for item in synced["workout"]["exercises"]] == ["squat"]


async def test_many_who_come_at_once_load_a_room_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.05) as server:
        phone = await server.events("ana")
        await workout_of(phone)
        await phone.do("workout:leave", {"workout_id": WORKOUT.id})
        await until_rooms(server, 0)
        devices = [await server.events("ana", f"d{number}") for number in range(20)]

        loads = 0
        load = server.parts.store.load

        async def counted(name: ids.DocName) -> Any:
            nonlocal loads
            loads += 1
            return await load(name)

        monkeypatch.setattr(server.parts.store, "load", counted)
        joins = [device.do("workout:join", {"workout_id": WORKOUT.id}) for device in devices]
        laptops = [server.document("ana", WORKOUT) for _ in range(5)]
        await asyncio.gather(*joins, *laptops)
        assert loads == 1
        live = server.parts.hub.find(WORKOUT)
        assert live is not None
        assert len(live.connections) == 25


async def test_many_who_ask_for_what_there_is_not_are_all_told_so(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        refused = await asyncio.gather(
            *(server.document("ana", ids.workout("none")) for _ in range(10)),
            return_exceptions=True,
        )
        assert [error.error["code"] for error in refused if isinstance(error, Refused)] == [
            "not_found"
        ] * 10
        await until_rooms(server, 0)
