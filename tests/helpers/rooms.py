"""Rooms in memory: a clock to set, an outlet that remembers, a store that fails when told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from crdt import ids, workout
from crdt.access import Member, User
from crdt.events import DomainEvent
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.live import Connection, LiveRoom
from crdt.memory import MemoryStore
from crdt.ports import Answer, Author, Committed, Entry, SharedLog, Stored
from crdt.replica import Put, Write
from crdt.revocations import Revocation, TokenFacts
from crdt.room import Room
from handlers import REGISTRY
from handlers.context import Caller, Services
from handlers.streams import STREAMS, Sources
from tests.helpers.api_documents import EVENTS, sockets_document

NOW_MS = 1_700_000_000_000
DEADLINE_S = 5.0
LEG_DAY = ids.workout("leg-day")


class FakeClock:
    """Time that passes only when it is told to."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, ms: int) -> None:
        self._now_ms += ms


@dataclass
class RecordingOutlet:
    """What rooms told their members."""

    commits: list[Committed] = field(default_factory=list)
    resets: list[tuple[DocName, str]] = field(default_factory=list)
    presences: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)

    def committed(self, commit: Committed) -> None:
        self.commits.append(commit)

    def reset(self, doc: DocName, reason: str) -> None:
        self.resets.append((doc, reason))

    def aware(self, doc: DocName, awareness: bytes) -> None:
        self.shown.append(awareness)

    def present(self, doc: DocName, event: str, payload: dict[str, Any]) -> None:
        self.presences.append((event, payload))

    @property
    def events(self) -> list[DomainEvent]:
        return [event for commit in self.commits for event in commit.events]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The payloads of all events of this name."""
        return [event.payload for event in self.events if event.name == name]


class FaultyStore:
    """A store that counts its calls, and fails or waits where it is told to."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = MemoryStore() if inner is None else inner
        self.calls: Counter[str] = Counter()
        self._faults: dict[str, list[Exception]] = {}
        self._gates: dict[str, asyncio.Event] = {}

    @property
    def durability(self) -> Any:
        return self.inner.durability

    def fail(self, method: str, *faults: Exception) -> None:
        """Raise these, one for each of the next calls."""
        self._faults.setdefault(method, []).extend(faults)

    def hold(self, method: str) -> asyncio.Event:
        """Let calls wait until the event that is returned is set."""
        gate = self._gates.get(method)
        if gate is None or gate.is_set():
            gate = self._gates[method] = asyncio.Event()
        return gate

    def release(self) -> None:
        """Let everything go on, and fail nothing any more."""
        self._faults.clear()
        for gate in self._gates.values():
            gate.set()

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[method] += 1
            if (gate := self._gates.get(method)) is not None:
                await gate.wait()
            if faults := self._faults.get(method):
                raise faults.pop(0)
            return await getattr(self.inner, method)(*args, **kwargs)

        return call


async def until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> None:
    """Wait until something is true; fail if it does not become so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition: nobody signals it
            await asyncio.sleep(0.001)


async def idle(rounds: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def user(user_id: str = "ana", **claims: Any) -> User:
    return User(UserId(user_id), claims.pop("name", user_id.title()), **claims)


def author(user_id: str = "ana", connection_id: str | None = None) -> Author:
    return Author(
        UserId(user_id), user_id.title(), "phone", ConnectionId(connection_id or f"{user_id}-1")
    )


def connection(
    user_id: str = "ana", connection_id: str | None = None, *, document: bool = True, **claims: Any
) -> Connection:
    return Connection(
        ConnectionId(connection_id or f"{user_id}-1"),
        user(user_id, **claims),
        {"id": "phone", "name": "Phone"},
        document,
    )


# -- a room by itself -------------------------------------------------------------------------


def new_workout(owner_id: str = "ana", **changes: Any) -> list[Write]:
    fields = {"title": "Leg day", "mode": "group", "visibility": "private", "now_ms": NOW_MS}
    return workout.create(owner_id=UserId(owner_id), **{**fields, **changes})


def settle(room: Room, awards: Mapping[str, Any] | None = None) -> Committed:
    """Commit everything that waits, as if a store had taken it; `awards` go to the first change."""
    batch = room.take_batch()
    assert batch is not None
    by_entry = [awards or {}, *({} for _ in batch.changes[1:])]
    return room.commit(batch, Stored(room.seq + 1, awards or {}, by_entry))


def make_room(name: DocName = LEG_DAY, writes: Sequence[Write] | None = None) -> Room:
    """A stored workout (or template) of ana's."""
    room = Room(name)
    owner = Member(UserId("ana"), "owner", "Ana")
    if writes is None:
        workout_writes = name.kind is DocKind.WORKOUT
        writes = new_workout() if workout_writes else [Put(("meta", "owner_id"), "ana")]
    room.edit(writes, author(), NOW_MS, "create", members=[owner])
    settle(room)
    return room


