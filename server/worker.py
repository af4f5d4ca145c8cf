"""The worker as a process of its own: the shared log to MongoDB, and nothing else. With
`WORKER_METRICS_PORT` it tells Prometheus of that.

It owns nothing: what it has begun when it dies another one takes over, and two at the same document
do not harm each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from aiohttp import web

from crdt.ids import DocName
from server import VERSION, http, http_rules, instruments, logs
from server.cluster.connection import AWAY, connect
from server.cluster.envelope import Sealer
from server.cluster.log import RedisLog
from server.cluster.mover import Mover, Worker
from server.cluster.neighbours import pack_message
from server.cluster.record import open_record
from server.metrics import Metrics
from server.settings import Settings, SettingsError
from server.signals import end_in_time, until_stopped
from server.storage.mongo import MongoStore
from server.tasks import Chores, end

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
    telling = Chores()

    async def tell(doc: DocName, epoch: str, upto: int) -> None:
        channel = redis_log.channel(doc)
        with contextlib.suppress(*AWAY):  # told again with the next record
            await redis_log.publish(doc, pack_message(sealer, channel, [name, "m", epoch, upto]))

    def moved(doc: DocName, epoch: str, upto: int) -> None:
        telling.start(tell(doc, epoch, upto))

    mover = Mover(redis_log, store, partial(open_record, sealer), on_moved=moved)
    worker = Worker(mover, redis_log, store, consumer=name, compact_after=settings.compact_after)
    try:
        await store.open()
        async with _shown(settings, mover, worker) as port:
            stop = until_stopped()
            working = asyncio.create_task(worker.run(), name="worker")
            log.info("working", extra={"version": VERSION, "metrics_port": port})
            await stop.wait()
            end_in_time()
            await end(working)
            await telling.end()
    finally:
        await store.close()
        await redis.aclose()
    return 0


@asynccontextmanager
async def _shown(settings: Settings, mover: Mover, worker: Worker) -> AsyncIterator[int | None]:
    """`/metrics`, on all addresses of this port, as long as the block runs."""
    port = settings.worker_metrics_port
    if port is None:
        yield None
        return
    metrics = Metrics()
    instruments.show_process(metrics)
    mover.watch(metrics)
    worker.watch(metrics)
    app = web.Application(client_max_size=http_rules.MAX_BODY_BYTES)
    http_rules.apply(app, settings)
    http.add_metrics(app, metrics)
    runner = http_rules.make_runner(app, settings, shutdown_timeout_s=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, None, port).start()
        except OSError as exc:
            raise SettingsError(
                f"cannot listen on port {port}: {exc.strerror or exc};"
                " set WORKER_METRICS_PORT to a free one"
            ) from exc
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
