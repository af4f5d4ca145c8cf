"""Several instances, and what becomes of their users when Redis, MongoDB or one of them fails.

Each test is a row of what must be survived. Where several people work meanwhile, they are those of
`tests/chaos`, and the checker looks at everything in the end.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import pytest
from pycrdt import Map

from crdt import ids
from crdt.ids import DocName
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness
from server.replay.devices import DocumentClient, EventClient, Lost, Refused
from tests.chaos.stage import ROOMY, Here, play, prepared, until_busy
from tests.helpers.clusters import (
    IS_SERVED,
    Cluster,
    Instance,
    eventually,
    running_cluster,
)
from tests.helpers.proxies import Proxy

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not IS_SERVED, reason="multi-instance mode is not there yet"),
]

WORKOUT = ids.workout("w")
HERE = {"workout_id": WORKOUT.id}
CONVERGENCE_S = 10.0
"""Within which all replicas are equal after everything is healed."""
HEALTH_S = 2.0 + 1.5
"""Within which /health tells of a dependency that is gone, and what a busy machine adds to it."""
DEAF_S = 5.0 + 3.0
"""Within which an instance notices that it hears nothing any more, likewise."""

BUSY_S = 5.0
"""What a busy machine may add to a promised time."""

SPOOL = "repsync_spool_records"
DEAF = "repsync_bus_deaf_seconds"
MAX_SPOOL = {"SPOOL_MAX_BYTES": "65536"}
MAX_BACKLOG = {"BACKLOG_MAX_BYTES": "65536"}
"""Settings that make a bound small."""


class Gym:
    """A group workout on three instances, with a phone of Ana's on each."""

    def __init__(self, cluster: Cluster, phones: list[EventClient]) -> None:
        self.cluster = cluster
        self.phones = phones
        self.acked: list[str] = []
        self.durabilities: list[str] = []

    @property
    def one(self) -> Instance:
        return self.cluster.instances[0]

    @property
    def others(self) -> list[Instance]:
        return self.cluster.instances[1:]

    async def complete(self, at: int = 0, **changes: Any) -> dict[str, Any]:
        """Ana completes a set with the phone on this instance. Returns: the ack."""
        answer = await self.phones[at].do("workout:set:complete", self.set(**changes))
        self.acked.append(answer["set_id"])
        self.durabilities.append(answer["durability"])
        return answer

    def set(self, **changes: Any) -> dict[str, Any]:
        """The payload of a new set."""
        done = {"exercise_id": "x", "set": {"weight_kg": 60, "reps": 5}, "op_id": str(uuid4())}
        return {**HERE, **done, **changes}

    async def come_back(self) -> None:
        """Connect the phones that have lost their connection, each where it was."""
        for phone, instance in zip(self.phones, self.cluster.instances, strict=True):
            if not phone.is_connected:
                phone.url = instance.url
                await phone.connect()
                await phone.ask("workout:join", HERE)

    async def until_refused(self) -> None:
        """Log sets until no more are taken, and see how that is said."""
        refused: dict[str, Any] = {}
        for _ in range(1_000):
            answer = await self.phones[0].ask("workout:set:complete", self.set())
            if not answer["ok"]:
                refused = answer["error"]
                break
            self.acked.append(answer["set_id"])
        assert refused, f"{len(self.acked)} changes were taken"
        assert refused["code"] == "unavailable"
        assert refused["retry_after_ms"] > 0
        assert await self.sets(0)  # reading goes on

    async def workout(self, at: int) -> dict[str, Any]:
        synced: dict[str, Any] = await self.phones[at].do("workout:sync", HERE)
        return synced["workout"]

    async def sets(self, at: int) -> list[str]:
        return [item["id"] for item in (await self.workout(at))["sets"]]

    async def until_all_show(
        self, wanted: list[str] | None = None, timeout_s: float = CONVERGENCE_S
    ) -> None:
        """Wait until every instance shows exactly the sets that were acked, each once."""
        expected = sorted(self.acked if wanted is None else wanted)
        found: list[list[str]] = []

        async def are_equal() -> bool:
            found[:] = [sorted(await self.sets(at)) for at in range(len(self.phones))]
            return all(sets == expected for sets in found)

        try:
            await eventually(are_equal, timeout_s=timeout_s)
        except TimeoutError:
            raise AssertionError(f"acked: {expected}, shown: {found}") from None

    async def until_local(self, at: int = 0) -> None:
        """Complete sets until one is acked as `local`."""

        async def is_local() -> bool:
            return (await self.complete(at))["durability"] == "local"

        await eventually(is_local, timeout_s=DEAF_S)

    async def until_shared(self, at: int = 0) -> None:
        """Complete sets until one is acked as `cluster`."""

        async def is_shared() -> bool:
            wish = self.set()
            while not (answer := await self.phones[at].ask("workout:set:complete", wish))["ok"]:
                assert answer["error"]["code"] == "unavailable"  # the room is being read again
                await asyncio.sleep(answer["error"]["retry_after_ms"] / 1_000)
            self.acked.append(answer["set_id"])
            return bool(answer["durability"] == "cluster")

        await eventually(is_shared, timeout_s=CONVERGENCE_S)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path, seed=1, env=ROOMY) as cluster:
        yield cluster


