"""Somebody who trains with others, leaves marks of themselves everywhere, and is to be erased; and
the search for what is left of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import bson
from pymongo import AsyncMongoClient
from redis import Redis

from crdt import ids
from crdt.ids import DocName
from server.replay.devices import DocumentClient, EventClient
from tests.helpers.servers import RunningServer

ZOE = "zoe-4711"
NAME = "Zoë Quux"
MARKS = (
    ZOE,
    NAME,
    "Quux",
    "left knee hurts",
    "pocket-watch",
    "her-own-plan",
    "hers-alone",
    "zoes-",
)
"""What nobody but her has ever written."""

ALONE, GROUP, HERS = "hers-alone", "group-day", "joint-day"
PLAN, BENS_PLAN = "her-own-plan", "bens-plan"


async def train_together(server: RunningServer) -> None:
    """Zoe has a workout and a template of her own, takes part in ben's, and has invited him."""
    zoe = await server.events(ZOE, "pocket-watch", name=NAME)
    ben = await server.events("ben", name="Ben")
    await create(zoe, ALONE)
    await log_set(zoe, ALONE, "zoes-first", note="left knee hurts")
    await zoe.do("template:create", {"template_id": PLAN, "title": f"Plan of {NAME}"})
    await create(ben, GROUP, mode="group", visibility="public")
    await zoe.do("workout:join", {"workout_id": GROUP})
    await log_set(zoe, GROUP, "zoes-second", note="left knee hurts")
    await log_set(zoe, GROUP, "zoes-gone")
    await zoe.do("workout:set:remove", {"workout_id": GROUP, "set_id": "zoes-gone"})
    await log_set(ben, GROUP, "bens-set")
    laptop = await document(server, ids.workout(GROUP))
    laptop.map("sets")["zoes-third"] = set_of(ZOE, GROUP, note="left knee hurts")
    await laptop.settled()
    await create(zoe, HERS, mode="group", title=f"{NAME} and friends")
    invited = {"workout_id": HERS, "user_id": "ben", "role": "participant"}
    await zoe.do("workout:invite", invited)
    await ben.do("workout:join", {"workout_id": HERS})
    await log_set(ben, HERS, "bens-other")
    await zoe.do("workout:start", {"workout_id": HERS})
    await ben.do("template:create", {"template_id": BENS_PLAN, "title": "Push"})
    shared = {"template_id": BENS_PLAN, "user_id": ZOE, "role": "editor"}
    await ben.do("template:share", {**shared, "op_id": op_id("share")})
    notes = await document(server, ids.template(BENS_PLAN))
    notes.roots["notes"].insert(0, "mind: left knee hurts. ")
    await notes.settled()


async def document(server: RunningServer, name: DocName) -> DocumentClient:
    """Her laptop."""
    laptop = DocumentClient(server.url, name, server.token(ZOE, name=NAME), {"id": "laptop"})
    server.clients.append(laptop)
    return await laptop.connect()


def op_id(what: str) -> str:
    return str(uuid5(NAMESPACE_OID, what))


def exercise_of(workout_id: str) -> str:
    return f"squat-{workout_id}"


async def create(client: EventClient, workout_id: str, **fields: Any) -> None:
    await client.do(
        "workout:create", {"workout_id": workout_id, "op_id": op_id(workout_id), **fields}
    )
    exercise = {"id": exercise_of(workout_id), "name": "Squat"}
    added = {"workout_id": workout_id, "exercise_id": exercise.pop("id"), "exercise": exercise}
    await client.do("workout:exercise:add", added)


async def log_set(
    client: EventClient, workout_id: str, set_id: str, **fields: Any
) -> dict[str, Any]:
    return await client.do(
        "workout:set:complete",
        {
            "workout_id": workout_id,
            "exercise_id": exercise_of(workout_id),
            "set_id": set_id,
            "op_id": op_id(set_id),
            "set": {"weight_kg": 100, "reps": 5, **fields},
        },
    )


def set_of(user_id: str, workout_id: str, **fields: Any) -> dict[str, Any]:
    return {"user_id": user_id, "exercise": exercise_of(workout_id), "reps": 5, **fields}


def found_in(folder: Path, marks: Iterable[str] = MARKS) -> dict[str, list[str]]:
    """Which marks stand in which files, byte by byte."""
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return _found(files, marks)


async def found_in_mongodb(uri: str, marks: Iterable[str] = MARKS) -> dict[str, list[str]]:
    """Which marks stand in which collections."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
    try:
        db = client.get_default_database()
        names = await db.list_collection_names()
        dumps = {
            name: b"".join([bson.encode(row) async for row in db[name].find()]) for name in names
        }
    finally:
        await client.close()
    return _found(dumps, marks)


def found_in_redis(url: str, prefix: str, marks: Iterable[str] = MARKS) -> dict[str, list[str]]:
    """Which marks stand in which keys, or in what they hold."""
    dumps: dict[str, bytes] = {}
    with Redis.from_url(url) as redis:
        for key in redis.scan_iter(match=f"{prefix}:*"):
            read = {
                b"string": lambda key: redis.get(key),
                b"hash": lambda key: redis.hgetall(key),
                b"set": lambda key: redis.smembers(key),
                b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
                b"stream": lambda key: redis.xrange(key),
            }[redis.type(key)]
            dumps[key.decode()] = key + b" " + _bytes_in(read(key))
        waiting = redis.smembers(f"{{{prefix}:work}}:waiting")
    dumps["waiting"] = b" ".join(waiting)
    return _found(dumps, marks)


def _bytes_in(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set):
        return b" ".join(map(_bytes_in, value))
    return str(value).encode()


def _found(dumps: Mapping[str, bytes], marks: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, data in sorted(dumps.items()):
        for mark in marks:
            if any(form in data for form in _forms(mark)):
                found.setdefault(name, []).append(mark)
    return found


def _forms(mark: str) -> set[bytes]:
    """A text as it may stand somewhere: plain, and as JSON writes it in ASCII."""
    return {mark.encode(), json.dumps(mark)[1:-1].encode()}
