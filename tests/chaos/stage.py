"""A cluster under load: who is there, what they do, and how it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

from crdt import ids
from server.replay.devices import EventClient
from tests.chaos import checker
from tests.chaos.checker import Cast
from tests.chaos.clients import (
    PATIENCE_S,
    Device,
    Organiser,
    Phone,
    Racer,
    TemplateLaptop,
    Trainer,
    Watcher,
    WorkoutLaptop,
    World,
)
from tests.helpers.clusters import Cluster

ROOMY = {"MAX_EXERCISES_PER_DOCUMENT": "100000", "MAX_SETS_PER_WORKOUT": "100000"}
"""What instances need for the load of a long run."""


class Here(World):
    """Clients of a cluster go to any of its instances, but not to the one that they just lost."""

    rest_s = (0.05, 0.4)
    answer_timeout_s = 5.0

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(seed)
        self.cluster = cluster
        self.is_one_server = len(cluster.instances) == 1
        self.durabilities = frozenset({"cluster"} if self.is_one_server else {"cluster", "local"})
        self.retried = frozenset({"unavailable", "rate_limited"})
        if not self.is_one_server:
            self.retried |= {"unsynced"}
            # What another instance has acked as `local` is not known here yet.
            self.refusals = frozenset({"not_found", "conflict", "forbidden"})

    def token(self, user_id: str) -> str:
        return self.cluster.token(user_id, ttl_s=86_400)

    async def somewhere(self, device: Device) -> str:
        await asyncio.sleep(device.random.uniform(0.02, 0.3))
        urls = [instance.url for instance in self.cluster.instances]
        return device.random.choice([url for url in urls if url != device.url] or urls)


async def prepared(world: Here, number: int) -> Cast:
    """The documents and the people of one round."""
    group, solo, run = f"group-{number}", f"solo-{number}", f"run-{number}"
    races = [f"race-{number}-{lane}" for lane in range(3)]
    plan = f"plan-{number}"
    url = world.cluster.instances[0].url
    exercises = {
        "squat": {"exercise_id": "squat", "exercise": {"name": "Squat"}},
        "bench": {"exercise_id": Racer.EXERCISE, "exercise": {"name": f"Bench press {number}"}},
    }
    workouts = {
        group: ("ana", "group", {"ben": "participant", "cleo": "participant", "wes": "spectator"}),
        solo: ("ben", "group", {"cleo": "participant", "wes": "spectator"}),
        run: ("olga", "solo", {"wes": "spectator"}),
        **dict.fromkeys(races, ("rae", "solo", {})),
    }
    for workout_id, (owner, mode, guests) in workouts.items():
        here = {"workout_id": workout_id}
        phone = await EventClient(url, world.token(owner)).connect()
        await phone.do("workout:create", {**here, "mode": mode})
        for exercise in exercises.values():
            await phone.do("workout:exercise:add", {**here, **exercise})
        for guest, role in guests.items():
            await phone.do("workout:invite", {**here, "user_id": guest, "role": role})
        await phone.close()
    ana = await EventClient(url, world.token("ana")).connect()
    await ana.do("template:create", {"template_id": plan, "title": "Plan"})
    await ana.do("template:share", {"template_id": plan, "user_id": "ben", "role": "editor"})
    await ana.close()
    cast = Cast(
        {
            **{ids.workout(id_): owner for id_, (owner, _, _) in workouts.items()},
            ids.template(plan): "ana",
        },
        phones=[
            Phone(world, "ana-phone", "ana", [group]),
            Phone(world, "ben-phone", "ben", [group, solo]),
            Phone(world, "ben-watch", "ben", [group, solo]),
            Phone(world, "cleo-phone", "cleo", [group, solo]),
        ],
        racers=[Racer(world, f"rae-{race}", "rae", race) for race in races],
        organisers=[Organiser(world, "olga-phone", "olga", run)],
        trainers=[Trainer(world, "ben-tablet", "ben", plan)],
        laptops=[
            WorkoutLaptop(world, "cleo-laptop", "cleo", ids.workout(group)),
            WorkoutLaptop(world, "ben-laptop", "ben", ids.workout(solo)),
            TemplateLaptop(world, "ana-laptop", "ana", ids.template(plan)),
            TemplateLaptop(world, "ben-desktop", "ben", ids.template(plan)),
        ],
        watchers=[
            Watcher(world, "wes-screen", "wes", group),
            Watcher(world, "wes-wall", "wes", solo),
            Watcher(world, "wes-tv", "wes", run),
        ],
    )
    for laptop in cast.laptops:
        laptop.goes_offline = 0.1
    return cast


async def play(world: Here, cast: Cast, harm: Coroutine[Any, Any, None]) -> None:
    """Let everybody work while harm is done, heal everything, get everybody's acks, and check."""
    names = {device.name for device in cast.devices}
    working = asyncio.gather(*(device.run() for device in cast.devices))
    harming = asyncio.ensure_future(harm)
    try:
        await asyncio.wait({working, harming}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # one has failed: say why
        await harming
        await world.cluster.heal()
        crashed = [i.name for i in world.cluster.instances if i.has_crashed]
        assert not crashed, f"ended by themselves: {crashed}"
        await world.cluster.until_healthy()
        world.is_ending = True
        async with asyncio.timeout(PATIENCE_S):
            await working
        assert world.connected == names
        await check_last_race(cast)
        await checker.check(world, cast, [i.url for i in world.cluster.instances])
    finally:
        working.cancel()
        harming.cancel()
        await asyncio.gather(working, harming, return_exceptions=True)
        await cast.close()


async def check_last_race(cast: Cast) -> None:
    """All lift the same, more than ever before, at the same time: one wins each record."""
    ops = [racer.lift(1_500) for racer in cast.racers]
    await asyncio.gather(*(r.send([op]) for r, op in zip(cast.racers, ops, strict=True)))
    if any(op.answer is not None and op.answer["durability"] == "local" for op in ops):
        return  # Redis was slow: what is won is known when it has been appended
    won = Counter(
        record["type"] for op in ops if op.answer is not None for record in op.answer["records"]
    )
    assert won == {"weight": 1, "volume": 1, "e1rm": 1}


async def until_busy(world: World, cast: Cast, more: int = 60) -> None:
    """Wait until everybody is connected and so much more has been sent."""
    names = {device.name for device in cast.devices}
    wanted = world.sent + more
    await world.until(lambda: world.connected == names and world.sent >= wanted)


def counted(casts: Sequence[tuple[World, Cast]]) -> Counter[str]:
    """What was done in some plays."""
    found: Counter[str] = Counter()
    for world, cast in casts:
        found["connections"] += next(world.connections) - 1
        for client in cast.thin:
            found["acked"] += sum(op.answer is not None for op in client.ops)
            found["abandoned"] += sum(op.is_abandoned for op in client.ops)
            found["refused"] += sum(op.is_refused for op in client.ops)
        for laptop in cast.laptops:
            found["edits acked"] += sum(edit.is_acked for edit in laptop.edits)
            found["rejections"] += laptop.rejections
        for code, times in world.errors.items():
            found[f"error {code}"] += times
    return found