@pytest.fixture
async def gym(cluster: Cluster) -> Gym:
    return await opened(cluster)


async def opened(cluster: Cluster) -> Gym:
    phones = [
        await cluster.phone(instance, "ana", f"phone-{instance.name}")
        for instance in cluster.instances
    ]
    await phones[0].do("workout:create", {**HERE, "mode": "group"})
    squat = {"exercise_id": "x", "exercise": {"name": "Squat"}}
    await phones[0].do("workout:exercise:add", {**HERE, **squat})
    await phones[0].do("workout:invite", {**HERE, "user_id": "ben", "role": "participant"})
    for phone in phones[1:]:
        await phone.do("workout:join", HERE)
    return Gym(cluster, phones)


async def under_load(cluster: Cluster, harm: Callable[[Here], Any], *, seed: int = 1) -> None:
    """Many people work; harm is done when all are busy; then everything is healed and checked."""
    world = Here(cluster, seed)
    cast = await prepared(world, 0)

    async def when_busy() -> None:
        await until_busy(world, cast)
        await harm(world)
        await until_busy(world, cast)

    await play(world, cast, when_busy())


async def until_ailing(instance: Instance, dependency: str, timeout_s: float) -> None:
    async def is_told() -> bool:
        return dependency in await instance.ailing()

    await eventually(is_told, timeout_s=timeout_s)


async def until_not_ready(instance: Instance, timeout_s: float) -> None:
    async def is_not_ready() -> bool:
        return not await instance.is_ready()

    await eventually(is_not_ready, timeout_s=timeout_s)


def redis_link(instance: Instance) -> Proxy:
    assert instance.redis is not None
    return instance.redis


def online(workout: dict[str, Any]) -> set[str]:
    """The ids of the devices that are shown."""
    return {device["id"] for member in workout["members"] for device in member["devices"]}


# -- everyday -------------------------------------------------------------------------------------


async def test_a_set_that_is_done_here_is_told_and_shown_on_every_instance(gym: Gym) -> None:
    laptop = await gym.cluster.laptop(gym.others[0], "ana", WORKOUT)
    done = await gym.complete(0, set={"weight_kg": 60, "reps": 5, "note": "easy"})
    assert done["durability"] == "cluster"
    for phone in gym.phones:
        told = await phone.next("workout:set:completed")
        assert (told["set_id"], told["set"]["note"]) == (done["set_id"], "easy")
        assert told["is_pr"]
    await laptop.until(lambda: done["set_id"] in laptop.map("sets"))
    await gym.until_all_show()


async def test_a_yjs_edit_reaches_yjs_and_json_clients_of_other_instances(gym: Gym) -> None:
    laptops = [
        await gym.cluster.laptop(instance, "ben", WORKOUT) for instance in gym.cluster.instances
    ]
    fields = {"user_id": "ben", "exercise": "x", "order": "a5", "kind": "normal", "reps": 7.0}
    laptops[0].map("sets")["y"] = Map({**fields, "completed_at": 1_700_000_000_000.0})
    await laptops[0].settled()
    for laptop in laptops[1:]:
        await laptop.until(lambda laptop=laptop: "y" in laptop.map("sets"))
    assert (await gym.phones[2].next("workout:set:completed"))["user"]["id"] == "ben"
    assert laptops[0].content() == laptops[1].content() == laptops[2].content()


async def test_one_op_id_at_three_instances_at_once_is_carried_out_once(gym: Gym) -> None:
    for _ in range(10):
        payload = gym.set()
        answers = await asyncio.gather(*(p.do("workout:set:complete", payload) for p in gym.phones))
        assert answers[0] == answers[1] == answers[2]
        gym.acked.append(answers[0]["set_id"])
    await gym.until_all_show()


async def test_a_record_is_won_once_however_many_instances_it_arrives_at(gym: Gym) -> None:
    for weight_kg in range(100, 120):
        lifted = {"weight_kg": weight_kg, "reps": 5}
        answers = await asyncio.gather(*(gym.complete(at, set=lifted) for at in range(3)))
        won = [record["type"] for answer in answers for record in answer["records"]]
        assert sorted(won) == ["e1rm", "volume", "weight"], (weight_kg, answers)
    await gym.until_all_show()
    for at in range(3):
        records = (await gym.workout(at))["progress"]["ana"]["records"]
        assert len({(r["type"], r["value"]) for r in records}) == len(records) == 60


async def test_what_was_done_again_elsewhere_and_gone_on_from_there_does_not_come_back(
    gym: Gym,
) -> None:
    # Both ways: of two that write at once, Yjs prefers the same one each time.
    await do_twice(gym, cut_off=0, elsewhere=1)
    await do_twice(gym, cut_off=1, elsewhere=0)


