"""`/asyncapi.json` and `/openapi.json`: valid, whole, and true of what really comes."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import aiohttp
import openapi_spec_validator
import pytest

from crdt import ids
from crdt.errors import INTERNAL, Code, RepSyncError
from crdt.ids import ConnectionId, DocKind, UserId
from crdt.ports import Author
from crdt.replica import Put, Remove
from crdt.wire import AwarenessEntry, encode_awareness
from handlers.streams import STREAMS
from server.apidocs import asyncapi, openapi
from server.app import create_app
from server.replay.devices import EventClient
from server.settings import Settings
from tests.helpers.api_documents import DOCUMENT, EVENTS, ApiDocument, Undocumented
from tests.helpers.event_streams import event_stream
from tests.helpers.javascript import demand_javascript, run_script
from tests.helpers.key_servers import key_server
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.replicas import Peer
from tests.helpers.rooms import until
from tests.helpers.servers import ROOT, RunningServer, running_server
from tests.helpers.sockets import BINARY_EVENT, CONNECT_ERROR, EVENT, RawSocket, raw_socket

DEADLINE_S = 10.0
ALERT = {
    "id": "here-1",
    "key": "errors",
    "severity": "warning",
    "state": "firing",
    "title": "Errors",
    "message": "many",
    "count": 12,
    "window_s": 60.0,
    "first_at": 1_700_000_000_000,
    "last_at": 1_700_000_000_000,
    "instance": "here",
}
W, T = ids.workout("leg-day"), ids.template("push")


async def read(http: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with http.get(path) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        return dict(await response.json())


# -- the documents themselves ---------------------------------------------------------------------


async def test_openapi_is_valid(http: aiohttp.ClientSession) -> None:
    document = await read(http, "/openapi.json")
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


@pytest.mark.js
async def test_asyncapi_is_valid(http: aiohttp.ClientSession) -> None:
    demand_javascript()
    document = await read(http, "/asyncapi.json")
    assert document["asyncapi"].startswith("3.")
    assert await run_script("asyncapi.mjs", json.dumps(document)) == []


@pytest.mark.js
async def test_the_validator_of_asyncapi_finds_faults() -> None:
    demand_javascript()
    about = {"title": "Songs", "version": "1"}
    document = {"asyncapi": "3.0.0", "info": about, "operations": {"o": {"action": "sing"}}}
    faults = await run_script("asyncapi.mjs", json.dumps(document))
    assert any("operations/o" in fault for fault in faults)


@pytest.mark.parametrize("path", ["/asyncapi.json", "/openapi.json"])
async def test_a_document_that_is_known_is_not_sent_again(
    http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(path) as first:
        body, etag = await first.read(), first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"
    for known in (etag, f'W/{etag}, "other"', "*"):
        async with http.get(path, headers={"If-None-Match": known}) as again:
            assert (again.status, await again.read()) == (304, b"")
            assert again.headers["ETag"] == etag
    async with http.get(path, headers={"If-None-Match": '"other"'}) as anew:
        assert (anew.status, await anew.read()) == (200, body)
    async with http.head(path) as head:
        assert (head.status, head.headers["ETag"]) == (200, etag)


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert asyncapi()["info"]["version"] == openapi()["info"]["version"] == project["version"]


def test_every_route_is_in_openapi_and_no_other(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path))
    served = {
        (re.sub(r":[^}]*", "", route.resource.canonical), route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and not route.resource.canonical.startswith("/socket.io")
    }
    described = {
        (path, method) for path, methods in openapi()["paths"].items() for method in methods
    }
    assert described == served


def test_the_codes_are_those_of_the_errors() -> None:
    def codes(kind: type[RepSyncError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    assert set(get_args(Code)) == codes(RepSyncError) | {INTERNAL["code"]}


# -- what really comes ----------------------------------------------------------------------------


class Witness:
    """Who sees to it that all that goes over these sockets is in the document, as it is there."""

    def __init__(self, document: ApiDocument, server: RunningServer, stack: AsyncExitStack) -> None:
        self.document = document
        self.server = server
        self._stack = stack
        self.sockets: list[RawSocket] = []
        self.asked: set[tuple[str, str]] = set()

    async def enter(self, user_id: str, namespace: str = "/", **claims: Any) -> Line:
        """A new socket, in a namespace."""
        socket = await self._stack.enter_async_context(raw_socket(self.server.url))
        self.sockets.append(socket)
        line = Line(self, socket, namespace)
        auth = {
            "token": self.server.token(user_id, **claims),
            "device": {"id": f"{user_id}-phone", "name": "Phone"},
        }
        self.document.check_sent(line.channel, "connect", auth)
        assert (await socket.enter(namespace, auth)).kind != CONNECT_ERROR
        return line

    def hold(self) -> dict[str, set[str]]:
        """Hold all that the server has sent of its own accord against the document.

        Returns: the events, by channel.
        """
        told: dict[str, set[str]] = {EVENTS: set(), DOCUMENT: set()}
        for socket in self.sockets:
            for packet in socket.received:
                channel = channel_of(packet.namespace)
                if packet.kind in (EVENT, BINARY_EVENT):
                    event, *args = packet.data
                    assert len(args) == 1, packet
                    self.document.check_told(channel, event, args[0])
                    told[channel].add(event)
                elif packet.kind == CONNECT_ERROR:
                    assert packet.data["message"] == packet.data["data"]["code"]
                    self.document.check_told(channel, "connect_error", packet.data["data"])
                    told[channel].add("connect_error")
        return told


class Line:
    """One socket in one namespace."""

    def __init__(self, witness: Witness, socket: RawSocket, namespace: str) -> None:
        self._witness = witness
        self.socket = socket
        self.namespace = namespace
        self.channel = channel_of(namespace)

    async def ask(self, event: str, payload: Any) -> Any:
        """Send what the document lets one send. Returns: the answer, which it has as well."""
        self._witness.document.check_sent(self.channel, event, payload)
        return await self._ask(event, payload)

    async def _ask(self, event: str, payload: Any) -> Any:
        answer = await self.socket.ask(event, payload, namespace=self.namespace)
        self._witness.document.check_answer(self.channel, event, answer)
        self._witness.asked.add((self.channel, event))
        return answer

    async def do(self, event: str, **payload: Any) -> Any:
        answer = await self.ask(event, payload)
        assert answer["ok"], answer
        return answer

    async def blunder(self, event: str) -> None:
        """Send what the document does not allow; the answer is there as well."""
        nonsense = {"nonsense": True}
        if self._witness.document.events(self.channel, "client") >= {event}:
            with pytest.raises(Undocumented):
                self._witness.document.check_sent(self.channel, event, nonsense)
        assert not (await self._ask(event, nonsense))["ok"]

    async def told(self, event: str) -> None:
        """Wait until the server has sent an event."""
        await self.socket.find(
            lambda p: (
                p.kind in (EVENT, BINARY_EVENT)
                and (p.namespace, p.data[0]) == (self.namespace, event)
            )
        )


def channel_of(namespace: str) -> str:
    return EVENTS if namespace == "/" else DOCUMENT


@pytest.fixture
async def witness(tmp_path: Path) -> AsyncIterator[Witness]:
    async with (
        running_server(tmp_path / "data") as server,
        aiohttp.ClientSession(server.url) as http,
        AsyncExitStack() as stack,
    ):
        yield Witness(ApiDocument(await read(http, "/asyncapi.json")), server, stack)


async def test_all_that_goes_over_the_sockets_is_in_asyncapi(witness: Witness) -> None:
    ana = await witness.enter("ana", name="Ana")
    ben = await witness.enter("ben", name="Ben")
    admin = await witness.enter("olga", role="admin")
    for line in (ana, ben, admin):
        await line.told("welcome")
    await a_workout(ana, ben)
    await a_template(ana, ben)
    await streams(ana, admin)
    await documents(witness)
    await doors(witness, admin)
    for event in sorted(witness.document.events(EVENTS, "client") - {"connect"}):
        await ana.blunder(event)

    witness.server.parts.gateway.announce_end()
    await ana.told("server:draining")
    told = witness.hold()
    for channel in (EVENTS, DOCUMENT):
        asked = {event for where, event in witness.asked if where == channel}
        assert asked | {"connect"} == witness.document.events(channel, "client")
        assert told[channel] == witness.document.events(channel, "server")


async def a_workout(ana: Line, ben: Line) -> None:
    w = {"workout_id": W.id}
    await ana.do("workout:create", **w, title="Legs", mode="group", visibility="private")
    await ana.do("workout:invite", **w, user_id="ben", role="participant")
    await ben.told("workout:invited")
    await ben.do("workout:join", **w)
    await ana.told("workout:member:joined")
    target = [{"kind": "normal", "reps": 5, "weight_kg": 100}, {"seconds": 30}]
    for exercise_id in ("squat", "lunge"):
        await ana.do(
            "workout:exercise:add",
            **w,
            exercise_id=exercise_id,
            exercise={"name": exercise_id.title(), "target": target, "rest_s": 90},
        )
    await ana.do(
        "workout:exercise:update",
        **w,
        exercise_id="lunge",
        exercise={"note": "deep", "rest_s": None},
    )
    await ana.do("workout:exercise:move", **w, exercise_id="lunge", before="squat")
    await ana.do("workout:exercise:remove", **w, exercise_id="lunge")
    await ana.do("workout:start", **w)
    for user, measures in ((ana, {"weight_kg": 100, "reps": 5}), (ben, {"seconds": 45.5})):
        done = await user.do(
            "workout:set:complete", **w, exercise_id="squat", set=measures, set_id=f"s-{id(user)}"
        )
        assert done["is_pr"]
    await ana.do("workout:set:complete", **w, exercise_id="squat", set={"reps": 3}, set_id="s3")
    await ana.do("workout:set:update", **w, set_id="s3", set={"reps": 4, "note": "slow"})
    await ana.do("workout:set:remove", **w, set_id="s3")
    await a_timer(ana)
    shown = await ana.do("workout:sync", **w)
    assert shown["workout"]["timers"]
    await ana.do("workout:pause", **w)
    await ana.do("workout:resume", **w)
    await ben.do("workout:leave", **w)
    await ana.told("workout:member:left")
    await ana.do("workout:member:remove", **w, user_id="ben")
    await ben.told("workout:uninvited")
    await ana.do("workout:complete", **w)
    await ana.do("workout:create", workout_id="other")
    await ana.do("workout:start", workout_id="other")
    await ana.do("workout:abandon", workout_id="other")
    assert (await ana.do("workout:list", limit=1))["more"]
    await ana.do("time:sync", t0=1.5)


async def a_timer(ana: Line) -> None:
    """No intent starts one yet."""
    hub = ana._witness.server.parts.hub
    author = Author(UserId("ana"), "Ana", "phone", ConnectionId("ana-1"))
    started = {"kind": "rest", "duration_ms": 90_000, "started_at": 1_700_000_000_000, "by": "ana"}
    async with hub.lease(W) as live:
        for write in (
            Put(("timers", "ben"), started),
            Put(("timers", "ana"), {**started, "paused_at": 1_700_000_001_000}),
            Remove(("timers", "ben")),
        ):
            await hub.edit(live, [write], author, "test", answer=lambda _: {"ok": True})


async def a_template(ana: Line, ben: Line) -> None:
    t = {"template_id": T.id}
    await ana.do("template:create", **t, title="Push", goal="strength")
    await ana.do("template:share", **t, user_id="ben", role="editor")
    await ben.told("template:shared")
    await ben.do("template:join", **t)
    await ana.do("template:update_meta", **t, meta={"title": "Pull", "goal": None})
    await ana.do("template:lock", **t)
    await ana.do("template:unlock", **t)
    hub = ana._witness.server.parts.hub
    author = Author(UserId("ana"), "Ana", "phone", ConnectionId("ana-1"))
    planned = {"s1": {"order": "a0", "kind": "normal", "reps": 5, "weight_kg": 60.5}}
    made = {"name": "Bench", "order": "a0", "note": "wide", "sets": planned}
    async with hub.lease(T) as live:
        for write in (
            Put(("exercises", "bench"), made),
            Put(("exercises", "fly"), {**made, "sets": {}}),
            Remove(("exercises", "fly")),
        ):
            await hub.edit(live, [write], author, "test", answer=lambda _: {"ok": True})
    got = await ana.do("template:get", **t)
    assert got["template"]["exercises"][0]["sets"]
    await ben.do("template:leave", **t)
    await ana.do("template:unshare", **t, user_id="ben")
    await ben.told("template:unshared")
    await ana.do("template:list")


async def streams(ana: Line, admin: Line) -> None:
    progress = f"{W}:progress"
    assert set(STREAMS.kinds) == {
        *("system:health", "system:alerts", "health:live"),
        *("workout:<id>:progress", "user:<id>:progress"),
    }
    answer = await ana.do("subscribe", streams=[progress, "system:health", "nonsense"])
    assert answer["denied"]
    await ana.told("progress")
    await ana.told("subscription:confirmed")
    await admin.do("subscribe", streams=["system:health", "system:alerts", "health:live"])
    await admin.told("system:health")
    await admin.told("health")
    ana._witness.server.parts.streams.push("system:alerts", ALERT)
    await admin.told("system:alert")
    await ana.do("unsubscribe", streams=[progress])
    await ana.do("subscribe", streams=["user:ana:progress"])
    await ana.socket.find(
        lambda p: p.kind == EVENT and p.data[0] == "progress" and "totals" in p.data[1]
    )
    visitor = await ana._witness.enter("vic")
    await a_visit_that_ends(ana, visitor)


async def a_visit_that_ends(ana: Line, visitor: Line) -> None:
    made = await ana.do("workout:create", visibility="public")
    doc = ids.workout(made["workout"]["id"])
    await visitor.do("subscribe", streams=[f"{doc}:progress"])
    await visitor.told("progress")
    hub = ana._witness.server.parts.hub
    author = Author(UserId("ana"), "Ana", "phone", ConnectionId("ana-1"))
    async with hub.lease(doc) as live:
        hidden = [Put(("meta", "visibility"), "private")]
        await hub.edit(live, hidden, author, "test", answer=lambda _: {"ok": True})
    done = {"workout_id": doc.id, "exercise_id": "squat", "exercise": {"name": "Squat"}}
    await ana.do("workout:exercise:add", **done)
    await visitor.told("subscription:ended")


async def documents(witness: Witness) -> None:
    namespace = f"/yjs|{W}"
    ana = await witness.enter("ana", namespace)
    other = await witness.enter("ana", namespace)
    peer = Peer(DocKind.WORKOUT)
    peer.apply(await ana.ask("sync-step-1", peer.vector()))
    assert (await ana.ask("sync-update", peer.exercise("press")))["ok"]
    await other.told("sync-update")
    awareness = encode_awareness([AwarenessEntry(7, 1, {"cursor": 1})])
    assert (await ana.ask("awareness-update", awareness))["ok"]
    await other.told("awareness-update")
    await other.told("sync-step-1")
    not_ours = peer.set("theirs", user_id="ben", exercise="press")
    assert (await ana.ask("sync-update", not_ours))["error"]["code"] == "forbidden"
    await ana.told("sync-rejected")
    apart = Peer(DocKind.WORKOUT)
    apart.exercise("row")
    assert (await ana.ask("sync-update", apart.exercise("curl")))["error"]["code"] == "unsynced"
    await ana.told("sync-reset")
    assert (await ana.do("auth:refresh", token=witness.server.token("ana")))["expires_at"]
    for event in ("sync-update", "sync-step-1", "awareness-update", "auth:refresh"):
        await ana.blunder(event)


async def doors(witness: Witness, admin: Line) -> None:
    """Tokens that end, and that are taken away; and who is not let in."""
    lines = []
    for namespace in ("/", f"/yjs|{W}"):
        brief = await witness.enter("ana", namespace, ttl_s=1.0)
        await brief.told("auth:expiring")
        lines.append(await witness.enter("ana", namespace, token_id="lost"))
        await brief.told("auth:expired")
        refused = await witness._stack.enter_async_context(raw_socket(witness.server.url))
        witness.sockets.append(refused)
        assert (await refused.enter(namespace, {"token": "none"})).kind == CONNECT_ERROR
    own = await witness.enter("ana")
    assert (await own.do("auth:refresh", token=witness.server.token("ana")))["expires_at"]
    await admin.do("auth:revoke", token_id="lost")
    for line in lines:
        await line.told("auth:revoked")


async def test_what_is_not_in_the_document_does_not_pass(witness: Witness) -> None:
    document = witness.document
    error = {"code": "invalid", "message": "", "retryable": False}
    document.check_answer(EVENTS, "workout:leave", {"ok": False, "error": error})
    for answer in (
        {"ok": True, "more": 1},
        {"ok": False},
        {"ok": True, "error": error},
        {"ok": False, "error": {**error, "code": "odd"}},
        {"ok": False, "error": {**error, "trace": "..."}},
        b"\x00",
    ):
        with pytest.raises(Undocumented):
            document.check_answer(EVENTS, "workout:leave", answer)
    with pytest.raises(Undocumented):
        document.check_told(EVENTS, "workout:flown", {})
    with pytest.raises(Undocumented):
        document.check_told(EVENTS, "sync-reset", {"reason": "gap"})
    with pytest.raises(Undocumented):
        document.check_told(DOCUMENT, "sync-reset", {"reason": "gap", "more": 1})
    ana = await witness.enter("ana")
    witness.server.parts.sockets.post("/", [sid_of(witness)], "workout:flown", {})
    await ana.told("workout:flown")
    with pytest.raises(Undocumented, match="flown"):
        witness.hold()


def sid_of(witness: Witness) -> str:
    [sid] = witness.server.parts.gateway._sessions
    return str(sid)


async def test_http_answers_as_openapi_says(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    document = ApiDocument(await read(http, "/openapi.json"))
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": W.id})
    await ana.do("template:create", {"template_id": T.id, "title": "Push"})
    token = {"Authorization": f"Bearer {server.token('ana')}"}
    other = {"Authorization": f"Bearer {server.token('eve')}"}
    for path, methods in document.document["paths"].items():
        filled = path.replace("{stream}", f"{W}:progress")
        filled = filled.replace("{name}", "style.css")
        filled = filled.replace("{id}", (T if "templates" in path else W).id)
        if methods["get"]["security"]:
            nowhere = path.replace("{stream}", "nonsense").replace("{id}", "nowhere")
            assert await answer_of(http, document, path, filled, {}) == 401
            assert await answer_of(http, document, path, filled, other) == 403
            assert await answer_of(http, document, path, nowhere, token) == 404
        assert await answer_of(http, document, path, filled, token) in (200, 206), path
    for path in ("/nowhere", "/socket.io/nowhere"):
        assert await answer_of(http, document, "/health", path, {}, status="default") == 404


async def test_the_health_of_all_that_there_may_be_is_as_the_documents_say(
    tmp_path: Path, redis_process: RedisProcess, mongo_uri: str
) -> None:
    async with (
        key_server("k1") as provider,
        running_server(
            tmp_path,
            redis_url=redis_process.url,
            redis_prefix=f"t{uuid4().hex[:8]}",
            mongodb_uri=mongo_uri,
            jwt_jwks_url=provider.url,
            alert_webhook_url="http://127.0.0.1:1/alerts",
            alert_webhook_secret="a secret of more than thirty-two bytes",
        ) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        await until(lambda: server.parts.auth.key_set.is_ready)
        ana = EventClient(server.url, provider.token("ana", "k1", role="admin"))
        server.clients.append(ana)
        await ana.connect()
        w, squat = {"workout_id": W.id}, {"name": "Squat"}
        await ana.do("workout:create", w)
        await ana.do("workout:exercise:add", {**w, "exercise_id": "s", "exercise": squat})
        await ana.do("workout:start", w)
        await ana.do("workout:set:complete", {**w, "exercise_id": "s", "set": {"reps": 5}})
        document = ApiDocument(await read(http, "/openapi.json"))
        assert await answer_of(http, document, "/health", "/health", {}) in (200, 206)
        async with http.get("/health") as response:
            assert set((await response.json())["dependencies"]) == {
                *("store", "event_loop", "disk", "redis", "bus", "backlog", "jwks", "webhook")
            }
        await ana.do("subscribe", {"streams": ["system:health"]})
        value = await ana.next("system:health", lambda value: value["records"] and value["history"])
        ApiDocument(asyncapi()).check_told(EVENTS, "system:health", value)


async def answer_of(
    http: aiohttp.ClientSession,
    document: ApiDocument,
    path: str,
    filled: str,
    headers: dict[str, str],
    status: str | None = None,
) -> int:
    """Ask, and hold what comes against the document. Returns: the status."""
    async with asyncio.timeout(DEADLINE_S), http.get(filled, headers=headers) as response:
        place = ("paths", path, "get", "responses", status or str(response.status))
        media = response.content_type
        assert media in document.at(place)["content"], (filled, response.status)
        if media == "application/json":
            value = await response.json()
            document.check(value, *place, "content", media, "schema", what=filled)
        return response.status


async def test_server_sent_events_are_those_of_asyncapi(server: RunningServer) -> None:
    document = ApiDocument(asyncapi())
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": W.id})
    server.parts.streams.push("system:alerts", ALERT)
    token = server.token("ana", role="admin")
    for stream, event in (
        (f"streams/{W}:progress", "progress"),
        ("streams/user:ana:progress", "progress"),
        ("streams/system:health", "system:health"),
        ("streams/system:alerts", "system:alert"),
        ("health/live", "health"),
    ):
        async with event_stream(f"{server.url}/{stream}", token) as watched:
            first = await watched.next(event)
            document.check_told(EVENTS, event, first.data)
