"""Several server processes, one Redis and one MongoDB, each to be killed, frozen, cut off and
brought back.

Every instance reaches Redis and MongoDB through proxies of its own, so that it can be cut off from
either alone, and keeps its `DATA_DIR`, in which what it has acked as `local` outlives it. Redis
syncs every command: what it has answered is on its disk. The MongoDB is always `nx-27017`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from redis.asyncio import Redis

from crdt.ids import DocName
from server.auth import Authenticator
from server.keys import GivenKey
from server.replay.devices import DocumentClient, EventClient
from tests.helpers import mongo_servers, redis_servers
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.proxies import Proxy
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.servers import ServerProcess

IS_SERVED = True
"""Whether this version runs as several instances (`REDIS_URL`). Until then a cluster has one."""

SECRET = "a secret of more than thirty-two bytes"
START_TIMEOUT_S = 60.0
HTTP_TIMEOUT_S = 5.0
DATABASE = "repsync"

PROGRAM = """
import faulthandler, signal, sys
from server.__main__ import main

faulthandler.register(signal.SIGUSR2, all_threads=True)
sys.exit(main([]))
"""
"""A server that writes what its threads do into its log when it gets SIGUSR2. What its tasks wait
for it writes by itself, if it is asked to end and cannot."""

LAST_WORDS_BYTES = 20_000

Found = TypeVar("Found")
State = Literal["running", "paused", "ended"]


@dataclass
class Instance:
    """One server of a cluster, with its links to the two databases."""

    name: str
    server: ServerProcess
    mongo: Proxy
    redis: Proxy | None
    state: State = "ended"
    lives: int = 0
    env: dict[str, str] = field(default_factory=dict)
    """Of the next start, beside what every instance has."""

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def links(self) -> list[Proxy]:
        return [link for link in (self.redis, self.mongo) if link is not None]

    @property
    def has_crashed(self) -> bool:
        """Whether it ended without having been asked to."""
        process = self.server.process
        return self.state != "ended" and process is not None and process.returncode is not None

    async def start(self) -> Instance:
        """Start it, and start it again if it ends at once, as whatever supervises servers does."""
        assert self.state == "ended"
        known = dict(self.server.env)
        self.server.env.update(self.env)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while self.state == "ended":
                    with contextlib.suppress(RuntimeError):
                        await self.server.start()
                        self.state = "running"
        finally:
            self.server.env = known
        self.lives += 1
        return self

    async def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        self.state = "ended"
        await self.server.kill()

    async def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM. Returns: the exit code. Raises AssertionError, with what it does instead, if it
        does not end."""
        try:
            code = await self.server.terminate(timeout_s)
        except TimeoutError:
            raise AssertionError(
                f"{self.name} has not ended within {timeout_s:g} s:\n{await self._last_words()}"
            ) from None
        self.state = "ended"
        return code

    async def _last_words(self) -> str:
        """The end of the log, once the process has written there what it is doing."""
        assert self.server.process is not None
        assert self.server.stderr is not None
        self.server.process.send_signal(signal.SIGUSR2)
        await asyncio.sleep(1)
        said = Path(self.server.stderr.name).read_bytes()
        return said[-LAST_WORDS_BYTES:].decode(errors="replace")

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        assert self.state == "running"
        self.server.pause()
        self.state = "paused"

    def resume(self) -> None:
        assert self.state == "paused"
        self.server.resume()
        self.state = "running"

    async def restart(self) -> Instance:
        """SIGTERM, then the next life. Raises AssertionError if it did not end well."""
        assert await self.stop() == 0
        return await self.start()

    async def health(self) -> tuple[int, dict[str, Any]]:
        """(status, report) of /health; (0, {}) if there is no answer."""
        try:
            async with _http() as http, http.get(f"{self.url}/health") as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, {}

    async def ailing(self) -> set[str]:
        """The dependencies that are not healthy; the instance itself if it does not answer.

        Its event loop is left out: it is as slow as the machine that the tests share.
        """
        status, report = await self.health()
        if not status:
            return {"instance"}
        states = {name: about["state"] for name, about in report["dependencies"].items()}
        return {name for name, state in states.items() if state != "healthy"} - {"event_loop"}

    async def is_ready(self) -> bool:
        try:
            async with _http() as http, http.get(f"{self.url}/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def metrics(self) -> Counter[str]:
        """Each sample of /metrics by its name, the sum over its labels."""
        async with _http() as http, http.get(f"{self.url}/metrics") as response:
            text = await response.text()
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value  # type: ignore[assignment]
        return found


class Cluster:
    """`size` instances on one Redis and one MongoDB; without Redis there can be one only."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 3,
        has_redis: bool = True,
        seed: int = 0,
        env: dict[str, str] | None = None,
    ) -> None:
        assert has_redis or size == 1
        mongo_servers.demand_nx()
        self.mongo = MongoProcess(folder / "mongo")
        self.redis: RedisProcess | None = None
        if has_redis:
            options = ("--appendfsync", "always", *redis_servers.debug_options())
            self.redis = RedisProcess(folder / "redis", options=options)
        self.auth = Authenticator(GivenKey.secret(SECRET))
        self.clients: list[EventClient | DocumentClient] = []
        self.instances = [
            Instance(
                f"i{number}",
                ServerProcess(
                    folder / f"i{number}",
                    {"JWT_SECRET": SECRET, **(env or {})},
                    program=("-c", PROGRAM),
                ),
                Proxy("127.0.0.1", self.mongo.port, seed=seed + number),
                Proxy("127.0.0.1", self.redis.port, seed=seed - number) if self.redis else None,
            )
            for number in range(size)
        ]

    async def start(self) -> Cluster:
        """Start everything, and wait until all is well."""
        await asyncio.to_thread(self.mongo.start)
        if self.redis is not None:
            await asyncio.to_thread(self.redis.start)
        for instance in self.instances:
            for link in instance.links:
                await link.start()
            uri = f"mongodb://127.0.0.1:{instance.mongo.port}/{DATABASE}"
            instance.server.env["MONGODB_URI"] = f"{uri}?timeoutMS=2000&directConnection=true"
            if instance.redis is not None:
                instance.server.env["REDIS_URL"] = f"redis://127.0.0.1:{instance.redis.port}"
            instance.server.folder.mkdir(parents=True, exist_ok=True)
            instance.server.stderr = open(instance.server.folder / "stderr", "ab")  # noqa: SIM115
        await asyncio.gather(*(instance.start() for instance in self.instances))
        await self.until_healthy()
        return self

    async def close(self) -> None:
        """End everything, however it is."""
        for client in self.clients:
            await client.drop()
        for instance in self.instances:
            await instance.server.stop()  # by SIGKILL, which ends one that is frozen as well
            for link in instance.links:
                await link.stop()
            if instance.server.stderr is not None:
                instance.server.stderr.close()
        if self.redis is not None:
            self.redis.kill()
        self.mongo.kill()

    def log_of(self, instance: Instance) -> str:
        return (instance.server.folder / "stderr").read_text()

    # -- clients ----------------------------------------------------------------------------

    def token(self, user_id: str, **claims: Any) -> str:
        return self.auth.sign(user_id, **claims)

    async def phone(self, instance: Instance, user_id: str, device: str = "phone") -> EventClient:
        """A connected JSON client, gone with the cluster."""
        named = {"id": f"{user_id}-{device}", "name": device.title()}
        client = EventClient(instance.url, self.token(user_id), named)
        self.clients.append(client)
        return await client.connect()

    async def laptop(self, instance: Instance, user_id: str, name: DocName) -> DocumentClient:
        """A connected and synced Yjs client, likewise."""
        named = {"id": f"{user_id}-laptop", "name": "Laptop"}
        client = DocumentClient(instance.url, name, self.token(user_id), named)
        self.clients.append(client)
        return await client.connect()

    # -- how it is --------------------------------------------------------------------------

    async def heal(self) -> None:
        """Bring everything back: links, databases, instances with their data."""
        for instance in self.instances:
            for link in instance.links:
                link.heal()
            if instance.state == "paused":
                instance.resume()
        if self.redis is not None:
            if self.redis.process is None:
                await asyncio.to_thread(self.redis.start)
            self.redis.resume()
        if self.mongo.process is None:
            await asyncio.to_thread(self.mongo.start)
        ended = [instance for instance in self.instances if instance.state == "ended"]
        await asyncio.gather(*(instance.start() for instance in ended))

    async def until_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every instance is ready, and says that nothing it depends on is ailing."""
        for instance in self.instances:

            async def is_well(instance: Instance = instance) -> bool:
                return not await instance.ailing() and await instance.is_ready()

            try:
                await eventually(is_well, timeout_s=timeout_s)
            except TimeoutError:
                found = instance.state, await instance.health(), self.log_of(instance)[-2_000:]
                raise AssertionError(f"{instance.name} does not become healthy: {found}") from None

    @asynccontextmanager
    async def redis_client(self, *, decodes: bool = True) -> AsyncIterator[Redis]:
        """A client of Redis itself, past all proxies; `decodes`: answers are texts."""
        assert self.redis is not None
        client = Redis(
            port=self.redis.port, socket_timeout=HTTP_TIMEOUT_S, decode_responses=decodes
        )
        async with client:
            yield client

    async def stream_lengths(self) -> dict[str, int]:
        """XLEN of every document's stream, by key."""
        async with self.redis_client() as redis:
            keys = [key async for key in redis.scan_iter("*:log", count=1_000)]
            return {key: int(await redis.xlen(key)) for key in keys}

    async def subscriber_counts(self) -> dict[str, int]:
        """PUBSUB NUMSUB of every room's channel that somebody has subscribed to."""
        async with self.redis_client() as redis:
            channels = await redis.pubsub_channels("*:bus")
            return dict(await redis.pubsub_numsub(*channels)) if channels else {}

    async def log_ends(self) -> dict[str, int]:
        """The last position of each document in the shared log."""
        async with self.redis_client() as redis:
            heads = [key async for key in redis.scan_iter("*:head", count=1_000)]
            return {
                head[head.index("{") + 1 : head.index("}")]: int(await redis.hget(head, "pos") or 0)
                for head in heads
            }

    @asynccontextmanager
    async def mongo_log(self) -> AsyncIterator[AsyncCollection[dict[str, Any]]]:
        """The log in MongoDB itself, past all proxies."""
        uri = f"{self.mongo.uri}/{DATABASE}?directConnection=true&timeoutMS=5000"
        mongo: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
        async with mongo:
            yield mongo.get_default_database()["log"]

    async def persisted_ends(self, docs: Iterable[str]) -> dict[str, int]:
        """The last position of each document in MongoDB's log; 0 where there is none."""
        async with self.mongo_log() as log:
            last = {doc: await log.find_one({"doc": doc}, sort=[("pos", -1)]) for doc in docs}
        return {doc: record["pos"] if record else 0 for doc, record in last.items()}

    async def persisted_positions(self, doc: str) -> list[int]:
        """All positions of a document in MongoDB's log, in their order."""
        async with self.mongo_log() as log:
            return [record["pos"] async for record in log.find({"doc": doc}, sort=[("pos", 1)])]

    async def until_persisted(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until MongoDB has all that the shared log has now."""
        ends = await self.log_ends()

        async def is_all_there() -> bool:
            persisted = await self.persisted_ends(ends)
            return all(persisted[doc] >= end for doc, end in ends.items())

        await eventually(is_all_there, timeout_s=timeout_s, every_s=0.2)


@asynccontextmanager
async def running_cluster(folder: Path, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster for as long as the block runs; see `Cluster` for the options."""
    cluster = Cluster(folder, **options)
    try:
        yield await cluster.start()
    finally:
        await cluster.close()


async def eventually(
    look: Callable[[], Awaitable[Found]], *, timeout_s: float = 10.0, every_s: float = 0.05
) -> Found:
    """Look again and again until what is seen is true. Returns it. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not (found := await look()):  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(every_s)
    return found


def _http() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S))
