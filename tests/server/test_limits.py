"""Every limit at its edge: what is allowed, what is one too many, and what is said of that."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pycrdt import Map

from crdt import ids
from crdt.wire import MAX_STATE_BYTES, AwarenessEntry, encode_awareness
from server import limits
from server.replay.devices import EventClient, Refused
from server.settings import Settings
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.sockets import CONNECT, CONNECT_ERROR, RawSocket, raw_socket
from tests.server.transport.support import polling, until

WORKOUT = ids.workout("w")
DOCUMENT = f"/yjs|{WORKOUT}"


@asynccontextmanager
async def inside(server: RunningServer, user_id: str = "ana") -> AsyncIterator[RawSocket]:
    """A raw socket in `/`."""
    async with raw_socket(server.url) as socket:
        assert (await socket.enter("/", {"token": server.token(user_id)})).kind == CONNECT
        yield socket


def limited(server: RunningServer) -> dict[str, int]:
    """How many messages were held, refused and dropped."""
    return dict(server.parts.sockets.stats.limited)


# -- what is told ---------------------------------------------------------------------------------


async def test_welcome_tells_every_limit_as_it_is_configured(tmp_path: Path) -> None:
    given = {
        "max_update_bytes": 100_000,
        "max_document_bytes": 200_000,
        "max_sets_per_workout": 11,
        "max_exercises_per_document": 12,
        "max_json_bytes": 30_000,
        "max_json_depth": 20,
        "max_attachments_per_packet": 3,
        "max_sessions_per_user": 5,
        "max_namespaces_per_connection": 6,
        "max_rooms_per_connection": 7,
        "max_streams_per_connection": 8,
        "max_page_size": 9,
        "max_events_per_s": 101,
        "max_events_burst": 102,
        "max_bytes_per_s": 10_300,
        "max_bytes_burst": 10_400,
        "max_user_events_per_s": 105,
        "max_user_events_burst": 106,
        "max_user_bytes_per_s": 10_700,
        "max_user_bytes_burst": 10_800,
        "max_room_members": 13,
        "max_room_connections": 14,
    }
    fixed = {
        "max_packet_bytes": 2 * 100_000 + 64 * 1024,
        "max_awareness_state_bytes": MAX_STATE_BYTES,
        "max_title_chars": 200,
        "max_name_chars": 200,
        "max_note_chars": 4_000,
        "max_goal_chars": 500,
        "max_label_chars": 64,
        "max_device_chars": 100,
    }
    async with running_server(tmp_path, **given) as server:
        told = (await server.events("ana")).welcome["limits"]
    assert told == {**given, **fixed}


def test_the_defaults_leave_room_for_a_first_sync_and_an_offline_queue() -> None:
    told = limits.told(Settings())
    assert told["max_document_bytes"] == 8 * 1024 * 1024
    assert told["max_bytes_burst"] >= told["max_packet_bytes"]
    assert (told["max_events_per_s"], told["max_events_burst"]) == (200, 2_000)
    assert told["max_user_events_per_s"] > told["max_events_per_s"]


# -- a packet -------------------------------------------------------------------------------------


def padded(size: int, ack_id: int = 7) -> str:
    """An event whose text has exactly so many bytes."""
    head, tail = f'2{ack_id}["time:sync",{{"t0":1', "}]"
    return "4" + head + " " * (size - len(head) - len(tail)) + tail


async def test_the_text_of_a_packet_may_be_as_long_as_told_and_not_longer(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_json_bytes=2_000) as server, inside(server) as socket:
        await socket.send(padded(2_000, 1), padded(2_001, 2))
        assert (await socket.answer(1))["ok"]
        error = (await socket.answer(2))["error"]
        assert error["code"] == "too_large"
        assert error["details"] == {"size_bytes": 2_001, "limit_bytes": 2_000}
        assert await socket.settled()


async def test_the_text_of_a_packet_is_measured_in_bytes(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_json_bytes=2_000) as server, inside(server) as socket:
        for ack_id, count, code in ((1, 660, "not_found"), (2, 670, "too_large")):
            await socket.send(f'42{ack_id}["nothing","{chr(0x2603) * count}"]')
            answer = await socket.answer(ack_id)
            assert answer["error"]["code"] == code


async def test_a_text_too_long_that_asks_for_no_answer_ends_the_connection(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path, max_json_bytes=2_000) as server, inside(server) as socket:
        await socket.send('42["time:sync",{"t0":1' + " " * 2_000 + "}]")
        await socket.closed()


async def test_a_token_too_long_is_refused_where_one_connects(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, max_json_bytes=2_000) as server,
        raw_socket(server.url) as socket,
    ):
        refused = await socket.enter("/", {"token": "x" * 2_000})
        assert (refused.kind, refused.data["message"]) == (CONNECT_ERROR, "too_large")
        assert (await socket.enter("/", {"token": server.token("ana")})).kind == CONNECT


def nested(depth: int) -> Any:
    """A value that makes its packet `depth` levels deep, with the packet's own list."""
    return json.loads("[" * (depth - 1) + "]" * (depth - 1))


