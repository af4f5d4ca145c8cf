"""The webhook: what it sends, how it is signed, and what happens when nobody takes it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.alerts import webhook
from server.alerts.webhook import MAX_AGE_S, MAX_WAITING, Webhook
from tests.helpers.ports import free_port
from tests.helpers.receivers import Receiver, receiving
from tests.helpers.rooms import until
from tests.helpers.tickers import Ticker

SECRET = b"a secret of more than thirty-two bytes"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Webhook]:
    hook = Webhook(url, SECRET, **{"first_retry_s": 0.01, **options})
    task = asyncio.create_task(hook.run())
    try:
        yield hook
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_alerts_are_posted_in_their_order(receiver: Receiver) -> None:
    async with running(receiver.url) as hook:
        for number in range(5):
            hook.send({"id": number, "title": "Très haut"})
        await until(lambda: len(receiver.got) == 5)
        await until(lambda: hook.sent == {"delivered": 5})
        assert [alert["id"] for alert in receiver.got] == list(range(5))
        assert receiver.got[0]["title"] == "Très haut"
        assert hook.report() == {"state": "healthy", "breaker": "closed", "waiting": 0}


async def test_each_delivery_is_signed_with_its_time(receiver: Receiver) -> None:
    async with running(receiver.url) as hook:
        hook.send({"id": 1})
        await until(lambda: receiver.got)
    headers, body = receiver.headers[0], receiver.bodies[0]
    assert headers["Content-Type"] == "application/json"
    signed = headers["RepSync-Timestamp"].encode() + b"." + body
    wanted = hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    assert headers["RepSync-Signature"] == f"sha256={wanted}"


@pytest.mark.parametrize("status", [500, 503, 408, 429])
async def test_what_is_not_taken_now_is_sent_again(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status] * 3
    async with running(receiver.url) as hook:
        hook.send({"id": 1})
        hook.send({"id": 2})
        await until(lambda: len(receiver.got) == 2)
        await until(lambda: hook.sent == {"failed": 3, "delivered": 2})
        assert [alert["id"] for alert in receiver.got] == [1, 2]


@pytest.mark.parametrize("status", [302, 400, 401, 410])
async def test_what_will_never_be_taken_is_not_sent_again(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    async with running(receiver.url) as hook:
        hook.send({"id": 1})
        await until(lambda: hook.sent == {"refused": 1})
        assert hook.report()["state"] == "degraded"
        assert hook.report()["error"] == f"it answered with status {status}"
        hook.send({"id": 2})
        await until(lambda: hook.sent == {"refused": 1, "delivered": 1})
        assert [alert["id"] for alert in receiver.got] == [2]
        assert hook.report()["state"] == "healthy"


async def test_a_receiver_that_is_away_is_left_alone_and_gets_it_when_it_is_back() -> None:
    port = free_port()
    async with running(f"http://127.0.0.1:{port}/hook") as hook:
        hook.send({"id": 1})
        await until(lambda: hook.sent["failed"] >= 3)
        report = hook.report()
        assert report["state"] == "degraded"
        assert report["breaker"] in ("open", "half_open")
        assert str(port) not in report["error"]
        async with receiving(port) as receiver:
            await until(lambda: receiver.got)
            assert hook.report()["breaker"] == "closed"


async def test_of_too_many_the_oldest_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    hook = Webhook("http://127.0.0.1:1/", SECRET)
    for number in range(MAX_WAITING + 3):
        hook.send({"id": number})
    assert hook.report()["waiting"] == MAX_WAITING
    assert hook.sent == {"dropped": 3}
    assert "too many wait" in {vars(record)["cause"] for record in caplog.records}


async def test_what_is_too_old_is_dropped(receiver: Receiver) -> None:
    ticker = Ticker()
    hook = Webhook(receiver.url, SECRET, now=ticker)
    hook.send({"id": 1})
    ticker.advance(MAX_AGE_S + 1)
    hook.send({"id": 2})
    task = asyncio.create_task(hook.run())
    await until(lambda: receiver.got)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [alert["id"] for alert in receiver.got] == [2]
    assert hook.sent["dropped"] == 1


async def test_a_receiver_that_hangs_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.1)
    answering = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running(f"http://127.0.0.1:{port}/") as hook:
        hook.send({"id": 1})
        await until(lambda: hook.sent["failed"] >= 2)
        assert hook.report()["waiting"] == 1
    answering.set()
    server.close()
    await server.wait_closed()
