"""A client of Server-Sent Events that sees everything: comments, ids, the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

DEADLINE_S = 10.0


class ServerSent(NamedTuple):
    event: str
    id: str
    data: Any


class EventStream:
    """One response that does not end by itself."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.events: list[ServerSent] = []
        """What came and was not asked for yet."""
        self.comments = 0
        self.retry_ms: int | None = None
        self.is_over = False
        self._changed = asyncio.Condition()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._reading = asyncio.ensure_future(self._read())

    async def next(self, event: str, where: Callable[[Any], bool] = lambda _: True) -> ServerSent:
        """The first event of this name, here or still to come, for whose data `where` holds; it is
        taken out. Raises TimeoutError."""

        def find() -> ServerSent | None:
            return next((e for e in self.events if e.event == event and where(e.data)), None)

        await self.until(lambda: find() is not None)
        found = find()
        assert found is not None
        self.events.remove(found)
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, looked at whenever something comes. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(condition)

    async def over(self) -> None:
        """Wait until the server has closed it."""
        await self.until(lambda: self.is_over)

    def pause(self) -> None:
        """Take nothing any more."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self.response.close()

    async def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            while line := await self.response.content.readline():
                await self._flowing.wait()  # aiohttp stops reading when it has enough
                text = line.decode().rstrip("\n")
                name, _, value = text.partition(": ")
                if text.startswith(":"):
                    self.comments += 1
                elif text:
                    fields[name] = value
                else:
                    self._take(fields)
                    fields = {}
                async with self._changed:
                    self._changed.notify_all()
        except aiohttp.ClientError:
            pass  # cut
        finally:
            self.is_over = True
            async with self._changed:
                self._changed.notify_all()

    def _take(self, fields: Mapping[str, str]) -> None:
        if "retry" in fields:
            self.retry_ms = int(fields["retry"])
        if "data" in fields:
            data = json.loads(fields["data"])
            self.events.append(ServerSent(fields["event"], fields.get("id", ""), data))


@asynccontextmanager
async def event_stream(
    url: str, token: str | None, *, last_event_id: str | None = None
) -> AsyncIterator[EventStream]:
    """An open stream. Raises aiohttp.ClientResponseError: it was refused."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(url, headers=headers, raise_for_status=True) as response,
    ):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        stream = EventStream(response)
        try:
            yield stream
        finally:
            await stream.close()
