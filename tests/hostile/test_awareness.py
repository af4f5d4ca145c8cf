"""Awareness that no client sends: lies about who is here, and bytes that say nothing.

The first table's updates are refused with a code. The second's are taken for what they are worth,
which is nothing: Ana and Ben are told of nobody but each other and the one who lies, by their name.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from crdt.wire import MAX_STATE_BYTES, Reader, decode_awareness, var_bytes, var_uint
from tests.helpers.sockets import BINARY_EVENT, RawSocket
from tests.hostile.stage import DOCUMENT, READER, WRITER, Stage

ANA_ID, BEN_ID, OWN_ID = 501, 502, 666


def frame(*entries: tuple[int, int, str], count: int | None = None) -> bytes:
    """(client ID, clock, JSON) as y-protocols writes them, counted right or wrong."""
    listed = b"".join(
        var_uint(client_id) + var_uint(clock) + var_bytes(text.encode("utf-8", "surrogatepass"))
        for client_id, clock, text in entries
    )
    return var_uint(len(entries) if count is None else count) + listed


def own(text: str, clock: int = 1) -> bytes:
    return frame((OWN_ID, clock, text))


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid"),
    "noise": (bytes(range(255, 0, -1)), "invalid"),
    "fewer entries than are counted": (frame((OWN_ID, 1, "{}"), count=2), "invalid"),
    "a million entries in three bytes": (var_uint(10**6), "invalid"),
    "2^53 entries": (var_uint(2**53 - 1), "invalid"),
    "1,001 entries": (frame(*((n, 1, "{}") for n in range(1_001))), "invalid"),
    "an entry that is cut short": (own('{"x":1}')[:-3], "invalid"),
    "a length beyond the end": (b"\x01" + var_uint(OWN_ID) + b"\x01\x7f{}", "invalid"),
    "a length of 2^50": (b"\x01" + var_uint(OWN_ID) + b"\x01" + var_uint(2**50), "invalid"),
    "a state that is a list": (own("[]"), "invalid"),
    "a state that is a text": (own('"x"'), "invalid"),
    "a state that is no JSON": (own("{"), "invalid"),
    "a state that is no UTF-8": (b"\x01" + var_uint(OWN_ID) + b"\x01\x02\xff\xfe", "invalid"),
    "half a letter as bytes": (own('{"x":"\ud800"}'), "invalid"),
    "NaN": (own('{"x":NaN}'), "invalid"),
    "infinity": (own('{"x":-Infinity}'), "invalid"),
    "a number beyond all": (own('{"x":1e999}'), "invalid"),
    "a number of 10,000 digits": (own('{"x":' + "9" * 10_000 + "}"), "invalid"),
    "a state 100 deep": (own(deep(100)), "invalid"),
    "a state 2,000 deep": (own(deep(2_000)), "invalid"),
    "a state over the limit": (own(json.dumps({"x": "y" * MAX_STATE_BYTES})), "too_large"),
    "a clock of 2^53": (own("{}", clock=2**53), "invalid"),
    "a client id of 2^53": (frame((2**53, 1, "{}")), "invalid"),
    "a client id of 2^63": (frame((2**63, 1, "{}")), "invalid"),
}

LIES: dict[str, tuple[bytes, ...]] = {
    "Ana's client id": (frame((ANA_ID, 99, '{"user":{"name":"Ana"}}')),),
    "that Ana has gone": (own("{}"), frame((ANA_ID, 99, "null"))),
    "that everybody has gone": (own("{}"), frame(*((n, 99, "null") for n in (ANA_ID, BEN_ID)))),
    "to be two": (own("{}"), frame((OWN_ID + 1, 1, "{}"))),
    "to be a thousand": (frame(*((n, 1, "{}") for n in range(10_000, 11_000))),),
    "another's name": (own('{"user":{"id":"ana","name":"Ana","role":"admin"}}'),),
    "a name that is no name": (own('{"user":["ana"]}'),),
    "a name of the prototype": (own('{"__proto__":{"user":{"id":"ana"}}}'),),
    "a user twice": (own('{"user":{"id":"x"},"user":{"id":"ana"}}'),),
    "a clock as high as can be": (own('{"x":1}', clock=2**53 - 1),),
    "a clock that goes back": (own("{}", clock=9), own('{"x":2}', clock=3)),
    "half a letter in JSON": (own('{"x":"\\ud800"}'),),
    "a state just below the limit": (own(json.dumps({"x": "y" * (MAX_STATE_BYTES - 20)})),),
    "hello and goodbye a hundred times": tuple(
        own("{}" if n % 2 else "null", clock=n) for n in range(1, 100)
    ),
    "nothing at all": (b"\x00",),
}


@asynccontextmanager
async def all_here(stage: Stage) -> AsyncIterator[None]:
    """Ana and Ben are here and know of each other; afterwards they still do, and of no one else."""
    stage.ana.awareness.clear()
    stage.ben.awareness.clear()
    clock = 1_000 * (stage._beats + 1)
    for laptop, id_ in ((stage.ana, ANA_ID), (stage.ben, BEN_ID)):
        await laptop.announce(frame((id_, clock, '{"hr":120}')))
    await stage.ben.until(lambda: ANA_ID in seen(stage.ben.awareness))
    await stage.ana.until(lambda: BEN_ID in seen(stage.ana.awareness))
    async with stage.unharmed():
        yield
    await stage.ana.announce(frame((ANA_ID, clock + 1, '{"hr":121}')))
    await stage.ben.until(lambda: seen(stage.ben.awareness)[ANA_ID].get("hr") == 121)


def seen(updates: list[bytes]) -> dict[int, Any]:
    """The last that was said of each client id; who has gone is left out."""
    states: dict[int, Any] = {}
    for update in updates:
        reader = Reader(update)
        for _ in range(reader.var_uint()):
            client_id, _, text = reader.var_uint(), reader.var_uint(), reader.var_bytes()
            states[client_id] = json.loads(text, parse_constant=pytest.fail)
    return {client_id: state for client_id, state in states.items() if state is not None}


@pytest.mark.parametrize("user_id", [WRITER, READER])
@pytest.mark.parametrize(("update", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_awareness_that_is_none_is_refused(
    stage: Stage, user_id: str, update: bytes, code: str
) -> None:
    async with all_here(stage), stage.inside(user_id) as socket:
        answer = await socket.ask("awareness-update", update, namespace=DOCUMENT)
        assert answer["ok"] is False
        assert answer["error"]["code"] == code
        assert await socket.settled()
        assert set(await everybody(stage)) == {ANA_ID, BEN_ID}


@pytest.mark.parametrize("updates", LIES.values(), ids=LIES.keys())
async def test_nobody_is_shown_what_somebody_else_says_of_them(
    stage: Stage, updates: tuple[bytes, ...]
) -> None:
    async with all_here(stage), stage.inside() as socket:
        for update in updates:
            answer = await socket.ask("awareness-update", update, namespace=DOCUMENT)
            assert answer["ok"] is True
        assert await socket.settled()
        shown = await everybody(stage)
        assert {ANA_ID, BEN_ID} <= set(shown)
        for client_id, state in shown.items():
            expected = {ANA_ID: "ana", BEN_ID: "ben"}.get(client_id, WRITER)
            assert state["user"]["id"] == state["user"]["name"].lower() == expected
        assert len(shown) <= 3
        for laptop in (stage.ana, stage.ben):
            assert set(seen(laptop.awareness)) <= {ANA_ID, BEN_ID, *(set(shown) - {ANA_ID, BEN_ID})}


async def everybody(stage: Stage) -> dict[int, Any]:
    """What a newcomer is told."""
    async with stage.inside(READER) as newcomer:
        assert await newcomer.settled()
        said = await newcomer.find(lambda packet: awareness_of(packet) is not None)
        update = awareness_of(said)
        assert update is not None
        decode_awareness(update)
        return seen([update])


def awareness_of(packet: Any) -> bytes | None:
    is_it = packet.kind == BINARY_EVENT and packet.data[0] == "awareness-update"
    return packet.data[1] if is_it and not packet.missing else None


async def test_two_thousand_updates_at_once_are_no_flood(stage: Stage) -> None:
    async with all_here(stage), stage.inside() as socket:
        await flood(socket, 2_000)
        assert await socket.settled()


async def flood(socket: RawSocket, count: int) -> None:
    text = f'451-{DOCUMENT},["awareness-update",{{"_placeholder":true,"num":0}}]'
    for clock in range(1, count):
        await socket.send(text, own('{"x":1}', clock=clock))
