"""The bytes of Yjs v1 and of y-protocols' awareness, as far as the server reads them itself.

`varUint` is 7 bits a byte, low bits first, the high bit saying that more follows; at most 8 bytes
are read, which is more than the 53 bits that a JavaScript peer can write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from crdt.errors import Invalid, TooLarge

MAX_STATE_BYTES = 16 * 1024
MAX_AWARENESS_ENTRIES = 1_000

MAX_STATE_DEPTH = 16
MAX_SAFE_INTEGER = 2**53 - 1

_MAX_VAR_UINT_BYTES = 8


class Reader:
    """Reads from the front of some bytes. Raises ValueError where they are cut short or absurd."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def var_uint(self) -> int:
        value = 0
        for i in range(_MAX_VAR_UINT_BYTES):
            if self._at >= len(self._data):
                break
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if value > MAX_SAFE_INTEGER:
                    break
                return value
        raise ValueError("cut short, or a number that is too long")

    def var_bytes(self) -> bytes:
        length = self.var_uint()
        end = self._at + length
        if end > len(self._data):
            raise ValueError("cut short")
        chunk = self._data[self._at : end]
        self._at = end
        return chunk


def var_uint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def var_bytes(data: bytes) -> bytes:
    return var_uint(len(data)) + data


def state_clocks(state_vector: bytes) -> dict[int, int]:
    """Decode a state vector: client ID -> how many of its structs are known."""
    reader = Reader(state_vector)
    return {reader.var_uint(): reader.var_uint() for _ in range(reader.var_uint())}


def sole_writer(update: bytes) -> tuple[int, int] | None:
    """(client ID, clock of its first struct) of an update in which one client writes; else None.

    The heads of further clients cannot be read without decoding every struct before them.
    """
    try:
        reader = Reader(update)
        if reader.var_uint() != 1:
            return None
        reader.var_uint()
        return reader.var_uint(), reader.var_uint()
    except ValueError:
        return None


def deleted_ends(delete_set: bytes) -> Iterator[tuple[int, int]]:
    """(client ID, the clock behind the range) for each range of a delete set."""
    reader = Reader(delete_set)
    for _ in range(reader.var_uint()):
        client_id = reader.var_uint()
        for _ in range(reader.var_uint()):
            clock = reader.var_uint()
            yield client_id, clock + reader.var_uint()


def is_deeper(value: Any, depth: int) -> bool:
    """Whether plain JSON is nested more than `depth` levels deep."""
    if not isinstance(value, dict | list):
        return False
    if depth == 0:
        return True
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list) and is_deeper(item, depth - 1):
            return True
    return False


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that JSON knows")
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_JSON_TEXT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class AwarenessEntry:
    """What is said of one client ID; a state of None says that it has gone."""

    client_id: int
    clock: int
    state: dict[str, Any] | None


def decode_awareness(update: bytes) -> list[AwarenessEntry]:
    """Read an awareness update of y-protocols.

    Raises:
        Invalid: it is cut short, holds no JSON objects, or more than `MAX_AWARENESS_ENTRIES`.
        TooLarge: a state is over `MAX_STATE_BYTES`.
    """
    entries: list[AwarenessEntry] = []
    try:
        reader = Reader(update)
        count = reader.var_uint()
        if count > MAX_AWARENESS_ENTRIES:
            raise Invalid.at("awareness", f"holds {count} states")
        for _ in range(count):
            client_id, clock, text = reader.var_uint(), reader.var_uint(), reader.var_bytes()
            if len(text) > MAX_STATE_BYTES:
                raise TooLarge("an awareness state", len(text), MAX_STATE_BYTES)
            state = _JSON.decode(text.decode()) if text else None
            if state is not None and not isinstance(state, dict):
                raise Invalid.at("awareness", "a state must be an object or null")
            if is_deeper(state, MAX_STATE_DEPTH):
                raise Invalid.at("awareness", "a state is nested too deeply")
            entries.append(AwarenessEntry(client_id, clock, state))
    except (ValueError, RecursionError) as exc:
        raise Invalid.at("awareness", "is not an awareness update") from exc
    return entries


def encode_awareness(entries: Iterable[AwarenessEntry]) -> bytes:
    listed = list(entries)
    parts = [var_uint(len(listed))]
    for entry in listed:
        text = _JSON_TEXT(entry.state)
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            # Half a surrogate pair, which JSON can hold in ASCII only.
            encoded = json.dumps(entry.state, separators=(",", ":")).encode()
        parts += (var_uint(entry.client_id), var_uint(entry.clock), var_bytes(encoded))
    return b"".join(parts)
