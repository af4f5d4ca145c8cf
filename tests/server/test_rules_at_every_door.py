"""Roles over real sockets: rows of the tables in tests/helpers/rules.py, and what becomes of those
who are inside when their role changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crdt.errors import Unavailable
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.live import LiveRoom
from crdt.ports import Append, Author, Loaded, Stored
from crdt.replica import Put
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost, Refused
from tests.helpers.rules import (
    CHANGES,
    CLAIMS,
    EDITS,
    INTENTS,
    MEMBERS,
    NAMES,
    OWNER,
    TEMPLATE_INTENTS,
    VISITORS,
    WORKOUT_INTENTS,
    Row,
    invitations,
    payload,
    rows_of,
    seeds,
)
from tests.helpers.servers import RunningServer, running_server

WORKOUT, TEMPLATE = DocKind.WORKOUT, DocKind.TEMPLATE
DEADLINE_S = 10.0


class Scene:
    """A document of ana's with a member for each role; her phone and her laptop."""

    def __init__(
        self, server: RunningServer, kind: DocKind, *, visibility: str = "friends"
    ) -> None:
        self.server = server
        self.kind = kind
        self.visibility = visibility
        self.name = NAMES[kind]
        self.id = {f"{kind.value}_id": self.name.id}

    async def open(self) -> None:
        self.phone = await self.server.events(OWNER)
        mode = {"mode": "group"} if self.kind is WORKOUT else {}
        await self.do("create", title="Leg day", visibility=self.visibility, **mode)
        for event, invitation in invitations(self.kind):
            await self.phone.do(event, invitation)
        await self.reset()
        self.laptop = await self.server.document(OWNER, self.name)

    async def do(self, verb: str, **data: Any) -> dict[str, Any]:
        """An intent of ana's."""
        return await self.phone.do(f"{self.kind.value}:{verb}", {**self.id, **data})

    async def reset(self, *, is_locked: bool = False) -> None:
        """Put everything back in its place."""
        writes = [Put(path, value) for path, value in seeds(self.kind).items()]
        writes.append(Put(("meta", "visibility"), self.visibility))
        if self.kind is TEMPLATE:
            writes.append(Put(("meta", "locked"), is_locked))
        await self.put(*writes)

    async def put(self, *writes: Put) -> None:
        """Write something as the server does of its own accord."""
        author = Author(UserId(OWNER), OWNER, "seed", ConnectionId("seed"))
        hub = self.server.parts.hub
        async with hub.lease(self.name) as live:
            await hub.edit(live, writes, author, "seed", answer=lambda _: {})

    @property
    def live(self) -> LiveRoom:
        live = self.server.parts.hub.find(self.name)
        assert live is not None
        return live

    async def events(self, me: str, device: str = "phone") -> EventClient:
        return await self.server.events(me, device, **CLAIMS.get(me, {}))

    async def document(self, me: str) -> DocumentClient:
        return await self.server.document(me, self.name, **CLAIMS.get(me, {}))

    async def state(self) -> tuple[Loaded | None, bytes, bytes, int]:
        """The log with its members, the document, and another client's replica; to the byte."""
        await self.laptop.sync()
        return (
            await self.server.parts.store.load(self.name),
            self.live.room.diff(),
            self.laptop.doc.get_update(),
            len(self.live.room.members),
        )

    async def update(self, me: str, what: str) -> str:
        """What becomes of an edit by a Yjs client, from the door to `sync-rejected`."""
        try:
            client = await self.document(me)
        except Refused as refusal:
            return str(refusal.error["code"])
        with client.doc.transaction():
            EDITS[self.kind][what](client.roots, me)
        try:
            await client.settled()
        except CallFailed as refusal:
            code = str(refusal.error["code"])
            await client.until(lambda: bool(client.rejections))
            assert [rejection["code"] for rejection in client.rejections] == [code]
            assert client.is_connected
            await self.recovers(me)
            return code
        finally:
            await client.close()
        await self.laptop.sync()
        assert self.laptop.content() == client.content()
        return "ok"

    async def recovers(self, me: str) -> None:
        """Whoever was refused drops the replica and syncs anew."""
        fresh = await self.document(me)
        assert fresh.content() == self.laptop.content()
        await fresh.close()

    async def intend(self, me: str, what: str) -> str:
        found = INTENTS[what]
        client = await self.events(me)
        answer = await client.ask(found.event, payload(self.name, found, me))
        await client.close()
        return "ok" if answer["ok"] else str(answer["error"]["code"])


