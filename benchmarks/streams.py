"""W9: what a delivery of a stream costs, beside one of a document (W3).

As many watch one workout's progress over websockets as are in W3's room, and its lifter logs a set
as often: each makes one value. The clients are in a process of their own on the fleet's core, and
look at no more of what comes than where one message ends: reading a thousand values would take
longer than it takes to send them. One of them reads nothing, which is to cost nobody anything.
Every other must get every value, in order.

Run by itself (`streams.py PORT PID TOKEN WATCHERS RATE DURATION_S`), it is that process.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from benchmarks import updates
from benchmarks.load import Result
from benchmarks.servers import HERE, pinned
from server.replay.devices import EventClient

WORKOUT = "room-0"
STREAM = f"workout:{WORKOUT}:progress"
AT_ONCE = 50
SETTLING_S = 0.5
DEADLINE_S = 60.0
_VALUE = b'42["progress",'


def measure(port: int, pid: int, token: str, *, watchers: int, rate: int, seconds: float) -> Result:
    """Put the load on a server. Returns: what came of it; `error` where nothing did, `fault` where
    that is no measurement."""
    arguments = [str(one) for one in (port, pid, token, watchers, rate, seconds)]
    command = [*pinned(1), sys.executable, str(HERE / "streams.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if not done.stdout.startswith("{"):
        return {"error": done.stderr.strip()[-500:] or "no result"}
    result: Result = json.loads(done.stdout)
    return result


class Watcher(asyncio.Protocol):
    """One websocket that is in `/` and watches the stream."""

    def __init__(self, token: str) -> None:
        self.values = 0
        self.last_seq = 0
        self.value_bytes = 0
        self.is_in_order = True
        self.is_closed = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._token = token
        self._buffer = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: bench\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        if not self._is_open:
            head, mark, buffer = buffer.partition(b"\r\n\r\n")
            if not mark:
                self._buffer = head
                return
            self._is_open = True
            self._say("40" + json.dumps({"token": self._token}))
        while len(buffer) > 2:
            size, start = buffer[1], 2
            if size == 126:
                size, start = int.from_bytes(buffer[2:4], "big"), 4
            elif size == 127:
                raise ValueError("a value of more than 64 kB")
            if len(buffer) < start + size:
                break
            self._on_message(buffer[start : start + size])
            buffer = buffer[start + size :]
        self._buffer = buffer

    def _on_message(self, message: bytes) -> None:
        if message.startswith(_VALUE):
            seq = int(message[message.rindex(b'"seq":') + 6 : message.rindex(b",")])
            self.is_in_order &= seq == self.last_seq + 1 or not self.last_seq
            self.last_seq = seq
            self.values += 1
            self.value_bytes = len(message)
        elif message.startswith(b"40"):
            self._say("420" + json.dumps(["subscribe", {"streams": [STREAM]}]))
        elif message.startswith(b"430"):
            self.ready.set_result(None)
        elif message == b"2":
            self._say("3")

    def _say(self, text: str) -> None:
        payload = text.encode()
        size = len(payload)
        head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
        self.transport.write(head + b"\0\0\0\0" + payload)  # masked with nothing


async def run(
    port: int, pid: int, token: str, watchers: int, rate: float, seconds: float
) -> Result:
    crowd: list[Watcher] = []
    loop = asyncio.get_running_loop()
    while len(crowd) < watchers:
        some = [
            (await loop.create_connection(lambda: Watcher(token), "127.0.0.1", port))[1]
            for _ in range(min(AT_ONCE, watchers - len(crowd)))
        ]
        await asyncio.wait_for(asyncio.gather(*(one.ready for one in some)), DEADLINE_S)
        crowd += some
    lifter = await EventClient(f"http://127.0.0.1:{port}", token).connect()
    await lifter.do("workout:join", {"workout_id": WORKOUT})
    await _log_set(lifter)  # later ones win no records, so values are of one size
    await _until(lambda: all(one.values for one in crowd))
    await asyncio.sleep(SETTLING_S)
    stalled = crowd.pop()
    _stop_reading(stalled)
    before = sum(one.values for one in crowd)
    cpu_s, started_s = _cpu_s(pid), loop.time()
    count = int(rate * seconds)
    for number in range(count):
        await asyncio.sleep(started_s + number / rate - loop.time())
        await _log_set(lifter)
    await asyncio.sleep(max(SETTLING_S, 2 / rate))
    spent_s = _cpu_s(pid) - cpu_s
    delivered = sum(one.values for one in crowd) - before
    result: Result = {
        "conns": watchers,
        "sent": count,
        "delivered": delivered,
        "us_per_deliv": round(spent_s * 1e6 / max(1, delivered), 2),
        "value_bytes": crowd[0].value_bytes,
    }
    result |= _fault_in(crowd, delivered, count)
    await lifter.close()
    for one in (*crowd, stalled):
        one.transport.abort()
    return result


def _stop_reading(watcher: Watcher) -> None:
    """What the kernel would take in its place is made small."""
    watcher.transport.pause_reading()
    sock = watcher.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


async def _log_set(lifter: EventClient) -> None:
    done = {"reps": 5, "weight_kg": 100.0}
    payload = {"workout_id": WORKOUT, "exercise_id": updates.EXERCISES[0], "set": done}
    await lifter.do("workout:set:complete", payload)


def _fault_in(crowd: list[Watcher], delivered: int, count: int) -> dict[str, Any]:
    if closed := sum(one.is_closed for one in crowd):
        return {"fault": f"closed: {closed}"}
    if not all(one.is_in_order for one in crowd):
        return {"fault": "values out of order, or missing"}
    if len({one.last_seq for one in crowd}) > 1:
        return {"fault": "not everybody has the last value"}
    if delivered < 0.9 * count * len(crowd):
        return {"fault": f"{delivered} of {count * len(crowd)} deliveries"}
    return {}


def _cpu_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the watchers got no value")
        await asyncio.sleep(0.05)


def main() -> None:
    port, pid, token, watchers, rate, seconds = sys.argv[1:]
    uvloop.install()
    done = run(int(port), int(pid), token, int(watchers), float(rate), float(seconds))
    print(json.dumps(asyncio.run(done)))


if __name__ == "__main__":
    main()