async def do_twice(gym: Gym, cut_off: int, elsewhere: int) -> None:
    """The first answers are lost with an instance that is cut off. What the client has done since,
    with the second ones, counts."""
    kept = (await gym.complete(elsewhere))["set_id"]
    await gym.until_all_show()
    link = redis_link(gym.cluster.instances[cut_off])
    link.down()
    await gym.until_local(cut_off)
    asked = [("workout:set:complete", gym.set()) for _ in range(3)]
    change = {**HERE, "set_id": kept, "set": {"reps": 1}, "op_id": str(uuid4())}
    asked.append(("workout:set:update", change))
    first = await asyncio.gather(*(gym.phones[cut_off].do(*one) for one in asked))
    assert {answer["durability"] for answer in first} == {"local"}
    once, gone, changed = (answer["set_id"] for answer in first[:3])
    phone = gym.phones[elsewhere]
    second = [await phone.do(*one) for one in asked[1:]]
    assert [answer["set_id"] for answer in second] == [gone, changed, kept]
    await phone.do("workout:set:remove", {**HERE, "set_id": gone})
    measures = {"reps": 12, "weight_kg": 80}
    for set_id in (changed, kept):
        await phone.do("workout:set:update", {**HERE, "set_id": set_id, "set": measures})
    gym.acked += [once, changed]
    link.heal()
    await gym.until_all_show()

    async def counts() -> bool:
        shown = [item for at in range(3) for item in (await gym.workout(at))["sets"]]
        return all(
            measures.items() <= item.items() for item in shown if item["id"] in (changed, kept)
        )

    await eventually(counts)
    await eventually(partial(is_healed, gym.cluster.instances[cut_off]), timeout_s=30)


async def is_healed(instance: Instance) -> bool:
    return not await instance.ailing()


async def test_a_status_that_was_changed_elsewhere_meanwhile_stays(gym: Gym) -> None:
    await gym.phones[0].do("workout:start", HERE)
    for cut_off, elsewhere in ((0, 1), (1, 0)):
        link = redis_link(gym.cluster.instances[cut_off])
        link.down()
        await gym.until_local(cut_off)
        paused = await gym.phones[cut_off].do("workout:pause", HERE)
        assert paused["durability"] == "local"
        for action in ("pause", "resume"):
            await gym.phones[elsewhere].do(f"workout:{action}", HERE)
        link.heal()
        await gym.until_all_show()
        await eventually(partial(is_healed, gym.cluster.instances[cut_off]), timeout_s=30)
        await gym.cluster.until_persisted()
        for at in range(3):
            assert (await gym.workout(at))["status"] == "active"
            (listed,) = (await gym.phones[at].do("workout:list", {}))["workouts"]
            assert listed["status"] == "active"


async def test_a_status_changes_once_whoever_asks(gym: Gym) -> None:
    for action, event in (("start", "started"), ("pause", "paused"), ("resume", "resumed")):
        asked = [phone.ask(f"workout:{action}", HERE) for phone in gym.phones]
        answers = await asyncio.gather(*asked)
        assert any(answer["ok"] for answer in answers)
        for answer in answers:
            assert answer["ok"] or answer["error"]["code"] == "conflict"
        for phone in gym.phones:
            await phone.next(f"workout:{event}")
    # What is done now is told after all that; nothing of it was told a second time.
    last = await gym.complete(0)
    for phone in gym.phones:
        await phone.next("workout:set:completed", lambda p: p["set_id"] == last["set_id"])
        names = {event for event, *_ in phone.events}
        assert not names & {"workout:started", "workout:paused", "workout:resumed"}


# -- an instance ----------------------------------------------------------------------------------


async def test_an_instance_is_killed_under_load_and_nothing_acked_is_lost(cluster: Cluster) -> None:
    async def kill_one_after_the_other(world: Here) -> None:
        for _ in range(2):
            for instance in cluster.instances:
                await instance.kill()
                await asyncio.sleep(world.random.uniform(0.2, 2))
                await instance.start()
                await eventually(instance.is_ready, timeout_s=30)

    await under_load(cluster, kill_one_after_the_other)


async def test_presence_of_a_killed_instance_is_gone_within_ten_seconds(gym: Gym) -> None:
    laptop = await gym.cluster.laptop(gym.one, "ben", WORKOUT)
    mine = laptop.doc.client_id
    laptop.announce(encode_awareness([AwarenessEntry(mine, 1, {"cursor": 1})]))
    seen = await gym.cluster.laptop(gym.others[0], "ana", WORKOUT)
    await seen.until(lambda: mine in awareness_of(seen))

    async def shows(devices: set[str]) -> bool:
        return all([online(await gym.workout(at)) >= devices for at in (1, 2)])

    everybody = {"ana-phone-i0", "ana-phone-i1", "ana-phone-i2", "ben-laptop"}
    await eventually(lambda: shows(everybody), timeout_s=2 + BUSY_S)
    await gym.one.kill()

    async def is_gone() -> bool:
        shown = [online(await gym.workout(at)) for at in (1, 2)]
        return not any(devices & {"ana-phone-i0", "ben-laptop"} for devices in shown)

    await eventually(is_gone, timeout_s=10 + BUSY_S)
    await seen.until(lambda: mine not in awareness_of(seen), timeout_s=10 + BUSY_S)
    await gym.phones[1].next("workout:member:left", lambda p: p["user"]["id"] == "ben")


