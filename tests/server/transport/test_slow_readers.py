"""Clients that do not take what they are sent: what it costs the others, which is nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crdt import ids
from crdt.wire import AwarenessEntry, encode_awareness
from server.replay.devices import DocumentClient, EventClient
from server.transport.connection import Connection
from tests.helpers.servers import RunningServer, running_server
from tests.server.transport.support import Deaf, deaf, shrink, until

NAME = ids.workout("w")
BUDGET_BYTES = 64 * 1024
MESSAGE_BYTES = 3_000
EDITS = 80
"""Together several times the budget."""


@dataclass
class Scene:
    """Ana's workout, and the laptop on which she writes."""

    server: RunningServer
    laptop: DocumentClient
    most_bytes: dict[Connection, int] = field(default_factory=dict)

    @property
    def stats(self) -> Any:
        return self.server.parts.sockets.stats

    @property
    def connections(self) -> list[Connection]:
        return list(self.server.parts.sockets.eio.sockets.values())

    async def edit(self, numbers: Iterable[int]) -> None:
        """Write notes of a few kB, one after the other, and look at everybody's backlog."""
        for number in numbers:
            self.laptop.map("exercises")["squat"]["note"] = note(number)
            await self.laptop.settled()
            for connection in self.connections:
                most = max(self.most_bytes.get(connection, 0), connection.backlog_bytes)
                self.most_bytes[connection] = most

    @asynccontextmanager
    async def joined(self, join: str, kind: str) -> AsyncIterator[tuple[Deaf, Connection]]:
        """A client that reads nothing, from its first moment in a namespace."""
        before = set(self.connections)
        count = self.server.parts.gateway.session_counts[kind]
        async with deaf(self.server.url) as client:
            (connection,) = set(self.connections) - before
            shrink(connection)
            await client.send(join)
            await until(lambda: self.server.parts.gateway.session_counts[kind] == count + 1)
            yield client, connection

    async def paused(self, client: DocumentClient | EventClient) -> Connection:
        """Have a client stop reading. Returns: its connection."""
        sid = client._socket.get_sid(client._namespace)  # type: ignore[union-attr]
        connection = self.server.parts.sockets.manager.clients[sid]
        shrink(connection)
        transport = transport_of(client)
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        transport.pause_reading()
        return connection


def transport_of(client: DocumentClient | EventClient) -> asyncio.Transport:
    transport: asyncio.Transport = client._socket.eio.ws._conn.transport  # type: ignore[union-attr]
    return transport


def note(number: int) -> str:
    return f"{number:05} ".ljust(MESSAGE_BYTES, "x")


