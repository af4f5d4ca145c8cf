"""`python -m server export` and `python -m server erase`: all that is kept of a person, shown or
taken away. [docs/operations.md] says what is in an export and what an erasure leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from crdt.errors import RepSyncError
from crdt.hub import RoomHub
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Committed
from crdt.revocations import Revocation
from crdt.room import Room
from server.app import WallClock, make_stores
from server.erasure import Eraser, planned
from server.settings import Settings, SettingsError
from server.storage import personal as stored
from server.storage.personal import SqliteRecords
from server.storage.port import SECTIONS, ErasingStore, InUse, PersonalRecords
from server.storage.sqlite import SqliteStore

FORMAT, VERSION = "repsync-export", 1

EXIT_INCOMPLETE = 1
"""The exit code of an erasure that is noted, and has not ended."""

POLL_EVERY_S = 0.2
IDLE_TIMEOUT_S = 1.0
"""Each step opens the document that the one before had open."""
SERVERS_TAKE_IT_WITHIN_S = 6.0


# -- export -----------------------------------------------------------------------------------


async def export(settings: Settings, user_id: UserId, out: IO[str]) -> int:
    """Write all that is kept of a person, as one JSON object, a part at a time.

    Raises:
        StorageError: the store cannot be read.
    """
    async with _records(settings) as records:
        await write_export(records, user_id, out, now_ms=time.time_ns() // 1_000_000)
    return 0


async def write_export(
    records: PersonalRecords, user_id: UserId, out: IO[str], *, now_ms: int
) -> None:
    names: set[str] = set()
    devices: set[str] = set()
    head = {"format": FORMAT, "version": VERSION, "user_id": user_id, "exported_at": now_ms}
    out.write(json.dumps(head)[:-1])
    out.write(',\n"documents": [')
    is_first = True
    for doc in await records.documents_of(user_id):
        loaded = await records.stored(doc)
        shown = None if loaded is None else _document(Room(doc, loaded), user_id, now_ms)
        if shown is None:
            continue
        devices.update(item["device_id"] for item in shown["own"]["sets"] if item.get("device_id"))
        out.write(("" if is_first else ",") + "\n" + json.dumps(shown))
        is_first = False
    out.write("\n]")
    section, count = "", 0
    written: set[str] = set()
    async for row in records.rows_of(user_id):
        if row.section != section:
            out.write((section and "\n]") + f',\n"{row.section}": [')
            section, count = row.section, 0
            written.add(section)
        out.write(("," if count else "") + "\n" + json.dumps(row.fields))
        count += 1
        if (name := row.fields.get("name")) and name != user_id:
            names.add(name)
        if device_id := row.fields.get("device_id"):
            devices.add(device_id)
    out.write(section and "\n]")
    for name in SECTIONS:
        if name not in written:
            out.write(f',\n"{name}": []')
    profile = {"names": sorted(names), "devices": sorted(devices)}
    out.write(f',\n"profile": {json.dumps(profile)}\n}}\n')


def _document(room: Room, user_id: UserId, now_ms: int) -> dict[str, Any] | None:
    """A document as far as it is this person's: all of it if they own it, else their part."""
    part = room.part_of(user_id)
    member = room.members.get(user_id)
    is_owner = room.view["meta"].get("owner_id") == user_id
    if not is_owner and member is None and not part.sets and not part.timers:
        return None
    members: list[dict[str, Any]] = [
        {"user": {"id": one.user_id, "name": one.name}, "role": one.role}
        for one in room.members.values()
        if is_owner or one.user_id == user_id
    ]
    snapshot = room.snapshot(members=members, now_ms=now_ms)
    shown: dict[str, Any] = {
        "document": str(room.name),
        "role": "owner" if is_owner else member.role if member else None,
        "own": {
            "sets": [item for item in snapshot.get("sets", ()) if item.get("user_id") == user_id],
            "timers": {key: snapshot["timers"][key] for key in part.timers},
            "participant": room.progress().get(user_id)
            if room.name.kind is DocKind.WORKOUT
            else None,
            "members": [one for one in members if one["user"]["id"] == user_id],
        },
    }
    if is_owner:
        shown["snapshot"] = snapshot
    else:
        shown["title"] = snapshot.get("title", "")
    return shown


