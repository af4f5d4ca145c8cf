"""The spool: what it promises of order, of the disk, and of records that are damaged."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crdt import ids
from crdt.errors import Unavailable
from server.storage.port import StorageError
from server.storage.spool import SCHEMA_VERSION, Spool, Spooled
from tests.helpers.rooms import LEG_DAY, until

PUSH = ids.template("push")


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path)
    await spool.open()
    yield spool
    await spool.close()


async def reopened(spool: Spool, folder: Path, **limits: int) -> Spool:
    await spool.close()
    again = Spool(folder, **limits)
    await again.open()
    return again


def raw(folder: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Do something behind the spool's back."""
    db = sqlite3.connect(folder / "spool.db")
    with db:
        rows = db.execute(statement, values).fetchall()
    db.close()
    return rows


async def records(spool: Spool, doc: ids.DocName | None = None, limit: int = 100) -> list[bytes]:
    return [spooled.record for spooled in await spool.first(doc, limit)]


def told(spool: Spool) -> tuple[int, int, int | None, frozenset[ids.DocName], int]:
    """What it says of itself."""
    docs = frozenset(spool.docs)
    return spool.count, spool.size_bytes, spool.oldest_at_ms, docs, spool.quarantined


# -- the queue --------------------------------------------------------------------------------


async def test_records_come_out_as_they_went_in_oldest_first(spool: Spool) -> None:
    first = await spool.append(LEG_DAY, "one", 1, b"a")
    second = await spool.append(PUSH, "two", 7, bytes(range(256)))
    [a, b] = await spool.first()
    assert (a, b) == (
        Spooled(first, LEG_DAY, "one", 1, b"a", a.at_ms),
        Spooled(second, PUSH, "two", 7, bytes(range(256)), b.at_ms),
    )
    assert first < second
    assert 0 < a.at_ms <= b.at_ms


async def test_records_of_one_document_can_be_asked_for(spool: Spool) -> None:
    for number in range(10):
        doc = LEG_DAY if number % 2 else PUSH
        await spool.append(doc, "one", number, str(number).encode())
    assert await records(spool, LEG_DAY) == [b"1", b"3", b"5", b"7", b"9"]
    assert await records(spool, LEG_DAY, limit=2) == [b"1", b"3"]
    assert await records(spool, limit=3) == [b"0", b"1", b"2"]
    assert await records(spool, ids.workout("nobody")) == []
    assert spool.docs == {LEG_DAY, PUSH}


async def test_many_that_append_at_once_keep_the_order_of_their_calls(spool: Spool) -> None:
    appends = [spool.append(LEG_DAY, "one", n, str(n).encode()) for n in range(500)]
    got = [await append for append in appends]
    assert got == sorted(got)
    assert await records(spool, limit=1_000) == [str(n).encode() for n in range(500)]
    assert spool.stats.commits < 100


async def test_what_is_removed_is_gone_and_its_id_is_not_given_again(spool: Spool) -> None:
    first, second, third = [await spool.append(LEG_DAY, "one", n, b"x") for n in (1, 2, 3)]
    await spool.remove([first, third, 999])
    assert [spooled.id for spooled in await spool.first()] == [second]
    await spool.remove(iter([second, second]))
    assert await spool.first() == []
    assert told(spool) == (0, 0, None, frozenset(), 0)
    assert await spool.append(LEG_DAY, "one", 4, b"x") > third


async def test_it_tells_what_waits(spool: Spool) -> None:
    assert told(spool) == (0, 0, None, frozenset(), 0)
    first = await spool.append(LEG_DAY, "one", 1, b"12345")
    second = await spool.append(PUSH, "one", 1, b"123")
    [a, b] = await spool.first()
    assert told(spool) == (2, 8, a.at_ms, {LEG_DAY, PUSH}, 0)
    await spool.remove([first])
    assert told(spool) == (1, 3, b.at_ms, {PUSH}, 0)
    await spool.remove([second])
    assert told(spool) == (0, 0, None, frozenset(), 0)


