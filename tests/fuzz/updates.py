"""Yjs updates, from members of every role, given to a room through the hub.

An input is a document's kind and a row of (who, update). Updates are made by editing a document as
a client would, within the schema and against it, and are then spliced: other client IDs, clocks,
parents, contents and delete sets, parts of two merged, halves, repeats.

What must hold: an update is taken whole or refused with a code; what was refused has left no trace,
neither in the room nor in its log nor with the others; what was taken was its sender's to change;
and whoever behaves can go on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from random import Random

from pycrdt import get_update, merge_updates

from crdt.access import Member
from crdt.errors import RepSyncError
from crdt.hub import RoomHub
from crdt.ids import DocKind, UserId
from crdt.live import LiveRoom
from crdt.memory import MemoryStore
from crdt.ports import Append, Entry, Summary
from crdt.replica import EMPTY_UPDATE, GONE, MAX_DEPTH, Replica, View
from crdt.room import Room
from crdt.wire import is_deeper, state_clocks
from tests.fuzz.edits import HONEST, HOSTILE, edited
from tests.fuzz.splices import odd_vector, splice
from tests.fuzz.stories import BASES, KINDS, MAX_STEPS, NAMES, ROLES, USERS, Step, Story
from tests.fuzz.target import ACCEPTED, Target, mutate_bytes, mutate_list, pick
from tests.helpers import yjs_v1
from tests.helpers.replicas import Peer
from tests.helpers.rooms import NOW_MS, FakeClock, RecordingOutlet, author, connection
from tests.helpers.yjs_v1 import Section, Update

WRITERS = frozenset({"owner", "coach", "participant", "editor"})
REFUSALS = frozenset({"invalid", "unsynced", "forbidden"})


@dataclass(frozen=True)
class Photo:
    """Everything that a refused update must leave as it was."""

    committed: bytes
    committed_clocks: Mapping[int, int]
    head_clocks: Mapping[int, int]
    head: View
    view: View
    log_length: int
    seq: int
    other: bytes
    told: int


def _in_any_order(update: bytes) -> bytes:
    """The bytes of an update, sorted: native code writes the keys of a plain map in another order
    each time, and the clients of a document that was built anew."""
    return bytes(sorted(update))


def _guarded(make: Callable[[], bytes], otherwise: bytes) -> bytes:
    """What native code makes of updates, where it does not fail."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return otherwise


class Updates(Target):
    name = "updates"

    def seeds(self) -> list[bytes]:
        stories = []
        for kind in KINDS:
            for edit in (*HONEST[kind], *HOSTILE):
                for who in range(len(USERS[kind])):
                    random = Random(f"{kind} {edit.__name__} {who}")
                    story = Story(kind, [])
                    update = edited(story, USERS[kind][who], edit, random)
                    if update != EMPTY_UPDATE:
                        story.steps.append(Step(who, update))
                        stories.append(story.encode())
        return stories

    def generate(self, random: Random) -> bytes:
        story = Story(random.choice(KINDS), [])
        for _ in range(random.randrange(1, 5)):
            self._add(story, random)
        return story.encode()

    def mutate(self, data: bytes, random: Random) -> bytes:
        story = Story.decode(data)
        if not story.steps or (len(story.steps) < MAX_STEPS and random.randrange(5) == 0):
            self._add(story, random)
            return story.encode()
        step = random.choice(story.steps)
        how = random.randrange(13)
        if how <= 3:
            step.update = splice(step.update, random)
        elif how == 12:
            step.asks = not step.asks
            step.update = odd_vector(random)
        elif how == 4:
            step.update = mutate_bytes(step.update, random)
        elif how == 5:
            step.who = random.randrange(len(USERS[story.kind]))
        elif how == 6:
            step.is_together = not step.is_together
        elif how == 7:
            mutate_list(story.steps, random)
        elif how == 8:
            other = random.choice((random.choice(story.steps).update, BASES[story.kind]))
            step.update = _guarded(lambda: merge_updates(step.update, other), step.update)
        elif how == 9:
            vector = random.choice((b"\x00", Peer(story.kind, BASES[story.kind]).vector()))
            step.update = _guarded(lambda: get_update(step.update, vector), step.update)
        elif how == 10:
            self._halve(story, step, random)
        else:
            story.kind = KINDS[1 - KINDS.index(story.kind)]
        return story.encode()

    def _add(self, story: Story, random: Random) -> None:
        who = random.randrange(len(USERS[story.kind]))
        edit = random.choice(pick(random, (3, HONEST[story.kind]), (2, HOSTILE)))
        update = edited(story, USERS[story.kind][who], edit, random)
        story.steps.append(Step(who, update, random.randrange(4) == 0))

    def _halve(self, story: Story, step: Step, random: Random) -> None:
        """Send an update in two, the second part maybe first."""
        try:
            found = yjs_v1.parse(step.update)
        except (ValueError, RecursionError):
            step.update = step.update[: random.randrange(len(step.update) + 1)]
            return
        long = [section for section in found.sections if len(section.structs) > 1]
        if not long:
            return
        section = random.choice(long)
        at = random.randrange(1, len(section.structs))
        head, tail = section.structs[:at], section.structs[at:]
        first = Update([Section(section.client, section.clock, head)], [])
        section.clock += sum(struct.length for struct in head)
        section.structs[:] = tail
        step.update = found.encode()
        where = story.steps.index(step) + random.randrange(2)
        story.steps.insert(where, Step(step.who, first.encode()))

    async def play(self, data: bytes, outcomes: Counter[str]) -> None:
        story = Story.decode(data)
        world = await World.open(story.kind)
        try:
            async with world.hub.lease(NAMES[story.kind]) as live:
                for step in story.steps:
                    outcome = await world.submit(live, story.user(step), step)
                    outcomes[outcome] += 1
                await world.settle(live)
                await world.is_one(live)
                await world.lets_ana_go_on(live)
        finally:
            await world.hub.close()