def entry(user_id: str = "ana", at_ms: int = NOW_MS, **changes: Any) -> Entry:
    return Entry(author(user_id), at_ms, changes.pop("event", "sync-update"), **changes)


# -- a hub ------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A hub with everything that it needs, and a workout of ana's in it."""

    store: FaultyStore = field(default_factory=FaultyStore)
    outlet: RecordingOutlet = field(default_factory=RecordingOutlet)
    clock: FakeClock = field(default_factory=FakeClock)
    idle_timeout_s: float = 60.0
    compact_after: int = 500
    max_room_members: int = 500
    max_room_connections: int = 2_000
    shared: SharedLog | None = None

    def __post_init__(self) -> None:
        self.hub = self.another_hub()

    def another_hub(self) -> RoomHub:
        """A hub on the same store, as after a restart."""
        return RoomHub(
            self.store,
            self.outlet,
            self.clock,
            idle_timeout_s=self.idle_timeout_s,
            compact_after=self.compact_after,
            max_room_members=self.max_room_members,
            max_room_connections=self.max_room_connections,
            shared=self.shared,
        )

    async def create(self, name: DocName = LEG_DAY, user_id: str = "ana") -> Answer:
        """Make a workout; its owner joins for the events."""
        owner = connection(user_id, f"{user_id}-events", document=False)
        answer = await self.hub.create(
            name,
            new_workout(user_id),
            owner,
            "workout:create",
            op_id=None,
            answer=lambda snapshot: {"workout": snapshot},
        )
        async with self.hub.lease(name) as live:
            self.hub.join(live, owner)
        return answer

    @asynccontextmanager
    async def room(self, name: DocName = LEG_DAY) -> AsyncIterator[LiveRoom]:
        async with asyncio.timeout(DEADLINE_S), self.hub.lease(name) as live:
            yield live

    async def join(self, who: Connection, name: DocName = LEG_DAY) -> None:
        async with self.room(name) as live:
            self.hub.join(live, who)

    async def submit(
        self, update: bytes, who: Connection | None = None, name: DocName = LEG_DAY
    ) -> asyncio.Future[Stored]:
        async with self.room(name) as live:
            return self.hub.submit(live, update, who or connection())

    async def store_update(self, update: bytes, who: Connection | None = None) -> Stored:
        """Submit an update and wait until it is durable."""
        async with asyncio.timeout(DEADLINE_S):
            return await (await self.submit(update, who))

    async def edit(self, *writes: Write, user_id: str = "ana") -> Answer:
        async with self.room() as live:
            return await self.hub.edit(
                live, writes, author(user_id), "test", answer=lambda stored: {"seq": stored.seq}
            )

    async def close(self) -> None:
        """End the hub, whatever a test has left behind."""
        self.store.release()
        async with asyncio.timeout(DEADLINE_S):
            await self.hub.close()

    async def state(self, name: DocName = LEG_DAY) -> bytes:
        async with self.room(name) as live:
            return live.room.diff()


# -- the handlers -----------------------------------------------------------------------------