def awareness_of(client: DocumentClient) -> set[int]:
    """The client IDs whose states a client knows."""
    clocks: dict[int, tuple[int, bool]] = {}
    for update in client.awareness:
        for entry in decode_awareness(update):
            # A removal may come with the clock of what it removes.
            told = (entry.clock, entry.state is None)
            clocks[entry.client_id] = max(told, clocks.get(entry.client_id, told))
    return {client_id for client_id, (_, is_gone) in clocks.items() if not is_gone}


async def test_presence_is_right_within_two_seconds_of_a_change(gym: Gym) -> None:
    ben = await gym.cluster.phone(gym.one, "ben")
    await ben.do("workout:join", HERE)

    async def is_shown() -> bool:
        return all(["ben-phone" in online(await gym.workout(at)) for at in range(3)])

    async def is_gone() -> bool:
        return not any(["ben-phone" in online(await gym.workout(at)) for at in range(3)])

    await eventually(is_shown, timeout_s=2 + 1)
    await ben.close()
    await eventually(is_gone, timeout_s=2 + 1)
    for phone in gym.phones:
        for event in ("workout:member:joined", "workout:member:left"):
            await phone.next(event, lambda p: p["user"]["id"] == "ben")


async def test_a_rolling_restart_under_load_loses_nothing(cluster: Cluster) -> None:
    async def restart_in_turn(world: Here) -> None:
        for instance in cluster.instances:
            await instance.restart()
            await eventually(instance.is_ready, timeout_s=30)

    await under_load(cluster, restart_in_turn)


async def test_clients_of_an_instance_that_ends_are_told_and_edit_elsewhere_at_once(
    cluster: Cluster,
) -> None:
    gym = await opened(cluster)
    gaps_s: list[float] = []
    turned_away: Counter[int] = Counter()

    async def train(number: int) -> None:
        """Complete sets at one instance; when its socket is cut go to the next."""
        at, cut_at = number % 3, 0.0
        phone = EventClient(cluster.instances[at].url, cluster.token("ana"))
        cluster.clients.append(phone)
        payload = gym.set()
        while not is_over:
            try:
                if not phone.is_connected:
                    phone.url = cluster.instances[at].url
                    try:
                        await phone.connect()
                    except Refused:
                        turned_away[number] += 1
                        raise
                answer = await phone.ask("workout:set:complete", payload)
            except (Lost, Refused):
                cut_at = cut_at or time.monotonic()
                at = (at + 1) % 3
                continue
            if not answer["ok"]:
                assert answer["error"]["code"] == "unavailable", answer
                cut_at = cut_at or time.monotonic()
                if not phone.is_connected:
                    at = (at + 1) % 3
                await asyncio.sleep(0.02)
                continue
            if cut_at:
                gaps_s.append(time.monotonic() - cut_at)
                cut_at = 0.0
            gym.acked.append(answer["set_id"])
            payload = gym.set()
            await asyncio.sleep(0.05)

    is_over = False
    training = asyncio.gather(*(train(number) for number in range(12)))
    for at, instance in enumerate(cluster.instances):
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(instance.stop())
        await gym.phones[at].next("server:draining")
        await until_not_ready(instance, timeout_s=HEALTH_S)
        assert await stopping == 0
        await instance.start()
        await eventually(instance.is_ready, timeout_s=30)
    is_over = True
    await training
    await gym.come_back()
    await gym.until_all_show()
    assert len(gaps_s) >= 12
    # Who is cut off knocks once more at the same door, as clients do; the next one takes them.
    assert all(count <= 2 * len(cluster.instances) for count in turned_away.values()), turned_away
    assert statistics.quantiles(gaps_s, n=100)[98] < 2.0, sorted(gaps_s)[-5:]


async def test_a_frozen_instance_catches_up_when_it_goes_on(gym: Gym) -> None:
    laptop = await gym.cluster.laptop(gym.one, "ben", WORKOUT)
    gym.one.pause()
    for _ in range(20):
        await gym.complete(1)
    await asyncio.sleep(7)  # longer than a heartbeat may fail to come
    gym.one.resume()
    await gym.come_back()
    await gym.until_all_show()
    await laptop.until(lambda: set(gym.acked) <= set(laptop.map("sets")), timeout_s=CONVERGENCE_S)


async def test_an_instance_that_starts_later_shows_what_was_there_before(gym: Gym) -> None:
    await gym.cluster.instances[2].kill()
    for _ in range(10):
        await gym.complete(0)
    await gym.cluster.instances[2].start()
    await gym.come_back()
    await gym.until_all_show()