@asynccontextmanager
async def _records(settings: Settings) -> AsyncIterator[PersonalRecords]:
    if settings.mongodb_uri is not None:
        async with _opened(settings) as (store, _):
            yield store
        return
    records = SqliteRecords(settings.data_dir)
    try:
        yield records
    finally:
        records.close()


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[ErasingStore, RoomHub]]:
    """The store, opened as one more instance does, and rooms on it. A spool of its own, which has
    nothing, lies in a temporary folder: `DATA_DIR` may be a running instance's.

    Raises:
        StorageError: it cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="repsync-") as folder:
        own = settings.model_copy(update={"data_dir": Path(folder)})
        store, cluster = make_stores(own, uuid4().hex[:12])
        hub = RoomHub(
            store,
            Nobody(),
            WallClock(),
            idle_timeout_s=IDLE_TIMEOUT_S,
            shared=cluster,
            neighbours=None if cluster is None else cluster.neighbours,
        )
        try:
            await store.open()
            if cluster is not None:
                await cluster.begin(hub, Nobody())
            yield store, hub
        finally:
            await hub.close()
            await store.close()


# -- erase ------------------------------------------------------------------------------------


async def erase(settings: Settings, user_id: UserId, *, is_dry_run: bool, timeout_s: float) -> int:
    """Erase a person, here if nobody serves the data, else by whoever does.

    Raises:
        StorageError: the store cannot be used.
    """
    if is_dry_run:
        async with _records(settings) as records:
            _print({"dry_run": True, **await planned(records, user_id)})
        return 0
    if settings.mongodb_uri is not None:
        return await _erase_from_mongodb(settings, user_id, timeout_s)
    if not (settings.data_dir / "repsync.db").exists():
        SqliteRecords(settings.data_dir)  # says so
    deadline_s = time.monotonic() + timeout_s
    request: Request | None = None
    try:
        while True:
            try:
                store = SqliteStore(settings.data_dir)
            except InUse:
                # A server has it. It finds what is asked for in the file itself.
                if request is None:
                    request = Request(settings.data_dir, user_id)
                if (report := request.outcome()) is not None:
                    _print({"erased": True, **report})
                    return 0
                if time.monotonic() > deadline_s:
                    return _incomplete(request.error)
                await asyncio.sleep(POLL_EVERY_S)
                continue
            return await _erase_here(store, user_id)
    finally:
        if request is not None:
            request.close()


async def _erase_here(store: SqliteStore, user_id: UserId) -> int:
    hub = RoomHub(store, Nobody(), WallClock(), idle_timeout_s=IDLE_TIMEOUT_S)
    try:
        eraser = Eraser(store, hub, WallClock())
        asked = await eraser.ask(user_id)
        _print({"erased": True, **await eraser.carry_out(asked)})
        return 0
    except RepSyncError as exc:
        return _incomplete(str(exc))
    finally:
        await hub.close()
        await store.close()


async def _erase_from_mongodb(settings: Settings, user_id: UserId, timeout_s: float) -> int:
    """Ask for it in the store. A server that runs takes it up; if none does, it is done here."""
    deadline_s = time.monotonic() + timeout_s
    async with _opened(settings) as (store, hub):
        eraser = Eraser(store, hub, WallClock(), name=f"erase-{uuid4().hex[:12]}")
        asked = await eraser.ask(user_id)
        alone_at_s = time.monotonic() + SERVERS_TAKE_IT_WITHIN_S
        while time.monotonic() < deadline_s:
            found = await store.erasure_of(user_id)
            if found is None or found.done_at_ms is not None:
                _print({"erased": True, **(found.report if found else {})})
                return 0
            if time.monotonic() > alone_at_s and await store.take_erasure(asked.id, eraser.name):
                try:
                    _print({"erased": True, **await eraser.carry_out(found)})
                    return 0
                except RepSyncError as exc:
                    return _incomplete(str(exc))
            await asyncio.sleep(POLL_EVERY_S)
        return _incomplete(None if found is None else found.error)


def _incomplete(error: str | None) -> int:
    _print({"erased": False, "error": error})
    print(
        "repsync: it is noted, and whoever serves the data goes on with it; ask again to see",
        file=sys.stderr,
    )
    return EXIT_INCOMPLETE


class Request:
    """An erasure that is asked for in a file which a server has open."""

    def __init__(self, folder: Path, user_id: UserId) -> None:
        self._user_id = user_id
        self._db = sqlite3.connect(folder / "repsync.db", isolation_level=None, timeout=10.0)
        self._db.row_factory = sqlite3.Row
        with contextlib.closing(self._db.execute("PRAGMA user_version")) as found:
            (version,) = found.fetchone()
        if version != stored.LAST_READABLE:
            raise SettingsError("the server that runs is of another version: upgrade it first")
        self._db.execute("BEGIN IMMEDIATE")
        self._id = stored.begin_erasure(self._db, user_id, time.time_ns() // 1_000_000).id
        self._db.execute("COMMIT")
        self.error: str | None = None

    def outcome(self) -> dict[str, Any] | None:
        """What was removed; None as long as it has not ended."""
        found = stored.erasure_of(self._db, self._user_id)
        if found is None or found.done_at_ms is None:
            self.error = found.error if found else None
            return None
        return found.report

    def close(self) -> None:
        self._db.close()


class Nobody:
    """An `Outlet` where nobody listens, and an instance that has no clients."""

    def committed(self, commit: Committed) -> None: ...

    def reset(self, doc: DocName, reason: str) -> None: ...

    def present(self, doc: DocName, event: str, payload: dict[str, Any]) -> None: ...

    def aware(self, doc: DocName, awareness: bytes) -> None: ...

    def apply_revocation(self, revocation: Revocation) -> None: ...

    def reload_revocations(self) -> None: ...

    def tell_user_here(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None: ...


def _print(report: dict[str, Any]) -> None:
    print(json.dumps(report, indent=2))
