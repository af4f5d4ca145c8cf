"""MongoDB: whether it can be reached, lets us in, and is a replica set."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from server.doctor import network
from server.doctor.finding import Finding, address, failure, ok, warning, within
from server.doctor.shared_log import judge_clock
from server.storage.mongo import DEFAULT_DATABASE, client_of, is_replicated
from server.storage.port import StorageError

ANSWER_TIMEOUT_S = 1.5
MONGODB_PORT = 27017

UNAUTHORIZED, AUTHENTICATION_FAILED = 13, 18

Client = AsyncMongoClient[dict[str, Any]]
NowMs = Callable[[], int]


async def examine(uri: str) -> AsyncIterator[Finding]:
    where = f"MongoDB at {address(uri)}"
    timeout_ms = int(ANSWER_TIMEOUT_S * 1_000)
    try:
        client = client_of(
            uri,
            timeoutMS=timeout_ms,
            serverSelectionTimeoutMS=timeout_ms,
            connectTimeoutMS=timeout_ms,
        )
    except StorageError as exc:
        yield failure("mongodb", str(exc))
        return
    try:
        reached = await within("mongodb", where, reach(client, uri, where))
        if reached.level == "ok":
            reached = await within("mongodb", where, greet(client, uri, where))
        yield reached
        if reached.level != "ok":
            return
        for what, check in (
            ("the login", login(client)),
            ("replication", replication(client)),
            ("its clock", clock(client)),
        ):
            yield await within("mongodb", what, check)
    finally:
        await client.close()


async def reach(client: Client, uri: str, where: str) -> Finding:
    """Whether it takes connections."""
    if not uri.startswith("mongodb+srv:"):  # who is there, is asked by the driver
        try:
            where_to = network.places(uri, MONGODB_PORT)
            await network.demand_reachable(where_to, _tls(client))
        except network.Unreachable as exc:
            return failure("mongodb", f"{where}: {exc} (MONGODB_URI)")
    return ok("mongodb", f"{where} takes connections")


async def greet(client: Client, uri: str, where: str) -> Finding:
    """Whether one answers that takes writes."""
    started_s = time.monotonic()
    try:
        await client.admin.command("ping")
    except OperationFailure as exc:
        return _refusal(exc, where)
    except ConfigurationError as exc:
        return failure("mongodb", f"{where} cannot be found ({exc}): correct MONGODB_URI")
    except PyMongoError as exc:
        servers = client.topology_description.server_descriptions().values()
        if any(server.is_readable for server in servers):
            return failure("mongodb", f"{where} has no primary: look at rs.status()")
        causes = [server.error for server in servers if server.error is not None]
        reason = await network.why_silent(
            network.places(uri, MONGODB_PORT), _tls(client) is not None, (causes or [exc])[0]
        )
        return failure("mongodb", f"{where}: {reason} (MONGODB_URI)")
    return ok("mongodb", f"{where} answers, {(time.monotonic() - started_s) * 1_000:.1f} ms")


def _tls(client: Client) -> ssl.SSLContext | None:
    """The TLS that its options ask for."""
    context = client.options.pool_options._ssl_context
    return context if isinstance(context, ssl.SSLContext | None) else network.any_tls()


def _refusal(exc: OperationFailure, where: str) -> Finding:
    if exc.code == AUTHENTICATION_FAILED:
        return failure(
            "mongodb",
            f"{where} refuses user name or password: correct them in MONGODB_URI, percent-encoded,"
            " and authSource",
        )
    if exc.code == UNAUTHORIZED:
        return failure(
            "mongodb",
            f"{where} does not let this user work: write user name and password into MONGODB_URI,"
            " and give the user the role readWrite",
        )
    return failure("mongodb", f"{where} refuses what is asked (code {exc.code}): look at its log")


async def login(client: Client) -> Finding:
    """Whether our database can be read."""
    database = client.get_default_database(DEFAULT_DATABASE)
    try:
        await database["log"].find_one({}, {"_id": True})
    except OperationFailure as exc:
        return _refusal(exc, "it")
    return ok("mongodb", f"database {database.name} can be read")


async def replication(client: Client) -> Finding:
    """Whether what it acknowledges is on more than one disk."""
    hello: Mapping[str, Any] = await client.admin.command("hello")
    if not is_replicated(hello):
        return warning(
            "mongodb",
            "it is a single server, what it acknowledges is on its one disk: make it a replica set",
        )
    return ok("mongodb", "it is a replica set")


async def clock(client: Client, now_ms: NowMs = lambda: time.time_ns() // 10**6) -> Finding:
    """Whether its clock and ours agree."""
    before_ms = now_ms()
    hello = await client.admin.command("hello")
    after_ms = now_ms()
    told = hello.get("localTime")
    if told is None:
        return ok("mongodb", "its clock is not told")
    return judge_clock("mongodb", _ms(told), before_ms, after_ms)


def _ms(told: datetime) -> int:
    return round(told.replace(tzinfo=UTC).timestamp() * 1_000)  # pymongo's times are naive