@asynccontextmanager
async def scene_in(folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    async with running_server(
        folder, **{"send_budget_bytes": BUDGET_BYTES, "stall_timeout_s": 1.0, **settings}
    ) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": NAME.id})
        await owner.do(
            "workout:exercise:add",
            {"workout_id": NAME.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
        )
        await owner.close()
        await until(lambda: server.parts.gateway.session_counts["events"] == 0)
        yield Scene(server, await server.document("ana", NAME))


def seen_numbers(client: DocumentClient) -> list[int]:
    """The numbers of the notes as they come."""
    numbers: list[int] = []

    def look(_: bytes) -> None:
        numbers.append(int(client.content()["exercises"]["squat"]["note"].split()[0]))

    client.on_remote = look
    return numbers


def told_numbers(client: EventClient) -> list[int]:
    return [
        int(text.split()[0])
        for name, payload, _ in client.events
        if name == "workout:exercise:changed" and (text := payload["exercise"]["note"])
    ]


async def test_clients_that_never_read_are_cut_and_the_others_get_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene_in(tmp_path) as scene:
        server = scene.server
        documents = [await server.document("ana", NAME) for _ in range(25)]
        phones = [await server.events("ana", f"phone{i}") for i in range(25)]
        for phone in phones:
            await phone.do("workout:join", {"workout_id": NAME.id})
        seen = [seen_numbers(client) for client in documents]
        token = server.token("ana")
        join_document = f'40/yjs|{NAME},{{"token":"{token}"}}'
        join = f'42["workout:join",{{"workout_id":"{NAME.id}"}}]'
        live = server.parts.hub.find(NAME)
        assert live is not None
        async with (
            scene.joined(join_document, "document") as (_, reader),
            scene.joined(f'40{{"token":"{token}"}}', "events") as (member, listener),
        ):
            await member.send(join)
            await until(lambda: len(live.listeners) == 26)
            await until(lambda: len(live.readers) == 27)
            await scene.edit(range(EDITS))
            await until(lambda: reader.closed and listener.closed)
            # The room's member must be told of everything; the reader can sync, and got its time.
            assert (listener.close_reason, reader.close_reason) == ("slow_reader", "stalled")
            assert scene.stats.closed["slow_reader"] == scene.stats.closed["stalled"] == 1
            told = [r for r in caplog.records if "does not read" in r.message]
            assert {(vars(r)["user"], vars(r)["reason"]) for r in told} == {
                ("ana", "slow_reader"),
                ("ana", "stalled"),
            }
            for connection in (reader, listener):
                assert 0 < scene.most_bytes[connection] <= BUDGET_BYTES + 2 * MESSAGE_BYTES
                assert connection.backlog_bytes == 0
            await until(lambda: (len(live.listeners), len(live.readers)) == (25, 26))
        everything = list(range(EDITS))
        for client, numbers in zip(documents, seen, strict=True):
            await until(lambda numbers=numbers: len(numbers) == EDITS)
            assert numbers == everything
            assert client.resets == []
        for phone in phones:
            await until(lambda phone=phone: len(told_numbers(phone)) == EDITS)
            assert told_numbers(phone) == everything


async def test_a_reader_that_was_slow_is_made_good_with_one_reset(tmp_path: Path) -> None:
    async with scene_in(tmp_path, stall_timeout_s=30.0) as scene:
        slow = await scene.server.document("ana", NAME)
        await scene.edit([0])
        connection = await scene.paused(slow)
        await scene.edit(range(1, EDITS))
        assert scene.stats.dropped["update"] > 0
        assert scene.server.parts.sockets.slow_count == 1
        assert scene.most_bytes[connection] <= BUDGET_BYTES + 2 * MESSAGE_BYTES
        transport_of(slow).resume_reading()
        await slow.until(lambda: slow.content() == scene.laptop.content())
        live = scene.server.parts.hub.find(NAME)
        assert live is not None
        await slow.until(lambda: slow.doc.get_state() == live.room.state_vector())
        assert slow.resets == [{"reason": "slow_reader"}]
        assert not connection.closed
        assert scene.server.parts.sockets.slow_count == 0
        # From here on it is like the others.
        dropped = scene.stats.dropped["update"]
        await scene.edit(range(EDITS, EDITS + 3))
        await slow.until(lambda: slow.content() == scene.laptop.content())
        assert (len(slow.resets), scene.stats.dropped["update"]) == (1, dropped)


async def test_a_slow_readers_own_edits_go_on(tmp_path: Path) -> None:
    async with scene_in(tmp_path, stall_timeout_s=30.0) as scene:
        slow = await scene.server.document("ana", NAME)
        await scene.paused(slow)
        await scene.edit(range(EDITS))
        slow.map("exercises")["squat"]["rest_s"] = 90.0
        await scene.laptop.until(
            lambda: scene.laptop.content()["exercises"]["squat"].get("rest_s") == 90
        )
        transport_of(slow).resume_reading()
        await slow.settled()
        await slow.until(lambda: slow.content() == scene.laptop.content())
        assert slow.resets == [{"reason": "slow_reader"}]


async def test_presence_is_dropped_and_counted(tmp_path: Path) -> None:
    async with scene_in(tmp_path, stall_timeout_s=30.0) as scene:
        slow = await scene.server.document("ana", NAME)
        other = await scene.server.document("ana", NAME)
        connection = await scene.paused(slow)
        for clock in range(1, EDITS):
            state = {"cursor": note(clock)}
            await scene.laptop.announce(encode_awareness([AwarenessEntry(7, clock, state)]))
        await other.until(lambda: len(other.awareness) >= EDITS - 1)
        assert len(other.awareness) == EDITS - 1
        assert scene.stats.dropped["volatile"] > 0
        assert connection.backlog_bytes <= BUDGET_BYTES + 2 * MESSAGE_BYTES
        transport_of(slow).resume_reading()
        got = EDITS - 1 - scene.stats.dropped["volatile"]
        await slow.until(lambda: len(slow.awareness) >= got)
        assert len(slow.awareness) == got
        assert slow.resets == []
        assert not connection.closed


async def test_of_a_streams_values_the_latest_one_comes(tmp_path: Path) -> None:
    async with scene_in(tmp_path, stall_timeout_s=30.0) as scene:
        slow = await scene.server.events("ben")
        connection = await scene.paused(slow)
        sid = slow._socket.get_sid()  # type: ignore[union-attr]
        for number in range(EDITS):
            for stream in ("one", "two"):
                value = {"stream": stream, "number": number, "text": note(number)}
                scene.server.parts.sockets.post_latest([sid], stream, "progress", value)
        assert connection.backlog_bytes <= BUDGET_BYTES + 2 * MESSAGE_BYTES
        assert scene.stats.conflated > 0
        transport_of(slow).resume_reading()
        for stream in ("one", "two"):
            await slow.next(
                "progress",
                lambda value, stream=stream: (
                    (value["stream"], value["number"]) == (stream, EDITS - 1)
                ),
            )
        came = len([name for name, *_ in slow.events if name == "progress"]) + 2
        assert came == 2 * EDITS - scene.stats.conflated
        assert not connection.closed
