"""The doctor names each fault, says what to do, and tells no secret. With real parts: a Redis, a
MongoDB wire, files, ports, a key server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bson
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.cluster.connection import connect
from server.doctor import databases, examine, finding, machine, shared_log
from server.doctor.finding import FAIL, OK, WARNING, Finding, within
from server.settings import Settings
from server.storage.mongo import client_of
from tests.helpers.key_servers import key_server
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.ports import free_port
from tests.helpers.redis_servers import ClusterProcesses, RedisProcess, SentinelProcess
from tests.helpers.servers import running_server
from tests.helpers.tokens import SECRET, signed

NOBODY = "mongodb://127.0.0.1:1"
PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy a check takes longer; what it finds is what counts here."""
    monkeypatch.setattr(finding, "CHECK_TIMEOUT_S", 60.0)


async def findings(folder: Path, token: str | None = None, **changes: Any) -> list[Finding]:
    """All that the doctor finds; port 0 and few connections unless the test is about them."""
    told = {"data_dir": folder, "port": 0, "max_connections": 100, "jwt_secret": SECRET, **changes}
    found = [one async for one in examine(Settings(**told), token)]
    for text in map(str, found):
        assert "\n" not in text
        assert PASSWORD not in text
        assert SECRET not in text
    return found


async def about(subject: str, folder: Path, token: str | None = None, **changes: Any) -> Finding:
    """The worst that it finds about a subject."""
    found = [f for f in await findings(folder, token, **changes) if f.subject == subject]
    return max(found, key=lambda finding: (OK, WARNING, FAIL).index(finding.level))


def assert_fails(finding: Finding, *texts: str) -> None:
    assert finding.level == FAIL, finding
    assert_tells(finding, *texts)


def assert_warns(finding: Finding, *texts: str) -> None:
    assert finding.level == WARNING, finding
    assert_tells(finding, *texts)


def assert_tells(finding: Finding, *texts: str) -> None:
    for text in texts:
        assert text in finding.text, finding


# -- a server that is well ------------------------------------------------------------------------


async def test_a_new_folder_is_well_and_nothing_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    found = await findings(folder, jwt_secret=None)
    assert {finding.level for finding in found} == {OK}, found
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_was_used_is_well_and_stays_as_it_is(tmp_path: Path) -> None:
    async with running_server(tmp_path):
        pass
    before = sorted(path.name for path in tmp_path.iterdir())
    found = await findings(tmp_path, jwt_secret=None)
    assert {finding.level for finding in found} == {OK}, found
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# -- the data folder ------------------------------------------------------------------------------


async def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("mine")
    assert_fails(await about("folder", path), str(path), "is no folder")
    assert_fails(await about("folder", path / "below"), "cannot be made")


async def test_a_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    assert_fails(await about("folder", Path("/proc/self")), "/proc/self", "name another one")


async def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path, 12_345, -1)
    assert_warns(await about("folder", tmp_path), "belongs to user 12345")


async def test_a_secret_that_others_can_read(tmp_path: Path) -> None:
    secret = tmp_path / "jwt_secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    assert_warns(await about("folder", tmp_path, jwt_secret=None), "chmod 600")


async def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 2**60)
    assert_fails(await about("disk", tmp_path), "MiB are free", "make room")
    monkeypatch.undo()
    monkeypatch.setattr(machine, "LITTLE_FREE_BYTES", 2**60)
    assert_warns(await about("disk", tmp_path), "make room")


async def test_a_spool_that_may_become_larger_than_the_disk(tmp_path: Path) -> None:
    found = await about(
        "disk", tmp_path, redis_url="redis://127.0.0.1:1", mongodb_uri=NOBODY, spool_max_bytes=2**60
    )
    assert_warns(found, "SPOOL_MAX_BYTES")


# -- the files in it ------------------------------------------------------------------------------


