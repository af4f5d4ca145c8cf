"""The proxy that tests put between two parts does what its verbs say, and loses nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.helpers.proxies import Proxy, proxied
from tests.helpers.rooms import until

DEADLINE_S = 10.0
TEXT = bytes(range(256)) * 40


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.reset_count = 0
        self.end_count = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.received += data
                writer.write(data)
                await writer.drain()
            self.end_count += 1
        except ConnectionError:
            self.reset_count += 1
        finally:
            writer.close()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with proxied("127.0.0.1", server.sockets[0].getsockname()[1], seed=1) as proxy:
        yield proxy
    server.close()
    await server.wait_closed()


@pytest.fixture
async def connection(proxy: Proxy) -> AsyncIterator[Connection]:
    reader, writer = await connect(proxy)
    yield reader, writer
    writer.close()


async def connect(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def send(connection: Connection, data: bytes) -> None:
    connection[1].write(data)
    await connection[1].drain()


async def receive(connection: Connection, size: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await connection[0].readexactly(size)


async def rest(connection: Connection) -> bytes:
    """What comes until the end. Raises ConnectionResetError."""
    async with asyncio.timeout(DEADLINE_S):
        return await connection[0].read()


async def seconds(work: Any) -> float:
    before = time.monotonic()
    await work
    return time.monotonic() - before


async def test_a_healthy_proxy_passes_everything_on_as_it_is(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    await send(connection, TEXT * 100)
    assert await receive(connection, len(TEXT) * 100) == TEXT * 100
    connection[1].write_eof()
    assert await rest(connection) == b""
    assert echo.end_count == 1
    await until(lambda: proxy.connection_count == 0)
    assert proxy.accepted == 1


async def test_latency_delays_each_way_and_keeps_the_order(
    proxy: Proxy, connection: Connection
) -> None:
    proxy.latency(0.05, jitter_s=0.05, towards="server")
    proxy.latency(0.1, towards="client")
    for number in range(50):
        await send(connection, TEXT[number : number + 1])
    assert await seconds(receive(connection, 1)) >= 0.1
    assert await receive(connection, 49) == TEXT[1:50]


async def test_what_is_slow_goes_on_in_parallel(proxy: Proxy, connection: Connection) -> None:
    """A long way, not a narrow one: ten pieces take no longer than one."""
    proxy.latency(0.2, towards="server")
    started = time.monotonic()
    for _ in range(10):
        await send(connection, TEXT)
        await asyncio.sleep(0.01)
    assert await receive(connection, 10 * len(TEXT)) == 10 * TEXT
    assert 0.2 <= time.monotonic() - started < 10 * 0.2


async def test_a_narrow_way_takes_its_time(proxy: Proxy, connection: Connection) -> None:
    proxy.bandwidth(len(TEXT) * 4, towards="server")
    await send(connection, TEXT)
    assert await seconds(receive(connection, len(TEXT))) >= 0.2


async def test_slices_are_put_together_again_in_order(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    proxy.slicer(100, delay_s=0.001)
    await send(connection, TEXT)
    first = await connection[0].read(65_536)
    assert 50 <= len(first) < len(TEXT)
    assert first + await receive(connection, len(TEXT) - len(first)) == TEXT


async def test_a_black_hole_keeps_what_it_gets_until_it_heals(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    proxy.black_hole(towards="client")
    await send(connection, b"question")
    await until(lambda: bytes(echo.received) == b"question")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await connection[0].read(1)
    proxy.black_hole(towards="server")
    await send(connection, b"!")
    late = await connect(proxy)
    await send(late, b"?")
    await asyncio.sleep(0.05)
    assert bytes(echo.received) == b"question"
    proxy.heal()
    assert await receive(connection, 9) == b"question!"
    assert await receive(late, 1) == b"?"
    late[1].close()


async def test_a_reset_reaches_both_ends_and_spares_who_comes_later(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    await send(connection, b"a")
    await receive(connection, 1)
    proxy.reset_peer()
    with pytest.raises(ConnectionResetError):
        await rest(connection)
    await until(lambda: echo.reset_count == 1)
    later = await connect(proxy)
    await send(later, b"b")
    assert await receive(later, 1) == b"b"
    later[1].close()


async def test_a_proxy_that_is_down_serves_nobody_until_it_heals(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    await send(connection, b"a")
    await receive(connection, 1)
    proxy.down()
    with pytest.raises(ConnectionResetError):
        await rest(connection)
    with pytest.raises(ConnectionError):
        await rest(await connect(proxy))
    assert bytes(echo.received) == b"a"
    proxy.heal()
    again = await connect(proxy)
    await send(again, b"b")
    assert await receive(again, 1) == b"b"
    again[1].close()


@pytest.mark.parametrize("limit_bytes", [0, 1, 100, len(TEXT)])
async def test_a_limit_ends_the_connection_after_exactly_so_many_bytes(
    proxy: Proxy, echo: Echo, connection: Connection, limit_bytes: int
) -> None:
    proxy.limit_data(limit_bytes, towards="server")
    await send(connection, TEXT)
    await until(lambda: echo.end_count == 1)
    assert bytes(echo.received) == TEXT[:limit_bytes]
    await until(lambda: proxy.connection_count == 0)


async def test_a_server_that_does_what_it_is_asked_and_cannot_say_so(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    proxy.limit_data(0, towards="client")
    await send(connection, b"do it")
    assert await rest(connection) == b""
    assert bytes(echo.received) == b"do it"


async def test_an_end_is_told_late_where_closing_is_slow(
    proxy: Proxy, echo: Echo, connection: Connection
) -> None:
    proxy.slow_close(0.2, towards="server")
    connection[1].write_eof()
    assert await seconds(rest(connection)) >= 0.2
    assert echo.end_count == 1


async def test_a_server_that_is_not_there_resets_who_asks_for_it() -> None:
    nobody = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = nobody.sockets[0].getsockname()[1]
    nobody.close()
    await nobody.wait_closed()
    async with proxied("127.0.0.1", port) as proxy:
        with pytest.raises(ConnectionError):
            await rest(await connect(proxy))


def test_a_url_is_led_through_the_proxy() -> None:
    proxy = Proxy("db.internal", 27017)
    proxy.port = 1234
    url = proxy.url("mongodb://u:p@db.internal:27017/name?timeoutMS=500")
    assert url == "mongodb://u:p@127.0.0.1:1234/name?timeoutMS=500"
