"""Clients that train and edit together while servers come and go.

Each keeps a log of what it sent and what it was answered. When its connection dies it goes to
wherever the world tells it next, sends again what was not answered, with the same `op_id`, and goes
on. `checker` compares the logs with what is there in the end.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pycrdt import Map, Text

from crdt.ids import DocName
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost, Refused

PATIENCE_S = 60.0
PIPELINE = 3
GIVEN_UP = 0.2
"""How much of what was not answered a client gives up instead of sending it again."""


class World:
    """What all clients of a run share. `is_one_server`: whoever is connected sees all that was
    acked before, as there is nobody else who could have acked it."""

    is_one_server = True
    durabilities = frozenset({"disk"})
    retried: frozenset[str] = frozenset()
    """Codes of errors after which a client tries again."""
    refusals: frozenset[str] = frozenset()
    """Codes of errors that say: this cannot be done here now."""
    rest_s = (0.0, 0.0)
    """Between two pieces of work, at least and at most."""
    answer_timeout_s = 15.0
    has_lost_books = False
    """Whether a shared log was emptied: with it go the record books, and what was won in the last
    moments, which is nowhere else yet, may be won once more."""

    def lose_books(self) -> None:
        self.has_lost_books = True

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.is_ending = False
        self.sent = 0
        self.connected: set[str] = set()
        self.connections = itertools.count(1)
        self.errors: Counter[str] = Counter()
        self.changed = asyncio.Condition()

    def token(self, user_id: str) -> str:
        raise NotImplementedError

    async def somewhere(self, device: Device) -> str:
        """The URL at which a device connects next."""
        raise NotImplementedError

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(condition)

    def takes(self, error: dict[str, Any]) -> bool:
        """Whether an error is one of those after which to try again; counts it."""
        self.errors[error["code"]] += 1
        return error["code"] in self.retried


class Device:
    """A client that works, loses its connection, and comes back, maybe elsewhere."""

    def __init__(self, world: World, name: str, user_id: str) -> None:
        self.world = world
        self.name = name
        self.user_id = user_id
        self.random = random.Random(world.random.random())
        self.url = ""
        self.connection = 0
        """A number that no other connection of the run has."""

    async def run(self) -> None:
        """Work until the world ends; then stay connected, with everything acked."""
        while True:
            self.url = await self.world.somewhere(self)
            try:
                await self.connect()
                self.connection = next(self.world.connections)
                self.world.connected.add(self.name)
                await self.world.tell()
                await self.catch_up()
                while not self.world.is_ending:
                    await self.work()
                    await self.world.tell()
                    await asyncio.sleep(self.random.uniform(*self.world.rest_s))
                await self.finish()
            except (Lost, TimeoutError):
                await self.lose_connection()
            except Refused as exc:
                # "unreachable" is the client's own word for a server that is not there.
                if exc.error["code"] not in self.world.retried | {"unreachable"}:
                    raise
                await self.lose_connection()
            except CallFailed as exc:
                if not self.world.takes(exc.error):
                    raise
                await self.lose_connection()
            else:
                return

    async def lose_connection(self) -> None:
        self.world.connected.discard(self.name)
        await self.drop()

    async def connect(self) -> None:
        raise NotImplementedError

    async def catch_up(self) -> None:
        """After each connecting: what is left from before."""

    async def work(self) -> None:
        """One piece of it."""

    async def finish(self) -> None:
        """The servers stay now: get everything acked."""

    async def drop(self) -> None:
        """Lose the connection without a word."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


