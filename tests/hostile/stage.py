"""A real server, two people who train together on it, and room for somebody who means harm.

The server is a process of its own, so that what would end it ends no test, and its log is read as
it was written.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from pycrdt import Map

from crdt import ids
from server.replay.devices import DocumentClient, EventClient
from tests.helpers.servers import ServerProcess
from tests.helpers.sockets import CONNECT, RawSocket, raw_socket

WORKOUT = ids.workout("w")
DOCUMENT = f"/yjs|{WORKOUT}"
SECRET = "a secret of more than thirty-two bytes, for tests"
MAX_UPDATE_BYTES = 64 * 1024
MAX_PACKET_BYTES = 2 * MAX_UPDATE_BYTES + 64 * 1024
DEADLINE_S = 15.0

WRITER, READER, STRANGER = "mallory", "sam", "eve"
"""Who means harm: as a participant, as a spectator, and as nobody in particular."""


def token(user_id: str, **claims: Any) -> str:
    known = {"sub": user_id, "iat": int(time.time()), "exp": time.time() + 3_600}
    return jwt.encode({**known, **claims}, SECRET, "HS256")


@dataclass
class Stage:
    """Ana's workout: her phone and her laptop, and Ben's laptop."""

    server: ServerProcess
    log: Path
    phone: EventClient
    ana: DocumentClient
    ben: DocumentClient
    _read_bytes: int = 0
    _beats: int = field(default=0)

    @property
    def url(self) -> str:
        return self.server.url

    # -- those who mean no harm -------------------------------------------------------------

    @asynccontextmanager
    async def unharmed(self, *, changes: bool = False) -> AsyncIterator[None]:
        """Whatever happens in the block: the two go on, the document is as it was (unless the
        block `changes` it by right), the server serves, and its log has no error."""
        await self.go_on()
        before = self._content()
        yield
        await self.go_on()
        if not changes:
            assert self._content() == before
        assert self.ana.rejections == self.ben.rejections == []
        assert self.ana.resets == self.ben.resets == []
        assert self.server.process is not None
        assert self.server.process.returncode is None, "the server has ended"
        self.log_has_no_error()

    async def go_on(self) -> None:
        """Each changes something, and the other one and the phone see it."""
        self._beats += 1
        reps = self._beats % 1_000
        for one, other, set_id in (
            (self.ana, self.ben, "pulse-ana"),
            (self.ben, self.ana, "pulse-ben"),
        ):
            one.map("sets")[set_id]["reps"] = float(reps)
            await one.settled()
            await other.until(
                lambda other=other, set_id=set_id: other.content()["sets"][set_id]["reps"] == reps,
                timeout_s=DEADLINE_S,
            )
            await self.phone.next(
                "workout:set:updated",
                lambda told, set_id=set_id: (
                    told["set_id"] == set_id and told["set"]["reps"] == reps
                ),
            )
        assert (await self.phone.ask("time:sync", {"t0": 1.0}))["ok"]

    async def _hears(self, set_id: str, reps: int) -> None:
        def is_it(told: dict[str, Any]) -> bool:
            return told["set_id"] == set_id and told["set"]["reps"] == reps

        await self.phone.next("workout:set:updated", is_it)

    def _content(self) -> dict[str, Any]:
        """What the two hold, but for what they change themselves."""
        content = self.ana.content()
        assert content == self.ben.content(), "the two have parted"
        sets = content["sets"]
        return {**content, "sets": {id_: sets[id_] for id_ in sets if "pulse" not in id_}}

    # -- the server's side ------------------------------------------------------------------

    def log_has_no_error(self) -> None:
        """What was logged since the last look, line by line; a trace is no line of JSON."""
        with self.log.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
            self._read_bytes += len(text)
        for line in text.decode().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                raise AssertionError(f"the server wrote {line!r}") from None
            assert record["level"] not in ("error", "critical"), record

    async def health(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/health") as response,
        ):
            report: dict[str, Any] = await response.json()
            return report

    # -- those who do -----------------------------------------------------------------------

    @asynccontextmanager
    async def outside(self) -> AsyncIterator[RawSocket]:
        """A websocket that is in no namespace."""
        async with raw_socket(self.url) as socket:
            yield socket

    @asynccontextmanager
    async def inside(self, user_id: str = WRITER) -> AsyncIterator[RawSocket]:
        """A websocket of somebody who is in `/` and in the document."""
        async with self.outside() as socket:
            for namespace in ("/", DOCUMENT):
                entered = await socket.enter(namespace, {"token": token(user_id)})
                assert entered.kind == CONNECT, entered
            yield socket


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Stage]:
    log = folder / "log"
    with log.open("wb") as stderr:
        env = {
            "JWT_SECRET": SECRET,
            "MAX_UPDATE_BYTES": str(MAX_UPDATE_BYTES),
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
        }
        server = ServerProcess(folder / "data", env, stderr=stderr)
        await server.start()
        phone = EventClient(server.url, token("ana"), {"id": "phone", "name": "Phone"})
        ana, ben = (DocumentClient(server.url, WORKOUT, token(who)) for who in ("ana", "ben"))
        try:
            await _begin(phone)
            for laptop, user_id in ((ana, "ana"), (ben, "ben")):
                await laptop.connect()
                laptop.map("sets")[f"pulse-{user_id}"] = Map(good_set(user_id))
                await laptop.settled()
            await ana.until(lambda: "pulse-ben" in ana.content()["sets"])
            yield Stage(server, log, phone, ana, ben)
        finally:
            for client in (phone, ana, ben):
                await client.close()
            await server.stop()


async def _begin(phone: EventClient) -> None:
    await phone.connect()
    key = {"workout_id": WORKOUT.id}
    await phone.do("workout:create", {**key, "mode": "group", "visibility": "public"})
    for user_id, role in (("ben", "participant"), (WRITER, "participant"), (READER, "spectator")):
        await phone.do("workout:invite", {**key, "user_id": user_id, "role": role})
    exercise = {"exercise_id": "squat", "exercise": {"name": "Squat"}}
    await phone.do("workout:exercise:add", {**key, **exercise})
    done = {"exercise_id": "squat", "set_id": "of-ana", "set": {"reps": 5, "weight_kg": 100}}
    await phone.do("workout:set:complete", {**key, **done})


def good_set(user_id: str = WRITER, **fields: Any) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "exercise": "squat",
        "order": "a0",
        "kind": "normal",
        "reps": 0.0,
        "completed_at": 1_700_000_000_000.0,
        **fields,
    }
