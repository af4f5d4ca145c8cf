"""Awareness updates, from several connections to one room.

An input is a row of (connection, update); a connection may also leave. Beside the room's presence
stand stock clients, each with the map that y-protocols keeps, who are told what the server says.

What must hold: an update is taken or refused with a code; what was refused changed nothing; nobody
is shown under another user's name, or twice; everybody is shown the same; and who has left is gone.
"""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

from crdt.errors import RepSyncError
from crdt.ids import ConnectionId
from crdt.presence import Presence
from crdt.wire import (
    MAX_SAFE_INTEGER,
    MAX_STATE_BYTES,
    AwarenessEntry,
    Reader,
    encode_awareness,
    var_bytes,
    var_uint,
)
from tests.fuzz.target import ACCEPTED, Target, mutate_bytes, mutate_json, mutate_list, odd_value
from tests.helpers.rooms import user

WHO = ("ana", "ben", "cara", "dan")
"""Connections; two of them are the same user's."""

USERS = {"ana": "ana", "ben": "ben", "cara": "cara", "dan": "ana"}
CLIENT_IDS = (0, 1, 300, 301, 302, 303, 2**31, 2**32, 2**53 - 1, 2**53, 2**63)
CLOCKS = (0, 1, 2, 3, 100, 2**31, 2**32, 2**53 - 1, 2**53, 2**63)
LEAVES = 7
MAX_STEPS = 24

Step = tuple[int, bytes]
"""(whose, and whether they leave; the update)"""


def encode(steps: list[Step]) -> bytes:
    return b"".join(var_uint(head) + var_bytes(update) for head, update in steps[:MAX_STEPS])


def decode(data: bytes) -> list[Step]:
    """Read any bytes at all: what is cut short is an update that is cut short."""
    steps: list[Step] = []
    while data and len(steps) < MAX_STEPS:
        reader = Reader(data[1:])
        try:
            update = reader.var_bytes()
            rest = data[1 + len(var_uint(len(update))) + len(update) :]
        except ValueError:
            update, rest = data[1:], b""
        steps.append((data[0] % 32, update))
        data = rest
    return steps


def frame(entries: list[tuple[int, int, str]], count: int | None = None) -> bytes:
    """An awareness update of these (client ID, clock, JSON), counted right or wrong."""
    parts = [var_uint(len(entries) if count is None else count)]
    for client_id, clock, text in entries:
        encoded = text.encode(errors="surrogatepass")
        parts += (var_uint(client_id), var_uint(clock), var_bytes(encoded))
    return b"".join(parts)


STATES: tuple[Any, ...] = (
    {},
    {"user": {"name": "Ana", "color": "#f00"}, "cursor": {"at": 5}},
    {"user": {"id": "eve", "name": "Eve"}},
    {"user": "ben"},
    {"heart_rate": 152},
    None,
    {"about": "é" * 8_000},
    {"about": "x" * 16_350},
    {"about": [1e15] * 800},
)


def odd_frame(random: Random) -> bytes:
    """An update as a client sends it, or nearly."""
    entries = []
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        state = random.choice((*STATES, {"x": odd_value(random)}, odd_value(random)))
        try:
            text = json.dumps(state, ensure_ascii=random.randrange(2) == 0)
        except RecursionError:
            text = "{}"
        client_id = random.choice((300, 301, 302, 303, random.choice(CLIENT_IDS)))
        clock = random.choice((1, 2, 3, random.choice(CLOCKS)))
        entries.append((client_id, clock, text))
    count = random.choice((None,) * 8 + (0, 2, 1_000, 1_001, 2**53 - 1))
    return frame(entries, count)


class Awareness(Target):
    name = "awareness"

    def seeds(self) -> list[bytes]:
        hello = [(n, frame([(300 + n, 1, json.dumps(STATES[1]))])) for n in range(len(WHO))]
        beat = (0, frame([(300, 2, json.dumps(STATES[4]))]))
        gone = (0, frame([(300, 2, "null")]))
        echo = (1, frame([(300, 2, "{}"), (301, 2, "{}")]))
        leaves = (LEAVES * 4, b"")
        return [
            encode(steps)
            for steps in (
                [hello[0]],
                [*hello, beat],
                [*hello, gone, beat, hello[0]],
                [hello[0], hello[1], echo, (2, gone[1])],
                [hello[0], leaves, (2, gone[1]), hello[0], beat],
            )
        ]

    def generate(self, random: Random) -> bytes:
        return encode(
            [(random.randrange(32), odd_frame(random)) for _ in range(random.randrange(1, 8))]
        )

    def mutate(self, data: bytes, random: Random) -> bytes:
        steps = decode(data)
        if not steps or (len(steps) < MAX_STEPS and random.randrange(4) == 0):
            head = random.choice((0, 1, 2, 3, LEAVES * 4 + random.randrange(4)))
            steps.append((head, odd_frame(random)))
            return encode(steps)
        at = random.randrange(len(steps))
        head, update = steps[at]
        how = random.randrange(6)
        if how == 0:
            steps[at] = head, mutate_bytes(update, random)
        elif how == 1:
            steps[at] = random.randrange(32), update
        elif how == 2:
            mutate_list(steps, random)
        elif how == 3:
            steps[at] = head, odd_frame(random)
        else:
            steps[at] = head, self._changed(update, random)
        return encode(steps)

    def _changed(self, update: bytes, random: Random) -> bytes:
        """The same update with an entry changed by its structure."""
        try:
            reader = Reader(update)
            entries = [
                (reader.var_uint(), reader.var_uint(), reader.var_bytes().decode())
                for _ in range(min(reader.var_uint(), 50))
            ]
        except ValueError:
            return mutate_bytes(update, random)
        if not entries:
            return odd_frame(random)
        at = random.randrange(len(entries))
        client_id, clock, text = entries[at]
        how = random.randrange(4)
        if how == 0:
            client_id = random.choice(CLIENT_IDS)
        elif how == 1:
            clock = random.choice((*CLOCKS, clock + 1))
        elif how == 2:
            mutate_list(entries, random)
            return frame(entries)
        else:
            try:
                text = json.dumps(mutate_json(json.loads(text), random))
            except (ValueError, RecursionError):
                text += random.choice(("}", "{", ",", "\\ud800"))
        entries[at] = client_id, clock, text
        return frame(entries)

    async def play(self, data: bytes, outcomes: Counter[str]) -> None:
        room = Gathering()
        for head, update in decode(data):
            who = WHO[head % 4]
            if head // 4 == LEAVES:
                room.leave(who)
            else:
                outcomes[room.hear(who, update)] += 1
            room.is_one()
        room.lets_others_go_on()
        for who in WHO:
            room.leave(who)
        assert len(room.presence) == 0
        assert room.presence.everybody() == b""