# -- thin clients ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Register:
    """Something that one client alone writes, one value after the other.

    `possible` are the values that it may have in the end, each with the connection that is known to
    have had it. A value that was acked takes the place of those that its server had seen. Of two
    that were written at servers which could not see each other, either may stay.

    `is_double`: it was written by an operation that was sent to several servers, so maybe carried
    out by two that could not see each other. One of the two is taken back, and with it what was
    changed there since: any value that was ever `written` may be the last.
    """

    possible: list[tuple[Any, int]]
    pending: Op | None = None
    is_double: bool = False
    written: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.written += [value for value, _ in self.possible]

    @property
    def last(self) -> Any:
        return self.possible[-1][0]

    def begin(self, op: Op, value: Any) -> None:
        self.pending = op
        self.possible.append((value, 0))
        self.written.append(value)

    def settle(self, connection: int, *, is_one_server: bool) -> None:
        """The pending value was acked."""
        value, _ = self.possible.pop()
        kept = [] if is_one_server else [p for p in self.possible if p[1] != connection]
        self.possible = [*kept, (value, connection)]
        self.pending = None

    def give_up(self) -> None:
        """The pending value was refused and will never be there."""
        self.possible.pop()
        self.pending = None

    def saw(self, value: Any, connection: int) -> None:
        """A server shows it: what is written there from now on comes after it. One that shows
        nothing may have heard neither of what was written nor of its removal, and one that shows
        what was written twice, of the first alone."""
        if value is None or self.written.count(value) != 1:
            return
        self.possible = [
            (known, connection if known == value and c else c) for known, c in self.possible
        ]

    def is_known_at(self, connection: int) -> bool:
        """Whether a server must show it as it was written."""
        is_sure = self.pending is None and not self.is_double
        return is_sure and all(c == connection for _, c in self.possible)

    def allows(self, value: Any) -> bool:
        return any(value == known for known, _ in self.possible) or (
            self.is_double and value in self.written
        )


@dataclass(eq=False)
class Op:
    """An intent, and what became of it. `mark` is a text that no other op writes."""

    event: str
    data: dict[str, Any]
    mark: str
    writes: Register | None = None
    answer: dict[str, Any] | None = None
    is_abandoned: bool = False
    """Given up after it was sent: carried out once, or not at all."""
    is_refused: bool = False
    """Refused when it was sent first: not carried out."""
    sendings: int = 0

    @property
    def is_open(self) -> bool:
        return self.answer is None and not self.is_abandoned and not self.is_refused


@dataclass(eq=False)
class LoggedSet(Register):
    """A set of one's own; its values are its measures, None when it is not there."""

    set_id: str = ""
    workout_id: str = ""
    exercise_id: str = ""
    announced: dict[str, float] = field(default_factory=dict)