async def test_a_packet_may_be_nested_as_deeply_as_told_and_not_deeper(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_json_depth=10) as server, inside(server) as socket:
        assert (await socket.ask("nothing", nested(10)))["error"]["code"] == "not_found"
        error = (await socket.ask("nothing", nested(11)))["error"]
        assert (error["code"], error["message"]) == ("invalid", ": nested more than 10 levels deep")
        assert (await socket.ask("nothing", nested(11), b"x"))["error"]["code"] == "invalid"
        assert (await socket.ask("nothing", "[{" * 50))["error"]["code"] == "not_found"
        refused = await socket.enter("/other", {"token": nested(11)})
        assert (refused.kind, refused.data["message"]) == (CONNECT_ERROR, "invalid")
        assert await socket.settled()


async def test_a_packet_may_have_as_many_attachments_as_told_and_not_more(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path, max_attachments_per_packet=3) as server:
        async with inside(server) as socket:
            # Read, and refused for another reason.
            error = (await socket.ask("nothing", *[b"x"] * 3))["error"]
            assert "one object" in error["message"]
            assert await socket.ask("nothing", *[b"x"] * 4) is None
        assert server.parts.sockets.stats.closed["bad_packet"] == 1


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_packet_may_be_as_large_as_told_and_not_larger(
    tmp_path: Path, transport: str
) -> None:
    async with running_server(tmp_path, max_update_bytes=1_024, max_json_bytes=1_024) as server:
        limit = limits.max_packet_bytes(Settings(max_update_bytes=1_024))
        name = "too_large" if transport == "polling" else "transport_closed"
        if transport == "websocket":
            async with inside(server) as socket:
                await socket.send(padded(limit - 1))
                assert (await socket.answer(7))["error"]["code"] == "too_large"
                await socket.send(padded(limit))
                await socket.closed()
        else:
            async with polling(server.url) as poller:
                await poller.post(f'40{{"token":"{server.token("ana")}"}}')
                assert (await poller.post(padded(limit - 1)))[0] == 200
                status, text = await poller.post(padded(limit))
                assert (status, json.loads(text)["error"]["code"]) == (413, "too_large")
        assert dict(server.parts.sockets.stats.closed) == {name: 1}


async def test_an_update_may_be_as_large_as_told_and_not_larger(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_update_bytes=2_000) as server, inside(server) as socket:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        await socket.enter(DOCUMENT, {"token": server.token("ana")})
        for size, code in ((2_000, "invalid"), (2_001, "too_large")):
            answer = await socket.ask("sync-update", bytes([255]) * size, namespace=DOCUMENT)
            assert answer["error"]["code"] == code


# -- what one connection holds --------------------------------------------------------------------


async def test_a_connection_may_be_in_as_many_namespaces_as_told_and_not_in_more(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path, max_namespaces_per_connection=3) as server:
        owner = await server.events("ana")
        for number in range(4):
            await owner.do("workout:create", {"workout_id": f"w{number}"})
        auth = {"token": server.token("ana")}
        async with inside(server) as socket:
            for number in range(2):
                assert (await socket.enter(f"/yjs|workout:w{number}", auth)).kind == CONNECT
            refused = await socket.enter("/yjs|workout:w2", auth)
            assert refused.kind == CONNECT_ERROR
            error = refused.data["data"]
            assert (error["code"], error["retryable"]) == ("conflict", False)
            assert error["details"] == {"limit": 3}
            await socket.send("41/yjs|workout:w0,")
            assert (await socket.enter("/yjs|workout:w3", auth)).kind == CONNECT


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server on which a connection may have three rooms, and three streams."""
    async with running_server(
        tmp_path, max_rooms_per_connection=3, max_streams_per_connection=3, max_page_size=3
    ) as server:
        yield server


async def owner_of(server: RunningServer, kind: str, count: int) -> EventClient:
    """Ana's phone, which has left again what it made."""
    phone = await server.events("ana")
    for number in range(count):
        about = {f"{kind}_id": f"d{number}"}
        optional = {"mode": "group"} if kind == "workout" else {"title": "Push"}
        await phone.do(f"{kind}:create", {**about, "visibility": "public", **optional})
        await phone.do(f"{kind}:leave", about)
    return phone


