"""A lifter's devices, as real clients over real sockets.

`EventClient` is a phone or a watch: JSON events on `/`, no CRDT library. `DocumentClient` is a
laptop: a Yjs replica on `/yjs|<doc>`, speaking y-socket.io's protocol and asking for the durable
ack that RepSync adds to it. Neither reconnects by itself; when to drop off and come back is for
the caller to say.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import socketio
from pycrdt import Doc, Map, Text, TransactionEvent
from socketio.exceptions import SocketIOError

from crdt.ids import DocName
from crdt.replica import EMPTY_STATE_VECTOR
from crdt.schema import ROOTS

DEFAULT_TIMEOUT_S = 15.0
LEAVE_TIMEOUT_S = 2.0

Payload = dict[str, Any]


class Refused(Exception):
    """The server did not let the client in. `error` is the error object of the wire contract."""

    def __init__(self, error: Payload) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.error = error


class CallFailed(Exception):
    """An event was answered with an error. `error` is the error object of the wire contract."""

    def __init__(self, event: str, error: Payload) -> None:
        super().__init__(f"{event}: {error['code']}: {error['message']}")
        self.error = error


class Lost(Exception):
    """The connection ended before the answer came; whether it was carried out is unknown."""


class _Client:
    """One namespace of one Socket.IO connection."""

    def __init__(
        self, url: str, namespace: str, token: str, device: Mapping[str, str] | None
    ) -> None:
        self.url = url
        """Where the next connection goes."""
        self.timeout_s = DEFAULT_TIMEOUT_S
        """How long the server may take to let us in, and to answer."""
        self._namespace = namespace
        self._auth: Payload = {"token": token}
        if device is not None:
            self._auth["device"] = dict(device)
        self._socket: socketio.AsyncClient | None = None
        self._gone = asyncio.Event()
        self._refusal: Payload | None = None

    @property
    def is_connected(self) -> bool:
        return self._socket is not None and not self._gone.is_set()

    async def _connect(self, transports: list[str]) -> None:
        await self.close()
        # Each connection has an event of its own: an old one that ends late must not end this one.
        gone = self._gone = asyncio.Event()
        self._refusal = None
        socket = socketio.AsyncClient(
            reconnection=False, handle_sigint=False, websocket_extra_options={"max_msg_size": 0}
        )
        socket.on("connect_error", self._on_refused, namespace=self._namespace)
        socket.on("disconnect", lambda *_: gone.set(), namespace=self._namespace)
        socket.on("*", self._on_event, namespace=self._namespace)
        try:
            await socket.connect(
                self.url,
                namespaces=[self._namespace],
                auth=self._auth,
                transports=transports,
                wait_timeout=self.timeout_s,
            )
        except (SocketIOError, aiohttp.ClientError, OSError, ValueError) as exc:
            await socket.disconnect()
            raise Refused(self._refused_with(str(exc))) from exc
        except BaseException:
            await socket.disconnect()
            raise
        self._socket = socket

    def _refused_with(self, otherwise: str) -> Payload:
        return self._refusal or {"code": "unreachable", "message": otherwise or "no answer"}

    async def close(self) -> None:
        """Leave, as a client that is switched off does."""
        socket, self._socket = self._socket, None
        self._gone.set()
        if socket is not None:
            await _disconnect(socket)

    async def drop(self) -> None:
        """Lose the connection, as on bad Wi-Fi: no goodbye, whatever was on its way is lost."""
        socket, self._socket = self._socket, None
        self._gone.set()
        if socket is None:
            return
        websocket = getattr(socket.eio, "ws", None)
        connection = getattr(websocket, "_conn", None)
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # a reset: neither side's last words arrive
        await _disconnect(socket)

    async def wait_until_gone(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the connection has ended, from whichever side."""
        async with asyncio.timeout(timeout_s):
            await self._gone.wait()

    async def _call(self, event: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Send an event and wait for its ack.

        Raises:
            Lost: the connection ended first.
            TimeoutError: no answer came within `timeout_s`, of this call or else of the client.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if self._socket is None or self._gone.is_set():
            raise Lost(event)
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_ack(*answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer[0] if answer else None)

        try:
            await self._socket.emit(event, args, namespace=self._namespace, callback=on_ack)
        except SocketIOError as exc:
            raise Lost(event) from exc
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise TimeoutError(f"{event}: no answer within {timeout_s} s") from None
        finally:
            gone.cancel()
        if not answered.done():
            raise Lost(event)
        return answered.result()

    async def _on_refused(self, error: Any) -> None:
        if isinstance(error, dict):
            data = error.get("data")
            self._refusal = data if isinstance(data, dict) else error

    async def _on_event(self, event: str, *args: Any) -> Any:
        raise NotImplementedError


async def _disconnect(socket: socketio.AsyncClient) -> None:
    """Disconnect, and do not wait for a server that is gone: polling would, for a ping's time."""
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            await socket.disconnect()
    except TimeoutError:
        loops = [socket.eio.read_loop_task, socket.eio.write_loop_task]
        for task in loops:
            if task is not None:
                task.cancel()
        await asyncio.wait([task for task in loops if task is not None])
        await socket.eio.disconnect(abort=True)
    finally:
        # A server that ends the connection may leave the client's websocket half closed.
        connection = getattr(getattr(socket.eio, "ws", None), "_conn", None)
        if connection is not None:
            connection.close()


class EventClient(_Client):
    """A thin client on `/`: it sends intents, and keeps every event that it gets."""

    def __init__(self, url: str, token: str, device: Mapping[str, str] | None = None) -> None:
        super().__init__(url, "/", token, device)
        self.events: deque[tuple[str, Payload, float]] = deque(maxlen=10_000)
        """(name, payload, time.monotonic() when it came), oldest first."""
        self.welcome: Payload = {}
        self.on_event: Callable[[str, Payload], None] | None = None
        """Called with each event, at once."""
        self._arrival = asyncio.Condition()

    async def connect(self, *, transports: tuple[str, ...] = ("websocket",)) -> EventClient:
        """Connect and wait for `welcome`.

        Raises:
            Refused: the server said no, or could not be reached.
        """
        self.events.clear()
        await self._connect(list(transports))
        try:
            self.welcome = await self.next("welcome", timeout_s=self.timeout_s)
        except BaseException:
            await self.close()
            raise
        return self

    async def ask(
        self, event: str, data: Payload | None = None, *, timeout_s: float | None = None
    ) -> Payload:
        """Send an intent. Returns: its ack, whatever it says. Raises Lost or TimeoutError."""
        answer: Payload = await self._call(event, data or {}, timeout_s=timeout_s)
        return answer

    async def do(self, event: str, data: Payload | None = None) -> Payload:
        """Send an intent that must succeed. Raises CallFailed or Lost."""
        answer = await self.ask(event, data)
        if not answer.get("ok"):
            raise CallFailed(event, answer["error"])
        return answer

    async def next(
        self,
        event: str,
        where: Callable[[Payload], bool] = lambda _: True,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Payload:
        """The first event of this name, already here or still to come, for which `where` holds.

        It is taken out of `events`. Raises TimeoutError.
        """

        def find() -> tuple[str, Payload, float] | None:
            return next((e for e in self.events if e[0] == event and where(e[1])), None)

        await _wait_for(self._arrival, lambda: find() is not None, event, timeout_s)
        found = find()
        assert found is not None
        self.events.remove(found)
        return found[1]

    async def until(
        self, condition: Callable[[], bool], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Wait until `condition` holds, looked at whenever an event comes. Raises TimeoutError."""
        await _wait_for(self._arrival, condition, "the awaited events", timeout_s)

    async def _on_event(self, event: str, *args: Any) -> None:
        payload = args[0] if args else {}
        self.events.append((event, payload, time.monotonic()))
        if self.on_event is not None:
            self.on_event(event, payload)
        async with self._arrival:
            self._arrival.notify_all()


class DocumentClient(_Client):
    """A Yjs client of one document. The replica lives on while the connection is away; on
    connecting, both sides tell each other what they lack."""

    def __init__(
        self, url: str, name: DocName, token: str, device: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(url, f"/yjs|{name}", token, device)
        self.name = name
        self.doc: Doc[Any] = Doc()
        self.roots: dict[str, Any] = {
            root: self.doc.get(root, type=type_) for root, type_ in ROOTS[name.kind].items()
        }
        self.rejections: list[Payload] = []
        self.resets: list[Payload] = []
        self.awareness: list[bytes] = []
        self.on_remote: Callable[[bytes], None] | None = None
        self._is_remote = False
        self._unacked: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._announcements: set[asyncio.Task[None]] = set()
        self._asked = asyncio.Event()
        self._server_state = EMPTY_STATE_VECTOR
        self._changed = asyncio.Condition()
        self._subscription = self.doc.observe(self._on_transaction)

    async def connect(self) -> DocumentClient:
        """Connect and sync both ways. Raises Refused."""
        self._asked = asyncio.Event()
        await self._connect(["websocket"])
        try:
            await self.sync()
            async with asyncio.timeout(self.timeout_s):
                await self._asked.wait()
        except BaseException:
            await self.close()
            raise
        self._failures = [error for error in self._failures if not isinstance(error, Lost)]
        return self

    async def sync(self) -> None:
        """Ask for everything that is missing here. Raises CallFailed or Lost."""
        update = await self._call("sync-step-1", self.doc.get_state())
        if not isinstance(update, bytes):
            raise CallFailed("sync-step-1", update["error"])
        self._apply(update)

    async def settled(self) -> None:
        """Wait until every edit made while connected has been acked.

        Raises:
            CallFailed, Lost: one of them was not. What was lost goes out with the next sync.
        """
        while self._unacked:
            await asyncio.wait(self._unacked)
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    async def confirm(self) -> None:
        """Wait until everything here is durable, also what was edited offline or was cut off on its
        way: it is sent again for the sake of the ack, which a sync does not give.

        Raises:
            CallFailed, Lost: it is not.
        """
        while self._unacked:
            await asyncio.wait(self._unacked)
        self._failures.clear()
        answer = await self.send(self.doc.get_update(self._server_state))
        if not answer["ok"]:
            raise CallFailed("sync-update", answer["error"])

    async def until(
        self, condition: Callable[[], bool], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Wait until `condition` holds, looked at whenever something comes. Raises TimeoutError."""
        await _wait_for(self._changed, condition, "the awaited change", timeout_s)

    def announce(self, update: bytes) -> asyncio.Task[None]:
        """Send an awareness update."""
        task = asyncio.create_task(self._emit("awareness-update", update))
        self._announcements.add(task)
        task.add_done_callback(self._announcements.discard)
        return task

    async def send(self, update: bytes) -> Payload:
        """Send a raw update. Returns: its ack, whatever it says."""
        answer: Payload = await self._call("sync-update", update)
        return answer

    def content(self) -> dict[str, Any]:
        """The replica as plain JSON values: root -> content."""
        with self.doc.transaction():
            return {
                name: str(root) if isinstance(root, Text) else json.loads(str(root))
                for name, root in self.roots.items()
            }

    def map(self, root: str) -> Map[Any]:
        """A root that is a map, to edit."""
        found = self.roots[root]
        assert isinstance(found, Map)
        return found

    async def _emit(self, event: str, data: bytes) -> None:
        if self._socket is not None and not self._gone.is_set():
            await self._socket.emit(event, data, namespace=self._namespace)

    def _on_transaction(self, event: TransactionEvent) -> None:
        if self._is_remote or not self.is_connected:
            return  # what is edited offline goes out with the next sync
        task = asyncio.ensure_future(self._send_edit(event.update))
        self._unacked.add(task)
        task.add_done_callback(self._on_sent)

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        self._unacked.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _send_edit(self, update: bytes) -> None:
        answer = await self.send(update)
        if not answer["ok"]:
            raise CallFailed("sync-update", answer["error"])

    def _apply(self, update: bytes) -> None:
        self._is_remote = True
        try:
            self.doc.apply_update(update)
        finally:
            self._is_remote = False

    async def _on_event(self, event: str, *args: Any) -> Any:
        answer: Any = None
        if event == "sync-update":
            self._apply(args[0])
            if self.on_remote is not None:
                self.on_remote(args[0])
        elif event == "sync-step-1":
            self._server_state = args[0]
            answer = self.doc.get_update(args[0])
        elif event == "awareness-update":
            self.awareness.append(args[0])
        elif event == "sync-rejected":
            self.rejections.append(args[0])
        elif event == "sync-reset":
            self.resets.append(args[0])
        async with self._changed:
            self._changed.notify_all()
        if event == "sync-step-1":
            # Last, so that the answer is on its way before anything that follows from this.
            self._asked.set()
        return answer


async def _wait_for(
    changed: asyncio.Condition, condition: Callable[[], bool], what: str, timeout_s: float
) -> None:
    try:
        async with asyncio.timeout(timeout_s), changed:
            await changed.wait_for(condition)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {timeout_s:g} s") from None