@dataclass
class FakeSessions:
    """The sockets that there are none of."""

    told: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    held: list[TokenFacts] = field(default_factory=list)
    revoked: list[Revocation] = field(default_factory=list)

    async def refresh(self, connection_id: ConnectionId, token: str) -> int:
        return NOW_MS + 3_600_000

    def tokens(self) -> Sequence[TokenFacts]:
        return self.held

    def apply_revocation(self, revocation: Revocation) -> None:
        self.revoked.append(revocation)

    def tell_user(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        self.told.append((user_id, event, dict(payload)))

    def is_here(self, connection_id: ConnectionId) -> bool:
        return True


@dataclass
class FakeStreams:
    sources: Sources
    watched: dict[ConnectionId, list[str]] = field(default_factory=dict)

    async def admit(self, user: User, stream: str, since_s: float) -> Hashable:
        return await STREAMS.admit(self.sources, user, stream, since_s)

    def subscribe(self, connection_id: ConnectionId, streams: Mapping[str, Hashable]) -> None:
        self.watched.setdefault(connection_id, []).extend(streams)

    def unsubscribe(self, connection_id: ConnectionId, streams: Sequence[str]) -> list[str]:
        mine = self.watched.get(connection_id, [])
        return [stream for stream in streams if stream in mine]

    def streams_of(self, connection_id: ConnectionId) -> list[str]:
        return self.watched.get(connection_id, [])


class Desk:
    """All intents, in memory. Callers are named by user id, or `user/device` for a second one."""

    def __init__(self, bench: Bench | None = None) -> None:
        self.bench = bench or Bench()
        self.sessions = FakeSessions()
        self.streams = FakeStreams(Sources(self.bench.hub, self.bench.store, dict, dict))
        self.users: dict[str, User] = {}
        self._checked: dict[int, Any] = {}
        self._op_ids: dict[str, str] = {}
        self.services = Services(
            self.bench.hub, self.bench.store, self.bench.clock, self.sessions, self.streams
        )

    @property
    def store(self) -> FaultyStore:
        return self.bench.store

    @property
    def outlet(self) -> RecordingOutlet:
        return self.bench.outlet

    def knows(self, user_id: str, **claims: Any) -> None:
        """From now on this user's token carries these claims."""
        self.users[user_id] = user(user_id, **claims)

    def caller(self, who: str) -> Caller:
        user_id, _, device = who.partition("/")
        device = device or "phone"
        return Caller(
            self.users.get(user_id) or user(user_id),
            {"id": device, "name": device.title()},
            ConnectionId(f"{user_id}-{device}"),
        )

    async def ask(self, who: str, event: str, data: Any) -> Answer:
        """Send anything. Returns: the ack."""
        async with asyncio.timeout(DEADLINE_S):
            answer = await REGISTRY.dispatch(self.caller(who), self.services, event, data)
        if isinstance(data, dict) and "op_id" in data:
            # A repeat gets the first answer, be it to another event.
            event = self._op_ids.setdefault(str(data["op_id"]), event)
        if event in REGISTRY.intents:
            _check_answer(event, answer)
        self._check_told()
        return answer

    def _check_told(self) -> None:
        """Raises Undocumented if clients were told what the API's document does not have."""
        commits, presences = self.outlet.commits, self.outlet.presences
        told = [*presences, *((event, payload) for _, event, payload in self.sessions.told)]
        told += [(e.name, e.payload) for commit in commits for e in commit.events]
        for event, payload in told:
            if id(payload) not in self._checked:
                self._checked[id(payload)] = payload
                sockets_document().check_told(EVENTS, event, payload)

    async def do(self, who: str, event: str, **data: Any) -> Answer:
        """Send an intent that must succeed."""
        answer = await self.ask(who, event, data)
        assert answer["ok"], answer
        return answer

    async def refused(self, who: str, event: str, **data: Any) -> dict[str, Any]:
        """Send an intent that must be refused. Returns: the error."""
        answer = await self.ask(who, event, data)
        assert not answer["ok"], answer
        error: dict[str, Any] = answer["error"]
        return error

    async def workout(self, who: str = "ana", **data: Any) -> str:
        """A new workout's id."""
        made = await self.do(who, "workout:create", **data)
        return str(made["workout"]["id"])

    async def exercise(self, workout_id: str, who: str = "ana", name: str = "Squat") -> str:
        added = await self.do(
            who, "workout:exercise:add", workout_id=workout_id, exercise={"name": name}
        )
        return str(added["exercise_id"])

    async def training(self, **data: Any) -> tuple[str, str]:
        """A workout of ana's with one exercise. Returns: the ids of both."""
        workout_id = await self.workout(**data)
        return workout_id, await self.exercise(workout_id)

    async def set(
        self, workout_id: str, exercise_id: str, who: str = "ana", **fields: Any
    ) -> Answer:
        extra = {key: fields.pop(key) for key in ("set_id", "op_id") if key in fields}
        return await self.do(
            who,
            "workout:set:complete",
            workout_id=workout_id,
            exercise_id=exercise_id,
            set=fields or {"weight_kg": 100, "reps": 5},
            **extra,
        )

    async def shown(self, workout_id: str, who: str = "ana") -> dict[str, Any]:
        """The workout's snapshot."""
        answer = await self.do(who, "workout:sync", workout_id=workout_id)
        snapshot: dict[str, Any] = answer["workout"]
        return snapshot


def _check_answer(event: str, answer: Answer) -> None:
    """Raises Undocumented unless the API's document has such an answer."""
    shown = dict(answer)
    if shown.get("durability") == MemoryStore.durability:
        shown["durability"] = "disk"  # no server stores in memory
    sockets_document().check_answer(EVENTS, event, shown)