class World:
    """A room with its log, and another replica of the document."""

    def __init__(self, kind: DocKind) -> None:
        self.kind = kind
        self.store = MemoryStore()
        self.outlet = RecordingOutlet()
        self.hub = RoomHub(self.store, self.outlet, FakeClock())
        self.other = Replica(kind, BASES[kind], is_watched=False)
        self._shown = 0
        self._last_view: View = {}

    @classmethod
    async def open(cls, kind: DocKind) -> World:
        world = cls(kind)
        members = [
            Member(UserId(user_id), role, user_id.title())
            for user_id, role in ROLES[kind].items()
            if role
        ]
        name = NAMES[kind]
        made = Entry(author("ana"), NOW_MS, "create", members=members)
        summary = Summary(name, UserId("ana"), "Leg day", "planned", "group", "private")
        await world.store.append(Append(name, BASES[kind], [made], summary, creates=True))
        return world

    async def submit(self, live: LiveRoom, user_id: str, step: Step) -> str:
        """One update. Returns: what became of it."""
        room = live.room
        before = await self._photo(room)
        if step.asks:
            outcome = self._ask(room, step.update)
            assert await self._photo(room) == before, "an answer changed something"
            return outcome
        try:
            stored = self.hub.submit(live, step.update, connection(user_id))
        except RepSyncError as refusal:
            assert refusal.code in REFUSALS, refusal
            json.dumps(refusal.to_wire(), allow_nan=False)
            assert await self._photo(room) == before, f"{refusal} left a trace"
            return refusal.code
        was_theirs(self.kind, user_id, before.head, room.head)
        if ROLES[self.kind][user_id] not in WRITERS:
            assert await self._photo(room) == before, "a reader has changed something"
        if not step.is_together:
            await stored
            self._catch_up()
        return ACCEPTED

    def _ask(self, room: Room, vector: bytes) -> str:
        try:
            answer = room.diff(vector)
        except RepSyncError as refusal:
            assert refusal.code == "invalid", refusal
            return refusal.code
        yjs_v1.parse(answer)
        return ACCEPTED

    async def settle(self, live: LiveRoom) -> None:
        while live.waiters:
            await live.waiters[-1]
        self._catch_up()

    def _catch_up(self) -> None:
        """The other replica takes what it was sent."""
        for commit in self.outlet.commits[self._shown :]:
            if commit.update is not None:
                self.other.load(commit.update)
        self._shown = len(self.outlet.commits)

    async def _photo(self, room: Room) -> Photo:
        loaded = await self.store.load(room.name)
        assert loaded is not None
        head = room._head
        return Photo(
            _in_any_order(room.diff()),
            state_clocks(room.state_vector()),
            state_clocks(head.state_vector()),
            deepcopy(room.head),
            deepcopy(room.view),
            len(loaded.updates),
            loaded.seq,
            _in_any_order(self.other.diff()),
            len(self.outlet.commits),
        )

    async def is_one(self, live: LiveRoom) -> None:
        """Head, committed document, log and the other replica say the same, and can be shown."""
        room = live.room
        again = Room(room.name, await self.store.load(room.name))
        clocks = state_clocks(room.state_vector())
        views = (room.head, room.view, again.view, self.other.read())
        views = (*views, Replica(self.kind, room.diff()).read())
        assert all(view == room.view for view in views)
        for replica in (again, self.other, room._head):
            assert state_clocks(replica.state_vector()) == clocks
        shown = live.snapshot(NOW_MS)
        assert not is_deeper(shown, MAX_DEPTH + 6)
        json.dumps(shown, allow_nan=False).encode()

    async def lets_ana_go_on(self, live: LiveRoom) -> None:
        """Whoever behaves finds the room as good as ever."""
        peer = Peer(self.kind, live.room.diff())
        update = peer.exercise("of-ana", **({"sets": {}} if self.kind is KINDS[1] else {}))
        await self.hub.submit(live, update, connection("ana"))
        self._catch_up()
        made = Replica(self.kind, peer.lacks()).read()["exercises"]["of-ana"]
        for view in (live.room.view, self.other.read()):
            assert view["exercises"]["of-ana"] == made


def was_theirs(kind: DocKind, user_id: str, before: View, after: View) -> None:
    """Raises AssertionError if a change was not its sender's to make.

    Says once more, and in other words, what `crdt/admission.py` says.
    """
    role = ROLES[kind][user_id]
    changed = {
        (root, key)
        for root in after
        for key in before[root].keys() | after[root].keys()
        if before[root].get(key, GONE) != after[root].get(key, GONE)
    }
    if role not in WRITERS:
        assert not changed, f"{role or 'a stranger'} changed {changed}"
    open_fields = {"title"} if kind is DocKind.WORKOUT else {"title", "goal", "difficulty"}
    if role == "owner":
        open_fields |= {"mode", "visibility"} if kind is DocKind.WORKOUT else {"visibility"}
    for root, key in changed:
        old, new = before[root].get(key), after[root].get(key)
        if root == "meta":
            assert key in open_fields, f"{role} changed meta.{key}"
        if root == "timers":
            raise AssertionError(f"{role} changed a timer")
        if root == "sets":
            for item in (old, new):
                whose = item.get("user_id") if isinstance(item, dict) else user_id
                assert whose == user_id, f"{user_id} changed a set of {whose}"
        assert not is_deeper(new, MAX_DEPTH), f"{root}.{key} is nested too deeply"
