"""One client's life: order, back-pressure, polling and upgrade, limits, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from crdt import ids
from server.replay.devices import EventClient, Refused
from server.transport.connection import INBOX_SIZE
from server.transport.server import Ack
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.sockets import CONNECT, CONNECT_ERROR, EVENT, RawSocket, raw_socket
from tests.server.transport.support import (
    Deaf,
    OpenDoor,
    Ours,
    alone,
    deaf,
    offline,
    ours,
    peer_of,
    polling,
    shrink,
    until,
)

WORKOUT = ids.workout("w")


def numbers(door: OpenDoor, event: str = "n") -> list[int]:
    return [args[0] for name, args in door.events if name == event]


class Held:
    """A handler that keeps events waiting until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.done: list[Any] = []

    def __call__(self, event: str, args: Sequence[Any], ack: Ack | None) -> Any:
        if event == "wait":
            return self._wait(ack)
        self._finish(args, ack)
        return None

    async def _wait(self, ack: Ack | None) -> None:
        await self.go_on.wait()
        self._finish(["waited"], ack)

    def _finish(self, args: Sequence[Any], ack: Ack | None) -> None:
        self.done.append(args[0])
        if ack is not None:
            ack(args[0])


# -- in -------------------------------------------------------------------------------------------


async def test_what_follows_an_event_that_is_awaited_waits_its_turn() -> None:
    held = Held()
    async with ours(OpenDoor(handle=held)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send('42["n",1]', '42["wait"]', *(f'42["n",{i}]' for i in range(2, 12)))
        await client.send("40/other,{}")
        await until(lambda: held.done)
        await asyncio.sleep(0.05)
        assert held.done == [1]
        assert client.received[-1].namespace == "/"
        held.go_on.set()
        await client.find(lambda packet: packet.namespace == "/other")
        assert held.done == [1, "waited", *range(2, 12)]


async def test_another_clients_events_do_not_wait() -> None:
    held = Held()
    door = OpenDoor(handle=held)
    async with ours(door) as site, raw_socket(site.url) as one, raw_socket(site.url) as other:
        await one.enter("/", {})
        await other.enter("/", {})
        await one.send('42["wait"]')
        await until(lambda: door.events)
        assert await other.ask("n", 7) == 7
        held.go_on.set()


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_full_inbox_pauses_reading_and_loses_nothing(transport: str) -> None:
    held, count = Held(), 5_000
    events = ['42["wait"]', *(f'42["n",{i},"{"x" * 1_000}"]' for i in range(count))]
    async with ours(OpenDoor(handle=held)) as site, contextlib.AsyncExitStack() as stack:
        if transport == "websocket":
            client = await stack.enter_async_context(raw_socket(site.url))
            await client.enter("/", {})
            sending = asyncio.create_task(client.send(*events))
        else:
            poller = await stack.enter_async_context(polling(site.url))
            await poller.join()
            sending = asyncio.create_task(poller.post(*events))  # type: ignore[arg-type]
        await until(lambda: site.sockets.stats.paused)
        (connection,) = site.connections
        await asyncio.sleep(0.1)
        # What is there already came in one piece with what filled the inbox.
        assert INBOX_SIZE <= len(connection._inbox or ()) < 1_000
        assert held.done == []
        held.go_on.set()
        await sending
        await until(lambda: len(held.done) == count + 1)
        assert held.done == ["waited", *range(count)]


async def test_an_ack_does_not_wait_behind_events() -> None:
    held = Held()
    async with ours(OpenDoor(handle=held)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        (sid,) = site.door.inside
        answers: list[Any] = []
        await client.send('42["wait"]', '42["n",1]')
        await until(lambda: site.door.events)
        site.sockets.ask("/", sid, "question", answer=answers.append)
        asked = await client.find(lambda packet: packet.kind == EVENT)
        await client.send(f'43{asked.id}["yes"]')
        await until(lambda: answers)
        assert (answers, held.done) == (["yes"], [])
        held.go_on.set()


@pytest.mark.parametrize("goodbye", ["1", "41"], ids=["close", "leave"])
async def test_what_was_sent_before_a_goodbye_is_carried_out(goodbye: str) -> None:
    """`socket.emit(...); socket.disconnect()` in one breath, and so in one TCP segment."""
    done: list[int] = []

    async def slow(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    door = OpenDoor(handle=lambda event, args, ack: slow(args[0]))
    async with ours(door) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: door.inside)
        await client.send(*(f'42["n",{i}]' for i in range(10)), goodbye)
        await until(lambda: not door.inside)
        await asyncio.sleep(0.05)
        assert done == list(range(10))


async def test_an_event_that_came_with_the_end_leaves_no_coroutine_behind() -> None:
    async def nothing() -> None:
        await asyncio.sleep(0)

    door = OpenDoor(handle=lambda *_: nothing())
    async with ours(door) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: door.inside)
        await client.send('42["n",1]', "x")  # a packet that ends the connection
        await until(lambda: not site.connections)
        await asyncio.sleep(0.05)


# -- polling and upgrade --------------------------------------------------------------------------


async def upgraded_under_load(site: Ours, count: int) -> tuple[list[str], list[str]]:
    """Upgrade in the middle of both sides sending. Returns: what came by each transport."""
    by_polling: list[str] = []
    by_websocket: list[str] = []
    async with polling(site.url) as client:
        await client.join()
        (sid,) = site.door.inside

        async def post_from_server() -> None:
            for i in range(count):
                site.sockets.post("/", [sid], "n", i)
                await asyncio.sleep(0)

        paused = asyncio.Event()

        async def poll() -> None:
            while not paused.is_set():
                status, packets = await client.poll()
                assert status == 200
                by_polling.extend(packets)

        posting = asyncio.create_task(post_from_server())
        polls = asyncio.create_task(poll())
        for at in range(0, count // 2, 50):
            await client.post(*(f'42["n",{i}]' for i in range(at, at + 50)))
        async with client.session.ws_connect(
            f"{site.url}/socket.io/?EIO=4&transport=websocket&sid={client.sid}"
        ) as websocket:
            await websocket.send_str("2probe")
            assert await websocket.receive_str(timeout=5) == "3probe"
            paused.set()
            await polls
            await websocket.send_str("5")
            for i in range(count // 2, count):
                await websocket.send_str(f'42["n",{i}]')
            await posting
            site.sockets.post("/", [sid], "end")
            while (text := await websocket.receive_str(timeout=5)) != '42["end"]':
                by_websocket.append(text)
            await until(lambda: len(site.door.events) == count)
    return by_polling, by_websocket


async def test_an_upgrade_under_load_loses_nothing_either_way() -> None:
    count = 2_000
    async with ours() as site:
        by_polling, by_websocket = await upgraded_under_load(site, count)
        assert numbers(site.door) == list(range(count))
        came = [text for text in by_polling + by_websocket if text.startswith("42")]
        assert came == [f'42["n",{i}]' for i in range(count)]
        assert any(text.startswith("42") for text in by_polling)
        assert by_websocket


async def test_a_stock_client_upgrades_and_goes_on(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        client = EventClient(server.url, server.token("ana"))
        server.clients.append(client)
        await client.connect(transports=("polling", "websocket"))
        (connection,) = server.parts.sockets.eio.sockets.values()
        await until(lambda: connection.upgraded)
        assert (await client.do("time:sync", {"t0": 1.0}))["ok"]


@pytest.mark.parametrize("first_words", [(), ("2probe",)], ids=["at once", "after the probe"])
async def test_a_probe_that_dies_leaves_polling_going(first_words: tuple[str, ...]) -> None:
    async with ours() as site, polling(site.url) as client:
        await client.join()
        (sid,) = site.door.inside
        (connection,) = site.connections
        async with deaf(site.url, query=f"&sid={client.sid}") as probe:
            await until(lambda: connection.upgrading)
            await probe.send(*first_words)
            site.sockets.post("/", [sid], "n", 1)
            await asyncio.sleep(0.02)
        await until(lambda: not connection.upgrading)
        site.sockets.post("/", [sid], "n", 2)
        came: list[str] = []
        while '42["n",2]' not in came:
            came += (await client.poll())[1]
        assert [text for text in came if text.startswith("42")] == ['42["n",1]', '42["n",2]']
        await client.post('42["n",3]')
        assert numbers(site.door) == [3]
        assert site.sockets.stats.closed == {}


async def test_a_second_probe_is_refused_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ours() as site, polling(site.url) as client:
        await client.join()
        query = f"&sid={client.sid}"
        async with deaf(site.url, query=query), deaf(site.url, query=query) as second:
            assert second.head.startswith(b"HTTP/1.1 400")
        await client.post('42["n",1]')
        assert numbers(site.door) == [1]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_of_two_polls_the_newer_one_counts() -> None:
    async with ours() as site, polling(site.url) as client:
        await client.join()
        (sid,) = site.door.inside
        (connection,) = site.connections
        first = asyncio.create_task(client.poll())
        await until(lambda: connection._poller is not None and not connection._poller.done())
        hanging = connection._poller
        second = asyncio.create_task(client.poll())
        await until(lambda: connection._poller is not hanging)
        await first
        assert not connection.closed
        site.sockets.post("/", [sid], "n", 1)
        assert await second == (200, ['42["n",1]'])


async def test_a_bad_packet_in_a_post_ends_the_session() -> None:
    async with ours() as site:
        for body in ("4x", "49999999999999999-[]", "b!", "2" + "[" * 100_000, "", "\x1e"):
            async with polling(site.url) as client:
                await client.join()
                await client.post(body)
                assert not site.connections, body[:10]


async def test_nothing_behind_a_close_in_a_post_is_looked_at() -> None:
    async with ours() as site, polling(site.url) as client:
        await client.join()
        await client.post('42["n",1]', "1", '42["n",2]', "40/other,{}")
        await asyncio.sleep(0.05)
        assert numbers(site.door) == [1]
        assert site.door.inside == {}
        assert not site.connections


# -- heartbeat ------------------------------------------------------------------------------------


async def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, ping_interval_s=0.3, ping_timeout_s=0.3) as server,
        deaf(server.url) as silent,
        raw_socket(server.url) as alive,
    ):
        await alive.enter("/", {"token": server.token("ana")})
        await silent.send(f'40{{"token":"{server.token("ben")}"}}')
        await until(lambda: server.parts.gateway.session_counts["events"] == 2)
        await until(lambda: server.parts.sockets.stats.closed == {"ping_timeout": 1})
        assert b"\x81\x012" in await silent.read_to_the_end()
        assert await alive.settled()
        assert server.parts.gateway.session_counts["events"] == 1


async def test_a_silent_poller_is_given_up() -> None:
    async with ours(ping_interval_s=0.3, ping_timeout_s=0.3) as site, polling(site.url) as client:
        await client.join()
        await until(lambda: not site.connections)
        assert site.sockets.stats.closed == {"ping_timeout": 1}
        assert site.door.inside == {}


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "limits"),
    [
        ("connections", {"max_connections": 2}),
        ("connections_per_address", {"max_connections_per_address": 2}),
        ("connects_per_s", {"max_connects_per_s": 2.0}),
    ],
)
async def test_a_connect_too_many_is_told_when_to_come_again(
    reason: str, limits: dict[str, Any]
) -> None:
    async with ours(**limits) as site, aiohttp.ClientSession() as session:
        async with raw_socket(site.url), raw_socket(site.url):
            for transport in ("polling", "websocket"):
                head = {"Upgrade": "websocket", "Connection": "Upgrade"}
                async with session.get(
                    f"{site.url}/socket.io/?EIO=4&transport={transport}",
                    headers=head if transport == "websocket" else {},
                ) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) >= 1
            assert site.sockets.stats.refused == {reason: 2}
        await until(lambda: not site.connections)
        if reason != "connects_per_s":
            async with raw_socket(site.url) as again:
                assert (await again.enter("/", {})).kind == CONNECT


