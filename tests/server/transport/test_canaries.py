"""Why there is a transport of our own: each fault of the stock classes, and that ours is without.

One test a row of the list of faults. Rows 10 to 12 are those of the stock classes that fan out by
Redis: RepSync hands no message to them, so what is ours in these tests is that nothing of the kind
stands between a post and its client.
The first half exercises the stock class, and turns red when an upgrade has mended or moved the
fault: read what has changed, then take the override out or adapt it. The second half is ours.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from typing import Any

import aiohttp
import engineio.packet
import engineio.payload
import pytest
import socketio
import socketio.base_manager
import socketio.packet
from aiohttp import web
from bidict import bidict
from engineio.async_socket import AsyncSocket
from socketio.async_pubsub_manager import AsyncPubSubManager

from server.transport.namespaces import MAX_QUESTIONS, Namespaces
from server.transport.packets import Packet, PacketError
from tests.helpers.sockets import CONNECT, CONNECT_ERROR, EVENT, raw_socket
from tests.server.transport.support import (
    OpenDoor,
    alone,
    deaf,
    offline,
    ours,
    polling,
    shrink,
    stock,
    until,
)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("engineio", "asyncio"):
        caplog.set_level(logging.CRITICAL, name)


async def cancel_myself(*_: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


# Red: a cancelled connect handler refuses now; ours asks the door, and needs no such mend.
async def test_row_00_a_cancelled_authentication_lets_nobody_in() -> None:
    async with stock() as site:
        site.sio.on("connect", cancel_myself)
        site.sio.on("whoami", lambda sid: "inside")
        async with raw_socket(site.url) as client:
            assert (await client.enter("/", {})).kind == CONNECT
            assert await client.ask("whoami") == "inside"

    async with ours(OpenDoor(admit=cancel_myself)) as site, raw_socket(site.url) as client:
        await client.send("40{}", '42["whoami"]')
        await until(lambda: site.door.gone)
        await client.send('42["whoami"]', "49[]")
        assert client.received == []
        assert (site.door.events, site.sockets.manager.clients, site.door.inside) == ([], {}, {})

    async def forever(*_: Any) -> None:
        await asyncio.sleep(60)

    async with (
        ours(OpenDoor(admit=forever), connect_timeout_s=0.1) as site,
        raw_socket(site.url) as client,
    ):
        assert (await client.enter("/", {})).kind == CONNECT_ERROR
        assert (site.sockets.manager.clients, site.door.inside) == ({}, {})


# Red: the queue has a bound, or waits; the budget in `Connection.post` may have a counterpart.
async def test_row_01_what_waits_for_a_slow_client_is_bounded() -> None:
    eio = engineio.AsyncServer(async_mode="aiohttp")
    theirs = AsyncSocket(eio, "x")
    for _ in range(1_000):
        await theirs.send(engineio.packet.Packet(engineio.packet.MESSAGE, "x" * 20_000))
    assert theirs.queue.qsize() == 1_000

    async with ours(send_budget_bytes=100_000) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: site.door.inside)
        (connection,) = site.connections
        shrink(connection)
        most = 0
        for _ in range(1_000):
            site.sockets.post("/", list(site.door.inside), "news", "x" * 20_000)
            most = max(most, connection.backlog_bytes)
        assert most <= 100_000 + 20_100
        assert site.sockets.stats.closed == {"slow_reader": 1}


class StalledWebSocket:
    """A driver whose writes never end, of a client that has hung up."""

    def __init__(self) -> None:
        self.sent = 0
        self.hung_up = asyncio.Event()

    async def send(self, _: Any) -> None:
        self.sent += 1
        await asyncio.Event().wait()

    async def wait(self) -> None:
        await self.hung_up.wait()

    async def close(self) -> None: ...


# Red: a write has a deadline, or a closed session frees its writer; `cut` still has to abort.
async def test_row_02_a_stalled_client_is_freed() -> None:
    eio = engineio.AsyncServer(async_mode="aiohttp", ping_timeout=1)
    theirs, websocket = AsyncSocket(eio, "x"), StalledWebSocket()
    eio.sockets["x"] = theirs
    handler = asyncio.create_task(theirs._websocket_handler(websocket))
    await theirs.send(engineio.packet.Packet(engineio.packet.MESSAGE, "x"))
    await until(lambda: websocket.sent)
    for _ in range(100):
        await theirs.send(engineio.packet.Packet(engineio.packet.MESSAGE, "x"))
    theirs.last_ping = time.time() - 60
    assert not await theirs.check_ping_timeout()
    websocket.hung_up.set()
    kicking = asyncio.create_task(theirs.queue.join())  # what `disconnect` waits for
    done, pending = await asyncio.wait({handler, kicking}, timeout=0.3)
    assert not done
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)

    tasks = len(asyncio.all_tasks())
    async with ours(stall_timeout_s=0.5) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: site.door.inside)
        (connection,) = site.connections
        shrink(connection)
        site.sockets.post("/", list(site.door.inside), "news", "x" * 500_000)
        await until(lambda: not site.connections)
        assert site.sockets.stats.closed == {"stalled": 1}
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        assert connection.backlog_bytes == 0


def count_tasks() -> list[Any]:
    """Every task that the loop makes from now on."""
    made: list[Any] = []

    def make(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        made.append(task)
        return task

    asyncio.get_running_loop().set_task_factory(make)
    return made


# Red: the stock emit makes fewer tasks; measure again before ours is given up.
async def test_row_03_a_broadcast_makes_no_task_a_recipient() -> None:
    sio = socketio.AsyncServer(async_mode="aiohttp")
    for i in range(20):
        sio.eio.sockets[f"eio{i}"] = AsyncSocket(sio.eio, f"eio{i}")
        await sio.manager.connect(await sio.manager.pre_connect(f"eio{i}", "/"), "/")
    made = count_tasks()
    await sio.emit("news", 1)
    assert len(made) == 20

    sockets = alone()
    transports = [offline(sockets, f"s{i}")[1] for i in range(20)]
    made.clear()
    sockets.post("/", list(sockets.manager.clients), "news", 1)
    assert made == []
    (frame,) = {id(transport.waiting[0]) for transport in transports}
    assert frame


class CountingBidict(bidict):  # type: ignore[type-arg]
    visits = 0

    def __contains__(self, key: Any) -> bool:
        CountingBidict.visits += 1
        return super().__contains__(key)


class OnlyKeyed(dict):  # type: ignore[type-arg]
    """A dict that nobody may walk through."""

    def __iter__(self) -> Any:
        raise AssertionError("walked through")

    keys = values = items = copy = __iter__  # type: ignore[assignment]


# Red: a disconnect costs the same whatever the number of rooms; `Namespaces` may shrink.
@pytest.mark.parametrize("clients", [10, 200])
async def test_row_04_a_disconnect_visits_no_other_client(
    monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    monkeypatch.setattr(socketio.base_manager, "bidict", CountingBidict)
    sio = socketio.AsyncServer(async_mode="aiohttp")
    sids = [await sio.manager.pre_connect(f"eio{i}", "/") for i in range(clients)]
    CountingBidict.visits = 0
    sio.manager.basic_disconnect(sids[0], "/")
    assert CountingBidict.visits >= clients

    sockets = alone()
    connections = [offline(sockets, f"s{i}")[0] for i in range(clients)]
    manager = sockets.manager
    manager.clients = OnlyKeyed(dict.items(manager.clients))
    CountingBidict.visits = 0
    connections[0].cut("ping_timeout")
    assert len(manager.clients) == clients - 1
    assert CountingBidict.visits == 0
    assert manager.rooms == {}


# Red: the stock server cleans up behind handlers that raise; ours has none to clean up behind.
async def test_row_05_handlers_that_raise_leave_no_ghosts() -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    async def broken_later(*_: Any) -> None:
        raise RuntimeError("broken")

    for event in ("connect", "disconnect"):
        async with stock() as site:
            site.sio.on(event, broken)
            async with raw_socket(site.url) as client:
                await client.send("40{}")
                await until(lambda: site.sio.manager.rooms)
                if event == "disconnect":
                    await until(lambda: client.received)
            await until(lambda: not site.sio.eio.sockets)
            assert site.sio.manager.rooms["/"]

    for door in (OpenDoor(admit=broken_later), OpenDoor(farewell=broken)):
        async with ours(door) as site:
            async with raw_socket(site.url) as client:
                assert (await client.enter("/", {})).kind in (CONNECT, CONNECT_ERROR)
            await until(lambda: not site.connections)
            assert site.sockets.manager.clients == site.door.inside == {}
            assert site.sockets.eio._by_address == {}


# Red: a session that ends while its connect handler runs is forgotten; see `_let_in`.
async def test_row_05_a_client_that_leaves_while_it_is_let_in_leaves_no_ghost() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any) -> None:
        asked.set()
        await go_on.wait()

    async with stock() as site, polling(site.url) as client:
        site.sio.on("connect", slow)
        joining = asyncio.create_task(client.post("40{}"))
        await asked.wait()
        await client.post("1")
        await until(lambda: site.sio.eio.sockets[client.sid].closed)
        go_on.set()
        await joining
        await client.poll()
        assert not site.sio.eio.sockets
        assert site.sio.manager.rooms["/"]

    asked.clear()
    go_on.clear()
    async with ours(OpenDoor(admit=slow)) as site, polling(site.url) as client:
        await client.post("40{}")
        await asked.wait()
        await client.post("1")
        go_on.set()
        await until(lambda: site.door.gone)
        await until(lambda: not site.connections)
        assert site.door.inside == site.sockets.manager.clients == {}


# Red: the decoder has limits of its own; compare them with those of `Packet.read`.
async def test_row_06_attachments_are_capped() -> None:
    theirs = socketio.packet.Packet(encoded_packet='59999999999-["x"]')
    assert theirs.attachment_count == 9_999_999_999
    for _ in range(100):
        theirs.add_attachment(bytes(10_000))
    assert sum(map(len, theirs.attachments)) == 1_000_000

    for text in ('59999999999-["x"]', '29999999999-["x"]', '211-["x"]', '511-["x"]'):
        with pytest.raises(PacketError):
            Packet.read(text)
    packet = Packet.read('52-["x"]')
    with pytest.raises(PacketError):
        packet.add_part(bytes(10_000), 9_999)
    async with (
        ours(max_packet_bytes=100_000) as site,
        raw_socket(site.url) as client,
    ):
        await client.enter("/", {})
        await client.send('510-["x"]', *[bytes(30_000)] * 9)
        await client.closed()
        assert site.sockets.stats.closed == {"bad_packet": 1}


# Red: an event that announces no attachments is whole at once, or refused.
async def test_row_06_an_event_of_no_attachments_does_not_wedge_its_connection() -> None:
    sio = socketio.AsyncServer(async_mode="aiohttp", async_handlers=False)
    handled: list[str] = []
    sio.on("*", lambda event, sid: handled.append(event))
    await sio.manager.connect(await sio.manager.pre_connect("eio", "/"), "/")
    await sio._handle_eio_message("eio", '50-["one"]')
    for _ in range(3):
        with pytest.raises(ValueError, match="Unexpected binary attachment"):
            await sio._handle_eio_message("eio", '2["two"]')
    assert handled == []

    async with ours() as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send('450-["one"]')
        await client.closed()
        assert site.sockets.stats.closed == {"bad_packet": 1}


# Red: an Engine.IO packet encodes for each transport; `Outgoing.for_polling` may share then.
async def test_row_07_a_binary_broadcast_reaches_both_transports() -> None:
    sio = socketio.AsyncServer(async_mode="aiohttp")
    queues = []
    for name in ("websocket", "polling"):
        sio.eio.sockets[name] = AsyncSocket(sio.eio, name)
        queues.append(sio.eio.sockets[name].queue)
        await sio.manager.connect(await sio.manager.pre_connect(name, "/"), "/")
    await sio.emit("news", b"\x00\x01")
    for_websocket, for_polling = [[q.get_nowait(), q.get_nowait()] for q in queues]
    assert [packet.encode() for packet in for_websocket][1] == b"\x00\x01"
    with pytest.raises(TypeError):
        engineio.payload.Payload(for_polling).encode()

    async with ours() as site, raw_socket(site.url) as client, polling(site.url) as poller:
        await client.enter("/", {})
        await poller.join()
        site.sockets.post("/", list(site.door.inside), "news", b"\x00\x01")
        await until(lambda: client.events("news") == [b"\x00\x01"])
        status, packets = await poller.poll()
        assert (status, packets[1]) == (200, "bAAE=")


async def post_in_halves(url: str, sid: str, body: str) -> tuple[bytes | None, bytes]:
    """POST a body in two parts. Returns: the answer to the first part alone, if there is one, and
    the answer to all of it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port)
    data, half = body.encode(), len(body) // 2
    head = (
        f"POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\n"
        f"Host: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data[:half])
    early: bytes | None
    try:
        async with asyncio.timeout(0.5):
            early = await reader.readline()
    except TimeoutError:
        early = None
    writer.write(data[half:])
    late = early or await reader.readline()
    writer.close()
    return early, late


# Red: the stock driver reads a POST to its end.
async def test_row_08_a_post_that_comes_in_parts_is_read_to_its_end() -> None:
    event = '42["news","' + "x" * 100_000 + '"]'
    handled: list[int] = []
    async with stock() as site, polling(site.url) as client:
        site.sio.on("news", lambda sid, text: handled.append(len(text)))
        await client.join()
        early, _ = await post_in_halves(site.url, client.sid, event)
        assert early is not None
        assert b"200 OK" in early
        assert handled == []

    async with ours() as site, polling(site.url) as client:
        await client.join()
        early, late = await post_in_halves(site.url, client.sid, event)
        assert early is None
        assert b"200 OK" in late
        assert site.door.events == [("news", ["x" * 100_000])]


# Red: a POST may hold more packets than `Payload.max_decode_packets`.
async def test_row_08_a_post_of_many_packets_is_taken_whole() -> None:
    events = [f'42["news",{i}]' for i in range(40)]
    handled: list[int] = []
    async with stock() as site, polling(site.url) as client:
        site.sio.on("news", lambda sid, number: handled.append(number))
        await client.join()
        assert (await client.post(*events))[0] == 200
        assert (await client.post(events[0]))[0] == 200
        await until(lambda: handled)
        assert handled == [0]

    async with ours() as site, polling(site.url) as client:
        await client.join()
        assert (await client.post(*events))[0] == 200
        assert [args for _, args in site.door.events] == [[i] for i in range(40)]


# Red: the stock server bounds its handlers; ours has an order to keep besides.
async def test_row_09_one_client_has_one_handler_at_a_time() -> None:
    running = most = 0
    finished: list[int] = []

    async def slow(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (20 - number % 20))
        running -= 1
        finished.append(number)

    async with stock() as site, raw_socket(site.url) as client:

        @site.sio.on("go")
        async def go(sid: str, number: int) -> None:
            await slow(number)

        await client.enter("/", {})
        await client.send(*(f'42["go",{i}]' for i in range(20)))
        await until(lambda: len(finished) == 20)
        assert most > 10
        assert finished != sorted(finished)

    running = most = 0
    finished.clear()
    door = OpenDoor(handle=lambda event, args, ack: slow(args[0]))
    async with ours(door) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send(*(f'42["go",{i}]' for i in range(200)))
        await until(lambda: len(finished) == 200)
        assert most == 1
        assert finished == sorted(finished)


# Red: the heartbeat goes by a clock that does not step.
async def test_row_13_a_wall_clock_that_steps_closes_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.time
    eio = engineio.AsyncServer(async_mode="aiohttp", ping_timeout=20)
    theirs = AsyncSocket(eio, "x")
    assert await theirs.check_ping_timeout()
    async with ours(ping_timeout_s=20) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        (connection,) = site.connections
        connection.on_due(asyncio.get_running_loop().time())  # a ping is on its way
        monkeypatch.setattr(time, "time", lambda: real() + 3_600)
        assert not await theirs.check_ping_timeout()
        assert theirs.closed
        assert await connection.check_ping_timeout()
        site.sockets.eio._turn()
        site.sockets.post("/", list(site.door.inside), "news", 1)
        await until(lambda: client.events("news"))
        assert not connection.closed


# Red: the stock server has a way to end with clients open; see `drain` and `close_all`.
async def test_row_14_the_end_is_told_to_everybody() -> None:
    async with stock() as site, raw_socket(site.url) as client:
        with pytest.raises(ValueError):
            await engineio.AsyncServer(async_mode="aiohttp").disconnect()
        await client.enter("/", {})
        await site.sio.shutdown()
        assert len(site.sio.eio.sockets) == 1
        assert not client.is_closed
        async with raw_socket(site.url) as another:
            assert (await another.enter("/", {})).kind == CONNECT

    async with ours() as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        site.sockets.drain()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with raw_socket(site.url):
                pass
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"]
        await site.sockets.close_all()
        await client.closed()
        assert client._socket.close_code == 1001
        assert site.sockets.stats.closed == {"server_shutdown": 1}
        await site.sockets.close_all()  # with nobody there as well


# Red: a connection that joins nothing is ended.
async def test_row_15_who_joins_nothing_is_put_out() -> None:
    async with stock(ping_interval=0.05, ping_timeout=5) as site:
        pongs = 0
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{site.url}/socket.io/?EIO=4&transport=websocket") as client,
        ):
            async for message in client:
                if message.data == "2":
                    await client.send_str("3")
                    pongs += 1
                    if pongs == 5:
                        break
            assert len(site.sio.eio.sockets) == 1

    async with ours(connect_timeout_s=0.2) as site, raw_socket(site.url) as client:
        await client.closed()
        assert site.sockets.stats.closed == {"connect_timeout": 1}


