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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crdt import ids
from server.auth import Authenticator
from server.keys import GivenKey
from server.replay.devices import EventClient
from tests.chaos.checker import Cast, check
from tests.chaos.clients import (
    PATIENCE_S,
    Device,
    Phone,
    TemplateLaptop,
    WorkoutLaptop,
    World,
)
from tests.helpers.servers import ServerProcess

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SECRET = "a secret of more than thirty-two bytes"
WORKOUT, TEMPLATE = ids.workout("group"), ids.template("plan")


def chosen_seed() -> int:
    given = os.environ.get("REPSYNC_CRASH_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"REPSYNC_CRASH_SEED={seed}")  # pytest shows it when the test fails
    return seed


# -- the server, killed and started again -------------------------------------------------------


class OneServer(World):
    """A server that dies now and then."""

    def __init__(self, folder: Path, seed: int, *, durability: str = "disk", **env: str) -> None:
        super().__init__(seed)
        self.durabilities = frozenset({durability})
        self.data = folder / "data"
        self.server = ServerProcess(
            self.data, {"JWT_SECRET": SECRET, "MAX_EXERCISES_PER_DOCUMENT": "10000", **env}
        )
        self.auth = Authenticator(GivenKey.secret(SECRET))
        self.life = 0
        self.lives_seen: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return self.server.url

    def token(self, user_id: str) -> str:
        return self.auth.sign(user_id)

    async def somewhere(self, device: Device) -> str:
        await self.until(lambda: self.life > self.lives_seen[device.name])
        self.lives_seen[device.name] = self.life
        return self.url

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


# -- the run --------------------------------------------------------------------------------------


async def prepare(world: OneServer) -> None:
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
    world: OneServer,
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
    world = OneServer(tmp_path, seed)
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

        await check_world(world, cast_of(phones, laptops))
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


def cast_of(phones: list[Phone], laptops: list[Any]) -> Cast:
    return Cast({WORKOUT: "ana", TEMPLATE: "ana"}, phones=phones, laptops=laptops)


async def check_world(world: OneServer, cast: Cast) -> None:
    """What the last server shows is what the clients know of."""
    await check(world, cast, [world.url])
    ops = [op for phone in cast.phones for op in phone.ops]
    assert sum(op.answer is not None for op in ops) > 20
    assert sum(op.is_abandoned for op in ops) > 0


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
    world = OneServer(tmp_path, chosen_seed())
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
