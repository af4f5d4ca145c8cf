"""What a fuzzing target is, and what all of them need: odd values, a loop, an ear for the log.

A target takes bytes that say a whole story (what came in, from whom, in which order), plays it
against parts of the server, and raises where something does not hold. The same bytes are a
fuzzer's input, an example of a Hypothesis test, and a regression case in a file.

Everything random is drawn from a `random.Random`: the fuzzer seeds one, Hypothesis lends its own
and so can shrink what it has found.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any, ClassVar, Self, TypeVar

DEADLINE_S = 10.0
ACCEPTED = "accepted"

CODES = frozenset(
    {
        *("unauthenticated", "token_expired", "forbidden", "not_found", "invalid", "conflict"),
        *("locked", "room_full", "too_large", "rate_limited", "unsynced", "unavailable"),
    }
)
"""Every code with which a client may be refused; `internal` is not among them on purpose."""

T = TypeVar("T")


class Target:
    """One way into the server. To be used as a context manager."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._complaints = Complaints()

    def seeds(self) -> list[bytes]:
        """Inputs that show the way: well-behaved ones, one for each thing that can be done."""
        raise NotImplementedError

    def generate(self, random: Random) -> bytes:
        """A new input, mostly well-formed."""
        raise NotImplementedError

    def mutate(self, data: bytes, random: Random) -> bytes:
        """Another input of this one, changed by its structure. Takes any bytes."""
        raise NotImplementedError

    async def play(self, data: bytes, outcomes: Counter[str]) -> None:
        """Feed the input to the server, count what became of it by `accepted` or its code.

        Raises: anything at all where something does not hold.
        """
        raise NotImplementedError

    def feed(self, data: bytes) -> Counter[str]:
        """Play an input to its end, and see that nothing failed that nobody foresaw."""
        outcomes: Counter[str] = Counter()
        self._run(self._play(data, outcomes))
        self._complaints.none_came()
        return outcomes

    async def _play(self, data: bytes, outcomes: Counter[str]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.play(data, outcomes)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left running: {left}"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._complaints)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._complaints)
        self._runner.close()


class Complaints(logging.Handler):
    """Gathers what is logged as an error: a failure that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def none_came(self) -> None:
        """Raises what was logged, or AssertionError with its text."""
        records, self._records = self._records, []
        for record in records:
            error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
            message = f"logged by {record.name}: {record.getMessage()}"
            raise AssertionError(message) from error


# -- odd values -----------------------------------------------------------------------------------

ODD_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 1.5, -0.0, 127, 128, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, 10**30),
    *(1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
)
ODD_TEXTS = (
    *("", " ", "a", "0", "x" * 65, "x" * 201, "x" * 4_001, "x" * 70_000),
    *("\x00", "a\x00b", "\n", "\ud800", "\udfff\ud800", "é", "🏋️", "e\u0301", "\u202e", "\ufeff"),
    *("../../w", "w?x=1", "a,b", "/yjs|workout:w", "' OR 1=1 --", "%00", "NaN", "null", "-1"),
    *("__proto__", "constructor", "__class__", "__init__", "toString", "_placeholder"),
)


def odd_value(random: Random, depth: int = 0) -> Any:
    """A JSON value that a client has no reason to send."""
    kind = random.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return random.choice((None, True, False))
    if kind <= 2:
        return random.choice(ODD_NUMBERS)
    if kind <= 4:
        return random.choice(ODD_TEXTS)
    if kind == 5:
        return [odd_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 6:
        keys = [random.choice(ODD_TEXTS[:3] + ODD_TEXTS[-6:]) for _ in range(random.randrange(4))]
        return {key: odd_value(random, depth + 1) for key in keys}
    return nested(random.choice((2, 9, 17, 100, 600)))


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def mutate_json(value: Any, random: Random) -> Any:
    """The same JSON value, with one thing in it changed."""
    places = list(_places(value))
    if not places:
        return odd_value(random)
    parent, key = random.choice(places)
    how = random.randrange(8)
    if how <= 2:
        parent[key] = odd_value(random)
    elif how == 3:
        del parent[key]
    elif how == 4:
        other, at = random.choice(places)
        parent[key] = copied(other[at])
    elif how == 5 and isinstance(parent, dict):
        parent[random.choice(ODD_TEXTS)] = parent.pop(key)
    elif how == 6 and isinstance(parent, list):
        parent.insert(key, copied(parent[key]))
    elif isinstance(parent[key], str):
        text = parent[key]
        at = random.randrange(len(text) + 1)
        parent[key] = text[:at] + random.choice(ODD_TEXTS) + text[at:]
    else:
        parent[key] = [parent[key]]
    return value


def _places(value: Any) -> Any:
    """(container, key or index) of everything inside a value."""
    todo = [value]
    while todo:
        container = todo.pop()
        if not isinstance(container, dict | list):
            continue
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(pairs):
            yield container, key
            todo.append(item)


def copied(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except RecursionError:
        return None


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """The same bytes with a few of them changed, lost, doubled or moved."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(found) + 1)
        how = random.randrange(7)
        if how == 0 or not found:
            found[at:at] = random.choice(ODD_BYTES)
        elif how == 1:
            found[at : at + 1] = bytes((random.randrange(256),))
        elif how == 2:
            at %= len(found)
            found[at] ^= 1 << random.randrange(8)
        elif how == 3:
            del found[at : at + random.choice((1, 1, 2, 4, 8))]
        elif how == 4:
            del found[at:]
        elif how == 5:
            start = random.randrange(len(found))
            found[at:at] = found[start : start + random.choice((1, 2, 4, 8, 16))]
        else:
            found[at : at + 1] = random.choice(ODD_BYTES)
    return bytes(found)


ODD_BYTES = (
    *(b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff\x0f"),
    *(b"\xff" * 7 + b"\x0f", b"\xff" * 9 + b"\x01", b"\x80" * 4 + b"\x08", b"\x75\x01" * 40),
)


def mutate_list(items: list[Any], random: Random) -> None:
    """Lose, double or move one of several things, in place."""
    if not items:
        return
    at = random.randrange(len(items))
    how = random.randrange(3)
    if how == 0:
        del items[at]
    elif how == 1:
        items.insert(random.randrange(len(items) + 1), items[at])
    else:
        items.insert(random.randrange(len(items)), items.pop(at))


def pick(random: Random, *weighted: tuple[int, T]) -> T:
    """One of several things, each as often as its weight says."""
    weights: Sequence[int] = [weight for weight, _ in weighted]
    at = random.randrange(sum(weights))
    for weight, thing in weighted:
        at -= weight
        if at < 0:
            return thing
    raise AssertionError("unreachable")
