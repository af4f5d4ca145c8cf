"""What a connection sends above its allowance: refused, dropped or held, by what it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from server.transport.allowance import Allowance, Rate
from server.transport.connection import INBOX_BYTES, INBOX_SIZE
from server.transport.server import Ack, Excess
from tests.helpers.sockets import CONNECT, EVENT, raw_socket
from tests.server.transport.support import OpenDoor, deaf, ours, polling, until

NEVER = 0.001
"""Events a second: none comes back while a test lasts."""


def rate(events_per_s: float, burst: float, **size: float) -> Rate:
    return Rate(events_per_s, burst, size.get("bytes_per_s", 1e9), size.get("bytes_burst", 1e9))


def answering(event: str, args: Sequence[Any], ack: Ack | None) -> None:
    if ack is not None:
        ack({"ok": True, "n": args[0]})


def numbers(door: OpenDoor) -> list[int]:
    return [args[0] for _, args in door.events]


# -- refused --------------------------------------------------------------------------------------


async def test_an_event_too_many_is_refused_by_its_ack() -> None:
    door = OpenDoor(handle=answering, above={"n": Excess.REFUSE})
    # Joining counts as well.
    async with ours(door, rate=rate(NEVER, 6)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        answers = [await client.ask("n", i) for i in range(6)]
        assert answers[:5] == [{"ok": True, "n": i} for i in range(5)]
        error = answers[5]["error"]
        assert (answers[5]["ok"], error["code"], error["retryable"]) == (
            False,
            "rate_limited",
            True,
        )
        assert error["retry_after_ms"] == pytest.approx(1_000_000, rel=0.01)
        assert numbers(door) == list(range(5))
        assert site.sockets.stats.limited == {"refused": 1}


async def test_who_comes_again_when_told_is_let_through() -> None:
    door = OpenDoor(handle=answering, above={"n": Excess.REFUSE})
    async with ours(door, rate=rate(5, 2)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        for number in range(6):
            answer = await client.ask("n", number)
            if not answer["ok"]:
                await asyncio.sleep(answer["error"]["retry_after_ms"] / 1_000)
                answer = await client.ask("n", number)
            assert answer == {"ok": True, "n": number}


async def test_who_takes_no_heed_is_refused_for_a_while_and_then_waits() -> None:
    door = OpenDoor(handle=answering, above={"n": Excess.REFUSE})
    async with ours(door, rate=rate(20, 10)) as site, deaf(site.url) as client:
        await client.send("40{}", *(f'42{i}["n",{i}]' for i in range(60)))
        limited = site.sockets.stats.limited
        await until(lambda: limited["held"])
        assert 10 <= limited["refused"] <= 30
        # Each has one end: what was held was not refused as well.
        await until(lambda: len(door.events) + limited["refused"] == 60)
        assert numbers(door) == sorted(set(numbers(door)))


async def test_large_messages_are_refused_by_their_bytes() -> None:
    door = OpenDoor(handle=answering, above={"n": Excess.REFUSE})
    limit = rate(1e6, 1e6, bytes_per_s=NEVER, bytes_burst=3_000)
    async with ours(door, rate=limit) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        assert (await client.ask("n", "x" * 1_000))["ok"]
        assert (await client.ask("n", b"x" * 1_000))["ok"]
        assert (await client.ask("n", b"x" * 1_000))["error"]["code"] == "rate_limited"
        assert (await client.ask("n", 1))["ok"]


# -- dropped --------------------------------------------------------------------------------------


async def test_what_is_worth_nothing_later_is_dropped() -> None:
    door = OpenDoor(above={"presence": Excess.DROP})
    async with ours(door, rate=rate(NEVER, 6)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send(*(f'42["presence",{i}]' for i in range(10)))
        await until(lambda: site.sockets.stats.limited["dropped"] == 5)
        assert numbers(door) == list(range(5))
        assert (await client.ask("presence", 10))["error"]["code"] == "rate_limited"


# -- held -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("above", [Excess.HOLD, Excess.REFUSE])
async def test_what_cannot_be_refused_waits_and_nothing_is_lost(
    transport: str, above: Excess
) -> None:
    """An event without an ack cannot be told anything."""
    door, count = OpenDoor(above={"n": above}), 40
    events = [f'42["n",{i}]' for i in range(count)]
    loop = asyncio.get_running_loop()
    async with ours(door, rate=rate(100, 11)) as site, contextlib.AsyncExitStack() as stack:
        started = loop.time()
        if transport == "websocket":
            client = await stack.enter_async_context(raw_socket(site.url))
            await client.enter("/", {})
            await client.send(*events)
        else:
            poller = await stack.enter_async_context(polling(site.url))
            await poller.join()
            assert (await poller.post(*events))[0] == 200
        await until(lambda: len(door.events) == count)
        assert numbers(door) == list(range(count))
        assert loop.time() - started > 0.29
        assert set(site.sockets.stats.limited) == {"held"}


async def test_what_was_sent_before_a_goodbye_waits_and_is_carried_out() -> None:
    door = OpenDoor()
    async with ours(door, rate=rate(100, 3)) as site, deaf(site.url) as client:
        await client.send("40{}", *(f'42["n",{i}]' for i in range(20)), "41", "1")
        await until(lambda: door.gone)
        assert numbers(door) == list(range(20))


async def test_a_socket_is_not_read_while_what_it_sent_waits() -> None:
    door = OpenDoor()
    limit = rate(1e6, 1e6, bytes_per_s=NEVER, bytes_burst=1_000)
    async with ours(door, rate=limit) as site, deaf(site.url) as client:
        await client.send("40{}")
        await until(lambda: door.inside)
        message = ('451-["n",{"_placeholder":true,"num":0}]', b"x" * 200_000)
        sending = asyncio.create_task(client.send(*message * 500))
        await until(lambda: site.sockets.stats.paused)
        (connection,) = site.connections
        await asyncio.sleep(0.1)
        # By bytes: of messages as large as these sixty-four would be far too many.
        assert len(connection._inbox or ()) < INBOX_SIZE
        assert connection._inbox_bytes < INBOX_BYTES + 600_000
        assert not sending.done()
        sending.cancel()


async def test_another_client_does_not_wait() -> None:
    door = OpenDoor(handle=answering)
    async with (
        ours(door, rate=rate(NEVER, 3)) as site,
        raw_socket(site.url) as greedy,
        raw_socket(site.url) as other,
    ):
        await greedy.enter("/", {})
        await other.enter("/", {})
        await greedy.send(*(f'42["n",{i}]' for i in range(10)))
        await until(lambda: site.sockets.stats.limited["held"])
        assert await other.ask("n", 7) == {"ok": True, "n": 7}


async def test_those_who_share_an_allowance_are_held_together() -> None:
    loop = asyncio.get_running_loop()
    shared = Allowance(rate(NEVER, 4), loop.time())
    door = OpenDoor(handle=answering, shared=shared, above={"n": Excess.REFUSE})
    async with (
        ours(door) as site,
        raw_socket(site.url) as one,
        raw_socket(site.url) as other,
    ):
        for client in (one, other):
            await client.enter("/", {})
        answers = [await client.ask("n", 1) for client in (one, other, one, other, one, other)]
        assert [answer["ok"] for answer in answers] == [True] * 4 + [False] * 2


async def test_one_that_ends_while_it_waits_leaves_nothing_behind() -> None:
    door = OpenDoor()
    async with ours(door, rate=rate(NEVER, 2)) as site:
        before = asyncio.all_tasks()
        async with raw_socket(site.url) as client:
            await client.enter("/", {})
            await client.send(*(f'42["n",{i}]' for i in range(20)))
            await until(lambda: site.sockets.stats.limited["held"])
        await until(lambda: not site.connections)
        await until(lambda: asyncio.all_tasks() <= before)
        assert numbers(door) == [0]


# -- what is no event -----------------------------------------------------------------------------


async def test_joining_namespaces_in_a_loop_is_held() -> None:
    async with ours(rate=rate(NEVER, 10)) as site, raw_socket(site.url) as client:
        await client.send(*["40{}", "41"] * 15)
        await until(lambda: site.sockets.stats.limited["held"])
        assert [packet.kind for packet in client.received] == [CONNECT] * 5


async def test_events_for_a_namespace_that_was_not_joined_are_held() -> None:
    async with ours(rate=rate(NEVER, 10)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send(*['42/nowhere,["n",1]'] * 50)
        await until(lambda: site.sockets.stats.limited["held"])


async def test_an_ack_above_the_allowance_waits_its_turn_and_is_taken() -> None:
    door = OpenDoor()
    async with ours(door, rate=rate(20, 3)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        (sid,) = door.inside
        answers: list[Any] = []
        site.sockets.ask("/", sid, "question", answer=answers.append)
        asked = await client.find(lambda packet: packet.kind == EVENT)
        await client.send(*["430[1]"] * 10, f'43{asked.id}["yes"]')
        await until(lambda: answers)
        assert answers == ["yes"]
        assert site.sockets.stats.limited["held"] >= 5


@pytest.mark.parametrize("frame", ["3", "6"], ids=["pongs", "no-operations"])
async def test_a_flood_of_what_nobody_asked_for_ends_the_connection(frame: str) -> None:
    async with ours(rate=rate(NEVER, 10)) as site, raw_socket(site.url) as client:
        await client.enter("/", {})
        await client.send(*[frame] * 9)
        await until(lambda: site.connections)
        await client.send(frame)
        await client.closed()
        assert site.sockets.stats.closed == {"bad_packet": 1}


# -- heartbeat ------------------------------------------------------------------------------------


async def test_one_that_is_not_read_is_not_given_up_for_a_pong_that_waits() -> None:
    """The pong is in the socket, behind what is held."""
    door, count = OpenDoor(), 500
    beats = {"ping_interval_s": 0.3, "ping_timeout_s": 0.3}
    async with (
        ours(door, rate=rate(100, 2), **beats) as site,
        raw_socket(site.url) as client,
    ):
        await client.enter("/", {})
        pad = "x" * 20_000
        await client.send(*(f'42["n",{i},"{pad}"]' for i in range(count)))
        await until(lambda: len(door.events) == count, timeout_s=20)
        assert site.sockets.stats.paused
        assert site.sockets.stats.closed == {}


async def test_one_that_is_gone_while_it_is_not_read_is_given_up_in_the_end() -> None:
    door = OpenDoor()
    beats = {"ping_interval_s": 0.3, "ping_timeout_s": 0.3}
    async with ours(door, rate=rate(100, 2), **beats) as site, deaf(site.url) as client:
        await client.send("40{}", *(f'42["n",{i}]' for i in range(150)))
        await until(lambda: site.sockets.stats.closed)
        assert site.sockets.stats.paused
        assert site.sockets.stats.closed == {"ping_timeout": 1}
        assert len(door.events) == 150
