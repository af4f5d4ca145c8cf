"""Every role, every path, every door: the tables of tests/helpers/rules.py, cell by cell.

Here they are played in memory; tests/server/test_rules_at_every_door.py plays some of them over
real sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from crdt.access import Right
from crdt.admission import META
from crdt.errors import RepSyncError
from crdt.ids import ConnectionId, DocKind
from crdt.live import Connection, LiveRoom
from crdt.ports import Committed
from crdt.replica import Put, Remove, Write
from crdt.room import Room
from crdt.wire import AwarenessEntry, encode_awareness
from handlers import REGISTRY
from tests.helpers.replicas import Peer
from tests.helpers.rooms import Bench, Desk, RecordingOutlet, author, new_workout
from tests.helpers.rules import (
    CHANGES,
    EDITS,
    INTENTS,
    MEMBERS,
    NAMES,
    OWNER,
    READING,
    TEMPLATE_INTENTS,
    TEMPLATE_MEMBERSHIPS,
    VISITORS,
    WORKOUT_INTENTS,
    WORKOUT_MEMBERSHIPS,
    Row,
    invitations,
    membership,
    payload,
    played_by,
    rows_of,
    seeds,
    somebody,
)

WORKOUT, TEMPLATE = DocKind.WORKOUT, DocKind.TEMPLATE


@dataclass
class Followed(RecordingOutlet):
    """Keeps a replica up to date, as every other client's is."""

    replica: Peer | None = None

    def committed(self, commit: Committed) -> None:
        super().committed(commit)
        if commit.update is not None and self.replica is not None:
            self.replica.apply(commit.update)


@dataclass
class Scene:
    """One document of ana's with a member for each role, and a replica that follows it."""

    kind: DocKind
    outlet: Followed = field(default_factory=Followed)

    def __post_init__(self) -> None:
        self.name = NAMES[self.kind]
        self.bench = Bench(outlet=self.outlet)
        self.desk = Desk(self.bench)

    async def open(self, *, visibility: str, mode: str = "group", is_locked: bool = False) -> None:
        id_ = {f"{self.kind.value}_id": self.name.id}
        asked = {**id_, "title": "Leg day", "visibility": visibility}
        if self.kind is WORKOUT:
            asked["mode"] = mode
        await self.desk.do(OWNER, f"{self.kind.value}:create", **asked)
        for event, data in invitations(self.kind):
            await self.desk.do(OWNER, event, **data)
        writes = [Put(path, value) for path, value in seeds(self.kind).items()]
        async with self.room() as live:
            await self.bench.hub.edit(live, writes, author(OWNER), "seed", answer=lambda _: {})
            self.outlet.replica = Peer(self.kind, live.room.diff())
        if is_locked:
            await self.desk.do(OWNER, "template:lock", **id_)
        for visitor in VISITORS:
            self.desk.users[visitor] = somebody(visitor)

    @asynccontextmanager
    async def room(self) -> AsyncIterator[LiveRoom]:
        async with self.bench.room(self.name) as live:
            yield live

    async def state(self) -> tuple[Any, ...]:
        """Everything that a refusal must leave as it was: the log with members and records, the
        documents that are shown and planned on, and the other clients' replicas; to the byte."""
        assert self.outlet.replica is not None
        async with self.room() as live:
            room = live.room
            return (
                await self.bench.store.inner.load(self.name),
                room.diff(),
                room.state_vector(),
                room.head == room.view,
                room.roster == room.members,
                room.is_settled,
                self.outlet.replica.lacks(),
                len(self.outlet.commits),
            )

    # -- the doors ----------------------------------------------------------------------------

    def connection(self, me: str) -> Connection:
        return Connection(ConnectionId(f"{me}-1"), somebody(me), {"id": "x", "name": ""}, True)

    async def replica(self) -> Peer:
        async with self.room() as live:
            return Peer(self.kind, live.room.diff())

    async def update(self, me: str, what: str) -> None:
        """The edit, made by a Yjs client."""
        peer = await self.replica()
        update = peer.change(lambda roots: EDITS[self.kind][what](roots, me))
        await (await self.bench.submit(update, self.connection(me), self.name))
        async with self.room() as live:
            assert peer.content() == live.room.view

    async def intend(self, me: str, what: str) -> None:
        """The same, written for an intent whose handler has asked for no right."""
        peer = await self.replica()
        before = peer.content()
        peer.change(lambda roots: EDITS[self.kind][what](roots, me))
        writes = writes_between(before, peer.content())
        async with self.room() as live:
            await self.bench.hub.edit(
                live, writes, author(me), "test", answer=lambda _: {}, by=somebody(me)
            )
            assert peer.content() == live.room.view

    async def list_members(self, me: str, what: str) -> None:
        """A membership, written for an intent whose handler has asked for no right."""
        member = membership(self.kind, me, what)
        async with self.room() as live:
            await self.bench.hub.edit(
                live,
                [],
                author(me),
                "test",
                members=[member],
                answer=lambda _: {},
                by=somebody(me),
            )
            assert live.room.members.get(member.user_id) == (member if member.role else None)

    async def ask(self, me: str, what: str) -> None:
        found = INTENTS[what]
        for step in found.before:
            await self.desk.do(OWNER, f"workout:{step}", workout_id=self.name.id)
        answer = await self.desk.ask(me, found.event, payload(self.name, found, me))
        if not answer["ok"]:
            raise Refusal(answer["error"]["code"])

    async def recovers(self, me: str) -> None:
        """Whoever was refused drops the replica, syncs anew, and works on."""
        peer = await self.replica()
        async with self.room() as live:
            assert peer.content() == live.room.view
            may_write = Right.WRITE in live.room.rights(somebody(me))
            is_locked = live.room.view["meta"].get("locked", False)
        if not may_write:
            return
        if is_locked:
            await self.desk.do(OWNER, "template:unlock", template_id=self.name.id)
            peer = await self.replica()
        update = peer.put("meta", "title", "after all")
        await (await self.bench.submit(update, self.connection(me), self.name))
        assert self.outlet.replica is not None
        assert self.outlet.replica.content() == peer.content()