def expected_of(row: Row, kind: DocKind) -> dict[str, str]:
    """User id -> what becomes of it."""
    people = {MEMBERS[kind][role]: code for role, code in row.cells.items() if role != "visitor"}
    return {**people, **dict.fromkeys(VISITORS, row.cells["visitor"])}


def chosen(
    wanted: dict[DocKind, tuple[str, ...]], tables: dict[DocKind, str], *, door: str = ""
) -> list[Any]:
    return [
        pytest.param(kind, row, id=f"{kind.value} {row}")
        for kind in DocKind
        for row in rows_of(tables[kind], is_tagged=bool(door))
        if row.what in wanted[kind] and row.tag in (door, "both" if door else "")
    ]


async def play(
    server: RunningServer, kind: DocKind, row: Row, door: Callable[[Scene], Any]
) -> None:
    scene = Scene(server, kind)
    await scene.open()
    found = {}
    expected = expected_of(row, kind)
    for me in expected:
        await scene.reset(is_locked=row.is_locked)
        before = await scene.state()
        found[me] = await door(scene)(me, row.what)
        if found[me] != "ok":
            assert await scene.state() == before
    assert found == expected


UPDATES = {
    WORKOUT: (
        "meta.title put",
        "meta.visibility put",
        "meta.status put",
        "exercises add",
        "exercises add nonsense",
        "own set change",
        "another's set change",
        "another's set remove",
        "own timer put",
        "title and another's set",
    ),
    TEMPLATE: (
        "meta.title put",
        "meta.visibility put",
        "meta.locked put",
        "exercises type into the note",
        "planned set change",
        "notes type",
        "meta.title remove",
    ),
}


@pytest.mark.parametrize(("kind", "row"), chosen(UPDATES, CHANGES, door="update"))
async def test_a_yjs_client_is_answered_as_the_table_says(
    server: RunningServer, kind: DocKind, row: Row
) -> None:
    await play(server, kind, row, lambda scene: scene.update)


ASKED = {
    WORKOUT: (
        "workout:start",
        "workout:exercise:update",
        "workout:set:update, own",
        "workout:set:update, another's",
        "workout:invite, somebody new",
        "workout:member:remove, the owner",
    ),
    TEMPLATE: ("template:update_meta, title", "template:share, somebody new", "template:lock"),
}


