"""What goes wrong, and when: faults of instances, links and databases, chosen by a seed.

Where things live, and what it takes to lose them:

- Acked as `cluster` by one of several instances: in Redis, which syncs it before it answers; in the
  memory of every instance that hosts the room; in MongoDB as soon as the mover has been there. Lost
  when Redis is emptied *and* all those instances die before MongoDB has it.
- Acked as `cluster` by one server on MongoDB: in MongoDB's journal. Lost with its disk.
- Acked as `local`: in the spool in one instance's DATA_DIR. Lost with that folder; until the
  instance is back nobody else shows it.
- Sent and not acked: anywhere or nowhere. Carried out once, or not at all.
- Answers by `op_id`, awards: where their records are. An instance that is cut off from the others
  cannot know of theirs.
- Who is here, and awareness: in the memory of one instance. Gone with it.

So what was acked stays, whatever of these comes together:

- any instances killed, ended or frozen, as long as one goes on;
- any links slow, narrow, in slices, broken off, down, or a black hole, one way or both;
- Redis killed and back with its file, frozen, asleep, without its listeners;
- MongoDB killed and back, or away.

And these come alone, with nothing but the load:

- **Emptying** Redis (and with it the record books: what was won in the last moments may be won once
  more, see `World.has_lost_books`), by `FLUSHALL` or a restart without its file: from the moment
  MongoDB has what instances that died had appended, until every instance is well again and MongoDB
  has what they brought back. An instance that is frozen or cut off meanwhile would not lose
  anything acked, but an op that it has carried out without saying so is sent again elsewhere, where
  nobody can know of it any more.
- **A rolling restart**, because every instance must end well: exit code 0, and ready again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.helpers.clusters import Cluster, Instance, eventually
from tests.helpers.proxies import Proxy

EMPTIES = os.environ.get("CHAOS_EMPTIES") == "1"
"""Whether Redis is emptied, too. Not yet by default: nothing acked is lost by it, but under load an
instance that reads a document while the others are still giving theirs back shows less of it for a
moment, and tells of it again."""
MOST_AT_ONCE = 3
ALONE = 0.08
"""How often it is the turn of a fault that comes with no others."""
BETWEEN_S = (0.2, 2.0)
SHORT_S, LONG_S = (0.1, 2.0), (1.0, 8.0)
SETTLING_S = 3.0
"""After an emptying: until every instance has looked at the new log of each document it hosts."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while; `act` brings it about and takes it back.

    `claims` are the parts that it needs for itself.
    """

    name: str
    claims: frozenset[str]
    act: Callable[[], Awaitable[None]]


class Nemesis:
    """Inflicts faults on a cluster, several at once."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.history: list[str] = []
        """What was done, with the seconds since the start."""
        self.count = 0
        """How many faults there were."""
        self.on_emptying: Callable[[], None] = lambda: None
        """Called before Redis is emptied."""
        self._cluster = cluster
        self._random = random.Random(seed)
        self._over = asyncio.Event()
        self._claimed: set[str] = set()
        self._started = asyncio.get_running_loop().time()

    async def run(self, seconds: float) -> None:
        """Inflict faults for so long, then take back those that are there.

        Raises: whatever a fault finds that must not be, in a group.
        """
        asyncio.get_running_loop().call_later(seconds, self._over.set)
        async with asyncio.TaskGroup() as group:
            under_way: set[asyncio.Task[None]] = set()
            while not self._over.is_set():
                await self._hold(BETWEEN_S)
                if self._random.random() < ALONE:
                    if under_way:
                        await asyncio.wait(under_way)
                    if not self._over.is_set():
                        await self._inflict(self._random.choice(self._faults_alone()))
                    continue
                fault = self._choose() if len(under_way) < MOST_AT_ONCE else None
                if fault is not None and not self._over.is_set():
                    self._claimed |= fault.claims
                    task = group.create_task(self._inflict(fault))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)

    async def _inflict(self, fault: Fault) -> None:
        self.count += 1
        self._note(fault.name)
        try:
            await fault.act()
        finally:
            self._claimed -= fault.claims
        self._note(f"over: {fault.name}")

    def _note(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        self.history.append(f"{now - self._started:7.2f} {what}")

    async def _hold(self, between_s: tuple[float, float]) -> None:
        """Wait for some time; not when it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(*between_s)):
                await self._over.wait()

    # -- the choice -------------------------------------------------------------------------

    def _choose(self) -> Fault | None:
        kinds = [[fault for fault in faults if self._may_come(fault)] for faults in self._faults()]
        kinds = [faults for faults in kinds if faults]
        return self._random.choice(self._random.choice(kinds)) if kinds else None

    def _may_come(self, fault: Fault) -> bool:
        if fault.claims & self._claimed:
            return False
        names = {instance.name for instance in self._cluster.instances}
        left = names - self._claimed - fault.claims
        return bool(left) or len(names) == 1

    def _faults_alone(self) -> list[Fault]:
        """Those that come with no others."""
        faults = [Fault("all instances in turn", frozenset(), self._restart_in_turn)]
        if self._cluster.redis is not None and EMPTIES:
            faults += [
                Fault("redis emptied", frozenset(), self._flush_redis),
                Fault("redis restarted empty", frozenset(), self._restart_redis_empty),
            ]
        return faults

    def _faults(self) -> list[list[Fault]]:
        """The others, by kind."""
        cluster = self._cluster
        kinds = [
            self._of_each("killed", self._kill),
            self._of_each("ended", self._end),
            self._of_each("frozen", self._freeze),
            [Fault("mongo killed", frozenset({"mongo"}), self._kill_mongo)],
            *self._of_links("mongo"),
        ]
        if cluster.redis is not None:
            redis = frozenset({"redis"})
            kinds += [
                [Fault("redis killed", redis, self._kill_redis)],
                [Fault("redis frozen", redis, self._freeze_redis)],
                [Fault("redis pauses its clients", redis, self._pause_redis_clients)],
                [Fault("redis sleeps", redis, self._let_redis_sleep)],
                [Fault("redis drops its listeners", redis, self._drop_listeners)],
                *self._of_links("redis"),
            ]
        return kinds

    def _of_each(self, name: str, act: Callable[[Instance], Awaitable[None]]) -> list[Fault]:
        return [
            Fault(f"{instance.name} {name}", frozenset({instance.name}), _bound(act, instance))
            for instance in self._cluster.instances
        ]

    def _of_links(self, to: str) -> list[list[Fault]]:
        chance = self._random
        verbs: list[tuple[str, Callable[[Proxy], Any]]] = [
            ("is a black hole", lambda link: link.black_hole()),
            ("loses what is asked", lambda link: link.black_hole(towards="server")),
            ("loses what is answered", lambda link: link.black_hole(towards="client")),
            ("is slow", lambda link: link.latency(chance.uniform(0.02, 0.6), jitter_s=0.05)),
            ("is narrow", lambda link: link.bandwidth(20_000)),
            ("comes in slices", lambda link: link.slicer(100, delay_s=0.001)),
            ("is down", lambda link: link.down()),
            ("is reset", lambda link: link.reset_peer()),
            ("breaks off", lambda link: link.limit_data(chance.randrange(4_096))),
            ("cannot answer", lambda link: link.limit_data(0, towards="client")),
        ]
        links = [(i.name, i.mongo if to == "mongo" else i.redis) for i in self._cluster.instances]
        return [
            [
                Fault(f"{claim} {name}", frozenset({claim}), _bound(self._spoil, link, verb))
                for claim, link in ((f"{instance}>{to}", link) for instance, link in links)
                if link is not None
            ]
            for name, verb in verbs
        ]

    # -- instances --------------------------------------------------------------------------

    async def _kill(self, instance: Instance) -> None:
        await instance.kill()
        await self._hold(SHORT_S)
        await instance.start()

    async def _end(self, instance: Instance) -> None:
        await instance.stop()
        await self._hold(SHORT_S)
        await instance.start()

    async def _freeze(self, instance: Instance) -> None:
        instance.pause()
        await self._hold(LONG_S)
        instance.resume()

    async def _restart_in_turn(self) -> None:
        for instance in self._cluster.instances:
            if not self._over.is_set():
                await instance.restart()
                await eventually(instance.is_ready, timeout_s=30.0)

    # -- links ------------------------------------------------------------------------------

    async def _spoil(self, link: Proxy, verb: Callable[[Proxy], Any]) -> None:
        verb(link)
        await self._hold(LONG_S)
        link.heal()

    # -- databases --------------------------------------------------------------------------

    async def _kill_mongo(self) -> None:
        self._cluster.mongo.kill()
        await self._hold(LONG_S)
        await asyncio.to_thread(self._cluster.mongo.start)

    async def _kill_redis(self) -> None:
        assert self._cluster.redis is not None
        self._cluster.redis.kill()
        await self._hold(LONG_S)
        await asyncio.to_thread(self._cluster.redis.start)

    async def _freeze_redis(self) -> None:
        assert self._cluster.redis is not None
        self._cluster.redis.pause()
        await self._hold(LONG_S)
        self._cluster.redis.resume()

    async def _pause_redis_clients(self) -> None:
        async with self._cluster.redis_client() as redis:
            await redis.execute_command("CLIENT", "PAUSE", self._random.randrange(200, 4_000))

    async def _let_redis_sleep(self) -> None:
        async with self._cluster.redis_client() as redis:
            await redis.execute_command("DEBUG", "SLEEP", f"{self._random.uniform(0.2, 4):.3f}")

    async def _drop_listeners(self) -> None:
        async with self._cluster.redis_client() as redis:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def _flush_redis(self) -> None:
        async def flush() -> None:
            async with self._cluster.redis_client() as redis:
                await redis.flushall()

        await self._empty(flush)

    async def _restart_redis_empty(self) -> None:
        redis = self._cluster.redis
        assert redis is not None

        async def restart() -> None:
            redis.kill()
            redis.lose_everything()
            await self._hold(SHORT_S)
            await asyncio.to_thread(redis.start)

        await self._empty(restart)

    async def _empty(self, act: Callable[[], Awaitable[None]]) -> None:
        await self._cluster.until_healthy()
        await self._cluster.until_persisted()
        self.on_emptying()
        self._note("emptying now")
        await act()
        await self._cluster.until_healthy()
        await asyncio.sleep(SETTLING_S)
        await self._cluster.until_persisted()


def _bound(act: Callable[..., Awaitable[None]], *args: Any) -> Callable[[], Awaitable[None]]:
    return lambda: act(*args)