# Red: permessage-deflate is off by default.
async def test_row_16_compression_is_not_agreed_to() -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with stock() as site, deaf(site.url, offer) as client:
        assert b"permessage-deflate" in client.head

    async with ours() as site, deaf(site.url, offer) as client:
        assert b"101 Switching Protocols" in client.head
        assert b"permessage-deflate" not in client.head


# Red: callbacks that are not called are let go, and ids are checked; see `Namespaces.expect`.
async def test_row_17_answers_that_never_come_are_forgotten() -> None:
    sio = socketio.AsyncServer(async_mode="aiohttp")
    sio.eio.sockets["eio"] = AsyncSocket(sio.eio, "eio")
    sid = await sio.manager.pre_connect("eio", "/")
    await sio.manager.connect(sid, "/")
    for _ in range(30):
        with pytest.raises(socketio.exceptions.TimeoutError):
            await sio.call("question", to=sid, timeout=0.001)
    assert len(sio.manager.callbacks[sid]) == 1 + 30
    with pytest.raises(TypeError):
        await sio.manager.trigger_callback(sid, 0, [])
    with pytest.raises(KeyError):
        sio.manager._generate_ack_id(sid, print)

    questions = Namespaces()
    ids = [questions.expect("s", print) for _ in range(100)]
    assert len(questions._questions["s"]) == MAX_QUESTIONS
    assert questions.answered("s", 0) is questions.answered("s", ids[0]) is None
    assert questions.answered("s", ids[-1]) is print
    assert questions.answered("s", ids[-1]) is None
    questions.remove("s")
    assert questions._questions == {}
    async with ours() as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        (sid,) = site.door.inside
        answers: list[Any] = []
        await client.send("430[1]")
        site.sockets.ask("/", sid, "question", answer=answers.append)
        asked = await client.find(lambda packet: packet.kind == EVENT)
        await client.send(f'43{asked.id}["yes"]', f'43{asked.id}["yes"]', '42["done"]')
        await until(lambda: site.door.events)
        assert answers == ["yes"]


