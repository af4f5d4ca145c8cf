"""Whatever is edited, lost, doubled, reordered, cut or refused: in the end all hold the same.

`CONVERGENCE_EXAMPLES=5000 pytest tests/crdt/test_convergence.py` looks longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycrdt import Map, Text, merge_updates

from crdt import ids
from crdt.errors import Forbidden, Invalid, RepSyncError, Unavailable, Unsynced
from crdt.ids import DocKind, DocName
from crdt.live import Connection
from crdt.ports import Committed, Stored
from crdt.replica import Replica
from crdt.room import Room
from crdt.wire import state_clocks
from tests.helpers.replicas import EMPTY, Peer, exercise_fields, set_fields
from tests.helpers.rooms import Bench, Desk, RecordingOutlet, connection, idle, until

EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "300"))
USERS = ("ana", "ben", "cara")
DOCS = {DocKind.WORKOUT: ids.workout("w"), DocKind.TEMPLATE: ids.template("t")}


# -- what may happen --------------------------------------------------------------------------


def often(times: int, *parts: Any) -> list[st.SearchStrategy[tuple[Any, ...]]]:
    """A step that is taken this often among the others: its name, and what it is told."""
    told = (st.sampled_from(part) if isinstance(part, tuple | list) else part for part in parts[1:])
    return [st.tuples(st.just(parts[0]), *told)] * times


ids_of_items, anywhere = st.integers(0, 1), st.integers(0, 50)
texts = st.text("aé🏋️ž", min_size=1, max_size=3)
EDITS = ("put", "put", "type", "type", "type", "patch", "patch", "remove", "title")
LINES = ("one", "one", "all", "all", "lose", "double")
FAULTS = ("wait", "wait", "go on", "go on", "append", "append", "load", "compact")
REFUSED = ("garbage", "gap", "gap", "not theirs")
STEPS = st.lists(
    st.one_of(
        *often(12, "edit", USERS, EDITS, ids_of_items, texts),
        *often(4, "intend", USERS, ("add", "move", "remove", "set", "start"), ids_of_items),
        *often(10, "send", USERS, LINES, anywhere),
        *often(6, "receive", USERS, LINES, anywhere),
        *often(2, "hang_up", USERS),
        *often(3, "call", USERS),
        *often(1, "sync", USERS),
        *often(4, "store", FAULTS),
        *often(2, "refuse", REFUSED),
        *often(1, "restart"),
    ),
    min_size=25,
    max_size=70,
)


class Client:
    """A user's document behind a bad line."""

    def __init__(self, user_id: str, kind: DocKind) -> None:
        self.user_id = user_id
        self.peer = Peer(kind)
        self.connection: Connection = connection(user_id)
        self.is_connected = False
        self.outbox: list[bytes] = []
        self.inbox: list[bytes] = []

    def edit(self, what: str, n: int, text: str) -> None:
        edit = edit_template if self.peer.kind is DocKind.TEMPLATE else edit_workout
        update = self.peer.change(lambda roots: edit(roots, self.user_id, what, n, text))
        if self.is_connected and update != EMPTY:
            self.outbox.append(update)


def edit_workout(roots: dict[str, Any], user_id: str, what: str, n: int, text: str) -> None:
    exercises, sets, own = roots["exercises"], roots["sets"], f"{user_id}-{n}"
    if what == "put":
        exercises[f"e{n}"] = Map(exercise_fields(name=text, order=f"a{n}"))
    elif what == "type":
        of = {"exercise": f"e{n}"} if f"e{n}" in exercises else {}
        sets[own] = Map(set_fields(user_id=user_id, note=text, **of))
    elif what == "patch" and own in sets:
        sets[own]["reps"] = len(text)
    elif what == "patch" and f"e{n}" in exercises:
        exercises[f"e{n}"]["name"] = text
    elif what == "remove" and own in sets:
        del sets[own]
    elif what == "remove" and f"e{n}" in exercises:
        del exercises[f"e{n}"]
        for set_id, fields in list(sets.items()):
            if fields["user_id"] == user_id and fields.get("exercise") == f"e{n}":
                del sets[set_id]
    elif what == "title":
        roots["meta"]["title"] = text


def edit_template(roots: dict[str, Any], user_id: str, what: str, n: int, text: str) -> None:
    exercises, notes = roots["exercises"], roots["notes"]
    exercise = exercises.get(f"e{n}")
    if what == "put":
        fields = exercise_fields(name=text, order=f"a{n}")
        exercises[f"e{n}"] = Map({**fields, "note": Text(text), "sets": Map()})
    elif what == "type" and exercise is not None:
        exercise["note"].insert(0, text)
        exercise["sets"][f"{user_id}-{n}"] = Map({"order": "a0", "kind": "normal", "reps": n})
    elif what == "type":
        notes.insert(len(str(notes).encode()), text)
    elif what == "patch" and exercise is not None and len(exercise["sets"]):
        exercise["sets"][next(iter(exercise["sets"]))]["reps"] = len(text)
    elif what == "patch":
        notes.insert(0, text)
    elif what == "remove" and exercise is not None:
        del exercises[f"e{n}"]
    elif what == "remove":
        notes.clear()
    elif what == "title":
        roots["meta"]["title"] = text


