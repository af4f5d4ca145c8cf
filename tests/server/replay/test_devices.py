"""The replay's devices: what they promise about lost connections."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from pycrdt import Map

from crdt import ids
from server.replay.devices import DocumentClient, EventClient, Lost, Refused
from tests.helpers.servers import RunningServer


async def a_workout(server: RunningServer) -> tuple[EventClient, str]:
    phone = await server.events("ana")
    made = await phone.do("workout:create", {})
    return phone, made["workout"]["id"]


def a_set(note: str) -> Map[Any]:
    return Map(
        {
            "user_id": "ana",
            "order": "a0",
            "kind": "normal",
            "reps": 8,
            "completed_at": 1_700_000_000_000,
            "note": note,
        }
    )


def client_tasks() -> list[str]:
    """The client side's tasks; the server's live in the same loop."""
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "Client" in name]


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.005)


async def test_a_dropped_connection_says_no_goodbye(server: RunningServer) -> None:
    watch = await server.events("ana", "watch")
    said: list[Any] = []
    receive = next(iter(server.parts.sockets.eio.sockets.values())).receive

    async def listen(packet: Any) -> None:
        said.append(packet)
        await receive(packet)

    next(iter(server.parts.sockets.eio.sockets.values())).receive = listen
    await watch.drop()
    await until(lambda: server.parts.sockets.connection_count == 0)
    assert said == []
    assert not watch.is_connected


async def test_a_dropped_connection_leaves_no_task_behind(server: RunningServer) -> None:
    watch = await server.events("ana", "watch")
    assert client_tasks()
    await watch.drop()
    await until(lambda: not client_tasks())


async def test_what_waits_for_an_answer_is_lost_with_the_connection(server: RunningServer) -> None:
    watch = await server.events("ana", "watch")
    asking = asyncio.create_task(watch.ask("workout:create", {"op_id": str(uuid4())}))
    await asyncio.sleep(0)
    await watch.drop()
    with pytest.raises(Lost):
        await asking
    with pytest.raises(Lost):
        await watch.ask("workout:list")


async def test_a_client_can_be_dropped_before_it_connects_and_twice(server: RunningServer) -> None:
    watch = EventClient(server.url, server.token("ana"))
    await watch.drop()
    await watch.connect()
    await watch.drop()
    await watch.drop()
    await watch.close()


async def test_connecting_again_replaces_the_connection(server: RunningServer) -> None:
    watch = await server.events("ana", "watch")
    await watch.connect()
    await until(lambda: server.parts.sockets.connection_count == 1)
    assert (await watch.do("workout:list"))["workouts"] == []


async def test_an_edit_that_was_cut_off_goes_out_with_the_next_sync(server: RunningServer) -> None:
    phone, workout_id = await a_workout(server)
    laptop = await server.document("ana", ids.workout(workout_id))
    laptop.map("sets")["s1"] = a_set("cut off")
    await laptop.drop()
    laptop.map("sets")["s2"] = a_set("offline")
    await laptop.connect()
    await laptop.confirm()
    await laptop.settled()
    answer = await phone.do("workout:sync", {"workout_id": workout_id})
    assert {item["id"] for item in answer["workout"]["sets"]} == {"s1", "s2"}


async def test_a_lost_edit_is_told_by_settled(server: RunningServer) -> None:
    _, workout_id = await a_workout(server)
    laptop = await server.document("ana", ids.workout(workout_id))
    laptop.map("sets")["s1"] = a_set("cut off")
    await laptop.drop()
    with pytest.raises(Lost):
        await laptop.settled()


async def test_a_server_out_of_reach_refuses(server: RunningServer) -> None:
    with pytest.raises(Refused) as refused:
        await EventClient("http://127.0.0.1:1", "token").connect()
    assert refused.value.error["code"] == "unreachable"


async def test_a_document_out_of_reach_refuses_and_leaves_nothing_open(
    server: RunningServer,
) -> None:
    laptop = DocumentClient(server.url, ids.workout("none"), server.token("ana"))
    with pytest.raises(Refused) as refused:
        await laptop.connect()
    assert refused.value.error["code"] == "not_found"
    await until(lambda: not client_tasks())