# Red: namespaces per client are limited.
async def test_row_18_namespaces_on_one_connection_are_limited() -> None:
    async with stock(namespaces="*") as site, raw_socket(site.url) as client:
        await client.send(*(f"40/n{i},{{}}" for i in range(300)))
        await until(lambda: len(client.received) == 300)
        assert {packet.kind for packet in client.received} == {CONNECT}

    async with ours(max_namespaces=64) as site, raw_socket(site.url) as client:
        await client.send(*(f"40/n{i},{{}}" for i in range(300)))
        await until(lambda: len(client.received) == 300)
        assert [packet.kind for packet in client.received] == [CONNECT] * 64 + [CONNECT_ERROR] * 236
        assert client.received[-1].data["data"]["code"] == "conflict"
        assert len(site.door.inside) == 64


# Red: the headers are let go after the handshake.
async def test_row_19_headers_are_not_kept() -> None:
    header = "Authorization: Bearer secret"
    async with stock() as site, deaf(site.url, header) as client:
        await client.send("40{}")
        await until(lambda: site.sio.manager.rooms)
        (environ,) = site.sio.environ.values()
        assert environ["HTTP_AUTHORIZATION"] == "Bearer secret"

    async with ours() as site, deaf(site.url, header) as client:
        await client.send("40{}")
        await until(lambda: site.door.inside)
        gc.collect()
        kept = [found for found in gc.get_objects() if type(found) is web.Request]
        assert [request for request in kept if str(site.url[7:]) == request.host] == []
        assert site.sockets.environ == {}


