"""What was acked survives SIGKILL, and nothing happens twice.

Several people train together and edit a template while the server is killed again and again. Each
client keeps a log of what it sent and what it was answered; a checker then compares the logs with
what the last server shows. `REPSYNC_CRASH_SEED` repeats the choices of an earlier run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pycrdt import Map

from crdt import ids
from crdt.ids import DocName
from crdt.wire import state_clocks
from server.auth import Authenticator
from server.keys import GivenKey
from server.replay.devices import DocumentClient, EventClient, Lost, Refused
from tests.helpers.servers import ServerProcess

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SECRET = "a secret of more than thirty-two bytes"
WORKOUT, TEMPLATE = ids.workout("group"), ids.template("plan")
PATIENCE_S = 60.0
PIPELINE = 3


def chosen_seed() -> int:
    given = os.environ.get("REPSYNC_CRASH_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"REPSYNC_CRASH_SEED={seed}")  # pytest shows it when the test fails
    return seed


# -- the server, killed and started again -------------------------------------------------------


class World:
    """A server that dies now and then, and what its clients need to know of that."""

    def __init__(self, folder: Path, seed: int, *, durability: str = "disk", **env: str) -> None:
        self.random = random.Random(seed)
        self.durability = durability
        self.data = folder / "data"
        self.server = ServerProcess(
            self.data, {"JWT_SECRET": SECRET, "MAX_EXERCISES_PER_DOCUMENT": "10000", **env}
        )
        self.auth = Authenticator(GivenKey.secret(SECRET))
        self.life = 0
        self.is_ending = False
        self.sent = 0
        self.connected: set[str] = set()
        self.changed = asyncio.Condition()

    @property
    def url(self) -> str:
        return self.server.url

    def token(self, user_id: str) -> str:
        return self.auth.sign(user_id)

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(condition)

    async def start(self, **env: str) -> None:
        self.server.env.update(env)
        await self.server.start()
        self.life += 1
        await self.tell()

    async def kill_while_busy(self, client_names: set[str]) -> None:
        """SIGKILL at a random moment in which every client is at work."""
        wanted = self.sent + self.random.randint(8, 60)
        await self.until(lambda: self.connected == client_names and self.sent >= wanted)
        await asyncio.sleep(self.random.uniform(0, 0.02))  # not on the beat of the clients
        await self.server.kill()
        self.connected.clear()


class Device:
    """A client that works, loses its connection when the server dies, and comes back."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.random = random.Random(world.random.random())

    async def run(self) -> None:
        life = 0
        while True:
            await self.world.until(lambda: self.world.life > life)  # noqa: B023 - awaited here
            life = self.world.life
            try:
                await self.connect()
                self.world.connected.add(self.name)
                await self.world.tell()
                await self.catch_up()
                while not self.world.is_ending:
                    await self.work()
                    await self.world.tell()
                await self.finish()
            except (Lost, Refused):
                await self.close()
            else:
                return

    async def connect(self) -> None:
        raise NotImplementedError

    async def catch_up(self) -> None:
        raise NotImplementedError

    async def work(self) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        """The last server stays; get everything acked."""

    async def close(self) -> None:
        raise NotImplementedError


# -- thin clients ---------------------------------------------------------------------------------


@dataclass
class Op:
    """An intent, and what became of it. `mark` is a text that no other op writes."""

    event: str
    data: dict[str, Any]
    mark: str
    answer: dict[str, Any] | None = None
    is_abandoned: bool = False


@dataclass
class LoggedSet:
    """What one client knows of a set of its own: the contents that it may have now."""

    set_id: str
    exercise_id: str
    possible: list[dict[str, Any] | None]
    is_settled: bool = True
    announced: dict[str, float] = field(default_factory=dict)