async def test_a_slow_rate_of_connects_still_lets_somebody_in() -> None:
    async with ours(max_connects_per_s=0.5) as site, raw_socket(site.url) as client:
        assert (await client.enter("/", {})).kind == CONNECT


async def test_a_user_with_too_many_sessions_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_sessions_per_user=2) as server:
        first = await server.events("ana", "phone")
        await server.events("ana", "watch")
        with pytest.raises(Refused) as refused:
            await server.events("ana", "tablet")
        assert refused.value.error["code"] == "rate_limited"
        assert refused.value.error["retry_after_ms"] > 0
        await server.events("ben")
        await first.close()
        await until(lambda: server.parts.gateway.session_counts["events"] == 2)
        await server.events("ana", "tablet")


# -- a client that writes and does not read -------------------------------------------------------


@contextlib.asynccontextmanager
async def stuffed(site: Ours) -> Any:
    """A client in `/` that reads nothing, with some bytes waiting for it."""
    async with deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: site.door.inside)
        (connection,) = site.connections
        shrink(connection)
        site.sockets.post("/", list(site.door.inside), "news", "x" * 50_000)
        assert connection.backlog_bytes
        yield client


async def test_a_client_that_takes_nothing_is_cut_though_the_kernel_took_all() -> None:
    async with ours(stall_timeout_s=0.5) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: site.door.inside)
        (connection,) = site.connections
        site.sockets.post("/", list(site.door.inside), "news", "x" * 100_000)
        assert connection.backlog_bytes == 0
        await until(lambda: not site.connections)
        assert site.sockets.stats.closed == {"stalled": 1}