def uses_no_bus_of_the_library(sockets: Any) -> bool:
    return type(sockets.manager) is Namespaces and not isinstance(
        sockets.manager, AsyncPubSubManager
    )


# Red: the stock class tells its caller that a message was lost.
async def test_row_10_a_message_is_not_lost_in_silence_while_redis_is_away() -> None:
    with socket.socket() as closed:  # bound, but nobody listens: every connect is refused
        closed.bind(("127.0.0.1", 0))
        manager = socketio.AsyncRedisManager(f"redis://127.0.0.1:{closed.getsockname()[1]}")
        sio = socketio.AsyncServer(async_mode="aiohttp", client_manager=manager)
        manager.set_server(sio)
        sio.manager_initialized = True
        await sio.emit("lost", {"reps": 5})
        await manager.redis.aclose()

    async with ours() as site, raw_socket(site.url) as client:
        assert uses_no_bus_of_the_library(site.sockets)
        await client.send("40{}")
        await until(lambda: site.door.inside)
        site.sockets.post("/", list(site.door.inside), "kept", {"reps": 5})
        await client.find(lambda packet: packet.kind == EVENT and packet.data[0] == "kept")


class BreakingBus(AsyncPubSubManager):
    """The stock class on a bus whose subscription ends, as that of a killed listener does."""

    name = "breaking"

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Any] = []

    async def _publish(self, data: Any) -> None:
        self.published.append(data)

    async def _listen(self) -> Any:
        return
        yield  # a generator that ends at once