class Refusal(RepSyncError):
    """What an ack told, as an error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code  # type: ignore[misc]


def writes_between(before: dict[str, Any], after: dict[str, Any]) -> list[Write]:
    writes: list[Write] = []
    for root, items in after.items():
        for key in before[root].keys() | items.keys():
            if key not in items:
                writes.append(Remove((root, key)))
            elif before[root].get(key) != items[key]:
                writes.append(Put((root, key), items[key]))
    return writes


async def verdict(scene: Scene, door: Callable[[str, str], Any], me: str, what: str) -> str:
    """What becomes of it. A refusal must leave no trace and nobody behind."""
    before = await scene.state()
    steps = INTENTS[what].before if what in INTENTS else ()
    try:
        await door(me, what)
    except RepSyncError as refusal:
        if not steps:
            assert await scene.state() == before
        await scene.recovers(me)
        return refusal.code
    async with scene.room() as live:
        assert scene.outlet.replica is not None
        assert scene.outlet.replica.content() == live.room.view == live.room.head
        again = Room(scene.name, await scene.bench.store.inner.load(scene.name))
        assert (again.view, again.members) == (live.room.view, live.room.members)
    return "ok"


async def played(
    kind: DocKind, row: Row, door: Callable[[Scene], Callable[[str, str], Any]]
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(who, visibility, outcome) of a row: as it should be, and as it is."""
    expected = list(played_by(row, kind))
    found = []
    for me, visibility, _ in expected:
        scene = Scene(kind)
        await scene.open(visibility=visibility, is_locked=row.is_locked)
        found.append((me, visibility, await verdict(scene, door(scene), me, row.what)))
        await scene.bench.close()
    return expected, found


def cases(kind: DocKind, table: str, door: str) -> list[Any]:
    """The rows of a table that are about a door."""
    return [
        pytest.param(kind, row, id=f"{kind.value} {row}")
        for row in rows_of(table, is_tagged=True)
        if row.tag in (door, "both")
    ]


# -- the documents ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row"), [case for kind in DocKind for case in cases(kind, CHANGES[kind], "update")]
)
async def test_a_yjs_client_changes_what_the_table_says(kind: DocKind, row: Row) -> None:
    expected, found = await played(kind, row, lambda scene: scene.update)
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "row"), [case for kind in DocKind for case in cases(kind, CHANGES[kind], "intent")]
)
async def test_an_intent_writes_what_the_table_says_whatever_its_handler_asked(
    kind: DocKind, row: Row
) -> None:
    expected, found = await played(kind, row, lambda scene: scene.intend)
    assert found == expected


# -- the intents ------------------------------------------------------------------------------

ALL_INTENTS = [
    pytest.param(kind, row, id=str(row))
    for kind, table in ((WORKOUT, WORKOUT_INTENTS), (TEMPLATE, TEMPLATE_INTENTS))
    for row in rows_of(table)
]


@pytest.mark.parametrize(("kind", "row"), ALL_INTENTS)
async def test_an_intent_is_answered_as_the_table_says(kind: DocKind, row: Row) -> None:
    expected, found = await played(kind, row, lambda scene: scene.ask)
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        pytest.param(kind, row, id=f"{kind.value} {row}")
        for kind, table in (
            (WORKOUT, WORKOUT_MEMBERSHIPS),
            (TEMPLATE, TEMPLATE_MEMBERSHIPS),
        )
        for row in rows_of(table)
    ],
)
async def test_members_are_listed_as_the_table_says_whatever_a_handler_asked(
    kind: DocKind, row: Row
) -> None:
    expected, found = await played(kind, row, lambda scene: scene.list_members)
    assert found == expected