async def test_what_an_instance_acked_alone_is_published_by_its_next_life(gym: Gym) -> None:
    redis_link(gym.one).black_hole()
    await gym.until_local(0)
    alone = list(gym.acked)
    await gym.one.kill()
    for _ in range(5):
        await gym.complete(1)
    redis_link(gym.one).heal()
    await gym.one.start()
    await gym.come_back()
    await gym.until_all_show()
    assert set(alone) <= set(await gym.sets(1))
    assert (await gym.one.metrics())[SPOOL] == 0


# -- Redis ----------------------------------------------------------------------------------------


async def test_redis_is_killed_and_rooms_go_on_and_meet_again(gym: Gym) -> None:
    assert gym.cluster.redis is not None
    gym.cluster.redis.kill()
    await until_ailing(gym.one, "redis", HEALTH_S)
    for at in range(3):
        await gym.until_local(at)
        assert (await gym.cluster.instances[at].metrics())[SPOOL] > 0
    await asyncio.to_thread(gym.cluster.redis.start)
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()
    for at, instance in enumerate(gym.cluster.instances):
        await gym.until_shared(at)
        assert (await instance.metrics())[SPOOL] == 0
    await gym.until_all_show()


async def test_redis_is_killed_and_back_under_load(cluster: Cluster) -> None:
    async def kill(world: Here) -> None:
        assert cluster.redis is not None
        for _ in range(2):
            cluster.redis.kill()
            await asyncio.sleep(world.random.uniform(0.5, 3))
            await asyncio.to_thread(cluster.redis.start)
            await cluster.until_healthy()

    await under_load(cluster, kill)


async def test_redis_is_killed_and_restarted_empty_and_what_was_acked_is_there(gym: Gym) -> None:
    assert gym.cluster.redis is not None
    for at in range(3):
        await gym.complete(at)
    payload = gym.set()
    first = await gym.phones[0].do("workout:set:complete", payload)
    gym.acked.append(first["set_id"])
    laptop = await gym.cluster.laptop(gym.others[0], "ben", WORKOUT)
    gym.cluster.redis.kill()
    gym.cluster.redis.lose_everything()
    await asyncio.to_thread(gym.cluster.redis.start)
    await gym.cluster.until_healthy(30)
    for at in range(3):
        await gym.complete(at)
    await gym.until_all_show()
    await laptop.until(lambda: set(gym.acked) <= set(laptop.map("sets")), timeout_s=CONVERGENCE_S)
    # What had been answered is not carried out again.
    assert {**await gym.phones[2].do("workout:set:complete", payload), "durability": ""} == {
        **first,
        "durability": "",
    }
    await gym.until_all_show()
    await gym.cluster.until_persisted()


async def test_redis_is_flushed_under_load(cluster: Cluster) -> None:
    async def flush(world: Here) -> None:
        async with cluster.redis_client() as redis:
            for _ in range(3):
                await redis.flushall()
                await cluster.until_healthy()
                await asyncio.sleep(world.random.uniform(1, 3))

    await under_load(cluster, flush)


async def test_redis_comes_back_with_an_older_log_as_after_a_failover(gym: Gym) -> None:
    assert gym.cluster.redis is not None
    await gym.complete(0)
    older = await asyncio.to_thread(gym.cluster.redis.copy)
    for at in (0, 1, 2):
        await gym.complete(at)
    gym.cluster.redis.kill()
    await asyncio.to_thread(gym.cluster.redis.put_back, older)
    await asyncio.to_thread(gym.cluster.redis.start)
    await gym.cluster.until_healthy(30)
    for at in (0, 1, 2):
        await gym.complete(at)
    await gym.until_all_show()
    await gym.cluster.until_persisted()


async def test_who_comes_back_to_a_log_that_others_have_finished_changes_nothing(
    tmp_path: Path,
) -> None:
    """An instance is cut off with a room open. Meanwhile others go on, leave, and the log is moved
    to MongoDB and forgotten. What the instance still holds of it is not the latest any more."""
    async with running_cluster(tmp_path, env={**ROOMY, "ROOM_IDLE_TIMEOUT_S": "0.5"}) as cluster:
        await come_back_to_what_is_finished(await opened(cluster))


async def come_back_to_what_is_finished(gym: Gym) -> None:
    roles = {"coach": 0, "spectator": 1}
    for role, at in roles.items():
        await gym.phones[0].do("workout:invite", {**HERE, "user_id": "cleo", "role": role})
        if at == 0:
            redis_link(gym.cluster.instances[2]).down()
    await gym.complete(0)
    for phone in gym.phones[:2]:
        await phone.close()

    async def is_forgotten() -> bool:
        async with gym.cluster.redis_client() as redis:
            return not [key async for key in redis.scan_iter("*}:head")]

    await eventually(is_forgotten, timeout_s=30)
    redis_link(gym.cluster.instances[2]).heal()
    await gym.cluster.until_healthy(30)
    gym.phones[:2] = [await gym.cluster.phone(one, "ana") for one in gym.cluster.instances[:2]]
    for phone in gym.phones[:2]:
        await phone.do("workout:join", HERE)
    await gym.until_all_show()
    for at in range(3):
        members = (await gym.workout(at))["members"]
        (cleo,) = [member for member in members if member["user"]["id"] == "cleo"]
        assert cleo["role"] == "spectator"