class Network(RecordingOutlet):
    """Puts what rooms tell their members on the lines of the clients."""

    def __init__(self, clients: dict[str, Client]) -> None:
        super().__init__()
        self.clients = clients

    def committed(self, commit: Committed) -> None:
        for client in self.clients.values():
            is_sender = client.connection.id == commit.sender
            if client.is_connected and commit.update is not None and not is_sender:
                client.inbox.append(commit.update)


class World:
    """A server, three clients, and everything that goes wrong between them."""

    def __init__(self, kind: DocKind) -> None:
        self.name: DocName = DOCS[kind]
        self.clients = {user_id: Client(user_id, kind) for user_id in USERS}
        self.bench = Bench(outlet=Network(self.clients), compact_after=4)
        self.desk = Desk(self.bench)
        self.asked: set[asyncio.Future[Any]] = set()
        self.acked: list[bytes] = []

    async def open(self) -> None:
        if self.name.kind is DocKind.WORKOUT:
            await self.desk.do("ana", "workout:create", workout_id=self.name.id, mode="group")
            invite, role = "workout:invite", "participant"
        else:
            await self.desk.do("ana", "template:create", template_id=self.name.id, title="x")
            invite, role = "template:share", "editor"
        for user_id in USERS[1:]:
            await self.desk.do("ana", invite, **self.key, user_id=user_id, role=role)
        for client in self.clients.values():
            await self.connect(client)

    @property
    def key(self) -> dict[str, str]:
        return {f"{self.name.kind.value}_id": self.name.id}

    async def take(self, name: str, *told: Any) -> None:
        """One step, and what follows of itself."""
        await getattr(self, name)(*told)
        await idle(10)

    # -- editing ------------------------------------------------------------------------------

    async def edit(self, user_id: str, what: str, n: int, text: str) -> None:
        self.clients[user_id].edit(what, n, text)

    async def intend(self, user_id: str, what: str, n: int) -> None:
        """A thin client's intent; it may be refused, and waits as long as the store does."""
        if self.name.kind is DocKind.TEMPLATE:
            event, data = "template:update_meta", {"meta": {"title": f"{what} {n}"}}
        else:
            event, data = {
                "add": ("exercise:add", {"exercise_id": f"e{n}", "exercise": {"name": "Row"}}),
                "move": ("exercise:move", {"exercise_id": f"e{n}", "before": "e0"}),
                "remove": ("exercise:remove", {"exercise_id": f"e{n}"}),
                "set": (
                    "set:complete",
                    {"exercise_id": "e0", "set_id": f"{user_id}-{n}", "set": {"reps": 5}},
                ),
                "start": ("start", {}),
            }[what]
            event = f"workout:{event}"
        asked = asyncio.ensure_future(self.desk.ask(user_id, event, {**self.key, **data}))
        self.asked.add(asked)

    async def refuse(self, how: str) -> None:
        """Something is refused while other changes wait, or are on their way to the disk."""
        state = await self.bench.state(self.name)
        peer, other = Peer(self.name.kind, state), Peer(self.name.kind, state)
        if how == "gap":
            peer.apply(other.exercise("unseen", sets={}))
        update = {
            "garbage": lambda: b"\x01\x01\x01\x00",
            "gap": lambda: peer.patch("exercises", "unseen", name="x"),
            "not theirs": lambda: peer.put("meta", "owner_id", "eve"),
        }[how]()
        with contextlib.suppress(Invalid, Unsynced, Forbidden, Unavailable):
            await self.bench.submit(update, connection("ana", "odd one"), self.name)
            raise AssertionError(f"{how} was taken")

    # -- the lines ----------------------------------------------------------------------------

    async def send(self, user_id: str, how: str, at: int) -> None:
        client = self.clients[user_id]
        for update in carried(client.outbox, how, at):
            await self.submit(client, update)

    async def receive(self, user_id: str, how: str, at: int) -> None:
        client = self.clients[user_id]
        for update in carried(client.inbox, how, at):
            client.peer.apply(update)

    async def hang_up(self, user_id: str) -> None:
        client = self.clients[user_id]
        client.is_connected = False
        client.outbox.clear()
        client.inbox.clear()
        self.bench.hub.leave(self.name, client.connection.id)

    async def call(self, user_id: str) -> None:
        if not self.clients[user_id].is_connected:
            await self.connect(self.clients[user_id])

    async def sync(self, user_id: str) -> None:
        if self.clients[user_id].is_connected:
            await self.exchange(self.clients[user_id])

    async def connect(self, client: Client) -> None:
        with contextlib.suppress(Unavailable):
            await self.bench.join(client.connection, self.name)
            client.is_connected = True
            await self.exchange(client)

    async def exchange(self, client: Client) -> None:
        """Both ways by state vectors, as y-socket.io does."""
        with contextlib.suppress(Unavailable):
            async with self.bench.room(self.name) as live:
                client.peer.apply(live.room.diff(client.peer.vector()))
                vector = live.room.state_vector()
            await self.submit(client, client.peer.lacks(vector))

    async def submit(self, client: Client, update: bytes) -> None:
        try:
            waiting = await self.bench.submit(update, client.connection, self.name)
        except Unsynced:
            await self.exchange(client)  # the server asks for it
        except Unavailable:
            pass  # it asks once the room is there again
        else:
            waiting.add_done_callback(lambda done: self.hear(update, done))

    def hear(self, update: bytes, stored: asyncio.Future[Stored]) -> None:
        if stored.exception() is None:
            self.acked.append(update)

    # -- the server ---------------------------------------------------------------------------

    async def store(self, what: str) -> None:
        if what == "wait":
            self.bench.store.hold("append")
        elif what == "go on":
            self.bench.store.release()
        else:
            self.bench.store.fail(what, Unavailable("not now"))

    async def restart(self) -> None:
        for user_id in USERS:
            await self.hang_up(user_id)
        self.bench.store.release()
        await self.bench.hub.close()
        self.bench.hub = self.bench.another_hub()
        self.desk = Desk(self.bench)

    # -- the end ------------------------------------------------------------------------------

    async def settle(self) -> None:
        """The store works again; then everybody comes back."""
        self.bench.store.release()
        for answer in await asyncio.gather(*self.asked):
            assert answer["ok"] or answer["error"]["code"] != "internal"
        await until(lambda: all(live.room.is_settled for live in self.bench.hub.live))
        assert all(live.room.head == live.room.view for live in self.bench.hub.live)
        await self.has_kept_what_it_acked()
        for _ in range(2):  # once to hand everything in, once to get what came after
            for client in self.clients.values():
                client.is_connected = True
                await self.bench.join(client.connection, self.name)
                await self.exchange(client)
                await until(lambda: all(live.room.is_settled for live in self.bench.hub.live))

    async def has_kept_what_it_acked(self) -> None:
        stored = Room(self.name, await self.bench.store.load(self.name))
        if self.acked:
            assert Replica(self.name.kind, stored.diff()).apply(merge_updates(*self.acked)) is None

    async def is_one(self) -> None:
        """Clients, head, committed document, log and snapshot say the same."""
        async with self.bench.room(self.name) as live:
            room = live.room
            again = Room(self.name, await self.bench.store.load(self.name))
            assert room.head == room.view == again.view == again.head
            assert state_clocks(again.state_vector()) == state_clocks(room.state_vector())
            for client in self.clients.values():
                assert client.peer.content() == room.view
                assert client.peer.vector_clocks() == state_clocks(room.state_vector())
            assert Peer(self.name.kind, again.diff()).content() == room.view
            shown = {"members": live.members(), "now_ms": self.bench.clock.now_ms()}
            assert again.snapshot(**shown) == room.snapshot(**shown)
            self.shows_the_document(room.snapshot(**shown), room.view)

    def shows_the_document(self, snapshot: dict[str, Any], view: dict[str, Any]) -> None:
        assert {item["id"] for item in snapshot["exercises"]} == set(view["exercises"])
        if self.name.kind is DocKind.WORKOUT:
            assert {item["id"]: item for item in snapshot["sets"]} == {
                id_: {**fields, "id": id_} for id_, fields in view["sets"].items()
            }
        else:
            assert snapshot["notes"] == view["notes"]["text"]


def carried(line: list[bytes], how: str, at: int) -> list[bytes]:
    """What comes out at the other end of a line."""
    if not line:
        return []
    if how == "all":
        updates = list(line)
        line.clear()
        return updates
    update = line.pop(at % len(line))
    return {"one": [update], "lose": [], "double": [update, update]}[how]


@pytest.mark.timeout(max(300, EXAMPLES))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(DocKind), steps=STEPS)
def test_in_the_end_all_hold_the_same_and_nothing_acked_is_lost(
    kind: DocKind, steps: list[tuple[Any, ...]]
) -> None:
    async def live_through_it() -> None:
        world = World(kind)
        await world.open()
        for step in steps:
            with contextlib.suppress(RepSyncError):
                await world.take(*step)
        await world.settle()
        await world.is_one()
        await world.bench.close()

    with patch("crdt.hub.FIRST_RETRY_S", 0.001):
        asyncio.run(live_through_it())
