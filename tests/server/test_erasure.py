"""Erasing a person: what goes, what stays with the others, and what can never come back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdt import ids
from crdt.access import Member
from crdt.errors import Gone, Outdated, RepSyncError, Unavailable
from crdt.hub import RoomHub
from crdt.ids import UserId
from crdt.ports import Stored
from crdt.records import Score
from crdt.replica import Put
from server import personal
from server.erasure import Eraser
from server.replay.devices import CallFailed, EventClient, Refused
from server.settings import Settings
from server.storage import mongo_log
from server.storage.sqlite import SqliteStore
from tests.contracts.update_store import record
from tests.helpers.mongo_servers import opening
from tests.helpers.people import (
    ALONE,
    BENS_PLAN,
    GROUP,
    HERS,
    MARKS,
    NAME,
    PLAN,
    ZOE,
    create,
    found_in,
    found_in_mongodb,
    found_in_redis,
    log_set,
    op_id,
    train_together,
)
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.replicas import Peer
from tests.helpers.rooms import (
    LEG_DAY,
    FakeClock,
    RecordingOutlet,
    author,
    connection,
    entry,
    new_workout,
)
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.tokens import SECRET


async def eventually(
    ask: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool] = bool
) -> None:
    async with asyncio.timeout(30):
        while not is_so(await ask()):  # noqa: ASYNC110 - any condition: nobody signals it
            await asyncio.sleep(0.05)


def winners(server: RunningServer) -> set[str]:
    """Whose records admins are shown."""
    return {won["user"]["id"] for won in server.parts.watch.overview.value()["records"]}


@dataclass
class Place:
    """Where a deployment keeps its data, and what runs on it."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def running(self) -> AbstractAsyncContextManager[RunningServer]:
        return running_server(self.folder / "server", jwt_secret=SECRET, **self.settings)

    async def erase(self, user_id: str = ZOE, **options: Any) -> int:
        configured = Settings(data_dir=self.folder / "server", **self.settings)
        arguments = {"is_dry_run": False, "timeout_s": 30.0, **options}
        return await personal.erase(configured, UserId(user_id), **arguments)

    async def exported(self, user_id: str = ZOE) -> dict[str, Any]:
        out = StringIO()
        configured = Settings(data_dir=self.folder / "server", **self.settings)
        assert await personal.export(configured, UserId(user_id), out) == 0
        written: dict[str, Any] = json.loads(out.getvalue())
        return written

    async def found(self) -> dict[str, list[str]]:
        """What is left of zoe, and where."""
        found = found_in(self.folder)
        if uri := self.settings.get("mongodb_uri"):
            found |= await found_in_mongodb(uri)
        if url := self.settings.get("redis_url"):
            found |= found_in_redis(url, self.settings["redis_prefix"])
        return found