@pytest.mark.parametrize("kind", ["workout", "template"])
async def test_a_connection_may_join_as_many_rooms_as_told_and_not_more(
    small: RunningServer, kind: str
) -> None:
    phone = await owner_of(small, kind, 4)
    ben = await small.events("ben")
    for number in (0, 1, 2, 1):
        await ben.do(f"{kind}:join", {f"{kind}_id": f"d{number}"})
    refused = await ben.ask(f"{kind}:join", {f"{kind}_id": "d3"})
    error = refused["error"]
    assert (error["code"], error["retryable"]) == ("conflict", False)
    assert error["details"] == {"limit": 3}
    # It was asked before anything was changed: nobody became a member in vain.
    assert not [w for w in (await ben.do(f"{kind}:list"))[f"{kind}s"] if w["id"] == "d3"]
    await ben.do(f"{kind}:leave", {f"{kind}_id": "d0"})
    await ben.do(f"{kind}:join", {f"{kind}_id": "d3"})
    # Another connection of the same user has rooms of its own.
    watch = await small.events("ben", "watch")
    await watch.do(f"{kind}:join", {f"{kind}_id": "d0"})
    assert phone.is_connected


async def test_who_may_join_no_more_makes_nothing_new_either(small: RunningServer) -> None:
    phone = await owner_of(small, "workout", 3)
    for number in range(3):
        await phone.do("workout:join", {"workout_id": f"d{number}"})
    for event, data in (
        ("workout:create", {"workout_id": "new"}),
        ("template:create", {"template_id": "new", "title": "New"}),
    ):
        assert (await phone.ask(event, data))["error"]["code"] == "conflict"
    assert (await phone.ask("workout:sync", {"workout_id": "new"}))["error"]["code"] == "not_found"


async def test_a_creation_that_is_repeated_does_not_go_round_the_limit(
    small: RunningServer,
) -> None:
    phone = await small.events("ana")
    made = [
        {"workout_id": f"d{number}", "op_id": f"00000000-0000-4000-8000-00000000000{number}"}
        for number in range(4)
    ]
    for creation in made:
        await phone.do("workout:create", creation)
        await phone.do("workout:leave", {"workout_id": creation["workout_id"]})
    watch = await small.events("ana", "watch")
    answers = [await watch.ask("workout:create", creation) for creation in made]
    assert [answer["ok"] for answer in answers] == [True, True, True, False]
    assert answers[3]["error"]["code"] == "conflict"
    await watch.do("workout:leave", {"workout_id": "d0"})
    await watch.do("workout:create", made[3])


async def test_a_connection_may_watch_as_many_streams_as_told_and_not_more(
    small: RunningServer,
) -> None:
    phone = await owner_of(small, "workout", 5)
    streams = [f"workout:d{number}:progress" for number in range(5)]
    assert (await phone.do("subscribe", {"streams": streams[:2]}))["denied"] == []
    answer = await phone.do("subscribe", {"streams": [*streams[1:4], "nothing"]})
    assert answer["subscribed"] == streams[1:3]
    assert answer["denied"] == [streams[3], "nothing"]
    assert answer["errors"][streams[3]]["code"] == "conflict"
    assert answer["errors"][streams[3]]["details"] == {"limit": 3}
    await phone.do("unsubscribe", {"streams": streams[:1]})
    assert (await phone.do("subscribe", {"streams": streams[4:]}))["denied"] == []


@pytest.mark.parametrize("kind", ["workout", "template"])
async def test_a_list_comes_in_pages_as_large_as_told_and_not_larger(
    small: RunningServer, kind: str
) -> None:
    phone = await owner_of(small, kind, 7)
    pages: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    while not pages or pages[-1]["more"]:
        pages.append(await phone.do(f"{kind}:list", before))
        before = {"before": pages[-1][f"{kind}s"][-1]["id"]}
    sizes = [(len(page[f"{kind}s"]), page["more"]) for page in pages]
    assert sizes == [(3, True), (3, True), (1, False)]
    listed = [item["id"] for page in pages for item in page[f"{kind}s"]]
    assert listed == [f"d{number}" for number in reversed(range(7))]
    assert len((await phone.do(f"{kind}:list", {"limit": 3}))[f"{kind}s"]) == 3
    for limit in (0, 4):
        error = (await phone.ask(f"{kind}:list", {"limit": limit}))["error"]
        assert (error["code"], error["details"][0]["path"]) == ("invalid", "limit")


