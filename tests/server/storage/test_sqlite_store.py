"""The store in one SQLite file: what every store promises, and what only a disk can do."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crdt import ids
from crdt.access import Member
from crdt.errors import Conflict, Unavailable
from crdt.ids import DocKind, UserId
from crdt.revocations import Revocation
from crdt.room import Room
from server.storage.port import StorageError
from server.storage.sqlite import SCHEMA_VERSION, SqliteStore
from server.storage.sqlite_file import SqliteFile
from tests.contracts.update_store import (
    ANA,
    BEN,
    LATER_MS,
    StoreContract,
    create,
    log_set,
    record,
    score,
    summary,
)
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    await store.close()


async def reopened(store: SqliteStore, folder: Path) -> SqliteStore:
    await store.close()
    return SqliteStore(folder)


def raw(folder: Path, statement: str, *values: object) -> None:
    """Do something behind the store's back."""
    db = sqlite3.connect(folder / "repsync.db")
    with db:
        db.execute(statement, values)
    db.close()


class held:
    """Keep the writer thread busy, so that what is asked for meanwhile goes into one commit."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._go_on = threading.Event()
        self._started = threading.Event()

    async def __aenter__(self) -> None:
        self._busy = asyncio.ensure_future(self._store._file.write(self._wait))
        await asyncio.to_thread(self._started.wait, 5)

    async def __aexit__(self, *_: object) -> None:
        self._go_on.set()
        await self._busy

    def _wait(self, db: sqlite3.Connection) -> None:
        self._started.set()
        self._go_on.wait(5)


class TestSqliteStore(StoreContract):
    pass


# -- files ------------------------------------------------------------------------------------


async def test_it_promises_what_a_disk_can(store: SqliteStore) -> None:
    assert store.durability == "disk"


async def test_a_reopened_store_finds_everything(store: SqliteStore, tmp_path: Path) -> None:
    await create(store)
    op = entry(
        op_id="op",
        answer=lambda stored: {"ok": True},
        members=[Member(BEN, "coach", "Ben")],
        scores=[score("s", weight=100)],
    )
    await store.append(record(b"a", op))
    await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    await store.claim_active(ANA, "leg-day")
    before = await store.load(LEG_DAY)
    again = await reopened(store, tmp_path)
    assert await again.load(LEG_DAY) == before
    assert await again.summary(LEG_DAY) == summary()
    assert await again.answer(ANA, "op") == {"ok": True}
    assert await again.active_workout(ANA) == "leg-day"
    assert len(await again.summaries(BEN, DocKind.WORKOUT, limit=10)) == 1
    assert await log_set(again, score("t", weight=90)) == set()
    await again.close()


async def test_what_was_appended_is_in_the_file_without_a_close(
    store: SqliteStore, tmp_path: Path
) -> None:
    await create(store)
    db = sqlite3.connect(tmp_path / "repsync.db")
    assert db.execute("SELECT yjs FROM log").fetchall() == [(b"created",)]
    db.close()


async def test_who_made_a_change_is_kept_with_it(store: SqliteStore, tmp_path: Path) -> None:
    await create(store)
    await store.append(record(b"a", entry("ben", event="workout:set:complete", op_id="op")))
    db = sqlite3.connect(tmp_path / "repsync.db")
    [(entries,)] = db.execute("SELECT entries FROM log WHERE seq = 2").fetchall()
    db.close()
    assert '"user_id":"ben"' in entries
    assert '"event":"workout:set:complete"' in entries


async def test_closing_twice_is_as_good_as_once(store: SqliteStore) -> None:
    await store.close()
    await store.close()


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await create(store)
    appends = [asyncio.ensure_future(store.append(record(bytes([i])))) for i in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert [stored.seq for stored in await asyncio.gather(*appends)] == list(range(2, 22))


async def test_what_is_asked_of_a_closed_store_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await create(store)
    await store.close()
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable):
            await store.append(record(b"late"))


async def test_a_folder_has_one_store_at_a_time(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="in use"):
        SqliteStore(tmp_path)
    await (await reopened(store, tmp_path)).close()


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "deep" / "data")
    await create(store)
    await store.close()
    assert (tmp_path / "deep" / "data" / "repsync.db").exists()


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        SqliteStore(tmp_path / "data")


def test_a_folder_where_the_file_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "repsync.db").mkdir()
    with pytest.raises(StorageError):
        SqliteStore(tmp_path)


async def test_data_of_a_newer_version_are_left_alone(store: SqliteStore, tmp_path: Path) -> None:
    await store.close()
    raw(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match="newer"):
        SqliteStore(tmp_path)
    raw(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION}")
    await SqliteStore(tmp_path).close()  # the refusal has let go of the folder


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "repsync.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError):
        SqliteStore(tmp_path)
    with pytest.raises(StorageError, match="cannot be opened"):
        SqliteStore(tmp_path)


# -- data of an older version -----------------------------------------------------------------

VERSION_1 = Path(__file__).parents[2] / "data" / "version-1.sql"


def of_version_1(folder: Path) -> None:
    """A database as the first version left it: a workout under way, and a template."""
    db = sqlite3.connect(folder / "repsync.db")
    db.executescript(VERSION_1.read_text())
    db.close()


def version_of(folder: Path) -> int:
    db = sqlite3.connect(folder / "repsync.db")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return int(version)


async def test_data_of_version_1_are_read_and_can_be_written(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    assert version_of(tmp_path) == 1
    store = SqliteStore(tmp_path)
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    room = Room(LEG_DAY, loaded)
    assert room.view["sets"]["s1"]["weight_kg"] == 100
    assert loaded.awards["s1"].keys() == {"weight", "volume", "e1rm"}
    assert loaded.members[BEN].role == "coach"
    assert await store.active_workout(ANA) == "leg-day"
    notes = await store.load(ids.template("push"))
    assert notes is not None
    assert Room(ids.template("push"), notes).view["notes"] == {"text": "Warm up first."}
    assert await log_set(store, score("t", weight=90)) == set()
    assert list(await store.revocations(NOW_MS)) == []
    revocation = Revocation("user", "ana", LATER_MS, NOW_MS)
    await store.revoke(revocation, entry("root"))
    await store.close()
    assert version_of(tmp_path) == SCHEMA_VERSION
    again = SqliteStore(tmp_path)
    assert list(await again.revocations(NOW_MS)) == [revocation]
    reloaded = await again.load(LEG_DAY)
    assert reloaded is not None
    assert reloaded.updates[:-1] == loaded.updates
    await again.close()


async def test_new_data_and_moved_data_have_the_same_tables(tmp_path: Path) -> None:
    folders = [tmp_path / "old", tmp_path / "new"]
    folders[0].mkdir()
    of_version_1(folders[0])
    schemas = []
    for folder in folders:
        await SqliteStore(folder).close()
        db = sqlite3.connect(folder / "repsync.db")
        schemas.append(sorted(db.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOTNULL")))
        db.close()
    assert schemas[0] == schemas[1]


async def test_a_move_that_fails_leaves_the_data_as_they_were(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    raw(tmp_path, "CREATE INDEX revocations_by_end ON members (role)")
    with pytest.raises(StorageError, match="cannot be opened"):
        SqliteStore(tmp_path)
    assert version_of(tmp_path) == 1
    db = sqlite3.connect(tmp_path / "repsync.db")
    assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'revocations'").fetchall()
    db.close()
    raw(tmp_path, "DROP INDEX revocations_by_end")
    store = SqliteStore(tmp_path)
    assert await store.load(LEG_DAY) is not None
    await store.close()


# -- revocations ------------------------------------------------------------------------------


async def test_a_reopened_store_knows_what_was_revoked_and_by_whom(
    store: SqliteStore, tmp_path: Path
) -> None:
    revocation = Revocation("token", "t1", LATER_MS)
    await store.revoke(revocation, entry("root"))
    again = await reopened(store, tmp_path)
    assert list(await again.revocations(NOW_MS)) == [revocation]
    await again.close()
    db = sqlite3.connect(tmp_path / "repsync.db")
    assert db.execute("SELECT revoked_by, revoked_at FROM revocations").fetchall() == [
        ("root", NOW_MS)
    ]
    db.close()


async def test_a_revocation_that_has_ended_is_deleted_in_time(
    store: SqliteStore, tmp_path: Path
) -> None:
    for number, until_ms in enumerate((1, LATER_MS)):
        await store.revoke(Revocation("token", f"t{number}", until_ms), entry("root"))
    again = await reopened(store, tmp_path)
    await again.check()  # the first commit of a store tidies up
    await again.close()
    db = sqlite3.connect(tmp_path / "repsync.db")
    assert db.execute("SELECT id FROM revocations").fetchall() == [("t1",)]
    db.close()


async def test_a_revocation_on_a_full_disk_is_unavailable_and_not_kept(
    store: SqliteStore,
) -> None:
    await create(store)
    await fill(store)
    op = entry("root", op_id="op", answer=lambda stored: {"ok": "x" * 100_000})
    with pytest.raises(Unavailable):
        await store.revoke(Revocation("token", "t1", LATER_MS), op)
    assert list(await store.revocations(NOW_MS)) == []
    assert await store.answer(UserId("root"), "op") is None


# -- damage -----------------------------------------------------------------------------------


async def test_a_damaged_record_is_not_served(store: SqliteStore, tmp_path: Path) -> None:
    await create(store)
    raw(tmp_path, "UPDATE log SET yjs = ?", b"creates")
    with pytest.raises(Unavailable, match="damaged"):
        await store.load(LEG_DAY)


async def test_a_damaged_snapshot_is_not_served(store: SqliteStore, tmp_path: Path) -> None:
    await create(store)
    await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    raw(tmp_path, "UPDATE documents SET snapshot = ?", b"snapshut")
    with pytest.raises(Unavailable, match="damaged"):
        await store.load(LEG_DAY)


async def test_other_documents_are_served_beside_a_damaged_one(
    store: SqliteStore, tmp_path: Path
) -> None:
    await create(store)
    await create(store, ids.workout("sound"))
    raw(tmp_path, "UPDATE log SET yjs = ? WHERE doc = 'workout:leg-day'", b"x")
    with pytest.raises(Unavailable):
        await store.load(LEG_DAY)
    assert await store.load(ids.workout("sound")) is not None
    await store.append(record(b"more", doc=ids.workout("sound")))


async def test_a_file_damaged_in_the_middle_is_unavailable(
    store: SqliteStore, tmp_path: Path
) -> None:
    await create(store)
    await store.close()
    path = tmp_path / "repsync.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    again = SqliteStore(tmp_path)
    for asked in (again.load(LEG_DAY), again.append(record(b"x")), again.claim_active(ANA, "w")):
        with pytest.raises(Unavailable):
            await asked
    await again.close()


# -- group commit -----------------------------------------------------------------------------


async def test_appends_of_many_rooms_at_once_share_their_commits(store: SqliteStore) -> None:
    docs = [ids.workout(f"w{i}") for i in range(50)]
    async with held(store):
        creations = asyncio.gather(*(create(store, doc) for doc in docs))
        await asyncio.sleep(0)
        commits = store.stats.commits
    await creations
    assert store.stats.commits - commits <= 3
    assert store.stats.appends == 50


async def test_one_job_that_fails_takes_no_other_with_it(store: SqliteStore) -> None:
    await create(store)
    async with held(store):
        jobs = asyncio.gather(
            store.append(record(b"a")),
            store.append(record(b"mine", creates=True)),
            store.append(record(b"b")),
            store.append(record(b"orphan", doc=ids.workout("nothing"))),
            store.append(record(b"c")),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
    good, conflict, better, _orphan, best = await jobs
    assert isinstance(conflict, Conflict)
    assert [stored.seq for stored in (good, better, best)] == [2, 3, 4]  # type: ignore[union-attr]
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert list(loaded.updates) == [b"created", b"a", b"b", b"c"]


async def test_an_answer_that_cannot_be_made_undoes_its_own_append_only(
    store: SqliteStore,
) -> None:
    await create(store)
    bad = entry(op_id="op", answer=lambda stored: {"ok": object()})
    with pytest.raises(TypeError):
        await store.append(record(b"a", bad))
    assert (await store.append(record(b"b"))).seq == 2


async def test_who_gives_up_waiting_does_not_stop_the_writer(store: SqliteStore) -> None:
    await create(store)
    async with held(store):
        hasty = asyncio.ensure_future(store.append(record(b"a")))
        patient = asyncio.ensure_future(store.append(record(b"b")))
        await asyncio.sleep(0)
        hasty.cancel()
    assert (await patient).seq == 3


async def test_reading_goes_on_while_the_writer_is_busy(store: SqliteStore) -> None:
    await create(store)
    async with held(store), asyncio.timeout(2):
        assert await store.load(LEG_DAY) is not None


async def test_the_way_to_the_disk_and_back_is_measured(store: SqliteStore) -> None:
    assert 0 < await store.check() < 5


# -- a disk that is full, or fails ------------------------------------------------------------


async def fill(store: SqliteStore) -> None:
    """Let the database not grow any more."""
    pages = await store._file.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await store._file.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def free(store: SqliteStore) -> None:
    await store._file.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())


async def test_a_full_disk_is_unavailable_and_nothing_is_half_written(store: SqliteStore) -> None:
    await create(store)
    await fill(store)
    op = entry(
        op_id="op",
        answer=lambda stored: {"ok": True},
        members=[Member(BEN, "coach", "Ben")],
        scores=[score("s", weight=100)],
    )
    with pytest.raises(Unavailable):
        await store.append(record(b"x" * 100_000, op))
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert (list(loaded.updates), loaded.seq, loaded.awards) == ([b"created"], 1, {})
    assert loaded.members.keys() == {ANA}
    assert await store.answer(ANA, "op") is None


async def test_everything_works_again_once_there_is_room(store: SqliteStore) -> None:
    await create(store)
    await fill(store)
    with pytest.raises(Unavailable):
        await store.append(record(b"x" * 100_000))
    await free(store)
    assert (await store.append(record(b"x" * 100_000))).seq == 2
    assert store.stats.failures == 1


async def test_all_of_a_commit_that_failed_are_told_to_try_again(store: SqliteStore) -> None:
    await create(store)
    await fill(store)
    async with held(store):
        jobs = asyncio.gather(
            store.append(record(b"small")),
            store.append(record(b"x" * 100_000)),
            store.claim_active(UserId("eve"), "w"),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
    assert [type(outcome) for outcome in await jobs] == [Unavailable] * 3
    await free(store)
    assert (await store.append(record(b"next"))).seq == 2


class FailingCommit:
    """A connection whose next commit does not reach the disk."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.is_failing = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, statement: str, *values: object) -> object:
        if statement == "COMMIT" and self.is_failing:
            self.is_failing = False
            raise sqlite3.OperationalError("disk I/O error")
        return self._db.execute(statement, *values)