class StockClient:
    """What y-protocols' Awareness keeps: for each client ID a clock, and a state or none."""

    def __init__(self) -> None:
        self.clocks: dict[int, int] = {}
        self.states: dict[int, dict[str, Any]] = {}

    def take(self, update: bytes) -> None:
        for client_id, clock, state in strictly_read(update):
            known = self.clocks.get(client_id)
            is_removal = clock == known and state is None and client_id in self.states
            if known is None or known < clock or is_removal:
                self.clocks[client_id] = clock
                self.states.pop(client_id, None)
                if state is not None:
                    self.states[client_id] = state


def strictly_read(update: bytes) -> list[tuple[int, int, Any]]:
    """An awareness update as a browser reads it."""
    reader = Reader(update)
    entries = []
    for _ in range(reader.var_uint()):
        client_id, clock, text = reader.var_uint(), reader.var_uint(), reader.var_bytes().decode()
        entries.append((client_id, clock, json.loads(text, parse_constant=_refuse)))
    return entries


def _refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


class Gathering:
    """A room's presence, and the clients that are told of it."""

    def __init__(self) -> None:
        self.presence = Presence()
        self.watcher = StockClient()
        self.owned: dict[str, int] = {}

    def hear(self, who: str, update: bytes) -> str:
        before = self.presence.everybody()
        owner = user(USERS[who])
        try:
            change = self.presence.receive(ConnectionId(who), owner, update)
        except RepSyncError as refusal:
            assert refusal.code in ("invalid", "too_large"), refusal
            assert self.presence.everybody() == before, "what was refused changed something"
            return refusal.code
        if change.relay:
            [(client_id, _, state)] = strictly_read(change.relay)
            assert self.owned.setdefault(who, client_id) == client_id, "speaks for another client"
            if state is not None:
                shown = state["user"]
                assert (shown["id"], shown["name"]) == (owner.id, owner.name), "a forged name"
            self.watcher.take(change.relay)
        else:
            assert self.presence.everybody() == before, "nobody is told of a change"
        if change.reply:
            [(client_id, _, state)] = strictly_read(change.reply)
            assert state is None
            assert self.owned.setdefault(who, client_id) == client_id
        for connection, nudge in change.nudges:
            [(client_id, _, state)] = strictly_read(nudge)
            assert state is None
            assert self.owned[connection] == client_id, "somebody else is nudged"
        return ACCEPTED

    def leave(self, who: str) -> None:
        gone = self.presence.leave(ConnectionId(who))
        if gone:
            [(client_id, _, state)] = strictly_read(gone)
            assert state is None
            assert self.owned[who] == client_id
            self.watcher.take(gone)
        self.owned.pop(who, None)

    def is_one(self) -> None:
        """What a client was told bit by bit is what a newcomer is told at once."""
        assert len(self.presence) <= len(WHO)
        assert len(set(self.owned.values())) == len(self.owned), "two speak for one client"
        everybody = self.presence.everybody()
        # The longest that a state can become: 1e15 is written as 1000000000000000.0.
        assert len(everybody) <= len(WHO) * 5 * MAX_STATE_BYTES
        shown = {id_: state for id_, _, state in strictly_read(everybody or b"\x00")}
        assert shown == self.watcher.states
        assert all(0 <= client_id <= MAX_SAFE_INTEGER for client_id in shown)

    def lets_others_go_on(self) -> None:
        """Whoever comes with a client ID of their own is shown to everybody."""
        hello = encode_awareness([AwarenessEntry(9_001, 1, {"hr": 152})])
        change = self.presence.receive(ConnectionId("zoe"), user("zoe"), hello)
        [(client_id, _, state)] = strictly_read(change.relay)
        assert (client_id, state["hr"], state["user"]["id"]) == (9_001, 152, "zoe")
        self.presence.leave(ConnectionId("zoe"))