async def test_who_gives_up_waiting_is_counted_all_the_same(spool: Spool) -> None:
    hasty = asyncio.ensure_future(spool.append(LEG_DAY, "one", 1, b"abc"))
    await asyncio.sleep(0)
    hasty.cancel()
    await spool.append(LEG_DAY, "one", 2, b"d")
    assert await records(spool) == [b"abc", b"d"]
    assert (spool.count, spool.size_bytes) == (2, 4)


# -- full -------------------------------------------------------------------------------------


async def test_it_holds_so_many_records_and_no_more(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_records=3)
    await spool.open()
    appends = [spool.append(LEG_DAY, "one", n, b"x") for n in range(5)]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, int, int, Unavailable, Unavailable]
    [spooled, *_] = await spool.first()
    await spool.remove([spooled.id])
    await spool.append(LEG_DAY, "one", 5, b"y")
    with pytest.raises(Unavailable) as full:
        await spool.append(LEG_DAY, "one", 6, b"z")
    assert full.value.retry_after_ms
    assert await records(spool) == [b"x", b"x", b"y"]
    await spool.close()


async def test_it_holds_so_many_bytes_and_no_more_after_a_restart_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100)
    await spool.open()
    taken = spool.append(LEG_DAY, "one", 1, bytes(60))
    refused = spool.append(LEG_DAY, "one", 2, bytes(41))
    with pytest.raises(Unavailable, match="full"):
        await refused
    await taken
    await spool.append(LEG_DAY, "one", 3, bytes(40))
    again = await reopened(spool, tmp_path, max_bytes=100)
    with pytest.raises(Unavailable, match="full"):
        await again.append(LEG_DAY, "one", 4, b"x")
    await again.append(LEG_DAY, "one", 5, b"")
    assert again.size_bytes == 100
    await again.close()


async def test_what_a_full_disk_does_not_take_is_not_counted(spool: Spool) -> None:
    await spool.append(LEG_DAY, "one", 1, b"a")
    assert spool._file is not None
    [pages] = await spool._file.write(lambda db: db.execute("PRAGMA page_count").fetchone())
    await spool._file.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())
    with pytest.raises(Unavailable) as refused:
        await spool.append(LEG_DAY, "one", 2, bytes(100_000))
    assert refused.value.retry_after_ms
    assert (spool.count, spool.size_bytes) == (1, 1)
    await spool._file.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
    await spool.append(LEG_DAY, "one", 2, bytes(100_000))
    assert (spool.count, spool.size_bytes) == (2, 100_001)


# -- the disk ---------------------------------------------------------------------------------


async def test_a_spool_that_is_opened_again_knows_everything(spool: Spool, tmp_path: Path) -> None:
    for n in range(5):
        await spool.append(LEG_DAY if n else PUSH, "one", n, bytes(n + 1))
    [first, *_] = await spool.first()
    await spool.remove([first.id])
    before, waiting = told(spool), await spool.first()
    again = await reopened(spool, tmp_path)
    assert told(again) == before
    assert await again.first() == waiting
    assert await again.append(LEG_DAY, "one", 9, b"x") > waiting[-1].id
    await again.close()


async def test_every_commit_is_synced(spool: Spool) -> None:
    assert spool._file is not None
    [level] = await spool._file.write(lambda db: db.execute("PRAGMA synchronous").fetchone())
    assert level == 2  # FULL


CHILD = """
import asyncio, sys
from pathlib import Path
from crdt import ids
from server.storage.spool import Spool

async def main():
    spool = Spool(Path(sys.argv[1]))
    await spool.open()

    async def write(writer):
        n = 0
        while True:
            n += 1
            id_ = await spool.append(ids.workout(f"w{writer}"), "child", n, b"%d:%d" % (writer, n))
            print(id_, writer, n, flush=True)

    await asyncio.gather(*(write(writer) for writer in range(8)))

asyncio.run(main())
"""