async def test_a_commit_that_fails_leaves_nothing(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store)
    with monkeypatch.context() as patch:
        patch.setattr(store._file, "_db", FailingCommit(store._file._db))
        with pytest.raises(Unavailable):
            await store.append(record(b"lost"))
        assert (await store.append(record(b"kept"))).seq == 2
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert list(loaded.updates) == [b"created", b"kept"]


async def test_a_file_that_is_rebuilt_holds_nothing_of_what_was_deleted(tmp_path: Path) -> None:
    made = "INSERT INTO records VALUES (?, 'd', 'o', 1, 1, ?, 1)"

    def everywhere() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    def open_file() -> SqliteFile:
        return SqliteFile(tmp_path / "f.db", ("spool.sql",), name="f", lock="f.lock")

    await open_file().close()
    with contextlib.closing(sqlite3.connect(tmp_path / "f.db", isolation_level=None)) as older:
        older.execute("PRAGMA secure_delete = OFF")
        older.executemany(made, [(number, b"left knee" * 500) for number in range(1, 50)])
        older.execute(made, (0, b"right" * 1_000))
        older.execute("DELETE FROM records WHERE id > 0")
    assert b"left knee" in everywhere()
    file = open_file()
    later = [file.write(lambda db: db.execute(made, (99, b"later"))), file.rebuild()]
    await asyncio.gather(*later)
    assert b"left knee" not in everywhere()
    left = await file.read(lambda db: [row["id"] for row in db.execute("SELECT id FROM records")])
    assert left == [0, 99]
    await file.close()