@pytest.mark.parametrize(
    ("kind", "row"), chosen(ASKED, {WORKOUT: WORKOUT_INTENTS, TEMPLATE: TEMPLATE_INTENTS})
)
async def test_an_intent_is_answered_as_the_table_says(
    server: RunningServer, kind: DocKind, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.what == "workout:start":
        # Each in turn is to find it planned.
        reset = Scene.reset

        async def planned(scene: Scene, **state: Any) -> None:
            await reset(scene, **state)
            await scene.put(Put(("meta", "status"), "planned"))

        monkeypatch.setattr(Scene, "reset", planned)
    await play(server, kind, row, lambda scene: scene.intend)


def presence(client_id: int, clock: int, **state: Any) -> bytes:
    return encode_awareness([AwarenessEntry(client_id, clock, state)])


@pytest.mark.parametrize("is_locked", [False, True])
@pytest.mark.parametrize("kind", list(DocKind))
async def test_whoever_is_in_a_document_is_seen_there_and_changes_nothing_by_it(
    server: RunningServer, kind: DocKind, is_locked: bool
) -> None:
    scene = Scene(server, kind)
    await scene.open()
    await scene.reset(is_locked=is_locked)
    before = await scene.state()
    seen = []
    for number, me in enumerate([*MEMBERS[kind].values(), "fay"]):
        client = await scene.document(me)
        await client.announce(presence(100 + number, 1, cursor=number))
        await scene.laptop.until(lambda number=number: len(scene.laptop.awareness) > number)
        [entry] = decode_awareness(scene.laptop.awareness[-1])
        assert entry.state is not None
        seen.append((entry.client_id, entry.state["user"]["id"]))
    assert seen == [(100 + n, me) for n, me in enumerate([*MEMBERS[kind].values(), "fay"])]
    assert await scene.state() == before
    for me in ("eve", "adam"):
        with pytest.raises(Refused) as refused:
            await scene.document(me)
        assert refused.value.error["code"] == "forbidden"


# -- a role that changes ----------------------------------------------------------------------


@pytest.fixture
async def workout(server: RunningServer) -> Scene:
    scene = Scene(server, WORKOUT, visibility="private")
    await scene.open()
    return scene


@pytest.fixture
async def template(server: RunningServer) -> Scene:
    scene = Scene(server, TEMPLATE, visibility="private")
    await scene.open()
    return scene


def names(client: EventClient) -> list[str]:
    return [event for event, _, _ in client.events]


async def barrier(*clients: EventClient) -> None:
    """Wait until everything that was sent to these clients has come: the ack comes behind it."""
    for client in clients:
        await client.do("time:sync", {"t0": 0.0})


OUT = {WORKOUT: ("member:remove", "pat"), TEMPLATE: ("unshare", "ed")}
TOLD = {WORKOUT: "workout:uninvited", TEMPLATE: "template:unshared"}


@pytest.mark.parametrize("kind", list(DocKind))
async def test_who_is_taken_out_leaves_at_once_on_all_sockets(
    server: RunningServer, kind: DocKind
) -> None:
    scene = Scene(server, kind, visibility="private")
    await scene.open()
    verb, me = OUT[kind]
    phones = [await scene.events(me), await scene.events(me, "watch")]
    for phone in phones:
        await phone.do(f"{kind.value}:join", scene.id)
    elsewhere = await scene.events(me, "tv")
    laptops = [await scene.document(me), await scene.document(me)]
    await laptops[0].announce(presence(7, 1, cursor=1))
    await scene.laptop.until(lambda: len(scene.laptop.awareness) == 1)

    await scene.do(verb, user_id=me)
    for laptop in laptops:
        await laptop.wait_until_gone()
    change = {**scene.id, "user": {"id": me, "name": me}, "role": None}
    for client in (*phones, scene.phone):
        told = await client.next(f"{kind.value}:member:changed", lambda e: e["role"] is None)
        assert told == change
    for phone in (*phones, elsewhere):
        told = await phone.next(TOLD[kind])
        assert told == {**scene.id, "title": "Leg day", "by": {"id": OWNER, "name": OWNER}}
    await scene.laptop.until(lambda: len(scene.laptop.awareness) == 2)
    assert decode_awareness(scene.laptop.awareness[1]) == [AwarenessEntry(7, 1, None)]

    for phone in phones:
        phone.events.clear()
    scene.laptop.map("meta")["title"] = "Not for them"
    await scene.laptop.settled()
    await barrier(*phones, elsewhere)
    assert [names(phone) for phone in phones] == [[], []]
    assert laptops[0].content()["meta"]["title"] == "Leg day"
    assert {connection.user.id for connection in scene.live.connections.values()} == {OWNER}
    for verb in ("sync" if kind is WORKOUT else "get", "join"):
        answer = await phones[0].ask(f"{kind.value}:{verb}", scene.id)
        assert answer["error"]["code"] == "forbidden"
    with pytest.raises(Refused) as refused:
        await laptops[0].connect()
    assert refused.value.error["code"] == "forbidden"


async def test_a_new_role_holds_from_the_next_message_on_every_connection(workout: Scene) -> None:
    phone, laptop = await workout.events("pat"), await workout.document("pat")
    await phone.do("workout:join", workout.id)
    add = {**workout.id, "exercise": {"name": "Bench"}}
    await phone.do("workout:exercise:add", add)
    laptop.map("sets")["pat"]["reps"] = 6.0
    await laptop.settled()

    await workout.do("invite", user_id="pat", role="spectator")
    assert (await phone.next("workout:invited"))["role"] == "spectator"
    told = await phone.next("workout:member:changed", lambda e: e["role"] == "spectator")
    assert told == {**workout.id, "user": {"id": "pat", "name": "pat"}, "role": "spectator"}
    assert (await phone.ask("workout:exercise:add", add))["error"]["code"] == "forbidden"
    laptop.map("sets")["pat"]["reps"] = 7.0
    with pytest.raises(CallFailed) as refused:
        await laptop.settled()
    assert refused.value.error["code"] == "forbidden"
    assert laptop.is_connected
    assert (await phone.do("workout:sync", workout.id))["workout"]["id"] == workout.name.id

    await workout.do("invite", user_id="pat", role="coach")
    await phone.do("workout:start", workout.id)
    fresh = await workout.document("pat")
    assert fresh.content()["sets"]["pat"]["reps"] == 6
    fresh.map("sets")["pat"]["reps"] = 8.0
    await fresh.settled()


async def test_updates_of_a_demoted_participant_that_are_on_their_way_are_refused(
    workout: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await workout.document("pat")
    store = workout.server.parts.store
    append, synced, asked = store.append, asyncio.Event(), asyncio.Event()

    async def slow_append(batch: Append) -> Stored:
        asked.set()
        await synced.wait()
        return await append(batch)

    monkeypatch.setattr(store, "append", slow_append)
    demoted = asyncio.ensure_future(workout.do("invite", user_id="pat", role="spectator"))
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    for reps in (6.0, 7.0):
        laptop.map("sets")["pat"]["reps"] = reps
    await laptop.until(lambda: len(laptop.rejections) == 2)
    assert {rejection["code"] for rejection in laptop.rejections} == {"forbidden"}
    synced.set()
    await demoted
    with pytest.raises(CallFailed):
        await laptop.settled()

    fresh = await workout.document("pat")
    assert fresh.content()["sets"]["pat"]["reps"] == 5
    workout.laptop.map("meta")["title"] = "Pull day"
    await fresh.until(lambda: fresh.content()["meta"]["title"] == "Pull day")


async def test_what_was_typed_into_a_locked_template_is_refused_and_the_rest_goes_on(
    template: Scene,
) -> None:
    editor, viewer = await template.document("ed"), await template.events("vic")
    await viewer.do("template:join", template.id)
    await template.do("lock")
    assert (await viewer.next("template:changed"))["meta"] == {"locked": True}
    before = await template.state()
    for client in (editor, template.laptop):
        client.roots["notes"].insert(0, "Mondays: ")
        with pytest.raises(CallFailed) as refused:
            await client.settled()
        assert refused.value.error["code"] == "locked"
        assert [rejection["code"] for rejection in client.rejections] == ["locked"]
    template.laptop = await template.server.document(OWNER, template.name)
    after = await template.state()
    assert after[:2] == before[:2]

    await editor.announce(presence(7, 1, cursor=1))
    await template.laptop.until(lambda: bool(template.laptop.awareness))
    await template.do("share", user_id="zoe", role="editor")
    await template.do("unlock")
    fresh = await template.document("zoe")
    fresh.roots["notes"].insert(0, "Fridays: ")
    await fresh.settled()
    await template.laptop.until(
        lambda: template.laptop.content()["notes"].startswith("Fridays: Warm")
    )


async def test_who_is_taken_out_on_the_way_in_does_not_get_in(
    template: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = template.server.parts.gateway
    connected = gateway.connected

    async def late(namespace: str, sid: str) -> None:
        if namespace != "/":
            await template.do("unshare", user_id="ed")
        await connected(namespace, sid)

    monkeypatch.setattr(gateway, "connected", late)
    laptop = DocumentClient(template.server.url, template.name, template.server.token("ed"))
    template.server.clients.append(laptop)
    with pytest.raises((Lost, Refused)):
        await laptop.connect()
    assert {connection.user.id for connection in template.live.connections.values()} == {OWNER}


async def test_who_is_taken_out_while_the_room_is_read_anew_is_put_out(
    template: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, store = template.server.parts.hub, template.server.parts.store
    phone, laptop = await template.events("ed"), await template.document("ed")
    await phone.do("template:join", template.id)
    open_room, append, may_move, faults = hub._open, store.append, asyncio.Event(), ["full"]

    async def failing_append(batch: Append) -> Stored:
        if faults:
            raise Unavailable(faults.pop())
        return await append(batch)

    async def open_later(name: DocName) -> LiveRoom:
        task = asyncio.current_task()
        if task is not None and getattr(task.get_coro(), "__name__", "") == "_rejoin":
            await may_move.wait()
        return await open_room(name)

    monkeypatch.setattr(store, "append", failing_append)
    monkeypatch.setattr(hub, "_open", open_later)
    answer = await template.phone.ask(
        "template:update_meta", {**template.id, "meta": {"title": "x"}}
    )
    assert answer["error"]["code"] == "unavailable"
    await template.do("unshare", user_id="ed")
    assert template.live.connections == {}  # all of them are still to be moved
    may_move.set()
    await laptop.wait_until_gone()
    await template.laptop.until(lambda: bool(template.laptop.resets))
    phone.events.clear()
    await template.do("update_meta", meta={"title": "Not for them"})
    await barrier(phone)
    assert names(phone) == []
    assert {connection.user.id for connection in template.live.connections.values()} == {OWNER}


# -- how many fit -----------------------------------------------------------------------------


async def test_a_full_room_is_told_at_both_doors(tmp_path: Path) -> None:
    limits = {"max_room_members": 5, "max_room_connections": 3}
    async with running_server(tmp_path / "data", **limits) as server:
        scene = Scene(server, WORKOUT, visibility="public")
        await scene.open()
        told = scene.phone.welcome["limits"]
        assert {key: told[key] for key in limits} == limits
        invited = await scene.phone.ask(
            "workout:invite", {**scene.id, "user_id": "zoe", "role": "coach"}
        )
        assert invited["ok"]
        invited = await scene.phone.ask(
            "workout:invite", {**scene.id, "user_id": "yan", "role": "coach"}
        )
        assert invited["error"] == {
            "code": "room_full",
            "message": "there may be 5 members of one document",
            "retryable": True,
            "details": {"capacity": 5},
        }
        eve = await scene.events("eve")
        assert (await eve.ask("workout:join", scene.id))["error"]["code"] == "room_full"

        third = await scene.document("pat")
        with pytest.raises(Refused) as refused:
            await scene.document("pat")
        assert refused.value.error["code"] == "room_full"
        assert refused.value.error["retryable"] is True
        cleo = await scene.events("cleo")
        assert (await cleo.ask("workout:join", scene.id))["error"]["code"] == "room_full"
        await third.close()
        async with asyncio.timeout(DEADLINE_S):
            while len(scene.live.connections) > 2:
                await barrier(cleo)
        await cleo.do("workout:join", scene.id)


async def test_of_many_who_connect_to_the_last_seats_no_more_get_in(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data", max_room_connections=5) as server:
        scene = Scene(server, WORKOUT)
        await scene.open()
        clients: list[Any] = [
            DocumentClient(server.url, scene.name, server.token("pat")) for _ in range(8)
        ]
        server.clients.extend(clients)
        outcomes = await asyncio.gather(
            *(client.connect() for client in clients), return_exceptions=True
        )
        assert sum(isinstance(outcome, DocumentClient) for outcome in outcomes) == 3
        assert len(scene.live.connections) == 5


async def test_who_finds_the_last_seat_taken_on_the_way_in_is_put_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(tmp_path / "data", max_room_connections=2) as server:
        scene = Scene(server, WORKOUT)
        await scene.open()
        demand_seat, asked = RoomHub.demand_seat, []

        def free_at_first(hub: RoomHub, live: LiveRoom, connection_id: ConnectionId) -> None:
            asked.append(connection_id)
            if len(asked) > 1:
                demand_seat(hub, live, connection_id)

        monkeypatch.setattr(RoomHub, "demand_seat", free_at_first)
        laptop = DocumentClient(server.url, scene.name, server.token("pat"))
        server.clients.append(laptop)
        with pytest.raises((Lost, Refused)):
            await laptop.connect()
        assert len(asked) == 2
        assert len(scene.live.connections) == 2
