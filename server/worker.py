"""The worker as a process of its own: the shared log to MongoDB, and nothing else.

It owns nothing: what it has begun when it dies another one takes over, and two at the same document
do not harm each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from uuid import uuid4

from crdt.ids import DocName
from server import VERSION, logs
from server.cluster.connection import AWAY, connect
from server.cluster.envelope import Sealer
from server.cluster.log import RedisLog
from server.cluster.mover import Mover, Worker
from server.cluster.neighbours import pack_message
from server.cluster.record import open_record
from server.cluster.tasks import end
from server.settings import Settings
from server.signals import until_stopped
from server.storage.mongo import MongoStore

log = logging.getLogger(__name__)


async def work(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT.

    Raises:
        StorageError: MongoDB cannot be used, or an address is none.
    """
    assert settings.redis_url is not None
    assert settings.mongodb_uri is not None
    redis = connect(settings.redis_url.get_secret_value())
    sealer = Sealer.configured(settings.bus_secret)
    store = MongoStore(settings.mongodb_uri.get_secret_value())
    redis_log = RedisLog(redis, settings.redis_prefix)
    name = f"worker-{uuid4().hex[:12]}"
    logs.name_instance(name)
    telling: set[asyncio.Task[None]] = set()

    async def tell(doc: DocName, epoch: str, upto: int) -> None:
        channel = redis_log.channel(doc)
        with contextlib.suppress(*AWAY):  # told again with the next record
            await redis_log.publish(doc, pack_message(sealer, channel, [name, "m", epoch, upto]))

    def moved(doc: DocName, epoch: str, upto: int) -> None:
        task = asyncio.create_task(tell(doc, epoch, upto))
        telling.add(task)
        task.add_done_callback(telling.discard)

    mover = Mover(redis_log, store, partial(open_record, sealer), on_moved=moved)
    worker = Worker(mover, redis_log, store, consumer=name, compact_after=settings.compact_after)
    try:
        await store.open()
        stop = until_stopped()
        working = asyncio.create_task(worker.run(), name="worker")
        log.info("working", extra={"version": VERSION})
        await stop.wait()
        await end(working)
    finally:
        await store.close()
        await redis.aclose()
    return 0