@pytest.mark.parametrize("last_words", ["1", "x"], ids=["a goodbye", "a bad packet"])
async def test_who_ends_it_without_reading_is_not_kept(last_words: str) -> None:
    """A close waits for what is buffered to go out; here it never does."""
    async with ours(stall_timeout_s=0.5) as site, stuffed(site) as client:
        (connection,) = site.connections
        lost = peer_of(connection).gone
        await client.send(last_words)
        await until(lambda: not site.connections)
        await until(lost.done)


async def test_who_floods_with_pings_and_reads_nothing_is_cut() -> None:
    """Pongs must neither pile up nor be taken for progress."""
    async with (
        ours(send_budget_bytes=64 * 1024, stall_timeout_s=0.5) as site,
        stuffed(site) as client,
    ):
        (connection,) = site.connections
        most = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(4):
                while not connection.closed:
                    await client.send(*["x" * 125] * 50, opcode=9)
                    most = max(most, connection.backlog_bytes)
                    await asyncio.sleep(0.005)
        assert most < 200_000
        assert site.sockets.stats.closed == {"stalled": 1}


async def flood_with_questions(client: Deaf, question: str | bytes, *rest: bytes) -> None:
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(1):
            for _ in range(2_000):
                await client.send(question, *rest)
                await asyncio.sleep(0)


