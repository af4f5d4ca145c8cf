"""Two instances around one Redis and one MongoDB: a member cannot tell on which one it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import aiohttp
import pytest
from pycrdt import Map
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from crdt import ids
from crdt.errors import Unavailable
from crdt.ids import DocName
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness
from server.cluster.replicator import Replicator
from server.replay.devices import DocumentClient, EventClient, Refused
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.servers import RunningServer, running_server

pytestmark = pytest.mark.timeout(120)

SECRET = "a secret of more than thirty-two bytes"
WORKOUT, TEMPLATE = ids.workout("w"), ids.template("t")
DEADLINE_S = 20.0
LOST = ConnectionError("Redis is lost")


@dataclass
class Two:
    """Two servers that share everything."""

    a: RunningServer
    b: RunningServer
    redis: RedisProcess
    prefix: str
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def both(self) -> tuple[RunningServer, RunningServer]:
        return self.a, self.b


async def started(
    stack: AsyncExitStack, folder: Path, redis: RedisProcess, mongo_uri: str, **settings: Any
) -> Two:
    prefix = f"t{uuid4().hex[:8]}"
    servers = [
        await stack.enter_async_context(
            running_server(
                folder / name,
                jwt_secret=SECRET,
                redis_url=redis.url,
                redis_prefix=prefix,
                mongodb_uri=mongo_uri,
                bus_secret=SECRET,
                **settings,
            )
        )
        for name in ("a", "b")
    ]
    return Two(servers[0], servers[1], redis, prefix, stack)


@pytest.fixture
async def two(tmp_path: Path, redis_process: RedisProcess, mongo_uri: str) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        yield await started(stack, tmp_path, redis_process, mongo_uri, room_idle_timeout_s=0.3)


@pytest.fixture
async def lazy(tmp_path: Path, redis_process: RedisProcess, mongo_uri: str) -> AsyncIterator[Two]:
    """Two servers that move to MongoDB only what nobody has open any more."""
    settings = {"room_idle_timeout_s": 0.3, "embedded_worker": False}
    async with AsyncExitStack() as stack:
        yield await started(stack, tmp_path, redis_process, mongo_uri, **settings)


async def eventually(check: Any, timeout_s: float = DEADLINE_S) -> Any:
    """Await a check until what it returns is true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await check()):  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.02)
        return found


async def health(server: RunningServer) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(server.url + "/health") as answer:
        return answer.status, await answer.json()


async def make_workout(owner: EventClient, **fields: Any) -> None:
    await owner.do("workout:create", {"workout_id": WORKOUT.id, "title": "Leg day", **fields})
    await owner.do(
        "workout:exercise:add",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
    )


async def log_set(client: EventClient, reps: int = 5, **more: Any) -> dict[str, Any]:
    return await client.do(
        "workout:set:complete",
        {
            "workout_id": WORKOUT.id,
            "exercise_id": "squat",
            "set": {"reps": reps, "weight_kg": 100},
            **more,
        },
    )


def write_set(client: DocumentClient, set_id: str, user_id: str = "ana") -> None:
    client.map("sets")[set_id] = Map(
        {
            "user_id": user_id,
            "exercise": "squat",
            "order": f"b{set_id}",
            "kind": "normal",
            "reps": 5,
            "completed_at": 1_700_000_000_000,
        }
    )


async def sets_of(client: EventClient) -> set[str]:
    synced = await client.do("workout:sync", {"workout_id": WORKOUT.id})
    return {item["id"] for item in synced["workout"]["sets"]}


async def join(client: EventClient) -> dict[str, Any]:
    return await client.do("workout:join", {"workout_id": WORKOUT.id})