async def test_a_database_that_is_damaged(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        ana = await server.events("ana")
        for _ in range(20):
            await ana.do("workout:create", {"title": "x" * 200})
    path = tmp_path / "repsync.db"
    data = bytearray(path.read_bytes())
    for start in range(4_096, len(data), 4_096):
        data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    assert_fails(await about("files", tmp_path), "repsync.db is damaged", "restore a backup")
    assert path.read_bytes() == data


@pytest.mark.parametrize("kind", ["text", "folder"])
async def test_something_else_in_the_place_of_the_database(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "repsync.db"
    if kind == "text":
        path.write_bytes(b"no database at all" * 100)
    else:
        path.mkdir()
    assert_fails(await about("files", tmp_path), "repsync.db is damaged")


async def test_a_database_that_a_server_has_open(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        ana = await server.events("ana")
        await ana.do("workout:create", {})
        assert_warns(await about("files", tmp_path), "in use by a running server")
        await ana.do("workout:create", {})
    assert (await about("files", tmp_path)).level == OK


# -- the port, and limits -------------------------------------------------------------------------


async def test_a_port_that_another_program_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = await about("port", tmp_path, port=port)
    assert_fails(found, f"PORT {port} is taken", "another program", "set PORT")
    assert (await about("port", tmp_path, port=port)).level == OK


async def test_a_port_that_a_repsync_has(tmp_path: Path) -> None:
    async with running_server(tmp_path / "a") as server:
        port = int(server.url.rpartition(":")[2])
        found = await about("port", tmp_path / "b", port=port)
    assert_warns(found, f"PORT {port} is taken by a RepSync", "healthy")


async def test_an_address_that_is_none_of_ours(tmp_path: Path) -> None:
    assert_fails(await about("port", tmp_path, host="192.0.2.1"), "no address of this machine")
    assert_fails(await about("port", tmp_path, host="nobody.invalid"), "cannot be resolved")


async def test_fewer_files_than_connections(tmp_path: Path) -> None:
    found = await about("limits", tmp_path, max_connections=10**9)
    assert_warns(found, "MAX_CONNECTIONS is 1000000000", "ulimit -n")


def test_a_variable_that_is_misspelt() -> None:
    environment = {"REDIS_URI": "x", "MONGO_URI": "y", "HOME": "/", "PATH": "", "PORT": "1"}
    texts = [str(finding) for finding in machine.misspelt(environment)]
    assert len(texts) == 2
    assert "MONGO_URI is no setting: is MONGODB_URI meant?" in texts[0]
    assert "REDIS_URI is no setting: is REDIS_URL meant?" in texts[1]


# -- keys and tokens ------------------------------------------------------------------------------


async def test_a_token_that_is_good(tmp_path: Path) -> None:
    found = await about("token", tmp_path, signed(role="trainer"))
    assert found.level == OK
    assert_tells(found, "'ana' as trainer")


OTHER = "another secret of more than thirty-two bytes"
LATE = 2**33
"""Tokens that are made before all tests must be good when the last one runs."""


def lasting(**changes: Any) -> str:
    return signed(**{"exp": LATE, **changes})


REFUSED: dict[str, tuple[str, dict[str, str], str]] = {
    "another secret": (lasting(key=OTHER), {}, "signature is wrong"),
    "expired": (lasting(exp=1), {}, "has expired 1,"),
    "another issuer": (lasting(iss="them"), {"jwt_issuer": "us"}, "JWT_ISSUER, 'us'"),
    "no issuer": (lasting(), {"jwt_issuer": "us"}, "JWT_ISSUER, 'us'"),
    "another audience": (lasting(aud="them"), {"jwt_audience": "us"}, "JWT_AUDIENCE, 'us'"),
    "no audience": (lasting(), {"jwt_audience": "us"}, "JWT_AUDIENCE, 'us'"),
    "another algorithm": (lasting(algorithm="HS512", key=SECRET * 2), {}, "algorithm"),
    "no signature": (jwt.encode({"sub": "ana"}, None, algorithm="none"), {}, "algorithm"),
    "not yet": (lasting(nbf=LATE - 1), {}, "not good yet"),
    "no end": (lasting(exp=...), {}, "lacks the claim exp"),
    "no user": (lasting(sub=...), {}, "lacks the claim sub"),
    "cut short": (lasting()[:-30], {}, "cut short"),
    "no token": ("hello", {}, "no token, or cut short"),
    "another role": (lasting(role="king"), {}, "role"),
}


@pytest.mark.parametrize(("token", "settings", "told"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_token_that_is_refused_is_told_why(
    tmp_path: Path, token: str, settings: dict[str, str], told: str
) -> None:
    found = await about("token", tmp_path, token, **settings)
    assert_fails(found, told)
    assert token not in found.text


async def test_a_token_before_there_is_a_key(tmp_path: Path) -> None:
    assert_fails(await about("token", tmp_path, signed(), jwt_secret=None), "no key yet")


async def test_a_secret_of_each_instances_own(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text(SECRET)
    (tmp_path / "jwt_secret").chmod(0o600)
    found = await about(
        "keys", tmp_path, jwt_secret=None, redis_url="redis://127.0.0.1:1", mongodb_uri=NOBODY
    )
    assert_warns(found, "the same JWT_SECRET for all")


async def test_a_generated_secret_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text("\n")
    assert_fails(await about("keys", tmp_path, jwt_secret=None), "jwt_secret is empty")


async def test_a_key_set_and_a_token_of_it(tmp_path: Path) -> None:
    async with key_server("k1") as provider:
        settings = {"jwt_secret": None, "jwt_jwks_url": provider.url, "jwt_audience": "us"}
        token = provider.token("ana", "k1", aud="us")
        found = await findings(tmp_path, token, **settings)
        assert {finding.level for finding in found} == {OK}, found
        other = provider.token("ana", "k1", aud="them")
        assert_fails(await about("token", tmp_path, other, **settings), "JWT_AUDIENCE")
        assert_warns(
            await about("keys", tmp_path, **{**settings, "jwt_audience": None}), "JWT_AUDIENCE"
        )
        provider.status = 404
        assert_fails(await about("keys", tmp_path, **settings), "JWT_JWKS_URL", "404")
        provider.status = 200
        provider.answering.clear()
        assert_fails(await about("keys", tmp_path, **settings), "no answer within")


async def test_a_key_set_that_is_not_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/keys?secret={PASSWORD}"
    found = await about("keys", tmp_path, jwt_secret=None, jwt_jwks_url=url)
    assert_fails(found, "JWT_JWKS_URL at 127.0.0.1", "cannot be reached")


# -- Redis ----------------------------------------------------------------------------------------


async def redis_of(folder: Path, url: str, **changes: Any) -> Finding:
    return await about("redis", folder, redis_url=url, mongodb_uri=NOBODY, **changes)


async def test_a_redis_that_is_well(tmp_path: Path, redis_process: RedisProcess) -> None:
    found = await redis_of(tmp_path, redis_process.url)
    assert found.level == OK, found


async def test_a_redis_that_is_down(tmp_path: Path) -> None:
    port = free_port()
    found = await redis_of(tmp_path, f"redis://u:{PASSWORD}@127.0.0.1:{port}/0")
    assert_fails(found, f"Redis at 127.0.0.1:{port}: it refuses connections", "start it")
    found = await redis_of(tmp_path, f"unix://{tmp_path}/redis.sock")
    assert_fails(found, "redis.sock", "is not there", "start it")


async def test_a_redis_whose_name_is_unknown(tmp_path: Path) -> None:
    assert_fails(await redis_of(tmp_path, "redis://nobody.invalid"), "cannot be resolved", "DNS")


async def test_a_host_that_takes_no_connections(tmp_path: Path) -> None:
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):  # more than its queue takes: who comes now is not answered at all
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        found = await redis_of(tmp_path, f"redis://127.0.0.1:{full.getsockname()[1]}")
    assert_fails(found, "no connection comes about in time", "firewalls")


async def test_a_check_that_does_not_end_is_a_finding_like_any_other() -> None:
    found = await within("redis", "its version", asyncio.sleep(60), timeout_s=0.01)  # type: ignore[arg-type]
    assert_fails(found, "its version: no answer within 0.01 s")

    async def break_down() -> Finding:
        raise RuntimeError(PASSWORD)

    found = await within("redis", "its version", break_down())
    assert_fails(found, "could not be looked at (RuntimeError)")
    assert PASSWORD not in found.text


async def test_a_redis_that_hangs(tmp_path: Path, redis_process: RedisProcess) -> None:
    redis_process.pause()
    try:
        started_s = time.monotonic()
        found = await redis_of(tmp_path, redis_process.url)
        assert time.monotonic() - started_s < 30
    finally:
        redis_process.resume()
    assert_fails(found, "takes connections, and does not answer")


async def test_tls_where_there_is_none(tmp_path: Path, redis_process: RedisProcess) -> None:
    url = redis_process.url.replace("redis://", "rediss://")
    found = await redis_of(tmp_path, url)
    assert_fails(found, "does not speak TLS")


async def test_no_tls_where_there_is(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as port:
        found = await redis_of(tmp_path, f"redis://127.0.0.1:{port}")
    assert_fails(found, "speaks TLS only")


async def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as port:
        found = await redis_of(tmp_path, f"rediss://127.0.0.1:{port}")
    assert_fails(found, "certificate is not trusted")


async def test_a_password_that_is_wrong(tmp_path: Path, redis_process: RedisProcess) -> None:
    redis_process.run("CONFIG SET", "requirepass", "correct")
    at = redis_process.url.removeprefix("redis://")
    wrong = await redis_of(tmp_path, f"redis://:{PASSWORD}@{at}")
    assert_fails(wrong, "refuses user name or password", "REDIS_URL")
    assert_fails(await redis_of(tmp_path, redis_process.url), "wants a password")
    assert (await redis_of(tmp_path, f"redis://:correct@{at}")).level == OK


async def test_a_redis_that_forgets(tmp_path: Path) -> None:
    redis = RedisProcess(
        tmp_path / "redis", options=("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    ).start()
    try:
        found = await findings(tmp_path, redis_url=redis.url, mongodb_uri=NOBODY)
    finally:
        redis.kill()
    texts = [finding.text for finding in found if finding.level == WARNING]
    assert any("set maxmemory-policy noeviction" in text for text in texts)
    assert any("set appendonly yes" in text for text in texts)


@pytest.mark.parametrize(
    ("versions", "level"),
    [
        (["6.2.0"], OK),
        (["7.4.1", "8.0.0"], OK),
        (["6.0.16"], WARNING),
        (["5.0"], WARNING),
        (["7.0.0", "6.0.9"], WARNING),
        ([""], WARNING),
    ],
)
def test_a_redis_that_is_too_old(versions: list[str], level: str) -> None:
    assert shared_log.judge_version(versions).level == level


async def test_a_cluster_and_a_sentinel_that_are_well(
    tmp_path: Path, redis_process: RedisProcess
) -> None:
    cluster = ClusterProcesses(tmp_path / "cluster").start()
    sentinel = SentinelProcess(tmp_path / "sentinel", watches=redis_process).start()
    try:
        for url in (cluster.url, f"redis+sentinel://127.0.0.1:{sentinel.port}/gym"):
            found = await redis_of(tmp_path, url)
            assert found.level == OK, found
        other = f"redis+sentinel://127.0.0.1:{sentinel.port}/pool"
        assert_fails(await redis_of(tmp_path, other), "no Sentinel", "pool")
        cluster.nodes[1].run("CONFIG SET", "maxmemory-policy", "allkeys-lru")
        assert_warns(await redis_of(tmp_path, cluster.url), "noeviction")
    finally:
        cluster.kill()
        sentinel.kill()


async def test_a_clock_that_is_not_redis_s(redis_process: RedisProcess) -> None:
    redis = connect(redis_process.url)
    try:
        assert (await shared_log.clock(redis)).level == OK
        for skew_ms, side in ((-60_000, "60.0 s ahead of"), (60_000, "60.0 s behind")):
            found = await shared_log.clock(
                redis, lambda skew_ms=skew_ms: time.time_ns() // 10**6 + skew_ms
            )
            assert found.level == WARNING
            assert side[3:] in found.text
    finally:
        await redis.aclose()


async def test_a_bus_secret_that_is_not_that_of_the_instances(
    tmp_path: Path, redis_process: RedisProcess, mongo_uri: str
) -> None:
    settings = {
        "redis_url": redis_process.url,
        "redis_prefix": f"t{uuid4().hex[:8]}",
        "mongodb_uri": mongo_uri,
    }
    async with running_server(
        tmp_path / "a", jwt_secret=SECRET, bus_secret=SECRET, **settings
    ) as a:
        ana = await a.events("ana")
        await ana.do("workout:create", {})

        async def of(secret: str | None) -> Finding:
            return await about("redis", tmp_path / "b", bus_secret=secret, **settings)

        same = await of(SECRET)
        assert same.level == OK
        assert_fails(await of(OTHER), "BUS_SECRET is set", "made with another one")
        assert_fails(await of(None), "BUS_SECRET is not set", "set the same for all")


async def test_an_address_that_is_none(tmp_path: Path) -> None:
    assert_fails(await redis_of(tmp_path, f"redis://u:{PASSWORD}@h:x"), "REDIS_URL is no address")


# -- MongoDB --------------------------------------------------------------------------------------


async def mongodb_of(folder: Path, uri: str) -> Finding:
    return await about("mongodb", folder, mongodb_uri=uri)


async def test_a_single_mongodb_is_only_warned_of(tmp_path: Path, mongo_uri: str) -> None:
    found = [f for f in await findings(tmp_path, mongodb_uri=mongo_uri) if f.subject == "mongodb"]
    assert FAIL not in {finding.level for finding in found}, found
    if "replicaSet" not in mongo_uri:
        assert any("make it a replica set" in finding.text for finding in found)


async def test_a_mongodb_that_is_down(tmp_path: Path) -> None:
    uri = f"mongodb://u:{PASSWORD}@127.0.0.1:{free_port()}/gym"
    assert_fails(await mongodb_of(tmp_path, uri), "refuses connections", "start it", "MONGODB_URI")


async def test_a_mongodb_whose_name_is_unknown(tmp_path: Path) -> None:
    assert_fails(await mongodb_of(tmp_path, "mongodb://nobody.invalid"), "cannot be resolved")


async def test_a_mongodb_that_hangs(tmp_path: Path, mongo_process: MongoProcess) -> None:
    assert mongo_process.process is not None
    with stopped(mongo_process.process.pid):
        assert_fails(await mongodb_of(tmp_path, mongo_process.uri), "does not answer")


async def test_tls_where_mongodb_has_none_or_shows_a_certificate_that_is_not_trusted(
    tmp_path: Path, mongo_process: MongoProcess
) -> None:
    found = await mongodb_of(tmp_path, f"{mongo_process.uri}/?tls=true")
    assert_fails(found, "does not speak TLS")
    async with tls_server(tmp_path) as port:
        found = await mongodb_of(tmp_path, f"mongodb://127.0.0.1:{port}/?tls=true")
        assert_fails(found, "certificate is not trusted")


async def test_a_mongodb_that_refuses_the_login(tmp_path: Path) -> None:
    async with strict_mongodb() as port:
        wrong = await mongodb_of(tmp_path, f"mongodb://u:{PASSWORD}@127.0.0.1:{port}/gym")
        none = await mongodb_of(tmp_path, f"mongodb://127.0.0.1:{port}/gym")
    assert_fails(wrong, "refuses user name or password", "MONGODB_URI")
    assert_fails(none, "does not let this user work", "readWrite")


async def test_a_clock_that_is_not_mongodb_s(mongo_process: MongoProcess) -> None:
    client = client_of(mongo_process.uri)
    try:
        assert (await databases.clock(client)).level == OK
        found = await databases.clock(client, lambda: time.time_ns() // 10**6 - 60_000)
        assert found.level == WARNING
        assert "ahead of" in found.text
    finally:
        await client.close()


# -- who is told ----------------------------------------------------------------------------------


async def test_a_receiver_of_alerts_that_is_not_there_is_only_warned_of(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/{PASSWORD}"
    webhook = {"alert_webhook_url": url, "alert_webhook_secret": SECRET}
    assert_warns(await about("alerts", tmp_path, **webhook), "127.0.0.1", "refuses connections")
    async with key_server() as receiver:
        there = {**webhook, "alert_webhook_url": receiver.url}
        assert (await about("alerts", tmp_path, **there)).level == OK
        assert receiver.hits == 0


async def test_a_sentry_that_is_none(tmp_path: Path) -> None:
    found = await about("errors", tmp_path, sentry_dsn=f"https://{PASSWORD}@/")
    assert_fails(found, "SENTRY_DSN")


# -- servers that are not as they should be -------------------------------------------------------


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, 19)
    try:
        yield
    finally:
        os.kill(pid, 18)


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[int]:
    """A port with TLS and a certificate that nobody trusts."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, None)
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    # Handshakes that fail are what is tested here.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with await asyncio.start_server(end, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def strict_mongodb() -> AsyncIterator[int]:
    """MongoDB's wire, as far as the refusal of a login: nx-27017 knows no users."""
    hello = {
        "ok": 1.0,
        "isWritablePrimary": True,
        "helloOk": True,
        "maxWireVersion": 21,
        "minWireVersion": 0,
        "saslSupportedMechs": ["SCRAM-SHA-256"],
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length, request_id, _, opcode = struct.unpack("<4i", await reader.readexactly(16))
                body = await reader.readexactly(length - 16)
                is_message = opcode == 2013
                command = bson.decode(body[5:]) if is_message else {"hello": 1}
                first = next(iter(command))
                if first.lower() in ("hello", "ismaster"):
                    answer: dict[str, Any] = hello
                elif first in ("saslStart", "saslContinue"):
                    answer = {"ok": 0.0, "code": 18, "errmsg": "Authentication failed."}
                elif first == "ping":
                    answer = {"ok": 1.0}
                else:
                    answer = {"ok": 0.0, "code": 13, "errmsg": "requires authentication"}
                packed = bson.encode(answer)
                if is_message:
                    payload, answered = struct.pack("<iB", 0, 0) + packed, 2013
                else:
                    payload, answered = struct.pack("<iqii", 8, 0, 0, 1) + packed, 1
                head = struct.pack("<4i", len(payload) + 16, 1, request_id, answered)
                writer.write(head + payload)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
