"""Whatever is edited, lost, doubled, reordered, cut or refused: in the end all hold the same.

`CONVERGENCE_EXAMPLES=5000 pytest tests/crdt/test_convergence.py` looks longer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pycrdt import Map, Text

from crdt import ids
from crdt.errors import Unavailable, Unsynced
from crdt.hub import Connection
from crdt.ids import DocKind, DocName
from crdt.ports import Committed
from crdt.room import Room
from crdt.wire import state_clocks
from tests.helpers.replicas import EMPTY, Peer, exercise_fields, set_fields
from tests.helpers.rooms import Bench, Desk, RecordingOutlet, connection, idle, until

T = TypeVar("T")

EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "200"))
STEPS = 50
USERS = ("ana", "ben", "cara")
DOCS = {DocKind.WORKOUT: ids.workout("w"), DocKind.TEMPLATE: ids.template("t")}

who = st.sampled_from(USERS)
small = st.integers(0, 3)
anywhere = st.integers(0, 50)
texts = st.text("aé🏋️ž", min_size=1, max_size=4)


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
        sets[own] = Map(set_fields(user_id=user_id, exercise=f"e{n}", note=text))
    elif what == "patch" and own in sets:
        sets[own]["reps"] = len(text)
    elif what == "patch" and f"e{n}" in exercises:
        exercises[f"e{n}"]["name"] = text
    elif what == "remove" and own in sets:
        del sets[own]
    elif what == "remove" and f"e{n}" in exercises:
        del exercises[f"e{n}"]
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

    clients: dict[str, Client]

    def committed(self, commit: Committed) -> None:
        for client in self.clients.values():
            is_sender = client.connection.id == commit.sender
            if client.is_connected and commit.update is not None and not is_sender:
                client.inbox.append(commit.update)


class Convergence(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(DocKind))
    def open(self, kind: DocKind) -> None:
        self.runner = asyncio.Runner()
        self.name: DocName = DOCS[kind]
        self.clients = {user_id: Client(user_id, kind) for user_id in USERS}
        network = Network()
        network.clients = self.clients
        self.run(self.make(network))

    async def make(self, network: Network) -> None:
        self.bench = Bench(outlet=network, compact_after=4)
        self.desk = Desk(self.bench)
        if self.name.kind is DocKind.WORKOUT:
            await self.desk.do("ana", "workout:create", workout_id=self.name.id, mode="group")
            invite, role = "workout:invite", "participant"
        else:
            await self.desk.do("ana", "template:create", template_id=self.name.id, title="x")
            invite, role = "template:share", "editor"
        for user_id in USERS[1:]:
            await self.desk.do("ana", invite, **self.key(), user_id=user_id, role=role)
        for client in self.clients.values():
            await self.connect(client)

    def key(self) -> dict[str, str]:
        return {f"{self.name.kind.value}_id": self.name.id}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def and_all_that_follows() -> T:
            result = await work
            await idle(10)
            return result

        return self.runner.run(and_all_that_follows())

    # -- editing ------------------------------------------------------------------------------

    @rule(
        user_id=who,
        what=st.sampled_from(["put", "type", "type", "patch", "patch", "remove", "title"]),
        n=small,
        text=texts,
    )
    def edit(self, user_id: str, what: str, n: int, text: str) -> None:
        self.clients[user_id].edit(what, n, text)

    @rule(
        user_id=who,
        what=st.sampled_from(["add", "move", "remove", "set", "meta"]),
        n=small,
        m=small,
    )
    def intend(self, user_id: str, what: str, n: int, m: int) -> None:
        """A thin client's intent; it may be refused, and waits if the store does."""
        if self.name.kind is DocKind.TEMPLATE:
            event, data = "template:update_meta", {"meta": {"title": f"{what} {n}"}}
        else:
            event, data = {
                "add": ("exercise:add", {"exercise_id": f"e{n}", "exercise": {"name": "Row"}}),
                "move": ("exercise:move", {"exercise_id": f"e{n}", "before": f"e{m}"}),
                "remove": ("exercise:remove", {"exercise_id": f"e{n}"}),
                "set": (
                    "set:complete",
                    {"exercise_id": f"e{n}", "set_id": f"{user_id}-{m}", "set": {"reps": 5}},
                ),
                "meta": ("start", {}),
            }[what]
            event = f"workout:{event}"
        self.run(self.ask(user_id, event, data))

    async def ask(self, user_id: str, event: str, data: dict[str, Any]) -> None:
        asked = asyncio.ensure_future(self.desk.ask(user_id, event, {**self.key(), **data}))
        asked.add_done_callback(lambda done: done.cancelled() or done.result())

    # -- the lines ----------------------------------------------------------------------------

    @rule(user_id=who, at=anywhere)
    def send(self, user_id: str, at: int) -> None:
        """One of the updates under way arrives; not always the first."""
        client = self.clients[user_id]
        if client.outbox:
            update = client.outbox.pop(at % len(client.outbox))
            self.run(self.submit(client, update))

    @rule(user_id=who)
    def send_all(self, user_id: str) -> None:
        client = self.clients[user_id]
        updates, client.outbox = client.outbox, []
        for update in updates:
            self.run(self.submit(client, update))

    @rule(user_id=who, at=anywhere)
    def receive(self, user_id: str, at: int) -> None:
        client = self.clients[user_id]
        if client.inbox:
            client.peer.apply(client.inbox.pop(at % len(client.inbox)))

    @rule(user_id=who)
    def receive_all(self, user_id: str) -> None:
        client = self.clients[user_id]
        updates, client.inbox = client.inbox, []
        for update in updates:
            client.peer.apply(update)

    @rule(user_id=who, at=anywhere, inbound=st.booleans(), doubled=st.booleans())
    def lose_or_double(self, user_id: str, at: int, inbound: bool, doubled: bool) -> None:
        client = self.clients[user_id]
        line = client.inbox if inbound else client.outbox
        if line:
            update = line.pop(at % len(line))
            line.extend([update, update] if doubled else [])

    @rule(user_id=who)
    def hang_up(self, user_id: str) -> None:
        client = self.clients[user_id]
        client.is_connected = False
        client.outbox.clear()
        client.inbox.clear()
        self.bench.hub.leave(self.name, client.connection.id)

    @rule(user_id=who)
    def call_again(self, user_id: str) -> None:
        client = self.clients[user_id]
        if not client.is_connected:
            self.run(self.connect(client))

    @rule(user_id=who)
    def sync_again(self, user_id: str) -> None:
        client = self.clients[user_id]
        if client.is_connected:
            self.run(self.sync(client))

    async def connect(self, client: Client) -> None:
        try:
            await self.bench.join(client.connection, self.name)
        except Unavailable:
            return
        client.is_connected = True
        await self.sync(client)

    async def sync(self, client: Client) -> None:
        """Both ways by state vectors, as y-socket.io does."""
        try:
            async with self.bench.room(self.name) as live:
                client.peer.apply(live.room.diff(client.peer.vector()))
                vector = live.room.state_vector()
        except Unavailable:
            return
        await self.submit(client, client.peer.lacks(vector))

    async def submit(self, client: Client, update: bytes) -> None:
        try:
            waiting = await self.bench.submit(update, client.connection, self.name)
            waiting.add_done_callback(lambda done: done.exception())
        except Unsynced:
            await self.sync(client)  # the server asks for it
        except Unavailable:
            return  # and for it once the room is there again

    # -- the server ---------------------------------------------------------------------------

    @rule()
    def the_store_waits(self) -> None:
        self.bench.store.hold("append")

    @rule()
    def the_store_goes_on(self) -> None:
        self.bench.store.release()
        self.run(idle())

    @rule(method=st.sampled_from(["append", "append", "load", "compact"]))
    def the_store_will_fail(self, method: str) -> None:
        self.bench.store.fail(method, Unavailable("not now"))

    @precondition(lambda self: all(not client.is_connected for client in self.clients.values()))
    @rule()
    def the_server_starts_anew(self) -> None:
        self.run(self.restart())

    async def restart(self) -> None:
        self.bench.store.release()
        await self.bench.hub.close()
        self.bench.hub = self.bench.another_hub()
        self.desk = Desk(self.bench)

    # -- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            try:
                self.run(self.settle())
            finally:
                self.runner.close()

    async def settle(self) -> None:
        self.bench.store.release()
        await idle(50)
        for _ in range(2):  # once to hand everything in, once to get what came after
            for client in self.clients.values():
                client.is_connected = True
                await self.bench.join(client.connection, self.name)
                await self.sync(client)
                await until(lambda: all(live.room.is_settled for live in self.bench.hub.live))
        await self.all_are_equal()

    async def all_are_equal(self) -> None:
        async with self.bench.room(self.name) as live:
            room = live.room
            assert room.is_settled
            assert room.head == room.view
            for client in self.clients.values():
                assert client.peer.content() == room.view
                assert client.peer.vector_clocks() == state_clocks(room.state_vector())
                assert room.diff(client.peer.vector())[:1] == b"\x00"  # nothing but deletions
            again = Room(self.name, await self.bench.store.load(self.name))
            assert again.view == again.head == room.view
            assert state_clocks(again.state_vector()) == state_clocks(room.state_vector())
            assert again.seq == room.seq
            assert Peer(room.name.kind, again.diff()).content() == room.view
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


class TestConvergence(Convergence.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