async def test_a_killed_process_leaves_all_that_it_has_acknowledged(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acked = [child.stdout.readline() for _ in range(400)]
    child.send_signal(signal.SIGKILL)
    acked += child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    spool = Spool(tmp_path)
    await spool.open()
    kept = {spooled.id: spooled for spooled in await spool.first(limit=1_000_000)}
    for line in acked:
        id_, writer, n = map(int, line.split())
        spooled = kept[id_]
        assert (spooled.doc, spooled.n) == (ids.workout(f"w{writer}"), n)
        assert spooled.record == b"%d:%d" % (writer, n)
    assert spool.count == len(kept) >= len(acked)
    assert spool.quarantined == 0
    await spool.close()


async def test_a_process_that_has_it_open_keeps_others_out_until_it_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    with pytest.raises(StorageError, match="in use"):
        await Spool(tmp_path).open()
    child.kill()
    child.stdout.read()
    child.wait()
    child.stdout.close()
    spool = Spool(tmp_path)
    await spool.open()
    await spool.append(LEG_DAY, "one", 1, b"a")
    await spool.close()


async def test_a_folder_where_the_file_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        await Spool(tmp_path).open()


async def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        await Spool(tmp_path / "data").open()


async def test_a_spool_of_a_newer_version_is_left_alone(spool: Spool, tmp_path: Path) -> None:
    await spool.close()
    raw(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match="newer"):
        await Spool(tmp_path).open()
    raw(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION}")
    await (await reopened(spool, tmp_path)).close()


async def test_a_spool_that_is_closed_takes_nothing_and_finishes_what_it_was_asked(
    spool: Spool, tmp_path: Path
) -> None:
    appends = [spool.append(LEG_DAY, "one", n, b"x") for n in range(20)]
    await asyncio.sleep(0)
    await spool.close()
    await spool.close()
    assert len(await asyncio.gather(*appends)) == 20
    with pytest.raises(Unavailable):
        await spool.append(LEG_DAY, "one", 99, b"late")
    with pytest.raises(Unavailable):
        await spool.first()
    with pytest.raises(Unavailable):
        await spool.remove([1])
    assert len(raw(tmp_path, "SELECT id FROM records")) == 20


async def test_a_spool_that_was_never_opened_takes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(Unavailable):
        await spool.append(LEG_DAY, "one", 1, b"x")
    with pytest.raises(Unavailable):
        await spool.first()
    await spool.close()


# -- damage -----------------------------------------------------------------------------------

SPOILED = {
    "record": b"other",
    "doc": "workout:other",
    "origin": "other",
    "n": 8,
    "at_ms": 1,
    "crc": 1,
}


@pytest.mark.parametrize("column", SPOILED)
async def test_a_damaged_record_is_set_aside_and_those_behind_it_are_not_held_up(
    spool: Spool, tmp_path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await spool.append(LEG_DAY, "one", 1, b"spoiled")
    await spool.append(LEG_DAY, "one", 2, b"behind it")
    await spool.append(PUSH, "one", 1, b"elsewhere")
    raw(tmp_path, f"UPDATE records SET {column} = ? WHERE id = ?", SPOILED[column], bad)
    assert await records(spool) == [b"behind it", b"elsewhere"]
    assert await records(spool, LEG_DAY) == [b"behind it"]
    assert spool.quarantined == 1
    assert (spool.count, spool.size_bytes, spool.docs) == (2, 18, {LEG_DAY, PUSH})
    [logged] = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
    assert logged.__dict__["document"] == (SPOILED["doc"] if column == "doc" else str(LEG_DAY))
    [(kept,)] = raw(tmp_path, f"SELECT {column} FROM records WHERE id = ?", bad)
    assert kept == SPOILED[column]

    again = await reopened(spool, tmp_path)
    assert again.quarantined == 1
    assert await records(again) == [b"behind it", b"elsewhere"]
    assert again.count == 2
    await again.close()


@pytest.mark.parametrize("value", ["CAST(x'ff' AS TEXT)", "x'ff'", "2.5", "'text'"])
async def test_what_is_of_no_type_that_we_write_is_set_aside(
    spool: Spool, tmp_path: Path, value: str
) -> None:
    for column in SPOILED:
        bad = await spool.append(LEG_DAY, "one", 1, b"spoiled")
        raw(tmp_path, f"UPDATE records SET {column} = {value} WHERE id = {bad}")
    await spool.append(PUSH, "one", 1, b"sound")
    assert await records(spool) == [b"sound"]
    assert spool.quarantined == len(SPOILED)


async def test_damage_is_found_when_the_spool_is_opened(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await spool.append(LEG_DAY, "one", 1, b"a-record-to-be-found")
    await spool.append(PUSH, "one", 1, b"sound")
    await spool.close()
    path = tmp_path / "spool.db"
    path.write_bytes(path.read_bytes().replace(b"a-record-to-be-found", b"a-record-to-be-fOund"))
    again = await reopened(spool, tmp_path)
    assert (again.count, again.docs, again.quarantined) == (1, {PUSH}, 1)
    assert [entry.__dict__["document"] for entry in caplog.records] == [str(LEG_DAY)]
    assert await records(again) == [b"sound"]
    await again.close()


async def test_a_record_that_was_read_in_time_can_be_removed_after_it_was_damaged(
    spool: Spool, tmp_path: Path
) -> None:
    first = await spool.append(LEG_DAY, "one", 1, b"a")
    second = await spool.append(LEG_DAY, "one", 2, b"b")
    raw(tmp_path, "UPDATE records SET record = ?", b"c")
    await spool.remove([first])
    assert (spool.count, spool.quarantined) == (0, 1)
    await spool.remove([second])
    assert told(spool) == (0, 0, None, frozenset(), 0)


async def test_no_byte_that_flips_changes_or_hides_a_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "sound")
    await spool.open()
    for n in range(60):
        await spool.append(LEG_DAY if n % 3 else PUSH, f"origin-{n % 4}", n, bytes([n]) * (n * 9))
    sound = {spooled.id: spooled for spooled in await spool.first()}
    await spool.close()
    data = (tmp_path / "sound" / "spool.db").read_bytes()
    chance = random.Random(20_240_501)
    outcomes = {"refused": 0, "set aside": 0, "unharmed": 0}
    for attempt in range(150):
        spoiled = bytearray(data)
        spoiled[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / "spool.db").write_bytes(spoiled)
        flipped = Spool(folder)
        try:
            await flipped.open()
        except StorageError:
            outcomes["refused"] += 1
            continue
        found = await flipped.first()
        values = [spooled[1:] for spooled in sound.values()]
        assert all(spooled[1:] in values for spooled in found)
        assert len(found) == flipped.count
        assert len(found) + flipped.quarantined == len(sound)
        outcomes["set aside" if flipped.quarantined else "unharmed"] += 1
        await flipped.close()
    assert min(outcomes.values()) > 0, outcomes


async def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError):
        await Spool(tmp_path).open()
    assert (tmp_path / "spool.db").read_bytes() == b"not a database" * 100


async def test_a_file_that_is_damaged_through_and_through_is_refused_and_kept(
    spool: Spool, tmp_path: Path
) -> None:
    for n in range(100):
        await spool.append(LEG_DAY, "one", n, os.urandom(1_000))
    await spool.close()
    path = tmp_path / "spool.db"
    data = path.read_bytes()
    path.write_bytes(data[:8_192] + b"\xff" * (len(data) - 8_192))
    with pytest.raises(StorageError, match="nowhere else"):
        await Spool(tmp_path).open()
    assert path.read_bytes() == data[:8_192] + b"\xff" * (len(data) - 8_192)


async def test_damage_while_it_is_open_is_unavailable(spool: Spool, tmp_path: Path) -> None:
    for n in range(100):
        await spool.append(LEG_DAY, "one", n, os.urandom(1_000))
    await until(lambda: spool.count == 100)
    db = sqlite3.connect(tmp_path / "spool.db")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = tmp_path / "spool.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8_192)
        file.write(b"\xff" * (size - 8_192))
    raw(tmp_path, "CREATE TABLE other (id)")  # whoever has read pages reads them again
    with pytest.raises(Unavailable):
        await spool.first()
    with pytest.raises(Unavailable):
        await spool.append(LEG_DAY, "one", 100, b"x")