async def test_redis_is_emptied_while_mongodb_is_away(gym: Gym) -> None:
    gym.cluster.mongo.kill()
    for at in range(3):
        await gym.complete(at)
    async with gym.cluster.redis_client() as redis:
        await redis.flushall()
    for at in range(3):
        await gym.complete(at)
    await asyncio.to_thread(gym.cluster.mongo.start)
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()
    await gym.cluster.until_persisted()


@pytest.mark.parametrize("towards", [None, "server", "client"])
async def test_an_instance_that_is_cut_off_from_redis_notices_and_goes_on(
    gym: Gym, towards: Any
) -> None:
    redis_link(gym.one).black_hole(towards=towards)
    await until_not_ready(gym.one, DEAF_S)
    await until_ailing(gym.one, "redis", HEALTH_S)
    assert (await gym.one.metrics())[DEAF] > 0
    for instance in gym.others:
        assert await instance.is_ready()
    for at in range(3):
        for _ in range(3):
            await gym.complete(at)
    assert gym.durabilities[0:3] == ["local"] * 3
    assert gym.durabilities[3:9] == ["cluster"] * 6
    redis_link(gym.one).heal()
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()
    assert (await gym.one.metrics())[DEAF] < 2


async def test_edits_on_both_sides_of_a_partition_merge(gym: Gym) -> None:
    laptops = [
        await gym.cluster.laptop(instance, "ben", WORKOUT) for instance in gym.cluster.instances
    ]
    redis_link(gym.one).black_hole()
    await until_not_ready(gym.one, DEAF_S)
    for number, laptop in enumerate(laptops):
        for count in range(5):
            fields = {"user_id": "ben", "exercise": "x", "order": f"a{count}", "kind": "normal"}
            laptop.map("sets")[f"y{number}-{count}"] = Map(
                {**fields, "reps": 5.0, "completed_at": 1_700_000_000_000.0}
            )
        await laptop.settled()
    redis_link(gym.one).heal()
    wanted = {f"y{number}-{count}" for number in range(3) for count in range(5)}
    for laptop in laptops:
        await laptop.until(
            lambda laptop=laptop: set(laptop.map("sets")) == wanted, timeout_s=CONVERGENCE_S
        )
        assert laptop.rejections == []
    await gym.until_all_show(sorted(wanted))


async def test_nobody_waits_for_a_slow_redis(gym: Gym) -> None:
    round_trip_s = 2 * 0.5
    redis_link(gym.one).latency(0.5)
    took_s = []
    for _ in range(20):
        started = time.monotonic()
        await gym.complete(0)
        took_s.append(time.monotonic() - started)
    assert statistics.median(took_s) < round_trip_s, took_s
    redis_link(gym.one).heal()
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()


async def test_redis_is_frozen_for_a_while(gym: Gym) -> None:
    assert gym.cluster.redis is not None
    gym.cluster.redis.pause()
    await until_ailing(gym.one, "redis", HEALTH_S)
    frozen_until = time.monotonic() + 10
    while time.monotonic() < frozen_until:
        for at in range(3):
            await gym.complete(at)
    assert gym.durabilities[-1] == "local"
    gym.cluster.redis.resume()
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()
    # Those who listen are back: what is done here is told there.
    for phone in gym.phones:
        phone.events.clear()
    done = await gym.complete(0)
    for phone in gym.phones:
        await phone.next("workout:set:completed", lambda p: p["set_id"] == done["set_id"])


@pytest.mark.parametrize("command", ["CLIENT PAUSE 3000", "DEBUG SLEEP 3"])
async def test_redis_holds_everybody_up(gym: Gym, command: str) -> None:
    async with gym.cluster.redis_client() as redis:
        asking = asyncio.ensure_future(redis.execute_command(*command.split()))
        for _ in range(10):
            for at in range(3):
                await gym.complete(at)
        await asking
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()


async def test_listeners_that_redis_drops_miss_nothing(cluster: Cluster) -> None:
    async def drop_listeners(world: Here) -> None:
        async with cluster.redis_client() as redis:
            for _ in range(10):
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(world.random.uniform(0.1, 0.5))

    await under_load(cluster, drop_listeners)


async def test_connections_to_redis_that_break_off_anywhere_lose_and_double_nothing(
    gym: Gym,
) -> None:
    for limit_bytes in (0, 1, 7, 64, 300, 1_000, 3_000):
        for towards in ("server", "client"):
            redis_link(gym.one).limit_data(limit_bytes, towards=towards)  # type: ignore[arg-type]
            redis_link(gym.one).reset_peer()
            for _ in range(3):
                await gym.complete(0)
            redis_link(gym.one).heal()
    await gym.cluster.until_healthy(30)
    await gym.until_all_show()