class Thin(Device):
    """Sends intents, several at once; sends again what was not answered, or gives it up."""

    def __init__(self, world: World, name: str, user_id: str) -> None:
        super().__init__(world, name, user_id)
        self.client = EventClient("", world.token(user_id), {"id": name, "name": name})
        self.client.timeout_s = world.answer_timeout_s
        self.ops: list[Op] = []
        self.versions: dict[tuple[int, str], int] = {}
        """The highest version that was seen, by connection and document."""

    async def connect(self) -> None:
        self.client.url = self.url
        await self.client.connect()

    async def drop(self) -> None:
        await self.client.drop()

    async def close(self) -> None:
        await self.client.close()

    async def catch_up(self) -> None:
        await self.look()
        pending = [op for op in self.ops if op.is_open]
        kept = [op for op in pending if self.world.is_ending or self.random.random() > GIVEN_UP]
        for op in pending:
            op.is_abandoned = op not in kept
        await self.send(kept)

    async def work(self) -> None:
        await self.send(self.make_several())
        if self.random.random() < 0.05:
            await self.look()

    def make_several(self) -> list[Op]:
        return [self.make() for _ in range(self.random.randint(1, PIPELINE))]

    def make(self) -> Op:
        raise NotImplementedError

    async def look(self) -> None:
        """See whether what was acked on this connection is there."""

    async def send(self, ops: Iterable[Op]) -> None:
        outcomes = await asyncio.gather(*(self.ask(op) for op in ops), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def ask(self, op: Op) -> None:
        """Send an op until it is answered by an ack or a refusal."""
        while True:
            self.world.sent += 1
            op.sendings += 1
            answer = await self.client.ask(op.event, op.data)
            if answer["ok"]:
                break
            error = answer["error"]
            if not self.world.takes(error):
                assert error["code"] in self.world.refusals, (self.name, op, answer)
                self.refused(op)
                return
            await asyncio.sleep(min(error.get("retry_after_ms", 100), 1_000) / 1_000)
        assert answer["durability"] in self.world.durabilities, (op, answer)
        op.answer = answer
        if op.writes is not None and op.sendings > 1:
            op.writes.is_double = True
        if op.writes is not None and op.writes.pending is op:
            op.writes.settle(self.connection, is_one_server=self.world.is_one_server)
        self.note(op, answer)

    def refused(self, op: Op) -> None:
        if op.sendings > 1:
            op.is_abandoned = True  # it may have been carried out where it was sent before
            return
        op.is_refused = True
        if op.writes is not None:
            op.writes.give_up()

    def note(self, op: Op, answer: dict[str, Any]) -> None:
        """An op was acked."""

    def op(
        self,
        event: str,
        data: Callable[[str], dict[str, Any]],
        writes: Register | None = None,
        value: Any = None,
    ) -> Op:
        mark = f"{self.name}-{len(self.ops)}"
        op_id = str(UUID(int=self.random.getrandbits(128), version=4))
        made = Op(event, {**data(mark), "op_id": op_id}, mark, writes)
        if writes is not None:
            writes.begin(made, value)
        self.ops.append(made)
        return made

    def by_event(self, event: str) -> list[Op]:
        return [op for op in self.ops if op.event == event]

    async def read(self, event: str, key: str, id_: str) -> dict[str, Any] | None:
        """A document's snapshot, of a version that does not go back; None if it cannot be had."""
        answer = await self.client.ask(event, {f"{key}_id": id_})
        if not answer["ok"]:
            assert self.world.takes(answer["error"]), (self.name, answer)
            return None
        found: dict[str, Any] = answer[key]
        place = (self.connection, id_)
        known = self.versions.get(place, 0)
        assert found["version"] >= known, f"{self.name}: {id_} went back from version {known}"
        self.versions[place] = found["version"]
        return found

    def compare(self, register: Register, shown: Any) -> None:
        """What a server shows of something that this client alone writes."""
        if register.is_known_at(self.connection):
            assert register.allows(shown), (self.name, register, shown)
        register.saw(shown, self.connection)


class Phone(Thin):
    """Logs sets in workouts of several people: adds exercises, completes, corrects, removes."""

    def __init__(
        self, world: World, name: str, user_id: str, workout_ids: Iterable[str] = ("group",)
    ) -> None:
        super().__init__(world, name, user_id)
        self.workout_ids = list(workout_ids)
        self.sets: dict[str, LoggedSet] = {}
        self.exercises: list[tuple[str, str]] = []
        """(workout id, exercise id)."""

    def make(self) -> Op:
        settled = [s for s in self.sets.values() if s.pending is None and s.last is not None]
        choice = self.random.random()
        if not self.exercises or choice < 0.15:
            workout_id = self.random.choice(self.workout_ids)
            return self.op(
                "workout:exercise:add",
                lambda mark: {"workout_id": workout_id, "exercise": {"name": mark}},
            )
        if settled and choice < 0.35:
            logged = self.random.choice(settled)
            reps = self.random.randint(1, 30)
            return self.op(
                "workout:set:update",
                lambda _: {**_of(logged), "set": {"reps": reps}},
                logged,
                {**logged.last, "reps": reps},
            )
        if settled and choice < 0.45:
            logged = self.random.choice(settled)
            return self.op("workout:set:remove", lambda _: _of(logged), logged, None)
        measures = {"weight_kg": self.random.randint(20, 200), "reps": self.random.randint(1, 20)}
        workout_id, exercise_id = self.random.choice(self.exercises)
        set_id = {"set_id": str(UUID(int=self.random.getrandbits(128), version=4))}
        return self.op(
            "workout:set:complete",
            lambda mark: {
                "workout_id": workout_id,
                "exercise_id": exercise_id,
                "set": {**measures, "note": mark},
                **(set_id if self.random.random() < 0.5 else {}),
            },
        )

    def note(self, op: Op, answer: dict[str, Any]) -> None:
        if op.event == "workout:exercise:add":
            self.exercises.append((op.data["workout_id"], answer["exercise_id"]))
            return
        set_id = answer["set_id"]
        if op.event == "workout:set:complete":
            assert set_id not in self.sets, "two operations were given the same set"
            self.sets[set_id] = LoggedSet(
                [(op.data["set"], self.connection)],
                set_id=set_id,
                workout_id=op.data["workout_id"],
                exercise_id=op.data["exercise_id"],
                is_double=op.sendings > 1,
            )
        for record in answer.get("records", ()):
            announced = self.sets[set_id].announced
            is_news = record["type"] not in announced
            assert is_news or self.world.has_lost_books, "a record was announced twice"
            announced[record["type"]] = record["value"]

    async def look(self) -> None:
        for workout_id in self.workout_ids:
            workout = await self.read("workout:sync", "workout", workout_id)
            if workout is None:
                continue
            shown = {item["id"]: item for item in workout["sets"]}
            for logged in self.sets.values():
                if logged.workout_id == workout_id:
                    self.compare(logged, measures_of(shown.get(logged.set_id)))


def measures_of(item: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a phone writes into a set, of a set that is shown."""
    return None if item is None else {key: item.get(key) for key in ("weight_kg", "reps", "note")}


def _of(logged: LoggedSet) -> dict[str, str]:
    return {"workout_id": logged.workout_id, "set_id": logged.set_id}


class Racer(Thin):
    """One of several devices of one user that lift the same weights at the same time, each in a
    workout of its own: a record is won by one of them."""

    EXERCISE = "bench"

    def __init__(self, world: World, name: str, user_id: str, workout_id: str) -> None:
        super().__init__(world, name, user_id)
        self.workout_id = workout_id

    def make_several(self) -> list[Op]:
        return [self.make()]

    def make(self) -> Op:
        # The bar is loaded by how far all of them are, so that they try about the same.
        return self.lift(20 + self.world.sent // 40 * 0.5)

    def lift(self, weight_kg: float) -> Op:
        return self.op(
            "workout:set:complete",
            lambda mark: {
                "workout_id": self.workout_id,
                "exercise_id": self.EXERCISE,
                "set": {"weight_kg": weight_kg, "reps": 5, "note": mark},
            },
        )


class Organiser(Thin):
    """Runs a workout of their own: starts, pauses, resumes, invites and removes guests."""

    NEXT = {"planned": "start", "active": "pause", "paused": "resume"}  # noqa: RUF012
    BECOMES = {"start": "active", "pause": "paused", "resume": "active"}  # noqa: RUF012
    GUESTS = ("gus", "hal", "ida")
    ROLES = ("participant", "coach", "spectator")

    def __init__(self, world: World, name: str, user_id: str, workout_id: str) -> None:
        super().__init__(world, name, user_id)
        self.workout_id = workout_id
        self.status = Register([("planned", 0)])
        self.guests = {guest: Register([(None, 0)]) for guest in self.GUESTS}

    def make_several(self) -> list[Op]:
        return [self.make()] if self.idle() else []

    def idle(self) -> list[Register]:
        return [r for r in (self.status, *self.guests.values()) if r.pending is None]

    def make(self) -> Op:
        here = {"workout_id": self.workout_id}
        register = self.random.choice(self.idle())
        if register is self.status:
            action = self.NEXT[register.last]
            return self.op(f"workout:{action}", lambda _: here, register, self.BECOMES[action])
        guest = next(name for name, r in self.guests.items() if r is register)
        if register.last is not None and self.random.random() < 0.4:
            return self.op(
                "workout:member:remove", lambda _: {**here, "user_id": guest}, register, None
            )
        role = self.random.choice(self.ROLES)
        return self.op(
            "workout:invite", lambda _: {**here, "user_id": guest, "role": role}, register, role
        )

    async def look(self) -> None:
        workout = await self.read("workout:sync", "workout", self.workout_id)
        if workout is None:
            return
        self.compare(self.status, workout["status"])
        roles = {member["user"]["id"]: member["role"] for member in workout["members"]}
        for guest, register in self.guests.items():
            self.compare(register, roles.get(guest))

    async def finish(self) -> None:
        """End the workout."""
        here = {"workout_id": self.workout_id}
        while self.status.last != "completed":
            workout = await self.read("workout:sync", "workout", self.workout_id)
            status = workout and workout["status"]
            if status == "planned":
                await self.send([self.op("workout:start", lambda _: here)])
            elif status in ("active", "paused"):
                await self.send([self.op("workout:complete", lambda _: here)])
            elif status == "completed":
                # One that is acked as local is taken back if what was there came late.
                acks = [op.answer for op in self.by_event("workout:complete") if op.answer]
                is_local = any(ack["durability"] == "local" for ack in acks)
                self.status = Register(
                    [("completed", self.connection)],
                    is_double=is_local,
                    written=["active", "paused"],
                )
            else:
                await asyncio.sleep(0.1)

    def refused(self, op: Op) -> None:
        super().refused(op)
        if op.writes is self.status and op.is_refused:
            # It is another one here: what was acked before is not known to this server yet.
            self.status.possible.append(self.status.possible.pop(0))


class Trainer(Thin):
    """Writes the goal of a template."""

    def __init__(self, world: World, name: str, user_id: str, template_id: str) -> None:
        super().__init__(world, name, user_id)
        self.template_id = template_id
        self.goal = Register([(None, 0)])

    def make_several(self) -> list[Op]:
        return [self.make()] if self.goal.pending is None else []

    def make(self) -> Op:
        goal = f"{self.name}-{len(self.ops)}"
        return self.op(
            "template:update_meta",
            lambda _: {"template_id": self.template_id, "meta": {"goal": goal}},
            self.goal,
            goal,
        )

    async def look(self) -> None:
        template = await self.read("template:get", "template", self.template_id)
        if template is not None:
            self.compare(self.goal, template.get("goal"))


@dataclass
class Watching:
    """What came over one connection: a workout as it was on joining, and every event after it."""

    base: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Watcher(Device):
    """A screen that shows a workout: it joins, and keeps up by the events alone."""

    def __init__(self, world: World, name: str, user_id: str, workout_id: str) -> None:
        super().__init__(world, name, user_id)
        self.workout_id = workout_id
        self.client = EventClient("", world.token(user_id), {"id": name, "name": name})
        self.client.timeout_s = world.answer_timeout_s
        self.watchings: list[Watching] = []

    async def connect(self) -> None:
        self.client.url = self.url
        await self.client.connect()
        watching = Watching({})

        def keep(event: str, payload: dict[str, Any]) -> None:
            if payload.get("workout_id") == self.workout_id:
                watching.events.append((event, payload))

        self.client.on_event = keep
        joined = await self.client.do("workout:join", {"workout_id": self.workout_id})
        watching.base = joined["workout"]
        self.watchings.append(watching)

    async def work(self) -> None:
        await self.see_that_it_lives()
        if self.random.random() < 0.01:
            await self.drop()

    async def see_that_it_lives(self) -> None:
        """Ask for something: a connection on which nothing comes may be quiet, or dead."""
        await self.client.ask("time:sync", {"t0": 1.0})

    async def finish(self) -> None:
        await self.see_that_it_lives()

    async def drop(self) -> None:
        await self.client.drop()

    async def close(self) -> None:
        await self.client.close()


# -- Yjs clients ----------------------------------------------------------------------------------


@dataclass(eq=False)
class Edit:
    mark: str
    is_acked: bool = False
    is_abandoned: bool = False


class Laptop(Device):
    """Edits a replica, connected or not. After a loss it syncs, or is replaced by one that knows
    nothing, as a reloaded page is."""

    goes_offline = 0.0
    """How often it edits without a connection."""

    def __init__(self, world: World, name: str, user_id: str, document: DocName) -> None:
        super().__init__(world, name, user_id)
        self.document = document
        self.replica = self.new_replica()
        self.edits: list[Edit] = []
        self.rejections = 0

    def new_replica(self) -> DocumentClient:
        client = DocumentClient(
            "",
            self.document,
            self.world.token(self.user_id),
            {"id": self.name, "name": self.name},
        )
        client.timeout_s = self.world.answer_timeout_s
        return client

    async def connect(self) -> None:
        if self.connection and not self.world.is_ending and self.random.random() < 0.25:
            await self.start_anew()
        self.replica.url = self.url
        await self.replica.connect()

    async def start_anew(self) -> None:
        await self.replica.drop()
        for edit in self.edits:
            edit.is_abandoned = not edit.is_acked
        self.replica = self.new_replica()

    async def catch_up(self) -> None:
        """Connecting has synced both ways; what was not acked is sent again for the ack."""
        await self.acked(self.replica.confirm())

    async def drop(self) -> None:
        await self.replica.drop()

    async def close(self) -> None:
        await self.replica.close()

    async def work(self) -> None:
        if not self.replica.is_connected:
            raise Lost
        is_offline = self.random.random() < self.goes_offline
        if is_offline:
            await self.replica.drop()
        for _ in range(self.random.randint(1, PIPELINE)):
            edit = Edit(f"{self.name}-{len(self.edits)}")
            self.edits.append(edit)
            with self.replica.doc.transaction():
                self.make(edit.mark)
            self.world.sent += 1
        if is_offline:
            raise Lost
        await self.acked(self.replica.settled())

    async def acked(self, waiting: Awaitable[None]) -> None:
        """Wait for the acks of all that was edited."""
        try:
            await waiting
        except CallFailed as exc:
            if exc.error["code"] not in self.world.refusals:
                raise
        else:
            if not self.replica.rejections:
                # A client's edits are accepted in order, so an ack covers those before it.
                for edit in self.edits:
                    edit.is_acked = edit.is_acked or not edit.is_abandoned
                return
        # A server may not know what this replica has from another one. As the protocol says, the
        # replica is dropped, and what was not acked with it.
        assert not self.world.is_one_server, (self.name, self.replica.rejections)
        self.rejections += 1
        await self.start_anew()
        raise Lost

    async def finish(self) -> None:
        await self.work()
        if not self.replica.is_connected:
            raise Lost

    def make(self, mark: str) -> None:
        raise NotImplementedError

    def found(self, content: dict[str, Any]) -> Counter[str]:
        """How often each mark stands in the document."""
        raise NotImplementedError


class WorkoutLaptop(Laptop):
    def make(self, mark: str) -> None:
        self.replica.map("sets")[mark] = Map(
            {
                "user_id": self.user_id,
                "exercise": "squat",
                "order": f"b{mark}",
                "kind": "normal",
                "weight_kg": float(self.random.randint(20, 200)),
                "reps": float(self.random.randint(1, 20)),
                "completed_at": 1_700_000_000_000.0,
            }
        )

    def found(self, content: dict[str, Any]) -> Counter[str]:
        return Counter(content["sets"].keys())


class TemplateLaptop(Laptop):
    """Writes marks into the notes, where a change applied twice would show."""

    def make(self, mark: str) -> None:
        notes = self.replica.roots["notes"]
        notes.insert(len(str(notes)) if self.random.random() < 0.5 else 0, f"[{mark}]")
        exercises = self.replica.map("exercises")
        sets = Map({"s": Map({"order": "a0", "kind": "normal", "reps": 5.0})})
        exercises[mark] = Map({"name": mark, "order": "a0", "note": Text(mark), "sets": sets})

    def found(self, content: dict[str, Any]) -> Counter[str]:
        in_notes = Counter(part.strip("[") for part in content["notes"].split("]") if part)
        assert set(in_notes) == set(content["exercises"]), "one edit is there by half"
        return in_notes