@pytest.mark.parametrize("is_awaited", [False, True])
async def test_who_asks_and_reads_no_answers_gets_no_more_of_them(is_awaited: bool) -> None:
    """Whether an event has to be awaited or is answered at once."""

    async def later(ack: Ack) -> None:
        ack("x" * 20_000)

    def answer(event: str, args: Sequence[Any], ack: Ack | None) -> Any:
        assert ack is not None
        return later(ack) if is_awaited else ack("x" * 20_000)

    async with (
        ours(OpenDoor(handle=answer), send_budget_bytes=64 * 1024, stall_timeout_s=60) as site,
        stuffed(site) as client,
    ):
        (connection,) = site.connections
        await flood_with_questions(client, '421["n"]')
        await asyncio.sleep(0.2)
        assert not connection.closed
        assert connection.backlog_bytes <= 64 * 1024 + 50_000 + 20_100


# -- the end --------------------------------------------------------------------------------------


async def test_a_drain_is_told_to_everybody_and_takes_nobody_new(tmp_path: Path) -> None:
    async with running_server(tmp_path, drain_spread_s=3.0) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        auth = {"token": server.token("ana")}
        namespaces = ("/", f"/yjs|{WORKOUT}")
        async with raw_socket(server.url) as client, aiohttp.ClientSession() as session:
            for namespace in namespaces:
                assert (await client.enter(namespace, auth)).kind == CONNECT
            parts = server.parts
            parts.health.is_draining = True
            parts.sockets.drain()
            parts.gateway.announce_end()
            for namespace in namespaces:
                told = await client.find(
                    lambda packet, namespace=namespace: (
                        packet.namespace == namespace
                        and packet.kind == EVENT
                        and packet.data[0] == "server:draining"
                    )
                )
                assert list(told.data[1]) == ["reconnect_in_ms"]
                assert 0 <= told.data[1]["reconnect_in_ms"] <= 3_000
            async with session.get(f"{server.url}/ready") as response:
                assert response.status == 503
            url = f"{server.url}/socket.io/?EIO=4&transport=polling"
            async with session.get(url) as response:
                assert response.status == 503
                assert response.headers["Retry-After"]
            # Those who are in are served until the end.
            assert (await client.ask("time:sync", {"t0": 1.0}))["ok"]
            await parts.sockets.close_all()
            await client.closed()


async def test_a_poll_that_hangs_is_answered_at_the_end() -> None:
    async with ours() as site, polling(site.url) as client:
        await client.join()
        (connection,) = site.connections
        hanging = asyncio.create_task(client.poll())
        await until(lambda: connection._poller is not None and not connection._poller.done())
        await site.sockets.close_all()
        assert await hanging == (200, ["1"])