async def test_a_message_that_is_too_long_for_redis_listeners_is_survived(gym: Gym) -> None:
    async with gym.cluster.redis_client() as redis:
        for channel in await redis.pubsub_channels("*"):
            await redis.publish(channel, b"\x00" * 33_000_000)
    await gym.cluster.until_healthy(30)
    for at in range(3):
        await gym.complete(at)
    await gym.until_all_show()


async def test_a_spool_that_is_full_refuses_changes_and_says_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with running_cluster(tmp_path, env={**ROOMY, **MAX_SPOOL}) as cluster:
        gym = await opened(cluster)
        assert cluster.redis is not None
        cluster.redis.kill()
        await gym.until_refused()
        await asyncio.to_thread(cluster.redis.start)
        await cluster.until_healthy(30)
        await gym.until_shared(0)
        await gym.until_all_show()


async def test_a_corrupt_record_of_the_stream_concerns_its_document_only(gym: Gym) -> None:
    others = [{"workout_id": f"other-{at}"} for at in range(3)]
    for phone, other in zip(gym.phones, others, strict=True):
        await phone.do("workout:create", other)
    gym.cluster.mongo.kill()  # so that the record stays where it is
    await gym.complete(0)
    await corrupt_last_record(gym.cluster, WORKOUT)
    await gym.others[-1].kill()
    await asyncio.to_thread(gym.cluster.mongo.start)
    await gym.others[-1].start()
    await gym.come_back()
    shown = await gym.phones[2].ask("workout:sync", HERE)
    if shown["ok"]:
        assert [item["id"] for item in shown["workout"]["sets"]] == gym.acked
    else:
        assert shown["error"]["code"] == "unavailable"
    for at, other in enumerate(others):
        add = {**other, "exercise": {"name": "Squat"}}
        assert (await gym.phones[at].do("workout:exercise:add", add))["durability"] == "cluster"

        async def is_shown(at: int = at, other: dict[str, str] = other) -> bool:
            synced = await gym.phones[(at + 1) % 3].do("workout:sync", other)
            return bool(synced["workout"]["exercises"])

        await eventually(is_shown)
    for instance in gym.cluster.instances:
        assert await instance.is_ready()


async def corrupt_last_record(cluster: Cluster, name: DocName) -> None:
    """Flip the bytes of every field of the last record in a document's stream."""
    (key,) = [key for key in await cluster.stream_lengths() if f"{{{name}}}" in key]
    async with cluster.redis_client(decodes=False) as redis:
        (last, fields), *before = await redis.xrevrange(key, count=2)
        await redis.xdel(key, last)
        await redis.execute_command("XSETID", key, before[0][0] if before else "0-1")
        flipped = {field: bytes(byte ^ 0xFF for byte in value) for field, value in fields.items()}
        await redis.xadd(key, flipped, id=last)


async def test_mixed_versions_what_a_newer_instance_says_is_passed_over(gym: Gym) -> None:
    async with gym.cluster.redis_client() as redis:
        for channel in await redis.pubsub_channels("*"):
            for said in ([2, "u", {"new": 1}], [1, "?", 1, 2, 3], {"v": 3}, "hello", b"\xc1"):
                await redis.publish(channel, msgpack.packb(said))
                await redis.publish(channel, b"\x00" + msgpack.packb(said))
    for at in range(3):
        await gym.complete(at)
    await gym.until_all_show()
    for instance in gym.cluster.instances:
        assert await instance.ailing() == set()
        assert await instance.is_ready()


# -- MongoDB --------------------------------------------------------------------------------------


async def test_mongodb_is_down_and_back_and_has_everything(gym: Gym) -> None:
    gym.cluster.mongo.kill()
    await until_ailing(gym.one, "store", HEALTH_S)
    for _ in range(10):
        for at in range(3):
            await gym.complete(at)
    assert set(gym.durabilities) == {"cluster"}
    await gym.until_all_show()  # from memory
    await asyncio.to_thread(gym.cluster.mongo.start)
    await gym.cluster.until_healthy(30)
    await gym.cluster.until_persisted()
    await gym.until_all_show()


async def test_mongodb_is_killed_and_back_under_load(cluster: Cluster) -> None:
    async def kill(world: Here) -> None:
        for _ in range(2):
            cluster.mongo.kill()
            await asyncio.sleep(world.random.uniform(0.5, 3))
            await asyncio.to_thread(cluster.mongo.start)
            await cluster.until_healthy()

    await under_load(cluster, kill)


async def test_nobody_waits_for_a_slow_mongodb(gym: Gym) -> None:
    for instance in gym.cluster.instances:
        instance.mongo.latency(1.0)
    took_s = []
    for _ in range(10):
        started = time.monotonic()
        await gym.complete(0)
        took_s.append(time.monotonic() - started)
    assert statistics.median(took_s) < 2 * 1.0, took_s
    for instance in gym.cluster.instances:
        instance.mongo.heal()
    await gym.cluster.until_persisted()
    await gym.until_all_show()