async def test_a_user_may_have_as_many_sessions_as_told_and_not_more(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_sessions_per_user=3) as server:
        phones = [await server.events("ana", f"phone-{number}") for number in range(3)]
        with pytest.raises(Refused) as refused:
            await server.events("ana")
        assert refused.value.error["code"] == "rate_limited"
        assert refused.value.error["retry_after_ms"] == 5_000
        await phones[0].close()
        await until(lambda: server.parts.gateway.session_counts["events"] == 2)
        await server.events("ana")


async def test_who_joins_no_namespace_is_cut_when_told(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, connect_timeout_s=0.2) as server,
        raw_socket(server.url) as silent,
        raw_socket(server.url) as refused,
    ):
        assert (await refused.enter("/", {"token": "bad"})).kind == CONNECT_ERROR
        await silent.closed()
        await refused.closed()
        assert dict(server.parts.sockets.stats.closed) == {"connect_timeout": 2}


# -- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "path", "limit"),
    [
        ("workout:create", "title", 200),
        ("template:create", "title", 200),
        ("template:create", "goal", 500),
        ("template:create", "difficulty", 64),
        ("workout:exercise:add", "exercise.name", 200),
        ("workout:exercise:add", "exercise.note", 4_000),
        ("workout:exercise:add", "exercise.superset", 64),
        ("workout:set:complete", "set.note", 4_000),
        ("workout:invite", "user_id", 200),
    ],
)
async def test_a_text_may_be_as_long_as_told_and_not_longer(
    server: RunningServer, event: str, path: str, limit: int
) -> None:
    phone = await server.events("ana")
    await phone.do("workout:create", {"workout_id": "w"})
    added = await phone.do("workout:exercise:add", {"workout_id": "w", "exercise": {"name": "x"}})
    base: dict[str, Any] = {
        "workout:create": {},
        "template:create": {"title": "Push"},
        "workout:exercise:add": {"workout_id": "w", "exercise": {"name": "x"}},
        "workout:set:complete": {
            "workout_id": "w",
            "exercise_id": added["exercise_id"],
            "set": {"reps": 5},
        },
        "workout:invite": {"workout_id": "w", "role": "coach"},
    }[event]
    outer, _, inner = path.rpartition(".")
    for size in (limit, limit + 1):
        text = {inner: "\N{SNOWMAN}" * size}
        data = {**base, outer: {**base[outer], **text}} if outer else {**base, **text}
        answer = await phone.ask(event, data)
        assert answer["ok"] is (size == limit), answer
    assert answer["error"]["code"] == "invalid"
    assert answer["error"]["details"][0]["path"] == path


async def test_a_devices_name_may_be_as_long_as_told_and_not_longer(
    server: RunningServer,
) -> None:
    for size, kind in ((100, CONNECT), (101, CONNECT_ERROR)):
        async with raw_socket(server.url) as socket:
            auth = {"token": server.token("ana"), "device": {"id": "phone", "name": "x" * size}}
            answer = await socket.enter("/", auth)
            assert answer.kind == kind
    assert answer.data["message"] == "invalid"


# -- how fast -------------------------------------------------------------------------------------


async def test_intents_above_the_rate_are_refused_until_told(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_events_per_s=1, max_events_burst=10) as server:
        async with inside(server) as phone:
            sent = range(1, 16)
            await phone.send(*(f'42{i}["time:sync",{{"t0":{i}}}]' for i in sent))
            answers = [await phone.answer(i) for i in sent]
            refused = [answer["error"] for answer in answers if not answer["ok"]]
            assert answers[8]["ok"]  # the tenth: connecting was one
            assert len(refused) >= 4
            assert {error["code"] for error in refused} == {"rate_limited"}
            after_ms = [error["retry_after_ms"] for error in refused]
            assert after_ms == sorted(after_ms)
            await asyncio.sleep(after_ms[0] / 1_000)
            assert await phone.settled()
        assert limited(server) == {"refused": len(refused)}