@pytest.fixture(params=["sqlite", "mongodb", "cluster"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, request, tmp_path)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place("cluster", request, tmp_path)


def make_place(mode: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    settings: dict[str, Any] = {}
    if mode != "sqlite":
        settings["mongodb_uri"] = request.getfixturevalue("mongo_uri") + "?timeoutMS=2000"
    if mode == "cluster":
        settings["redis_url"] = request.getfixturevalue("redis_server")
        settings["redis_prefix"] = f"t{uuid4().hex[:8]}"
        settings["bus_secret"] = SECRET
    return Place(tmp_path / "data", settings)


async def test_nothing_is_left_of_an_erased_person_in_the_data_folder(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
    assert {mark for marks in (await place.found()).values() for mark in marks} == set(MARKS)
    assert await place.erase() == 0
    assert await place.found() == {}


async def test_a_running_server_erases_while_others_train(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        zoe, laptop = server.clients[0], server.clients[2]
        ben = await server.events("ben", name="Ben")
        await ben.do("workout:join", {"workout_id": GROUP})
        bens_laptop = await server.document("ben", ids.workout(GROUP))
        assert ZOE in winners(server)
        assert await place.erase() == 0
        assert ZOE not in winners(server)
        await zoe.wait_until_gone()
        await laptop.wait_until_gone()
        gone = [(await ben.next("workout:set:removed"))["set_id"] for _ in range(2)]
        assert sorted(gone) == ["zoes-second", "zoes-third"]
        left = await ben.next("workout:member:changed", lambda told: told["user"]["id"] == ZOE)
        assert left["role"] is None
        await log_set(ben, GROUP, "bens-next")
        await bens_laptop.until(lambda: "bens-next" in bens_laptop.content()["sets"])
        assert bens_laptop.content()["sets"].keys() == {"bens-set", "bens-next"}
        assert bens_laptop.resets == []
    assert await place.found() == {}


async def test_what_others_did_stays_theirs(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        await place.erase()
        ben = await server.events("ben", name="Ben")
        group = (await ben.do("workout:sync", {"workout_id": GROUP}))["workout"]
        assert [item["id"] for item in group["sets"]] == ["bens-set"]
        joint = (await ben.do("workout:sync", {"workout_id": HERS}))["workout"]
        assert [item["id"] for item in joint["sets"]] == ["bens-other"]
        assert (joint["owner_id"], joint["title"]) == ("ben", "Workout")
        assert [(m["user"]["id"], m["role"]) for m in joint["members"]] == [("ben", "owner")]
        await ben.do("workout:complete", {"workout_id": HERS})
        plan = (await ben.do("template:get", {"template_id": BENS_PLAN}))["template"]
        assert (plan["title"], plan["notes"]) == ("Push", "")
        listed = await ben.do("workout:list", {})
        assert {w["id"] for w in listed["workouts"]} == {GROUP, HERS}


async def test_no_token_from_before_lets_an_erased_person_in(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        token = server.token(ZOE)
        await place.erase()
    async with place.running() as server:
        server.parts.auth.sign = lambda *_, **__: token  # type: ignore[method-assign]
        for entering in (server.events(ZOE), server.document(ZOE, ids.workout(GROUP))):
            with pytest.raises(Refused) as refusal:
                await entering
            assert refusal.value.error["code"] == "forbidden"
            assert refusal.value.error["details"] == {"reason": "erased"}


async def test_a_deleted_document_can_be_made_by_nobody_again(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        await place.erase()
        ben = await server.events("ben")
        for event, name in (("workout:create", ALONE), ("template:create", PLAN)):
            kind = event.partition(":")[0]
            answer = await ben.ask(event, {f"{kind}_id": name, "title": "Mine"})
            assert answer["error"]["code"] == "not_found", answer
            assert (await ben.ask("workout:sync", {"workout_id": ALONE}))["error"]["code"] == (
                "not_found"
            )
        with pytest.raises(Refused) as refusal:
            await server.document("ben", ids.workout(ALONE))
        assert refusal.value.error["code"] == "not_found"


async def test_another_persons_old_replica_brings_nothing_back(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        bens = await server.document("ben", ids.workout(GROUP))
        assert "zoes-third" in bens.content()["sets"]
        await bens.drop()
        bens.map("sets")["bens-offline"] = {"user_id": "ben", "exercise": "squat-group-day"}
        whole = bens.doc.get_update()
        await place.erase()
        await bens.connect()
        await bens.confirm()
        assert bens.content()["sets"].keys() == {"bens-set", "bens-offline"}
        assert (await bens.send(whole))["ok"]
    assert await place.found() == {}


async def test_somebody_new_of_the_same_id_cannot_write_as_the_one_before(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        old = server.clients[2].doc
        await place.erase()
        claims = {"sub": ZOE, "iat": int(time.time()) + 3, "exp": int(time.time()) + 600}
        token = jwt.encode(claims, SECRET)
        server.parts.auth.sign = lambda *_, **__: token  # type: ignore[method-assign]
        zoe = await server.events(ZOE)
        assert (await zoe.do("workout:list", {}))["workouts"] == []
        await zoe.do("workout:join", {"workout_id": GROUP})
        laptop = await server.document(ZOE, ids.workout(GROUP))
        before = old.get_state()
        sets = old.get("sets", type=type(server.clients[2].map("sets")))
        sets["back"] = {"user_id": ZOE, "exercise": "squat-group-day"}
        answer = await laptop.send(old.get_update(before))
        assert answer["error"]["code"] == "forbidden"


async def test_an_export_has_all_of_one_person_and_nobody_elses(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        ben = await server.events("ben")
        await log_set(ben, GROUP, "bens-secret", note="only ben knows")
        data = await place.exported()
    assert (data["format"], data["version"], data["user_id"]) == ("repsync-export", 1, ZOE)
    documents = {shown["document"]: shown for shown in data["documents"]}
    assert documents.keys() == {
        f"workout:{ALONE}",
        f"workout:{GROUP}",
        f"workout:{HERS}",
        f"template:{PLAN}",
        f"template:{BENS_PLAN}",
    }
    assert documents[f"workout:{ALONE}"]["snapshot"]["sets"][0]["note"] == "left knee hurts"
    own = documents[f"workout:{GROUP}"]["own"]
    assert sorted(item["id"] for item in own["sets"]) == ["zoes-second", "zoes-third"]
    assert documents[f"workout:{GROUP}"]["role"] == "participant"
    assert "only ben knows" not in json.dumps(data)
    assert data["profile"] == {"names": [NAME], "devices": ["laptop", "pocket-watch"]}
    assert data["claims"] == [{"workout_id": HERS}]
    assert {row["op_id"] for row in data["answers"]} >= {op_id(ALONE), op_id("zoes-first")}
    assert all(row["user_id"] == ZOE for row in data["log"])
    assert {row["event"] for row in data["log"]} >= {"sync-update", "workout:set:complete"}
    for section in ("scores", "records", "client_ids", "memberships"):
        assert data[section]


async def test_an_export_of_nobody_is_empty(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
    data = await place.exported("nobody")
    assert not any(data[section] for section in ("documents", "log", "answers", "records"))


async def test_an_erasure_that_was_interrupted_is_carried_out_by_the_next_server(
    place: Place,
) -> None:
    async with place.running() as server:
        await train_together(server)
        await server.parts.store.begin_erasure(UserId(ZOE), 0)
    async with place.running() as server:
        store = server.parts.store
        await eventually(lambda: store.erasures(), lambda left: not left)
        assert (await store.erasure_of(UserId(ZOE))).report["documents_deleted"] == 2
        await eventually(place.found, lambda found: not found)  # the queue of work names documents


async def test_a_server_that_ends_leaves_the_erasure_to_the_next_one(place: Place) -> None:
    begun = asyncio.Event()

    async def hanging(*_: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with place.running() as server:
        await train_together(server)
        store = server.parts.store
        store.bury = hanging  # type: ignore[method-assign]
        await store.begin_erasure(UserId(ZOE), 0)
        async with asyncio.timeout(30):
            await begun.wait()
    async with place.running() as server:
        store = server.parts.store
        (left,) = await store.erasures() or (None,)
        assert left is None or left.by in (None, server.parts.gateway.instance)
        await eventually(lambda: store.erasures(), lambda left: not left)
        await eventually(place.found, lambda found: not found)


@pytest.mark.parametrize("step", ["bury", "compact", "forget_in", "forget", "end_erasure"])
async def test_an_erasure_that_died_at_any_step_is_carried_out_when_it_is_asked_for_again(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "data")
    async with place.running() as server:
        await train_together(server)
    with monkeypatch.context() as dying:
        dying.setattr(SqliteStore, step, AsyncMock(side_effect=Unavailable("the disk is full")))
        assert await place.erase() == personal.EXIT_INCOMPLETE
    assert await place.found() != {}
    assert await place.erase() == 0
    assert await place.found() == {}
    async with place.running() as server:
        ben = await server.events("ben")
        assert await sets_of(ben) == {"bens-set"}


async def test_a_document_that_cannot_be_read_is_told_and_keeps_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path / "data")
    async with place.running() as server:
        await train_together(server)
    with sqlite3.connect(place.folder / "server" / "repsync.db") as db:
        db.execute("UPDATE log SET crc = 0 WHERE doc = ?", (f"workout:{HERS}",))
    assert await place.erase() == personal.EXIT_INCOMPLETE
    assert f"workout:{HERS} is damaged" in json.loads(capsys.readouterr().out)["error"]
    async with place.running() as server:
        ben = await server.events("ben")
        assert await sets_of(ben) == {"bens-set"}


async def test_erasing_twice_changes_nothing_more(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
    assert await place.erase() == 0
    assert await place.erase() == 0
    async with place.running() as server:
        ben = await server.events("ben")
        group = (await ben.do("workout:sync", {"workout_id": GROUP}))["workout"]
        assert [item["id"] for item in group["sets"]] == ["bens-set"]


async def test_a_dry_run_tells_and_changes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    async with place.running() as server:
        await train_together(server)
        assert await place.erase(is_dry_run=True) == 0
        told = json.loads(capsys.readouterr().out)
        assert set(told["documents_deleted"]) == {f"workout:{ALONE}", f"template:{PLAN}"}
        assert told["sets"] == 2
        zoe = await server.events(ZOE)
        with pytest.raises(CallFailed):
            await create(zoe, ALONE)
    assert await place.found()


async def test_a_snapshot_that_was_being_made_comes_too_late(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        hub, store = server.parts.hub, server.parts.store
        async with hub.lease(ids.workout(GROUP)) as live:
            late = live.room.diff(), live.room.seq, live.room.snapshot_seq
        await place.erase()
        assert not await store.compact(ids.workout(GROUP), *late)
    assert await place.found() == {}


async def test_a_change_of_a_deleted_document_that_comes_late_is_dropped(place: Place) -> None:
    async with place.running() as server:
        await train_together(server)
        store = server.parts.store
        late = record(b"left knee hurts", doc=ids.workout(ALONE), owner_id=UserId(ZOE))
        await place.erase()
        with pytest.raises((Gone, Outdated)):  # the second: nobody has it open
            await store.append(late)
        with pytest.raises(Gone):
            await store.append(late._replace(creates=True))
    assert await place.found() == {}


async def test_a_mover_that_slept_through_an_erasure_leaves_nothing(cluster: Place) -> None:
    async with cluster.running() as server:
        await train_together(server)
        name = ids.workout(ALONE)
        assert server.parts.cluster is not None
        await server.parts.cluster.stored(name)  # all of it is moved
        async with opening(cluster.settings["mongodb_uri"]) as store:
            last = await store.last(name)
            assert last is not None
            entries = [entry(ZOE, op_id=op_id("late"), answer=lambda _: {"by": ZOE})]
            worth = Score("zoes-late", UserId(ZOE), "name:squat", {"weight": 200.0})
            entries[0] = entries[0]._replace(scores=[worth], members=[Member(ZOE, "owner", NAME)])
            late = record(b"left knee hurts", *entries, doc=name, owner_id=ZOE)
            draft = mongo_log.draft(late, [()], Stored(last.pos + 1), last.listed_at)
            await cluster.erase()
            with pytest.raises(Gone):
                await store.persist(name, [(last.pos + 1, draft)])
            # It had looked before, and wrote after.
            found = AsyncMock(side_effect=[last, Gone("it")])
            store._last = found  # type: ignore[method-assign]
            with pytest.raises(Gone):
                await store.persist(name, [(last.pos + 1, draft)])
    assert await cluster.found() == {}


@dataclass
class Gym:
    """A hub on a data folder, ana's workout in it, and what she has on her device."""

    folder: Path
    store: SqliteStore
    hub: RoomHub
    sets: set[str] = field(default_factory=set)
    laptop: Peer = field(default_factory=Peer)

    async def submit(self, update: bytes, who: str) -> None:
        async with self.hub.lease(LEG_DAY) as live:
            try:
                stored = self.hub.submit(live, update, connection(who))
            except RepSyncError:
                assert who == ZOE, "what ana does is hers"
                return
        await stored

    async def do(self, step: str, number: int) -> None:
        async with self.hub.lease(LEG_DAY) as live:
            state, vector = live.room.diff(), live.room.state_vector()
        match step:
            case "zoe trains":
                peer = Peer(state=state)
                fields = {"user_id": ZOE, "exercise": "squat", "note": "left knee hurts"}
                await self.submit(peer.put("sets", f"zoes-{number}", fields), ZOE)
            case "ana trains offline":
                self.laptop.set(f"anas-{number}", exercise="squat")
                self.sets.add(f"anas-{number}")
            case "ana comes back":
                await self.submit(self.laptop.lacks(vector), "ana")
                async with self.hub.lease(LEG_DAY) as live:
                    self.laptop.apply(live.room.diff(self.laptop.vector()))
            case "ana sends all that she has":
                await self.submit(self.laptop.lacks(), "ana")
            case "a snapshot is made":
                async with self.hub.lease(LEG_DAY) as live:
                    room = live.room
                    await self.store.compact(LEG_DAY, state, room.seq, room.snapshot_seq)
            case "the server restarts":
                await self.close()
                self.store = SqliteStore(self.folder)
                self.hub = RoomHub(self.store, RecordingOutlet(), FakeClock())
            case "zoe is erased":
                eraser = Eraser(self.store, self.hub, FakeClock())
                await eraser.carry_out(await eraser.ask(UserId(ZOE)))

    async def close(self) -> None:
        await self.hub.close()
        await self.store.close()


GYM_STEPS = (
    *("zoe trains", "ana trains offline", "ana comes back", "ana sends all that she has"),
    *("a snapshot is made", "the server restarts", "zoe is erased"),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.sampled_from(GYM_STEPS), min_size=3, max_size=12))
def test_in_whatever_order_things_happen_the_data_folder_holds_nothing_in_the_end(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gym")

    async def play() -> None:
        store = SqliteStore(folder)
        gym = Gym(folder, store, RoomHub(store, RecordingOutlet(), FakeClock()))
        owner = connection("ana", document=False)
        made = [*new_workout(), Put(("exercises", "squat"), {"name": "Squat", "order": "a0"})]
        await gym.hub.create(
            LEG_DAY, made, owner, "workout:create", op_id=None, answer=lambda shown: shown
        )
        async with gym.hub.lease(LEG_DAY) as live:
            joined = Member(UserId(ZOE), "participant", NAME)
            await gym.hub.edit(
                live, [], author("ana"), "test", members=[joined], answer=lambda _: {}
            )
        ends = ("zoe trains", "ana comes back", "zoe is erased", "ana sends all that she has")
        for number, step in enumerate(["zoe trains", "ana comes back", *steps, *ends]):
            await gym.do(step, number)
        await gym.do("ana comes back", 99)
        async with gym.hub.lease(LEG_DAY) as live:
            assert live.room.view["sets"].keys() == gym.sets
        await gym.close()

    asyncio.run(play())
    assert found_in(folder) == {}


# -- several instances ------------------------------------------------------------------------


@pytest.fixture
def away(tmp_path: Path, redis_process: RedisProcess, mongo_uri: str) -> Place:
    """A deployment whose Redis can be taken away."""
    settings = {
        "mongodb_uri": mongo_uri + "?timeoutMS=2000",
        "redis_url": redis_process.url,
        "redis_prefix": "away",
    }
    return Place(tmp_path / "data", settings)


async def test_what_an_instance_had_kept_while_it_was_cut_off_does_not_come_back(
    away: Place, redis_process: RedisProcess
) -> None:
    async with away.running() as server:
        await train_together(server)
        zoe = next(client for client in server.clients if isinstance(client, EventClient))
        ben = await server.events("ben")
        redis_process.kill()
        late = await asyncio.gather(
            log_set(zoe, GROUP, "zoes-late", note="left knee hurts"),
            log_set(ben, GROUP, "bens-late"),
            log_set(zoe, ALONE, "zoes-later", note="left knee hurts"),
        )
        for number in range(3):
            late.append(await log_set(zoe, GROUP, f"zoes-late-{number}", note="left knee hurts"))
            late.append(await log_set(ben, GROUP, f"bens-late-{number}"))
        assert {answer["durability"] for answer in late} == {"local"}
    redis_process.start()
    assert "spool.db" in await away.found()
    assert await away.erase() == 0
    async with away.running() as server:
        ben = await server.events("ben")
        await ben.do("workout:join", {"workout_id": GROUP})
        await eventually(lambda: sets_of(ben), lambda sets: "bens-late-2" in sets)
        bens = {"bens-late", *(f"bens-late-{number}" for number in range(3))}
        await eventually(lambda: sets_of(ben), lambda sets: sets == {"bens-set", *bens})
        await eventually(away.found, lambda found: not found)


async def test_members_on_another_instance_see_it_as_ordinary_events(cluster: Place) -> None:
    async with cluster.running() as server:
        await train_together(server)
        other = running_server(
            cluster.folder / "other", jwt_secret=SECRET, compact_after=3, **cluster.settings
        )
        async with other as there:
            ben = await there.events("ben")
            await ben.do("workout:join", {"workout_id": GROUP})
            laptop = await there.document("ben", ids.workout(GROUP))
            zoe = await there.events(ZOE)
            assert await cluster.erase() == 0
            await zoe.wait_until_gone()
            gone = {(await ben.next("workout:set:removed"))["set_id"] for _ in range(2)}
            assert gone == {"zoes-second", "zoes-third"}
            await log_set(ben, GROUP, "bens-next")
            assert await sets_of(ben) == {"bens-set", "bens-next"}
            await laptop.until(lambda: "bens-next" in laptop.content()["sets"])
    assert await cluster.found() == {}


async def sets_of(client: EventClient) -> set[str]:
    shown = (await client.do("workout:sync", {"workout_id": GROUP}))["workout"]
    return {item["id"] for item in shown["sets"]}