async def visit(server: RunningServer, chance: random.Random, number: int) -> None:
    """A client that joins some of this and that, and goes in one of many ways."""
    auth = {"token": server.token(f"user{number % 7}" if chance.random() < 0.5 else "ana")}
    if chance.random() < 0.2:
        async with polling(server.url) as poller:
            await poller.post(f'40{{"token":"{auth["token"]}"}}')
            if chance.random() < 0.5:
                await poller.post("1")
            else:
                connection = server.parts.sockets.eio.sockets[poller.sid]
                connection.cut("ping_timeout")
        return
    async with raw_socket(server.url) as client:
        if chance.random() < 0.9:
            await client.enter("/", auth if chance.random() < 0.9 else {})
        if chance.random() < 0.5:
            entered = await client.enter(f"/yjs|{WORKOUT}", auth)
            assert entered is None or entered.kind in (CONNECT, CONNECT_ERROR)
        if chance.random() < 0.5:
            await client.send(f'42["workout:join",{{"workout_id":"{WORKOUT.id}"}}]')
        if chance.random() < 0.3:
            await client.send(f'42["subscribe",{{"streams":["{WORKOUT}:progress"]}}]')
        await asyncio.sleep(chance.random() * 0.01)
        await leave(client, chance.choice(["drop", "close", "leave", "bad", "eio"]))


async def leave(client: RawSocket, how: str) -> None:
    if how == "drop":
        connection = client._socket._conn  # type: ignore[attr-defined]
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
    elif how == "leave":
        await client.send("41", f"41/yjs|{WORKOUT},")
    elif how == "bad":
        await client.send("4x")
    elif how == "eio":
        await client.send("1")


async def test_nothing_is_left_of_those_who_have_gone(tmp_path: Path) -> None:
    chance = random.Random(5)
    async with running_server(tmp_path) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        await owner.close()
        parts = server.parts
        await until(lambda: not parts.sockets.eio.sockets)
        tasks = len(asyncio.all_tasks())
        for start in range(0, 200, 20):
            visits = (visit(server, chance, i) for i in range(start, start + 20))
            await asyncio.gather(*visits)
        eio, manager = parts.sockets.eio, parts.sockets.manager
        await until(lambda: not eio.sockets)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert (manager.clients, manager._questions, manager.rooms) == ({}, {}, {})
        assert (parts.sockets.environ, parts.sockets._binary_packet) == ({}, {})
        assert (eio._by_address, eio._slow) == ({}, {})
        gateway = parts.gateway
        assert (gateway._sessions, gateway._by_user, gateway._session_counts) == ({}, {}, {})
        assert parts.streams.watcher_count == 0
        for live in parts.hub._rooms.values():
            assert (live.connections, live.readers, live.listeners) == ({}, {}, {})
            assert live.leases == 0


async def test_the_wheel_forgets_those_who_have_gone() -> None:
    """Also when everybody goes, the wheel stops, and somebody comes back much later."""
    async with ours(ping_interval_s=0.5) as site:
        eio = site.sockets.eio
        for _ in range(3):
            async with raw_socket(site.url) as client:
                await client.enter("/", {})
            await until(lambda: eio._timer is None)
        async with raw_socket(site.url) as client:
            await client.enter("/", {})
            await until(lambda: eio._turned_to > max(asyncio.get_running_loop().time() - 2, 0))
            await asyncio.sleep(1.2)
            entries = {connection for due in eio._wheel.values() for connection in due}
            assert entries == set(site.connections)


async def test_who_joins_and_leaves_all_the_time_does_not_fill_the_wheel() -> None:
    async with ours() as site, raw_socket(site.url) as client:
        for _ in range(200):
            assert (await client.enter("/", {})).kind == CONNECT
            await client.send("41")
        assert sum(map(len, site.sockets.eio._wheel.values())) < 20


# -- the latest value -----------------------------------------------------------------------------


async def test_a_value_that_waited_does_not_come_behind_a_later_one() -> None:
    """The client has caught up, but nobody has looked yet, when the next value comes."""
    sockets = alone(send_budget_bytes=1_000)
    connection, transport = offline(sockets, "s")
    for _ in range(2):
        sockets.post_latest(["s"], "stream", "value", {"text": "x" * 1_000, "version": 1})
    transport.take()
    sockets.post_latest(["s"], "stream", "value", {"version": 2})
    transport.take()
    sockets.eio._catch_up()
    transport.take()
    connection.cut("stalled")
    sockets.eio.stop()
    assert b'"version":2' in transport.taken[-1]
