"""Somebody who trains with others, leaves marks of themselves everywhere, and is to be erased; and
the search for what is left of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

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
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            for mark in marks:
                if any(form in data for form in forms(mark)):
                    found.setdefault(path.name, []).append(mark)
    return found


def forms(mark: str) -> set[bytes]:
    """A text as it may stand in a file: plain, and as JSON writes it in ASCII."""
    return {mark.encode(), mark.encode("unicode_escape")}


async def content_of(client: DocumentClient) -> Any:
    await client.sync()
    return client.content()