async def test_a_mongodb_that_does_what_it_cannot_say_has_everything_once(gym: Gym) -> None:
    for instance in gym.cluster.instances:
        instance.mongo.limit_data(2_000, towards="client")
        instance.mongo.reset_peer()
    for _ in range(20):
        for at in range(3):
            await gym.complete(at)
    for instance in gym.cluster.instances:
        instance.mongo.heal()
    await gym.cluster.until_healthy(30)
    await gym.cluster.until_persisted()
    positions = await gym.cluster.persisted_positions(str(WORKOUT))
    assert positions == sorted(set(positions))
    await restart_everything(gym)
    await gym.until_all_show()


async def test_a_backlog_that_is_full_refuses_changes_and_drains(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, env={**ROOMY, **MAX_BACKLOG}) as cluster:
        gym = await opened(cluster)
        cluster.mongo.kill()
        await gym.until_refused()
        await asyncio.to_thread(cluster.mongo.start)
        await cluster.until_healthy(30)

        async def is_taken() -> bool:
            answer = await gym.phones[0].ask("workout:set:complete", gym.set())
            gym.acked += [answer["set_id"]] if answer["ok"] else []
            return bool(answer["ok"])

        await eventually(is_taken, timeout_s=CONVERGENCE_S)
        await gym.until_all_show()


async def test_everything_is_killed_at_once_and_comes_back_with_all_that_was_acked(
    gym: Gym,
) -> None:
    assert gym.cluster.redis is not None
    for at in range(3):
        await gym.complete(at)
    redis_link(gym.one).black_hole()
    await gym.until_local(0)
    for instance in gym.cluster.instances:
        await instance.kill()
    gym.cluster.redis.kill()
    gym.cluster.mongo.kill()
    await gym.cluster.heal()
    await gym.cluster.until_healthy()
    await gym.come_back()
    await gym.until_all_show()


async def restart_everything(gym: Gym) -> None:
    for instance in gym.cluster.instances:
        await instance.restart()
    await gym.cluster.until_healthy(30)
    await gym.come_back()


# -- rights ---------------------------------------------------------------------------------------


async def test_a_revocation_holds_on_every_instance_at_once(gym: Gym) -> None:
    bens = [await gym.cluster.phone(instance, "ben") for instance in gym.cluster.instances]
    admin = EventClient(gym.one.url, gym.cluster.token("root", role="admin"))
    gym.cluster.clients.append(admin)
    await admin.connect()
    await admin.do("auth:revoke", {"user_id": "ben"})
    for ben in bens:
        await ben.next("auth:revoked")
        await ben.wait_until_gone()
    for instance in gym.cluster.instances:
        with pytest.raises(Refused):
            await gym.cluster.phone(instance, "ben")


async def test_a_role_that_is_lowered_holds_on_every_instance(gym: Gym) -> None:
    bens = [await gym.cluster.phone(instance, "ben") for instance in gym.cluster.instances]
    for ben in bens:
        await ben.do("workout:set:complete", gym.set())
    await gym.phones[0].do("workout:invite", {**HERE, "user_id": "ben", "role": "spectator"})
    for phone in gym.phones:
        await phone.next(
            "workout:member:changed", lambda p: (p["user"]["id"], p["role"]) == ("ben", "spectator")
        )
    for ben in bens:
        answer = await ben.ask("workout:set:complete", gym.set())
        assert answer["error"]["code"] == "forbidden"


# -- nothing is left ------------------------------------------------------------------------------


async def test_everything_returns_to_zero_after_the_rooms_empty(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, env={**ROOMY, "ROOM_IDLE_TIMEOUT_S": "0.5"}) as cluster:
        gym = await opened(cluster)
        laptop = await cluster.laptop(gym.others[1], "ben", WORKOUT)
        for _ in range(20):
            for at in range(3):
                await gym.complete(at)
        assert cluster.redis is not None
        assert sum((await cluster.subscriber_counts()).values()) == 3
        cluster.redis.kill()
        await gym.until_local(0)
        await asyncio.to_thread(cluster.redis.start)
        await cluster.until_healthy(30)
        await gym.until_all_show()
        for client in (*gym.phones, laptop):
            await client.close()

        async def left() -> dict[str, float]:
            """What there is more of than there should be."""
            found = {
                "subscribers": sum((await cluster.subscriber_counts()).values()),
                "records in streams": sum((await cluster.stream_lengths()).values()),
            }
            for instance in cluster.instances:
                metrics = await instance.metrics()
                for name in (SPOOL, "repsync_rooms", "repsync_connections", "repsync_sessions"):
                    found[f"{name} of {instance.name}"] = metrics[name]
            return {name: count for name, count in found.items() if count}

        async def is_nothing_left() -> bool:
            return not await left()

        try:
            await eventually(is_nothing_left, timeout_s=30)
        except TimeoutError:
            raise AssertionError(f"is left: {await left()}") from None