class Phone(Device):
    """Sends intents, several at once; sends again what was not answered, or gives it up."""

    def __init__(self, world: World, name: str, user_id: str) -> None:
        super().__init__(world, name)
        self.user_id = user_id
        self.client = EventClient("", "")
        self.ops: list[Op] = []
        self.sets: dict[str, LoggedSet] = {}
        self.exercises: list[str] = []

    async def connect(self) -> None:
        token = self.world.token(self.user_id)
        self.client = EventClient(self.world.url, token, {"id": self.name, "name": self.name})
        await self.client.connect()

    async def close(self) -> None:
        await self.client.close()

    async def catch_up(self) -> None:
        pending = [op for op in self.ops if op.answer is None and not op.is_abandoned]
        kept = [op for op in pending if self.world.is_ending or self.random.random() > 0.2]
        for op in pending:
            op.is_abandoned = op not in kept
        await self.send(kept)

    async def work(self) -> None:
        await self.send([self.make() for _ in range(self.random.randint(1, PIPELINE))])

    async def send(self, ops: Iterable[Op]) -> None:
        outcomes = await asyncio.gather(*(self.ask(op) for op in ops), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def ask(self, op: Op) -> None:
        self.world.sent += 1
        answer = await self.client.ask(op.event, op.data)
        assert answer["ok"], (op, answer)
        assert answer["durability"] == self.world.durability
        op.answer = answer
        self.note(op, answer)

    def make(self) -> Op:
        settled = [s for s in self.sets.values() if s.is_settled and s.possible[0] is not None]
        choice = self.random.random()
        if not self.exercises or choice < 0.15:
            return self.op("workout:exercise:add", lambda mark: {"exercise": {"name": mark}})
        if settled and choice < 0.35:
            logged = self.random.choice(settled)
            logged.is_settled = False
            reps = self.random.randint(1, 30)
            logged.possible.append({**(logged.possible[0] or {}), "reps": reps})
            return self.op(
                "workout:set:update", lambda _: {"set_id": logged.set_id, "set": {"reps": reps}}
            )
        if settled and choice < 0.45:
            logged = self.random.choice(settled)
            logged.is_settled = False
            logged.possible.append(None)
            return self.op("workout:set:remove", lambda _: {"set_id": logged.set_id})
        measures = {"weight_kg": self.random.randint(20, 200), "reps": self.random.randint(1, 20)}
        exercise_id = self.random.choice(self.exercises)
        return self.op(
            "workout:set:complete",
            lambda mark: {"exercise_id": exercise_id, "set": {**measures, "note": mark}},
        )

    def op(self, event: str, data: Callable[[str], dict[str, Any]]) -> Op:
        mark = f"{self.name}-{len(self.ops)}"
        op_id = str(UUID(int=self.random.getrandbits(128), version=4))
        made = Op(event, {"workout_id": WORKOUT.id, **data(mark), "op_id": op_id}, mark)
        self.ops.append(made)
        return made

    def note(self, op: Op, answer: dict[str, Any]) -> None:
        if op.event == "workout:exercise:add":
            self.exercises.append(answer["exercise_id"])
            return
        set_id = answer["set_id"]
        if op.event == "workout:set:complete":
            assert set_id not in self.sets, "two operations were given the same set"
            self.sets[set_id] = LoggedSet(set_id, op.data["exercise_id"], [op.data["set"]])
        else:
            logged = self.sets[set_id]
            logged.possible, logged.is_settled = logged.possible[-1:], True
        for record in answer.get("records", ()):
            announced = self.sets[set_id].announced
            assert record["type"] not in announced, "a record was announced twice"
            announced[record["type"]] = record["value"]

    def by_event(self, event: str) -> list[Op]:
        return [op for op in self.ops if op.event == event]


# -- Yjs clients ----------------------------------------------------------------------------------


@dataclass
class Edit:
    mark: str
    is_acked: bool = False
    is_abandoned: bool = False


class Laptop(Device):
    """Edits a replica. After a crash it syncs, or is replaced by one that knows nothing."""

    def __init__(self, world: World, name: str, user_id: str, document: DocName) -> None:
        super().__init__(world, name)
        self.user_id = user_id
        self.document = document
        self.replica = self.new_replica()
        self.edits: list[Edit] = []

    def new_replica(self) -> DocumentClient:
        return DocumentClient(
            self.world.url,
            self.document,
            self.world.token(self.user_id),
            {"id": self.name, "name": self.name},
        )

    async def connect(self) -> None:
        if self.world.life > 1 and not self.world.is_ending and self.random.random() < 0.25:
            for edit in self.edits:
                edit.is_abandoned = not edit.is_acked
            self.replica = self.new_replica()
        await self.replica.connect()

    async def close(self) -> None:
        await self.replica.close()

    async def catch_up(self) -> None:
        """Connecting has synced both ways already."""

    async def work(self) -> None:
        if not self.replica.is_connected:
            raise Lost  # what is edited now would be sent with the next sync, and acked by nobody
        for _ in range(self.random.randint(1, PIPELINE)):
            edit = Edit(f"{self.name}-{len(self.edits)}")
            self.edits.append(edit)
            with self.replica.doc.transaction():
                self.make(edit.mark)
            self.world.sent += 1
        await self.replica.settled()
        assert self.replica.rejections == []
        # A client's edits are accepted in order, so an ack covers those before it.
        for edit in self.edits:
            edit.is_acked = edit.is_acked or not edit.is_abandoned

    async def finish(self) -> None:
        await self.work()

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
        exercises[mark] = Map({"name": mark, "order": "a0", "sets": Map({"s": Map({"reps": 5.0})})})

    def found(self, content: dict[str, Any]) -> Counter[str]:
        in_notes = Counter(part.strip("[") for part in content["notes"].split("]") if part)
        assert set(in_notes) == set(content["exercises"])
        return in_notes


# -- the run --------------------------------------------------------------------------------------


async def prepare(world: World) -> None:
    """A group workout with one exercise, and a template that two may edit."""
    async with connected(EventClient(world.url, world.token("ana"))) as ana:
        await ana.do("workout:create", {"workout_id": WORKOUT.id, "mode": "group"})
        for guest in ("ben", "cleo"):
            await ana.do(
                "workout:invite",
                {"workout_id": WORKOUT.id, "user_id": guest, "role": "participant"},
            )
        await ana.do(
            "workout:exercise:add",
            {"workout_id": WORKOUT.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
        )
        await ana.do("template:create", {"template_id": TEMPLATE.id, "title": "Plan"})
        await ana.do(
            "template:share", {"template_id": TEMPLATE.id, "user_id": "ben", "role": "editor"}
        )


class connected:
    """A client for as long as the block runs."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __aenter__(self) -> Any:
        return await self.client.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()


async def live_through(
    world: World,
    devices: list[Any],
    env_of_each_life: list[dict[str, str]],
    after_kill: Callable[[], None] | Callable[[], Awaitable[None]],
) -> None:
    """Let the devices work through as many lives of the server as there are environments; each
    but the last ends with SIGKILL."""
    names = {device.name for device in devices}
    working = asyncio.gather(*(device.run() for device in devices))
    try:
        for env in env_of_each_life[1:]:
            killing = asyncio.ensure_future(world.kill_while_busy(names))
            await asyncio.wait({killing, working}, return_when=asyncio.FIRST_COMPLETED)
            if not killing.done():
                killing.cancel()
                await working  # a client failed: say why
            await killing
            after_kill()
            await world.start(**env)
        await world.until(lambda: world.connected == names)
        world.is_ending = True
        async with asyncio.timeout(PATIENCE_S):
            await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class LogBook:
    """Reads the store's log after each crash, from a copy: the server must recover by itself."""

    def __init__(self, data: Path, scratch: Path) -> None:
        self.data = data
        self.scratch = scratch
        self.rows: dict[tuple[str, int], tuple[int, str]] = {}
        self.integrity: list[str] = []

    def read(self) -> None:
        self.scratch.mkdir(exist_ok=True)
        for name in ("repsync.db", "repsync.db-wal"):
            (self.scratch / name).unlink(missing_ok=True)
            if (self.data / name).exists():
                shutil.copy(self.data / name, self.scratch / name)
        db = sqlite3.connect(self.scratch / "repsync.db")
        try:
            self.integrity.append(db.execute("PRAGMA integrity_check").fetchone()[0])
            for doc, seq, crc, entries in db.execute("SELECT doc, seq, crc, entries FROM log"):
                known = self.rows.setdefault((doc, seq), (crc, entries))
                assert known == (crc, entries), "a record of the log has changed"
            for doc, compacted in db.execute("SELECT doc, snapshot_seq FROM documents"):
                rest = db.execute("SELECT seq FROM log WHERE doc = ? ORDER BY seq", (doc,))
                kept = [row[0] for row in rest]
                assert kept == list(range(compacted + 1, compacted + 1 + len(kept))), doc
        finally:
            db.close()

    def awards(self) -> dict[str, dict[str, float]]:
        db = sqlite3.connect(self.scratch / "repsync.db")
        try:
            found: dict[str, dict[str, float]] = {}
            for set_id, type_, value in db.execute("SELECT set_id, type, value FROM awards"):
                found.setdefault(set_id, {})[type_] = value
            return found
        finally:
            db.close()

    def op_ids(self) -> Counter[str]:
        return Counter(
            entry["op_id"]
            for _, entries in self.rows.values()
            for entry in json.loads(entries)
            if entry["op_id"]
        )


async def test_what_was_acked_survives_kills_and_nothing_happens_twice(tmp_path: Path) -> None:
    seed = chosen_seed()
    world = World(tmp_path, seed)
    kills = 22
    # At first the log keeps everything, to be looked at; then the kills hit compactions as well.
    lives = [
        {"COMPACT_AFTER": "1000000" if life <= kills // 2 else "20"} for life in range(kills + 1)
    ]
    book = LogBook(world.data, tmp_path / "copy")
    await world.start(**lives[0])
    phones = [
        Phone(world, "ana-phone", "ana"),
        Phone(world, "ana-watch", "ana"),
        Phone(world, "ben-phone", "ben"),
    ]
    laptops = [
        WorkoutLaptop(world, "cleo-laptop", "cleo", WORKOUT),
        TemplateLaptop(world, "ana-laptop", "ana", TEMPLATE),
        TemplateLaptop(world, "ben-laptop", "ben", TEMPLATE),
    ]
    devices: list[Device] = [*phones, *laptops]
    try:
        await prepare(world)
        await live_through(world, devices, lives, book.read)
        assert world.life == kills + 1

        await check_world(world, phones, laptops)
        for device in devices:
            await device.close()
        assert await world.server.terminate() == 0
        book.read()
        check_book(book, phones)
        assert set(book.integrity) == {"ok"}
    finally:
        for device in devices:
            await device.close()
        await world.server.stop()


async def check_world(world: World, phones: list[Phone], laptops: list[Any]) -> None:
    """What the last server shows is what the clients know of."""
    async with (
        connected(EventClient(world.url, world.token("ana"))) as reader,
        connected(DocumentClient(world.url, WORKOUT, world.token("ana"))) as workout,
        connected(DocumentClient(world.url, TEMPLATE, world.token("ana"))) as template,
    ):
        synced = (await reader.do("workout:sync", {"workout_id": WORKOUT.id}))["workout"]
        got = (await reader.do("template:get", {"template_id": TEMPLATE.id}))["template"]
        await check_replicas(laptops, {WORKOUT: workout, TEMPLATE: template})
        check_snapshots(synced, got, workout.content(), template.content())
        check_phones(phones, synced)
        check_laptops(laptops, workout.content(), template.content())
        for phone in phones:
            await check_answers(phone)
        again = (await reader.do("workout:sync", {"workout_id": WORKOUT.id}))["workout"]
        assert again["version"] == synced["version"], "a repeated operation wrote something"
        assert again["sets"] == synced["sets"]


async def check_replicas(laptops: list[Any], fresh: dict[DocName, DocumentClient]) -> None:
    for laptop in laptops:
        replica, other = laptop.replica, fresh[laptop.document]
        wanted = state_clocks(other.doc.get_state())
        # What others wrote last may still be on its way.
        await replica.until(lambda: state_clocks(replica.doc.get_state()) == wanted)  # noqa: B023
        assert replica.content() == other.content(), laptop.name


def check_snapshots(
    synced: dict[str, Any], got: dict[str, Any], workout: dict[str, Any], template: dict[str, Any]
) -> None:
    assert {item["id"]: {**item, "id": ""} for item in synced["sets"]} == {
        id_: {**item, "id": ""} for id_, item in workout["sets"].items()
    }
    assert {item["id"] for item in synced["exercises"]} == set(workout["exercises"])
    assert got["notes"] == template["notes"]
    assert {item["id"] for item in got["exercises"]} == set(template["exercises"])


def check_phones(phones: list[Phone], synced: dict[str, Any]) -> None:
    exercises = Counter(item["name"] for item in synced["exercises"])
    sets_by_mark = Counter(item.get("note") for item in synced["sets"])
    sets = {item["id"]: item for item in synced["sets"]}
    acked = abandoned = 0
    for phone in phones:
        for op in phone.by_event("workout:exercise:add"):
            if op.is_abandoned:
                assert exercises[op.mark] <= 1, op
            else:
                assert exercises[op.mark] == 1, op
        for op in phone.by_event("workout:set:complete"):
            if op.is_abandoned:
                assert sets_by_mark[op.mark] <= 1, op
            else:
                assert op.answer is not None
                logged = phone.sets[op.answer["set_id"]]
                assert sets_by_mark[op.mark] == (logged.set_id in sets), op
        for logged in phone.sets.values():
            there = sets.get(logged.set_id)
            shown = (
                {key: there.get(key) for key in ("weight_kg", "reps", "note")} if there else None
            )
            assert shown in logged.possible, (logged, there)
            if there:
                assert there["user_id"] == phone.user_id
                assert there["exercise"] == logged.exercise_id
        acked += sum(op.answer is not None for op in phone.ops)
        abandoned += sum(op.is_abandoned for op in phone.ops)
        assert all((op.answer is not None) != op.is_abandoned for op in phone.ops)
    assert acked > 20
    assert abandoned > 0


def check_laptops(laptops: list[Any], workout: dict[str, Any], template: dict[str, Any]) -> None:
    for laptop in laptops:
        found = laptop.found(workout if laptop.document == WORKOUT else template)
        for edit in laptop.edits:
            if edit.is_acked:
                assert found[edit.mark] == 1, (laptop.name, edit)
            else:
                assert edit.is_abandoned
                assert found[edit.mark] <= 1, (laptop.name, edit)


async def check_answers(phone: Phone) -> None:
    """Every operation sent once more is answered as it was the first time."""
    acked = [op for op in phone.ops if op.answer is not None]
    answers = await asyncio.gather(*(phone.client.ask(op.event, op.data) for op in acked))
    for op, answer in zip(acked, answers, strict=True):
        assert answer == op.answer, op


def check_book(book: LogBook, phones: list[Phone]) -> None:
    times = book.op_ids()
    assert max(times.values()) == 1, "an operation stands in the log twice"
    awards = book.awards()
    for phone in phones:
        touched = {op.data.get("set_id") for op in phone.ops if op.is_abandoned}
        for logged in phone.sets.values():
            if logged.set_id not in touched:
                assert logged.announced == awards.get(logged.set_id, {}), logged


async def test_the_database_is_sound_after_every_kill(tmp_path: Path) -> None:
    world = World(tmp_path, chosen_seed())
    book = LogBook(world.data, tmp_path / "copy")
    lives = [{"COMPACT_AFTER": "10"}] * 5
    await world.start(**lives[0])
    devices = [Phone(world, "ana-phone", "ana"), Phone(world, "ana-watch", "ana")]
    try:
        await prepare(world)
        await live_through(world, devices, lives, book.read)
        for device in devices:
            await device.close()
        assert await world.server.terminate() == 0
        book.read()
        assert book.integrity == ["ok"] * len(lives)
    finally:
        for device in devices:
            await device.close()
        await world.server.stop()