async def test_a_user_is_limited_over_all_connections_and_others_are_not(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, max_user_events_per_s=1, max_user_events_burst=20) as server,
        inside(server) as phone,
        inside(server) as watch,
        inside(server, "ben") as ben,
    ):
        for i in range(1, 16):
            await phone.send(f'42{i}["time:sync",{{"t0":1}}]')
            await watch.send(f'42{i}["time:sync",{{"t0":1}}]')
        answers = [await device.answer(i) for device in (phone, watch) for i in range(1, 16)]
        # A second at the most has been earned meanwhile.
        assert 20 <= sum(answer["ok"] for answer in answers) <= 25
        codes = {answer["error"]["code"] for answer in answers if not answer["ok"]}
        assert codes == {"rate_limited"}
        assert await ben.settled()
        assert (await ben.ask("time:sync", {"t0": 1}))["ok"]


async def test_a_user_who_comes_back_may_not_send_more_for_that(tmp_path: Path) -> None:
    began_s = time.monotonic()
    limits = {"max_user_events_per_s": 1, "max_user_events_burst": 10}
    async with running_server(tmp_path, **limits) as server:
        answered: list[bool] = []
        for _ in range(4):
            async with inside(server) as phone:
                for i in range(1, 8):
                    await phone.send(f'42{i}["time:sync",{{"t0":1}}]')
                answered += [(await phone.answer(i))["ok"] for i in range(1, 8)]
            await until(lambda: server.parts.gateway.session_counts["events"] == 0)
        assert 10 <= sum(answered) <= 10 + (time.monotonic() - began_s)


async def test_what_a_user_may_send_is_forgotten_after_the_last_connection(
    server: RunningServer,
) -> None:
    gateway = server.parts.gateway
    phone, watch = await server.events("ana", "phone"), await server.events("ana", "watch")
    assert list(gateway._allowances) == ["ana"]
    await phone.close()
    await until(lambda: gateway.session_counts["events"] == 1)
    assert list(gateway._allowances) == ["ana"]
    await watch.close()
    await until(lambda: not gateway._allowances)


async def test_a_flood_of_updates_is_held_and_none_is_lost(tmp_path: Path) -> None:
    """As a stock Yjs client sends them: no ack asked for, and no error understood."""
    count = 120
    async with running_server(tmp_path, max_events_per_s=100, max_events_burst=20) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        reader = await server.document("ana", WORKOUT)
        writer = await server.document("ana", WORKOUT)
        updates: list[bytes] = []
        writer.doc.observe(lambda event: updates.append(event.update))
        writer._is_remote = True  # send nothing by itself
        for number in range(count):
            writer.map("sets")[f"s{number}"] = Map({"user_id": "ana", "reps": 5.0})
        assert len(updates) == count
        for update in updates:
            await writer._emit("sync-update", update)
        await reader.until(lambda: len(reader.content()["sets"]) == count)
        assert (writer.rejections, writer.resets) == ([], [])
        assert limited(server).keys() == {"held"}


async def test_an_update_with_an_ack_is_held_as_well(tmp_path: Path) -> None:
    """Refused, it would make those behind it incomplete."""
    async with running_server(tmp_path, max_events_per_s=50, max_events_burst=8) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        writer = await server.document("ana", WORKOUT)
        for number in range(20):
            writer.map("sets")[f"s{number}"] = Map({"user_id": "ana", "reps": 5.0})
        await writer.settled()
        assert limited(server).keys() == {"held"}


async def test_presence_above_the_rate_is_dropped(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_events_per_s=1, max_events_burst=10) as server:
        owner = await server.events("ana")
        await owner.do("workout:create", {"workout_id": WORKOUT.id})
        async with raw_socket(server.url) as socket:
            await socket.enter(DOCUMENT, {"token": server.token("ana")})
            head = f'451-{DOCUMENT},["awareness-update",{{"_placeholder":true,"num":0}}]'
            for clock in range(1, 31):
                state = encode_awareness([AwarenessEntry(5, clock, {"at": clock})])
                await socket.send(head, state)
            await until(lambda: limited(server).get("dropped", 0) >= 10)
            live = server.parts.hub.find(WORKOUT)
            assert live is not None
            assert 5 <= live.presence._present[5].clock <= 15


async def test_what_is_limited_is_counted_by_kind(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_events_per_s=1, max_events_burst=5) as server:
        async with inside(server) as phone:
            await phone.send(*(f'42{i}["time:sync",{{"t0":1}}]' for i in range(1, 11)))
            await phone.answer(10)
        async with aiohttp.ClientSession() as http, http.get(f"{server.url}/metrics") as response:
            text = await response.text()
    lines = [line for line in text.splitlines() if line.startswith("repsync_messages_limited")]
    assert [line.partition(" ")[0] for line in lines] == [
        'repsync_messages_limited_total{kind="refused"}'
    ]
