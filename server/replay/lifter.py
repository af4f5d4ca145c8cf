"""What a lifter carries: a phone and a watch that send intents, a laptop that edits documents."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from uuid import uuid4

from pycrdt import Map

from crdt import order
from crdt.ids import DocName
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost
from server.replay.plan import PlannedSet

SETTLING_S = 5.0
"""How long replicas and events may take to arrive after the last ack."""

Sign = Callable[[str, str], str]
"""(user id, role) -> token."""


@dataclass(slots=True)
class Tally:
    """What is counted over a whole replay."""

    reconnects: int = 0
    offline_edits: int = 0
    resent: int = 0
    propagation_ms: list[float] = field(default_factory=list)


class Stopwatch:
    """Times sets from the moment of sending to their arrival at another device."""

    def __init__(self, tally: Tally) -> None:
        self.running: dict[str, float] = {}
        self._tally = tally

    def start(self, set_id: str) -> None:
        self.running[set_id] = time.perf_counter()

    def stop(self, set_id: str) -> None:
        started = self.running.pop(set_id, None)
        if started is not None:
            self._tally.propagation_ms.append((time.perf_counter() - started) * 1_000)


class Lifter:
    """One user with a phone and a watch. The phone stays connected as long as the block runs.

    Each device goes to the next one of `urls` and stays there, as behind a load balancer. `pace` is
    how many sets a second they do at most; without one they never rest.
    """

    def __init__(
        self, urls: Sequence[str], sign: Sign, user_id: str, *, pace: float | None = None
    ) -> None:
        self.user_id = user_id
        self.trainer_id = f"{user_id}-trainer"
        self.tally = Tally()
        self._rest_s = 0.0 if pace is None else 1 / pace
        self._rested_at = 0.0
        self._urls = itertools.cycle(urls)
        self._sign = sign
        token = sign(user_id, "user")
        self.phone = EventClient(next(self._urls), token, {"id": "phone", "name": "Phone"})
        watch = EventClient(next(self._urls), token, {"id": "watch", "name": "Watch"})
        self.watch = Watch(watch, self.tally)

    async def __aenter__(self) -> Lifter:
        try:
            await self.phone.connect()
            await self.watch.client.connect()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.watch.client.close()
        await self.phone.close()

    async def rest(self) -> None:
        """Wait until the next set is done: one after the other, whichever device it goes to."""
        if self._rest_s:
            now = time.monotonic()
            self._rested_at = max(self._rested_at, now) + self._rest_s
            await asyncio.sleep(self._rested_at - now)

    def laptop(self, name: DocName) -> Laptop:
        """The lifter's laptop with a document open, not yet connected."""
        return self._open(name, self.user_id, "user", "laptop")

    def trainer(self, name: DocName) -> Laptop:
        """Their trainer's laptop, likewise."""
        return self._open(name, self.trainer_id, "trainer", "trainer-laptop")

    def _open(self, name: DocName, user_id: str, role: str, device: str) -> Laptop:
        token = self._sign(user_id, role)
        client = DocumentClient(
            next(self._urls), name, token, {"id": device, "name": device.title()}
        )
        return Laptop(client, user_id, self.tally)


class Watch:
    """Sends operations from a queue of its own; one stays in it until its ack has come."""

    def __init__(self, client: EventClient, tally: Tally) -> None:
        self.client = client
        self.answers: list[dict[str, Any]] = []
        self._tally = tally
        self._queue: dict[str, tuple[str, dict[str, Any]]] = {}
        self._sent: set[str] = set()

    def queue(self, event: str, data: Mapping[str, Any]) -> None:
        op_id = str(uuid4())
        self._queue[op_id] = (event, {**data, "op_id": op_id})
        if not self.client.is_connected:
            self._tally.offline_edits += 1

    async def lose_connection(self) -> None:
        await self.client.drop()

    async def flush(self, workout_id: str, *, cut_after_ms: float | None = None) -> None:
        """Send the queue, all at once and in order, and again over a new connection what was cut
        off, until everything has been acked.

        Args:
            cut_after_ms: the connection is lost this long after the first sending.
        Raises:
            CallFailed: an operation was refused.
        """
        await self.come_back(workout_id)
        sending = asyncio.ensure_future(self._send_all())
        if cut_after_ms is not None and self._queue:
            await asyncio.sleep(cut_after_ms / 1_000)
            await self.lose_connection()
        await sending
        await self.come_back(workout_id)
        while self._queue:
            await self._send_all()
            await self.come_back(workout_id)

    async def come_back(self, workout_id: str) -> None:
        """Be connected, and in the workout's room."""
        if not self.client.is_connected:
            await self.client.connect()
            self._tally.reconnects += 1
            await self.client.do("workout:join", {"workout_id": workout_id})

    async def _send_all(self) -> None:
        waiting = dict(self._queue)
        self._tally.resent += len(self._sent & waiting.keys())
        self._sent |= waiting.keys()
        outcomes = await asyncio.gather(
            *(self.client.ask(event, data) for event, data in waiting.values()),
            return_exceptions=True,
        )
        for (op_id, (event, _)), outcome in zip(waiting.items(), outcomes, strict=True):
            if isinstance(outcome, Lost):
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            if not outcome.get("ok"):
                raise CallFailed(event, outcome["error"])
            del self._queue[op_id]
            self._sent.discard(op_id)
            self.answers.append(outcome)


class Laptop:
    """A document that is edited whether connected or not."""

    def __init__(self, client: DocumentClient, user_id: str, tally: Tally) -> None:
        self.client = client
        self._user_id = user_id
        self._tally = tally

    @property
    def sets(self) -> Map[Any]:
        return self.client.map("sets")

    async def connect(self) -> Laptop:
        await self.client.connect()
        return self

    async def lose_connection(self) -> None:
        await self.client.drop()

    async def come_back(self) -> None:
        """Be connected, with all edits durable at the server."""
        if not self.client.is_connected:
            await self.client.connect()
            self._tally.reconnects += 1
        await self.client.confirm()

    def edit(self, change: Callable[[], None]) -> None:
        """Make one transaction."""
        with self.client.doc.transaction():
            change()
        if not self.client.is_connected:
            self._tally.offline_edits += 1

    def log(self, planned: PlannedSet, exercise_id: str) -> None:
        """Write a set of one's own."""
        fields = {
            "user_id": self._user_id,
            "exercise": exercise_id,
            "order": order.append_key(self.client.content()["sets"]),
            "completed_at": planned.completed_at,
            "device_id": "laptop",
            **planned.measures(),
        }
        self.edit(lambda: self.sets.update({planned.set_id: Map(fields)}))

    def patch(self, set_id: str, changes: Mapping[str, Any]) -> None:
        """Change fields of a set."""
        self.edit(lambda: self.sets[set_id].update(dict(changes)))

    async def until_set(self, set_id: str) -> None:
        await self.client.until(lambda: set_id in self.sets)


async def becomes(
    client: DocumentClient,
    condition: Callable[[dict[str, Any]], bool],
    *,
    timeout_s: float = SETTLING_S,
) -> bool:
    """Wait for a replica's content to be so. Returns: whether it is."""
    with contextlib.suppress(TimeoutError):
        await client.until(lambda: condition(client.content()), timeout_s=timeout_s)
    return condition(client.content())


async def read_until(
    read: Callable[[], Awaitable[dict[str, Any]]], condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Read until it is so: what one instance has acked, another shows a moment later.

    Returns: what was read last, which after `SETTLING_S` is whatever is there.
    """
    deadline = time.monotonic() + SETTLING_S
    while True:
        found = await read()
        if condition(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)