# Red: the stock class listens again, or stops publishing, when its subscription has ended.
async def test_row_11_a_deaf_listener_is_noticed() -> None:
    bus = BreakingBus()
    sio = socketio.AsyncServer(async_mode="aiohttp", client_manager=bus, logger=False)
    bus.set_server(sio)
    sio.manager_initialized = True
    bus.initialize()
    await until(lambda: bus.thread.done())
    await sio.emit("into the void", {})
    assert bus.published, "it goes on publishing, deaf"

    async with ours() as site:
        assert uses_no_bus_of_the_library(site.sockets)


# Red: the stock class looks for recipients before it encodes.
async def test_row_12_what_has_no_recipient_here_is_not_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[Any] = []
    encode = socketio.packet.Packet.encode

    def note(packet: Any) -> Any:
        encoded.append(packet.data)
        return encode(packet)

    monkeypatch.setattr(socketio.packet.Packet, "encode", note)
    bus = BreakingBus()
    sio = socketio.AsyncServer(async_mode="aiohttp", client_manager=bus)
    bus.set_server(sio)
    sio.manager_initialized = True
    # Somebody is in the namespace, and nobody in the room.
    await bus.connect("somebody", "/")
    message = {"method": "emit", "event": "far away", "data": {}, "namespace": "/", "room": "r"}
    await bus._handle_emit(message)
    assert encoded, "a message from elsewhere is encoded for nobody"

    encoded.clear()
    async with ours() as site:
        assert uses_no_bus_of_the_library(site.sockets)
        site.sockets.post("/", [], "far away", {})
    assert not encoded


# Red: a session can be taken up by another process, or ends in another way.
async def test_row_20_a_session_that_is_elsewhere_ends_at_once_and_the_client_begins_anew() -> None:
    for made in (stock, ours):
        async with made() as here, made() as there, polling(here.url) as client:
            elsewhere = f"{there.url}/socket.io/?EIO=4&transport=polling&sid={client.sid}"
            async with aiohttp.ClientSession() as http, http.get(elsewhere) as response:
                assert response.status == 400
            async with polling(there.url) as again:
                assert again.sid != client.sid
