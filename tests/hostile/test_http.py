"""HTTP that no client speaks: on every route, on the polling transport, and before there is any.

Each row of the first tables: the bytes of a request, and the statuses that may come back; `NOTHING`
where the server may as well close without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.hostile.stage import MAX_PACKET_BYTES, WRITER, Stage, token
from tests.server.transport.support import Deaf, Poller, deaf, polling

NOTHING = 0
DEADLINE_S = 10.0
POLL = "/socket.io/?EIO=4&transport=polling"
ROUTES = ("/", "/health", "/ready", "/metrics", POLL, "/nowhere")


def request(
    target: str = "/health",
    *headers: str,
    method: str = "GET",
    body: bytes = b"",
    host: bool = True,
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(["Host: localhost"] if host else []), *headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


async def ask(stage: Stage, data: bytes, *, ends: bool = False) -> int:
    """Send bytes on a connection of their own, and maybe no more after them. Returns: the status of
    the first answer."""
    address = urlsplit(stage.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            writer.write(data)
            await writer.drain()
            if ends:
                writer.write_eof()
            head = await reader.readline()
    except ConnectionError:
        return NOTHING
    finally:
        writer.close()
    return int(head.split()[1]) if head.startswith(b"HTTP/") else NOTHING


REQUESTS: dict[str, tuple[bytes, tuple[int, ...]]] = {
    # -- the request line
    "noise": (bytes(range(256)), (400, NOTHING)),
    "nothing but line ends": (b"\r\n" * 1_000, (NOTHING, 400)),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), (400, NOTHING)),
    "no version": (b"GET /health\r\n\r\n", (200, 400, NOTHING)),
    "a version that there is not": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", (400, 505)),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 405, 404, NOTHING)),
    "a method of its own": (request(method="EVIL"), (400, 405)),
    "a method of 10,000 letters": (request(method="X" * 10_000), (400, 405, 431, NOTHING)),
    "an address of 10,000 letters": (request("/" + "x" * 10_000), (400, 414, 404)),
    "an address of 100,000 letters": (request("/" + "x" * 100_000), (400, 414, 431)),
    "a query of 7,000 fields": (request(POLL + "&a=" * 2_300), (200, 400)),
    "a space in the address": (request("/hea lth"), (400,)),
    "NUL in the address": (request("/health\0"), (400, 404)),
    "an address of somebody else": (request("http://evil.example/health"), (200, 400, 404)),
    "CONNECT to somebody else": (request("evil.example:443", method="CONNECT"), (400, 404, 405)),
    "the server as a whole": (request("*", method="OPTIONS"), (200, 204, 400, 404, 405)),
    # -- paths
    "up and out": (request("/../../../../etc/passwd"), (404, 400)),
    "up and out, encoded": (request("/%2e%2e/%2e%2e/etc/passwd"), (404, 400)),
    "up and out, encoded twice": (request("/%252e%252e%252fetc/passwd"), (404,)),
    "up and out of the sockets": (request("/socket.io/../../etc/passwd"), (404, 400)),
    "back slashes": (request("/..\\..\\windows\\win.ini"), (404, 400)),
    "the data folder": (request("/data/jwt_secret"), (404,)),
    "the repository": (request("/.git/config"), (404,)),
    "two slashes": (request("//health"), (404, 400)),
    "bytes that are no UTF-8": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", (404, 400)),
    # -- headers
    "no host": (request(host=False), (200, 400)),
    "two hosts": (request("/health", "Host: evil.example"), (200, 400)),
    "a header of 100,000 letters": (request("/health", "X: " + "x" * 100_000), (400, 431)),
    "ten thousand headers": (
        request("/health", *(f"X-{n}: x" for n in range(10_000))),
        (400, 431, 200),
    ),
    "a header without a name": (request("/health", ": x"), (400,)),
    "a header without a colon": (request("/health", "evil"), (400,)),
    "a header that goes on": (request("/health", "X: a\r\n b"), (200, 400)),
    "NUL in a header": (request("/health", "X: a\0b"), (400,)),
    "a request for a range": (request("/metrics", "Range: bytes=0-99999999999"), (200, 206, 416)),
    "an encoding of its own": (request("/health", "Accept-Encoding: " + "gzip;q=1," * 500), (200,)),
    "ten thousand cookies": (request("/health", "Cookie: " + "a=b;" * 1_900), (200, 400)),
    "a forged address": (request("/health", "X-Forwarded-For: 127.0.0.1, evil"), (200,)),
    "an expectation": (request("/health", "Expect: the-unexpected"), (200, 417)),
    "an upgrade to something else": (
        request("/health", "Connection: Upgrade", "Upgrade: h2c"),
        (200, 400),
    ),
    # -- bodies
    "a length that is none": (request(POLL, "Content-Length: ten", method="POST"), (400,)),
    "a length below nothing": (request(POLL, "Content-Length: -1", method="POST"), (400,)),
    "two lengths": (
        request(POLL, "Content-Length: 1", "Content-Length: 2", method="POST", body=b"xx"),
        (400,),
    ),
    "a length of 30 digits": (
        request(POLL, "Content-Length: " + "9" * 30, method="POST"),
        (400, 413, NOTHING),
    ),
    "a length and chunks": (
        request(
            POLL,
            "Content-Length: 4",
            "Transfer-Encoding: chunked",
            method="POST",
            body=b"0\r\n\r\n",
        ),
        (400,),
    ),
    "chunks that are none": (
        request(POLL, "Transfer-Encoding: chunked", method="POST", body=b"zz\r\nx\r\n"),
        (400, NOTHING),
    ),
    "an encoding of bodies that there is not": (
        request(POLL, "Transfer-Encoding: evil", method="POST", body=b"x"),
        (400, 501, NOTHING),
    ),
    "a body of a GET": (request("/health", "Content-Length: 5", body=b"hello"), (200, 400)),
    "a body that is cut short": (
        request(POLL, "Content-Length: 999", method="POST", body=b"x"),
        (400, NOTHING),
    ),
    "a body that is no gzip": (
        request(POLL, "Content-Encoding: gzip", "Content-Length: 5", method="POST", body=b"hello"),
        (400, 413, 415, NOTHING),
    ),
    # -- the transport's own words
    "a transport that there is not": (
        request("/socket.io/?EIO=4&transport=carrier-pigeon"),
        (400,),
    ),
    "no version of Engine.IO": (request("/socket.io/?transport=polling"), (400,)),
    "a version of Engine.IO that is gone": (request("/socket.io/?EIO=3&transport=polling"), (400,)),
    "a session that there is not": (request(POLL + "&sid=none"), (400,)),
    "a session of 5,000 letters": (request(POLL + "&sid=" + "x" * 5_000), (400,)),
    "two sessions": (request(POLL + "&sid=a&sid=b"), (400,)),
    "a callback that is no number": (request(POLL + "&j=evil()"), (400,)),
    "a websocket that is none": (request("/socket.io/?EIO=4&transport=websocket"), (400,)),
    "a post before a session": (
        request(POLL, "Content-Length: 2", method="POST", body=b"40"),
        (400,),
    ),
}


@pytest.mark.parametrize(("data", "statuses"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_request_that_no_client_makes_hurts_nobody(
    stage: Stage, data: bytes, statuses: tuple[int, ...]
) -> None:
    async with stage.unharmed():
        assert await ask(stage, data, ends=NOTHING in statuses) in statuses


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "HEAD"])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_odd_method_is_refused_on_every_route(
    stage: Stage, route: str, method: str
) -> None:
    async with stage.unharmed():
        status = await ask(stage, request(route, "Content-Length: 0", method=method))
        takes_head = method == "HEAD" and route not in (POLL, "/nowhere")
        assert status in ((200,) if takes_head else (400, 404, 405))


async def test_a_request_that_comes_letter_by_letter_holds_up_nobody(stage: Stage) -> None:
    async with stage.unharmed():
        address = urlsplit(stage.url)
        slow = [await asyncio.open_connection(address.hostname, address.port) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"GET /health HTTP/1.1\r\nX: ")
        await stage.go_on()
        for _, writer in slow:
            writer.close()


# -- polling --------------------------------------------------------------------------------------


@asynccontextmanager
async def polling_inside(stage: Stage) -> AsyncIterator[Poller]:
    async with polling(stage.url) as poller:
        await poller.join(auth=json.dumps({"token": token(WRITER)}))
        yield poller


BODIES: dict[str, bytes] = {
    "a body that is no UTF-8": b"42\xff\xfe",
    "an empty body": b"",
    "nothing but separators": b"\x1e" * 1_000,
    "a packet type that there is not": b"x",
    "base64 that is none": b"b!!!",
    "an attachment out of the blue": b"bAAEC",
    "an attachment that is a text": b'451-["x",{"_placeholder":true,"num":0}]\x1e42["x"]',
    "JSON that is nested 50,000 deep": b"4" + b"[" * 50_000,
    "JSON of an open": b"0" + b"[" * 50_000,
    "a body of a form": b"d=42%5B%22x%22%5D",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_no_client_posts_ends_its_session(stage: Stage, body: bytes) -> None:
    async with stage.unharmed(), polling_inside(stage) as poller:
        await post(poller, body)
        status, _ = await post(poller, b"3")
        assert status == 400


async def post(poller: Poller, body: bytes, **headers: str) -> tuple[int, str]:
    url = f"{poller._url}&sid={poller.sid}"
    async with poller.session.post(url, data=body, headers=headers) as response:
        return response.status, await response.text()


async def test_a_body_over_the_cap_ends_its_session(stage: Stage) -> None:
    async with stage.unharmed(), polling_inside(stage) as poller:
        with contextlib.suppress(aiohttp.ClientError):  # it may close before all has been sent
            await post(poller, b"4" * (MAX_PACKET_BYTES + 1))
        assert (await post(poller, b"3"))[0] == 400


async def test_a_thousand_packets_in_one_body_are_answered(stage: Stage) -> None:
    async with stage.unharmed(), polling_inside(stage) as poller:
        asked = [f'42{n}["time:sync",{{"t0":1}}]' for n in range(1_000)]
        assert (await poller.post(*asked))[0] == 200
        answered: list[str] = []
        while len(answered) < 1_000:
            status, packets = await poller.poll()
            assert status == 200
            answered += [packet for packet in packets if packet.startswith("43")]
        assert [int(packet[2 : packet.index("[")]) for packet in answered] == list(range(1_000))


async def test_of_two_polls_at_once_one_gets_what_there_is(stage: Stage) -> None:
    async with stage.unharmed(), polling_inside(stage) as poller:
        await poller.post('426["time:sync",{"t0":1}]')
        while "436[" not in "".join((await poller.poll())[1]):
            pass  # what else there was has been taken then
        first, second = (asyncio.ensure_future(poller.poll()) for _ in range(2))
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        await poller.post('427["time:sync",{"t0":1}]')
        polled = "".join([*(await first)[1], *(await second)[1]])
        assert polled.count('437[{"ok":true') == 1


async def test_what_is_posted_after_a_close_is_not_heard(stage: Stage) -> None:
    async with stage.unharmed(), polling_inside(stage) as poller:
        assert (await poller.post("1", '427["time:sync",{"t0":1}]'))[0] == 200
        assert (await poller.post('427["time:sync",{"t0":1}]'))[0] == 400
        assert (await poller.poll())[0] == 400


async def test_a_session_of_somebody_else_cannot_be_guessed(stage: Stage) -> None:
    async with stage.unharmed(), polling_inside(stage) as one, polling_inside(stage) as other:
        assert one.sid != other.sid
        assert min(len(one.sid), len(other.sid)) >= 20


@asynccontextmanager
async def upgrading(stage: Stage) -> AsyncIterator[tuple[Poller, Deaf]]:
    """A polling session in `/`, and a websocket that asks to go on with it."""
    async with (
        polling_inside(stage) as poller,
        deaf(stage.url, query=f"&sid={poller.sid}") as client,
    ):
        yield poller, client


UPGRADES = {
    "another word than the probe": "2evil",
    "the second step first": "5x",
    "a message instead of a probe": '42["x"]',
    "noise": b"\x00\xff",
}


@pytest.mark.parametrize("said", UPGRADES.values(), ids=UPGRADES.keys())
async def test_an_upgrade_that_is_none_hurts_nobody(stage: Stage, said: str | bytes) -> None:
    async with stage.unharmed(), upgrading(stage) as (_, client):
        assert client.head.startswith(b"HTTP/1.1 101")
        await client.send(said)
        await client.read_to_the_end()


async def test_a_second_upgrade_of_a_session_is_refused(stage: Stage) -> None:
    async with stage.unharmed(), upgrading(stage) as (poller, client):
        await client.send("2probe", "5")
        async with deaf(stage.url, query=f"&sid={poller.sid}") as another:
            assert not another.head.startswith(b"HTTP/1.1 101")
        await is_answered(client)


async def test_an_upgraded_session_is_not_polled_any_more(stage: Stage) -> None:
    async with stage.unharmed(), upgrading(stage) as (poller, client):
        await client.send("2probe", "5")
        await is_answered(client)
        assert (await poller.poll())[0] == 400
        assert (await post(poller, b"3"))[0] == 400


async def is_answered(client: Deaf) -> None:
    await client.send('427["time:sync",{"t0":1}]')
    gathered = b""
    while b"437[" not in gathered:
        gathered += await client.read()