CHANGING_NOTHING = {"workout:join as coach", "template:unlock", "locked template:lock"}
"""Those that write nothing when they are not refused, so that the rules have nothing to say."""


@pytest.mark.parametrize(
    ("kind", "row"), [case for case in ALL_INTENTS if case.id not in CHANGING_NOTHING]
)
async def test_an_intent_is_refused_by_the_rules_even_if_its_handler_forgets_to_ask(
    kind: DocKind, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveRoom, "demand", lambda *_: None)
    expected, found = await played(kind, row, lambda scene: scene.ask)
    for (*_, should), (*who, code) in zip(expected, found, strict=True):
        # Something else may stand in the way sooner than the missing right.
        others = {"forbidden", "locked", "conflict", "not_found"}
        assert code == should or {code, should} <= others, who


# -- reading ----------------------------------------------------------------------------------


async def look(scene: Scene, me: str, what: str) -> str:
    """How somebody gets to see the document. Returns: as what, if that is told, else `ok`."""
    id_ = {f"{scene.kind.value}_id": scene.name.id}
    if what.startswith(("workout:", "template:")):
        event = what.partition(",")[0]
        answer = await scene.desk.ask(me, event, id_)
        if not answer["ok"]:
            return str(answer["error"]["code"])
        if me in MEMBERS[scene.kind].values():
            return "ok"
        return str(answer.get("role", "ok"))
    if what.startswith("subscribe"):
        stream = f"{scene.name}:progress"
        answer = await scene.desk.do(me, "subscribe", streams=[stream])
        return answer["errors"][stream]["code"] if answer["denied"] else "ok"
    before = await scene.state()
    async with scene.room() as live:
        who = scene.connection(me)
        try:
            live.demand(who.user, Right.READ)  # as the door does
        except RepSyncError as refusal:
            return refusal.code
        scene.bench.hub.join(live, who)
        if what.startswith("awareness"):
            frame = encode_awareness([AwarenessEntry(7, 1, {"cursor": 3})])
            assert live.presence.receive(who.id, who.user, frame).relay
            assert len(live.presence) == 1
    assert await scene.state() == before
    return "ok"


@pytest.mark.parametrize(
    "row", [pytest.param(r, id=str(r)) for r in rows_of(READING, is_tagged=True)]
)
async def test_who_sees_a_document_follows_from_its_visibility(row: Row) -> None:
    kind = TEMPLATE if "template" in row.what else WORKOUT
    people = [(me, "member") for me in MEMBERS[kind].values()]
    people += zip(VISITORS, ("friend", "stranger", "admin"), strict=True)
    for is_locked in {False, kind is TEMPLATE}:
        for me, column in people:
            scene = Scene(kind)
            mode = "solo" if "solo" in row.what else "group"
            await scene.open(visibility=row.tag, mode=mode, is_locked=is_locked)
            assert await look(scene, me, row.what) == row.cells[column], me
            await scene.bench.close()


# -- that the tables are whole ----------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DocKind))
def test_every_field_of_meta_stands_in_the_table_for_both_doors(kind: DocKind) -> None:
    doors: dict[str, set[str]] = {}
    for row in rows_of(CHANGES[kind], is_tagged=True):
        tags = {"update", "intent"} if row.tag == "both" else {row.tag}
        doors.setdefault(row.what, set()).update(tags)
    written = {write.path[1] for write in new_workout() if write.path[0] == "meta"}
    for key in {*META[kind], *(written if kind is WORKOUT else ("owner_id", "forked_from"))}:
        assert doors[f"meta.{key} put"] == {"update", "intent"}, key


def test_every_row_says_what_is_done_and_everything_done_has_a_row() -> None:
    for kind in DocKind:
        assert {row.what for row in rows_of(CHANGES[kind], is_tagged=True)} == set(EDITS[kind])
    asked = {row.what for row in [*rows_of(WORKOUT_INTENTS), *rows_of(TEMPLATE_INTENTS)]}
    assert asked == set(INTENTS)


ASKING_FOR_NO_RIGHT = {
    *("workout:create", "workout:list", "workout:leave"),
    *("template:create", "template:list", "template:leave"),
}


def test_every_intent_about_a_document_stands_in_a_table() -> None:
    """Who adds an intent adds its row."""
    events = {event for event in REGISTRY.intents if event.startswith(("workout:", "template:"))}
    told = {found.event for found in INTENTS.values()}
    told |= {row.what.partition(",")[0] for row in rows_of(READING, is_tagged=True)}
    assert events - told == ASKING_FOR_NO_RIGHT