async def test_a_set_done_on_one_is_told_and_synced_on_the_other(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    watch = await two.b.events("ana", "watch")
    laptop = await two.b.document("ana", WORKOUT)
    await join(watch)
    done = await log_set(phone)
    assert done["durability"] == "cluster"
    assert done["is_pr"] is True
    told = await watch.next("workout:set:completed")
    assert (told["set_id"], told["is_pr"]) == (done["set_id"], True)
    assert told["user"] == {"id": "ana", "name": "ana"}
    await laptop.until(lambda: done["set_id"] in laptop.content()["sets"])
    write_set(laptop, "s2")
    told = await phone.next("workout:set:completed", lambda event: event["set_id"] == "s2")
    assert told["set"]["reps"] == 5
    assert await sets_of(phone) == await sets_of(watch) == {done["set_id"], "s2"}


async def test_how_long_a_change_took_to_come_over_is_measured_where_it_comes_to(two: Two) -> None:
    phone, watch = await two.a.events("ana"), await two.b.events("ana", "watch")
    await make_workout(phone)
    await join(watch)
    done = await log_set(phone)
    await watch.next("workout:set:completed", lambda event: event["set_id"] == done["set_id"])
    origin, other = (server.parts.metrics.rooms.shown_seconds for server in two.both)
    assert other["elsewhere"].count >= 1
    assert 0 <= other["elsewhere"].total < DEADLINE_S
    assert (origin["elsewhere"].count, other["here"].count) == (0, 0)
    assert origin["here"].count >= 2


async def test_many_edits_on_both_end_equal(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    laptops = [await server.document("ana", WORKOUT) for server in two.both]
    watch = await two.b.events("ana", "watch")
    for number in range(20):
        for which, laptop in enumerate(laptops):
            write_set(laptop, f"{which}-{number}")
            laptop.map("meta")["title"] = f"Title {which}-{number}"
        await asyncio.gather(log_set(phone), log_set(watch))
    await asyncio.gather(*(laptop.sync() for laptop in laptops))
    for laptop in laptops:
        await laptop.until(lambda laptop=laptop: len(laptop.content()["sets"]) == 80)
    await laptops[0].until(lambda: laptops[0].content() == laptops[1].content())
    synced = [
        (await client.do("workout:sync", {"workout_id": WORKOUT.id}))["workout"]
        for client in (phone, watch)
    ]
    for key in ("sets", "exercises", "title", "progress", "version"):
        assert synced[0][key] == synced[1][key]


async def test_an_operation_sent_to_both_is_carried_out_once(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    again = await two.b.events("ana")
    op_id = str(uuid4())
    first, second = await asyncio.gather(log_set(phone, op_id=op_id), log_set(again, op_id=op_id))
    assert first == second
    assert await sets_of(phone) == {first["set_id"]}
    assert await log_set(again, op_id=op_id) == first


async def test_a_workout_made_twice_by_one_operation_is_one(two: Two) -> None:
    phone, again = await two.a.events("ana"), await two.b.events("ana")
    wish = {"title": "Leg day", "op_id": str(uuid4())}
    made = await asyncio.gather(phone.do("workout:create", wish), again.do("workout:create", wish))
    assert made[0]["workout"]["id"] == made[1]["workout"]["id"]
    listed = await again.do("workout:list", {})
    assert [item["id"] for item in listed["workouts"]] == [made[0]["workout"]["id"]]


async def test_a_status_changes_once(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    watch = await two.b.events("ana", "watch")
    await join(watch)
    await phone.do("workout:start", {"workout_id": WORKOUT.id})
    await watch.next("workout:started")
    answers = await asyncio.gather(
        phone.ask("workout:complete", {"workout_id": WORKOUT.id}),
        watch.ask("workout:abandon", {"workout_id": WORKOUT.id}),
    )
    assert sorted(answer["ok"] for answer in answers) == [False, True]
    (error,) = [answer["error"]["code"] for answer in answers if not answer["ok"]]
    assert error in ("conflict", "unavailable")
    for client in (phone, watch):
        await client.until(lambda client=client: bool(ends(client)))
    await log_set(phone)
    for client in (phone, watch):
        await client.next("workout:set:completed")
        assert len(ends(client)) == 1


def ends(client: EventClient) -> list[str]:
    """How the workout has ended, as often as it was told."""
    return [
        name for name, *_ in client.events if name in ("workout:completed", "workout:abandoned")
    ]


async def test_a_record_is_won_once_in_two_workouts(two: Two) -> None:
    phone, watch = await two.a.events("ana"), await two.b.events("ana", "watch")
    for client, workout_id in ((phone, "w1"), (watch, "w2")):
        await client.do("workout:create", {"workout_id": workout_id})
        await client.do(
            "workout:exercise:add",
            {"workout_id": workout_id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
        )
    for weight_kg in (100, 110, 120):
        done = await asyncio.gather(
            *(
                client.do(
                    "workout:set:complete",
                    {
                        "workout_id": workout_id,
                        "exercise_id": "squat",
                        "set": {"reps": 5, "weight_kg": weight_kg},
                    },
                )
                for client, workout_id in ((phone, "w1"), (watch, "w2"))
            )
        )
        assert sorted(one["is_pr"] for one in done) == [False, True]


async def test_members_are_seen_wherever_they_are(two: Two) -> None:
    ana = await two.a.events("ana")
    await make_workout(ana, mode="group", visibility="public")
    ben = await two.b.events("ben")
    await join(ben)
    told = await ana.next("workout:member:joined", lambda event: event["user"]["id"] == "ben")
    assert told["role"] == "participant"

    async def online() -> set[str]:
        synced = await ben.do("workout:sync", {"workout_id": WORKOUT.id})
        return {m["user"]["id"] for m in synced["workout"]["members"] if m["online"]}

    await eventually(lambda: _is(online(), {"ana", "ben"}))
    await ana.close()
    told = await ben.next("workout:member:left")
    assert told["user"]["id"] == "ana"
    assert await online() == {"ben"}


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_who_is_put_out_on_one_is_out_on_the_other(two: Two) -> None:
    ana = await two.a.events("ana")
    await make_workout(ana, mode="group", visibility="public")
    ben = await two.b.events("ben")
    await join(ben)
    await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    await ana.do("workout:member:remove", {"workout_id": WORKOUT.id, "user_id": "ben"})
    told = await ana.next("workout:member:changed", lambda event: event["role"] is None)
    assert told["user"]["id"] == "ben"

    async def refused() -> bool:
        answer = await log_set_answer(ben)
        return not answer["ok"] and answer["error"]["code"] == "forbidden"

    await eventually(refused)


async def log_set_answer(client: EventClient) -> dict[str, Any]:
    return await client.ask(
        "workout:set:complete",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5}},
    )


async def test_an_invitation_reaches_the_other_instance(two: Two) -> None:
    ana, ben = await two.a.events("ana"), await two.b.events("ben")
    await make_workout(ana)
    await ana.do("workout:invite", {"workout_id": WORKOUT.id, "user_id": "ben", "role": "coach"})
    told = await ben.next("workout:invited")
    assert told["workout_id"] == WORKOUT.id
    assert (await join(ben))["role"] == "coach"


async def test_a_revocation_ends_connections_of_the_other_instance(two: Two) -> None:
    root, ben = await two.a.events("root", role="admin"), await two.b.events("ben")
    await root.do("auth:revoke", {"user_id": "ben"})
    assert (await ben.next("auth:revoked"))["code"] == "unauthenticated"
    await ben.wait_until_gone(DEADLINE_S)


async def test_a_new_workout_is_listed_by_the_other_instance(two: Two) -> None:
    ana, again = await two.a.events("ana"), await two.b.events("ana")
    await make_workout(ana)

    async def listed() -> bool:
        found = await again.do("workout:list", {})
        return [item["id"] for item in found["workouts"]] == [WORKOUT.id]

    assert [item["id"] for item in (await ana.do("workout:list", {}))["workouts"]] == ["w"]
    await eventually(listed)
    answer = await again.ask("workout:create", {"workout_id": WORKOUT.id})
    assert answer["error"]["code"] == "conflict"


async def test_a_template_is_edited_on_both(two: Two) -> None:
    ana = await two.a.events("ana")
    await ana.do("template:create", {"template_id": TEMPLATE.id, "title": "Plan"})
    laptops = [await server.document("ana", TEMPLATE) for server in two.both]
    for which, laptop in enumerate(laptops):
        laptop.roots["notes"].insert(0, f"from {which}. ")
    for laptop in laptops:
        await laptop.until(
            lambda laptop=laptop: all(f"from {n}" in str(laptop.roots["notes"]) for n in (0, 1))
        )
    assert str(laptops[0].roots["notes"]) == str(laptops[1].roots["notes"])


async def test_presence_is_seen_on_the_other_instance(two: Two) -> None:
    ana = await two.a.events("ana")
    await make_workout(ana)
    here, there = [await server.document("ana", WORKOUT) for server in two.both]
    state = encode_awareness([AwarenessEntry(7, 1, {"set": 3})])
    await here._emit("awareness-update", state)
    await there.until(lambda: bool(shown(there)))
    assert shown(there) == {7: {"set": 3, "user": {"id": "ana", "name": "ana"}}}
    late = await two.b.document("ana", WORKOUT)
    await late.until(lambda: bool(shown(late)))
    await here.close()
    await there.until(lambda: not shown(there))


def shown(client: DocumentClient) -> dict[int, Any]:
    """The states that a client has been told of, those that are there."""
    states: dict[int, Any] = {}
    for update in client.awareness:
        states.update({entry.client_id: entry.state for entry in decode_awareness(update)})
    return {client_id: state for client_id, state in states.items() if state is not None}


async def test_with_redis_gone_edits_are_kept_here_and_reach_everybody_when_it_is_back(
    two: Two,
) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    watch = await two.b.events("ana", "watch")
    await join(watch)
    laptop = await two.b.document("ana", WORKOUT)
    two.redis.kill()
    done = [await log_set(phone), await log_set(watch)]
    assert [one["durability"] for one in done] == ["local", "local"]
    status, report = await eventually(lambda: _degraded(two.a))
    assert status == 206
    assert report["dependencies"]["redis"]["state"] == "degraded"
    two.redis.start()
    wanted = {one["set_id"] for one in done}
    await eventually(lambda: _is(sets_of(phone), wanted))
    await eventually(lambda: _is(sets_of(watch), wanted))
    await laptop.until(lambda: set(laptop.content()["sets"]) == wanted)
    await eventually(lambda: _is_healthy(two.a))
    assert (await log_set(phone))["durability"] == "cluster"


async def test_who_opened_without_redis_gets_what_it_missed_though_redis_goes_again_meanwhile(
    lazy: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_workout_and_leave(lazy.a)
    phone, watch = await lazy.a.events("ana"), await lazy.b.events("ana", "watch")
    await join(phone)
    before = await log_set(phone)  # in Redis alone
    replicator = replicator_of(lazy.b)
    with cut_off(replicator, monkeypatch) as patched:
        assert await sets_of(watch) == set()
        here = await log_set(watch)
        assert here["durability"] == "local"
        flush = AsyncMock(side_effect=LOST)
        patched.setattr(replicator.healing, "_flush", flush)
        patched.delattr(replicator.healing, "_ping")
        await eventually(lambda: _was_awaited(flush))
    wanted = {before["set_id"], here["set_id"]}
    for client in (phone, watch):
        await eventually(lambda client=client: _is(sets_of(client), wanted))


async def test_without_redis_nobody_is_told_that_there_is_no_such_document(
    lazy: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = await lazy.b.events("ana", "watch")
    with cut_off(replicator_of(lazy.b), monkeypatch):
        await make_workout(await lazy.a.events("ana"))  # in Redis alone
        answer = await watch.ask("workout:sync", {"workout_id": WORKOUT.id})
        assert (answer["error"]["code"], answer["error"]["retryable"]) == ("unavailable", True)
        with pytest.raises(Refused, match="unavailable"):
            await lazy.b.document("ana", WORKOUT)
    await eventually(lambda: _is_healthy(lazy.b))
    assert await sets_of(watch) == set()


async def test_what_was_kept_here_is_shown_here_whatever_becomes_of_redis(
    lazy: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_workout_and_leave(lazy.b)
    watch = await lazy.b.events("ana", "watch")
    replicator = replicator_of(lazy.b)
    heal_one, gone_again = replicator.healing._heal_one, asyncio.Event()

    async def heal_and_lose(doc: DocName) -> None:
        await heal_one(doc)
        monkeypatch.setattr(replicator.healing, "_ping", AsyncMock(side_effect=LOST))
        gone_again.set()
        raise LOST

    monkeypatch.setattr(replicator.healing, "_heal_one", heal_and_lose)
    with cut_off(replicator, monkeypatch):
        here = await log_set(watch)
        assert here["durability"] == "local"
        lazy.b.parts.hub.outdated(WORKOUT, "gap")  # nobody has joined, so it is closed
    await gone_again.wait()  # it is in Redis now, and nowhere else
    assert await sets_of(watch) == {here["set_id"]}
    monkeypatch.undo()
    await eventually(lambda: _is_healthy(lazy.b))
    assert await sets_of(watch) == {here["set_id"]}


async def test_what_was_kept_here_is_let_go_when_it_lasts_though_nobody_opens_it_again(
    lazy: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_workout_and_leave(lazy.b)
    watch = await lazy.b.events("ana", "watch")
    replicator = replicator_of(lazy.b)
    with cut_off(replicator, monkeypatch):
        here = await log_set(watch)
        lazy.b.parts.hub.outdated(WORKOUT, "gap")  # nobody has joined, so it is closed

    async def is_let_go() -> bool:
        return (replicator.hosted_count, replicator.tails_bytes) == (0, 0)

    await eventually(is_let_go)
    assert await sets_of(watch) == {here["set_id"]}


async def test_a_record_that_is_won_on_the_way_into_the_log_is_shown_though_the_answer_was_lost(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await two.b.events("ana")
    await make_workout(phone)
    replicator = replicator_of(two.b)
    append, lost = replicator._log.append, []

    async def append_and_lose(*args: Any, **options: Any) -> int:
        pos: int = await append(*args, **options)
        if not lost:
            lost.append(pos)
            raise LOST
        return pos

    with cut_off(replicator, monkeypatch) as patched:
        assert (await log_set(phone))["durability"] == "local"
        patched.setattr(replicator._log, "append", append_and_lose)
        patched.delattr(replicator.healing, "_ping")
        await eventually(lambda: _is_healthy(two.b))
    assert lost
    assert await records_of(phone)


async def test_a_set_wins_nothing_later_if_it_may_be_in_the_log_as_one_that_won_nothing(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone, watch = await two.b.events("ana"), await two.a.events("ana", "watch")
    await make_workout(phone)
    await join(watch)
    replicator = replicator_of(two.b)
    append = replicator._log.append

    async def append_and_lose(*args: Any, **options: Any) -> int:
        await append(*args, **options)
        monkeypatch.setattr(replicator._log, "append", append)
        raise LOST

    with monkeypatch.context() as without_books:
        without_books.setattr(replicator._books, "judge", AsyncMock(side_effect=Unavailable("b")))
        monkeypatch.setattr(replicator._log, "append", append_and_lose)
        assert (await log_set(phone))["durability"] == "local"
    await eventually(lambda: _is_healthy(two.b))
    assert replicator._spool.count == 0
    assert await records_of(phone) == await records_of(watch) == []


async def test_a_late_change_of_the_status_takes_nothing_back_that_came_as_it_went_in(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several, because which of two writes wins at first is a matter of chance.
    users = [f"user-{number}" for number in range(6)]
    here = {user: await two.b.events(user) for user in users}
    there = {user: await two.a.events(user, "watch") for user in users}
    for user in users:
        for event in ("create", "start"):
            await here[user].do(f"workout:{event}", {"workout_id": user})
        await there[user].do("workout:join", {"workout_id": user})
    replicator = replicator_of(two.b)
    late = replicator.healing._late
    read, reads = late._read, Counter[DocName]()

    async def read_and_be_overtaken(doc: DocName) -> Any:
        found = await read(doc)
        reads[doc] += 1
        if reads[doc] == 2:  # once it is known that it comes too late
            await there[doc.id].do("workout:pause", {"workout_id": doc.id})
        return found

    with cut_off(replicator, monkeypatch):
        for user in users:
            paused = await here[user].do("workout:pause", {"workout_id": user})
            assert paused["durability"] == "local"
            for event in ("pause", "resume"):
                await there[user].do(f"workout:{event}", {"workout_id": user})
        monkeypatch.setattr(late, "_read", read_and_be_overtaken)
    await eventually(lambda: _is_healthy(two.b))
    assert set(reads.values()) == {3}

    async def status_of(client: EventClient, user: str) -> str:
        synced = await client.do("workout:sync", {"workout_id": user})
        return str(synced["workout"]["status"])

    for user in users:
        for client in (here[user], there[user]):
            assert await status_of(client, user) == "paused"


async def test_all_late_changes_of_the_status_leave_a_workout_that_has_ended_as_it_is(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone, watch = await two.b.events("ana"), await two.a.events("ana", "watch")
    for number in range(6):
        workout = {"workout_id": f"w{number}"}
        await phone.do("workout:create", workout)
        await phone.do("workout:start", workout)
        await watch.do("workout:join", workout)
        with cut_off(replicator_of(two.b), monkeypatch):
            for event in ("pause", "resume", "pause"):
                late = await phone.do(f"workout:{event}", workout)
                assert late["durability"] == "local"
            await watch.do("workout:complete", workout)
        await eventually(lambda: _is_healthy(two.b))
        for client in (phone, watch):
            synced = await client.do("workout:sync", workout)
            assert synced["workout"]["status"] == "completed"


async def test_an_instance_is_well_when_nothing_is_behind_any_more(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_workout(await two.b.events("ana"))
    replicator = replicator_of(two.b)
    hosted = replicator._hosts.get(WORKOUT)
    assert hosted is not None

    async def close_and_lose(doc: DocName) -> None:
        hosted.is_behind = False
        raise LOST

    heal_one = AsyncMock(side_effect=close_and_lose)
    monkeypatch.setattr(replicator.healing, "_heal_one", heal_one)
    replicator.outage.fell_behind(hosted)
    await eventually(lambda: _was_awaited(heal_one))
    assert not replicator.outage.is_away
    await eventually(lambda: _is_healthy(two.b), timeout_s=5)


async def test_a_database_that_cannot_keep_up_is_asked_for_less_at_once(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await two.b.events("ana")
    for number in range(8):
        await phone.do("template:create", {"template_id": f"t{number}", "title": "Legs"})
    healing = replicator_of(two.b).healing
    heal_one, at_once, is_overloaded = healing._heal_one, 0, False

    async def heal_if_not_overloaded(doc: DocName) -> None:
        nonlocal at_once, is_overloaded
        at_once += 1
        is_overloaded |= at_once > 2
        await asyncio.sleep(0.01)
        try:
            if is_overloaded:
                raise Unavailable("no answer in time", retry_after_ms=1_000)
            await heal_one(doc)
        finally:
            at_once -= 1
            is_overloaded &= at_once > 0

    monkeypatch.setattr(healing, "_heal_one", heal_if_not_overloaded)
    with cut_off(replicator_of(two.b), monkeypatch):
        pass
    await eventually(lambda: _is_healthy(two.b))


def replicator_of(server: RunningServer) -> Replicator:
    assert server.parts.cluster is not None
    return server.parts.cluster._replicator


@contextmanager
def cut_off(
    replicator: Replicator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """For it Redis is away, until `_ping` is what it was: at the end of the block at the latest."""
    with monkeypatch.context() as patched:
        patched.setattr(replicator.healing, "_ping", AsyncMock(side_effect=LOST))
        replicator.outage.went_away(LOST)
        yield patched


async def make_workout_and_leave(server: RunningServer) -> None:
    """It is in MongoDB then, and nobody has it open."""
    maker = await server.events("ana")
    await make_workout(maker)
    await maker.close()
    await eventually(lambda: _is_unloaded(server))


async def records_of(client: EventClient) -> list[str]:
    synced = await client.do("workout:sync", {"workout_id": WORKOUT.id})
    return [one["type"] for one in synced["workout"]["progress"]["ana"]["records"]]


async def _is_unloaded(server: RunningServer) -> bool:
    return len(server.parts.hub) == 0


async def _was_awaited(mock: AsyncMock) -> bool:
    return mock.await_count > 0


async def _degraded(server: RunningServer) -> tuple[int, dict[str, Any]] | None:
    status, report = await health(server)
    return (status, report) if report["status"] == "degraded" else None


async def _is_healthy(server: RunningServer) -> bool:
    return (await health(server))[0] == 200


async def test_an_instance_that_ends_lets_its_clients_go_before_it_puts_the_rooms_away(
    lazy: Two,
) -> None:
    phone = await lazy.a.events("ana")
    await make_workout(phone)
    cluster = lazy.a.parts.cluster
    assert cluster is not None
    put_away = cluster.persist
    connected: list[int] = []

    async def persist(doc: DocName) -> None:
        connected.append(lazy.a.parts.sockets.connection_count)
        await put_away(doc)

    setattr(cluster, "persist", persist)  # noqa: B010 - a method
    await lazy.a.app.shutdown()
    assert connected == [0]
    assert await sets_of(await lazy.b.events("ana")) == set()


async def test_a_redis_that_has_lost_everything_gets_it_back(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    watch = await two.b.events("ana", "watch")
    await join(watch)
    before = await log_set(phone)
    await watch.next("workout:set:completed")
    two.redis.kill()
    two.redis.lose_everything()
    meanwhile = await log_set(watch)
    two.redis.start()
    after = await log_set(phone)
    wanted = {before["set_id"], meanwhile["set_id"], after["set_id"]}
    for client in (phone, watch):
        await eventually(lambda client=client: _is(sets_of(client), wanted))
    await eventually(lambda: _is_healthy(two.a))
    third = await two.b.document("ana", WORKOUT)
    assert set(third.content()["sets"]) == wanted


async def test_nothing_is_left_in_redis_when_the_rooms_are_empty(two: Two) -> None:
    phone = await two.a.events("ana")
    await make_workout(phone)
    laptop = await two.b.document("ana", WORKOUT)
    await log_set(phone)
    await laptop.until(lambda: len(laptop.content()["sets"]) == 1)
    await phone.close()
    await laptop.close()
    async with Redis.from_url(two.redis.url) as redis:

        async def is_empty() -> bool:
            keys = [key.decode() async for key in redis.scan_iter(f"{two.prefix}:*")]
            channels = await redis.pubsub_channels(f"{two.prefix}:*")
            rooms = [one for one in channels if b"workout" in one]
            return not rooms and not [key for key in keys if key.endswith((":log", ":head"))]

        await eventually(is_empty)
    again = await two.b.events("ana")
    assert len(await sets_of(again)) == 1
    assert (await log_set(again))["durability"] == "cluster"


async def test_a_room_that_is_busy_elsewhere_is_let_go_where_nobody_is_in_it(two: Two) -> None:
    phone, watch = await two.a.events("ana"), await two.b.events("ana", "watch")
    await make_workout(phone)
    await join(watch)
    laptop = await two.b.document("ana", WORKOUT)
    is_over = False

    async def is_let_go() -> bool:
        async with Redis.from_url(two.redis.url) as redis:
            names = await redis.pubsub_channels(f"{two.prefix}:*")
            rooms = [name for name in names if b"workout" in name]
            return [count for _, count in await redis.pubsub_numsub(*rooms)] == [1]

    async def train() -> None:
        number = 0
        while not is_over:
            laptop.map("meta")["title"] = f"Leg day {(number := number + 1)}"
            await asyncio.sleep(0.005)

    training = asyncio.create_task(train())
    try:
        await phone.close()
        await eventually(is_let_go)
    finally:
        is_over = True
        await training
    assert len(two.b.parts.hub) == 1


# -- streams ------------------------------------------------------------------------------------


async def test_a_stream_at_one_instance_shows_what_is_done_at_the_other(two: Two) -> None:
    ana = await two.a.events("ana")
    await make_workout(ana)
    board = await two.b.events("ana", "board")
    streams = [f"{WORKOUT}:progress", "user:ana:progress"]
    assert (await board.do("subscribe", {"streams": streams}))["subscribed"] == streams
    await log_set(ana)
    here = await board.next(
        "progress", lambda value: value.get("progress", {}).get("ana", {}).get("sets_done") == 1
    )
    all_in_all = await board.next(
        "progress", lambda value: value.get("totals", {}).get("sets") == 1
    )
    assert here["stream"] == streams[0]
    assert all_in_all["workouts"][0]["volume_kg"] == 500


async def test_a_workout_that_is_made_private_at_one_instance_is_shown_no_more_at_the_other(
    two: Two,
) -> None:
    ana = await two.a.events("ana")
    await make_workout(ana, visibility="public")
    ben = await two.b.events("ben")
    await ben.do("subscribe", {"streams": [f"{WORKOUT}:progress", "user:ana:progress"]})
    for _ in range(2):
        await ben.next("progress")
    laptop = await two.a.document("ana", WORKOUT)
    laptop.map("meta")["visibility"] = "private"
    await laptop.settled()
    ended = [await ben.next("subscription:ended") for _ in range(2)]
    assert {told["reason"] for told in ended} == {"forbidden"}
