"""What an update of a client must not say, because native code would believe it.

The native code cannot be asked about these: it would end the process, or be of two minds about the
document, before it answers. So every update is gone over here first, and refused if it

- has two sections of one client: the second would replace blocks that the document points to;
- nests values or types by the thousand, which overflows the stack;
- counts entries that it has no bytes for: memory is taken for all of them first;
- has blocks of no length, or clocks that do not fit into 32 bits, where the native code's wrap;
- holds contents that native code reads in another way than Yjs does, or shows in another way each
  time: values of Yjs before 13, documents, XML, links and moves;
- writes to a root that the schema does not have, where nobody would see what grows.

Nothing is decoded that does not have to be; going over a set takes some microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from crdt.errors import Invalid, Unsynced
from crdt.wire import MAX_SAFE_INTEGER, Reader

MAX_CLOCK = 2**31 - 1
MAX_NESTED_VALUES = 100
MAX_NESTED_TYPES = 4_000
"""Types within types in one update. Native code stands 10,000 levels, and not 50,000."""

_GC, _DELETED, _OLD_VALUES, _BINARY, _STRING, _EMBED, _FORMAT, _TYPE, _ANY = range(9)
_SKIP = 10
GAP, DELETED, STRING, EMBED, FORMAT, VALUE = _GC, _DELETED, _STRING, _EMBED, _FORMAT, _ANY
"""The kinds of blocks that others than us tell apart."""
_SHARED_TYPES = range(3)
"""Array, map and text."""

_UINT = rb"[\x80-\xff]{0,7}[\x00-\x7f]"
_ID = _UINT + _UINT
_ORIGINS = (None, None, _ID, _ID, _ID, _ID, _ID + _ID, _ID + _ID)
_HEADS = tuple(
    re.compile(rb"\x00" + _ID + rb"|\x01" if origins is None else origins).match
    for origins in _ORIGINS
)
"""By the upper bits of a block's first byte: its neighbours, else its parent up to a name."""

_UNDEFINED, _NULL, _INT, _FLOAT_32, _FLOAT_64, _BIG_INT, _FALSE, _TRUE = range(127, 119, -1)
_TEXT, _MAP, _ARRAY, _BYTES = range(119, 115, -1)
_SIZES = {_UNDEFINED: 0, _NULL: 0, _FLOAT_32: 4, _FLOAT_64: 8, _BIG_INT: 8, _FALSE: 0, _TRUE: 0}


def screen_vector(state_vector: bytes) -> None:
    """Raises Invalid for a state vector that counts entries which it has no bytes for."""
    try:
        if 2 * Reader(state_vector).var_uint() > len(state_vector):
            raise ValueError("cut short")
    except ValueError as exc:
        raise Invalid.at("state_vector", "cannot be decoded") from exc


class Run(NamedTuple):
    """What one client inserts: its clocks from `clock` to before `end`."""

    client_id: int
    clock: int
    end: int


def screen_update(update: bytes, roots: Container[bytes]) -> list[Run]:
    """Go over an untrusted Yjs v1 update of a document with these roots.

    Returns: what each client inserts; nothing for one that only deletes.
    Raises:
        Invalid: it is none, or says something of the above.
        Unsynced: it leaves a gap.
    """
    try:
        runs, at = _sections(update, roots)
        _deletes(update, at)
    except (ValueError, IndexError) as exc:
        raise Invalid.at("update", "is not a Yjs update that can be applied") from exc
    return runs


def _sections(update: bytes, roots: Container[bytes]) -> tuple[list[Run], int]:
    """Go over the blocks of all clients. Returns: what each inserts, and where they end."""
    runs: dict[int, Run] = {}
    nested_types = 0
    sections, at = _uint(update, 0)
    for _ in range(sections):
        count, at = _uint(update, at)
        client_id, at = _uint(update, at)
        first_clock, at = _uint(update, at)
        if client_id in runs or not count:
            raise ValueError("two sections of one client, or an empty one")
        clock = first_clock
        for _ in range(count):
            first = update[at]
            kind = first & 0x1F
            if first == _GC:
                length, at = _uint(update, at + 1)
            elif first == _SKIP:
                raise Unsynced("the update leaves something out; sync first")
            else:
                stands_in_root, at = _head(update, at + 1, first >> 5, roots)
                length, at = _content(update, at, kind)
                nested_types += kind == _TYPE and not stands_in_root
            clock += length
            if not length or clock > MAX_CLOCK or nested_types > MAX_NESTED_TYPES:
                raise ValueError("a block of no length, of too much, or too many types in types")
        runs[client_id] = Run(client_id, first_clock, clock)
    return list(runs.values()), at


class Block(NamedTuple):
    """A block of an update: `length` clocks of one client from `clock` on. It stands in the bytes
    from `start` to `end`."""

    client_id: int
    clock: int
    length: int
    kind: int
    start: int
    end: int
    left: tuple[int, int] | None = None
    right: tuple[int, int] | None = None
    """(client ID, clock) of what it was written behind, and before."""
    parent: str | tuple[int, int] | None = None
    """A root's name, or the block of the type that it stands in; None if its neighbours say so."""
    key: str | None = None


def blocks(update: bytes) -> Iterator[Block]:
    """All blocks of a trusted update, in the order in which they stand in it."""
    sections, at = _uint(update, 0)
    for _ in range(sections):
        count, at = _uint(update, at)
        client_id, at = _uint(update, at)
        clock, at = _uint(update, at)
        for _ in range(count):
            start, first = at, update[at]
            if first in (_GC, _SKIP):
                length, at = _uint(update, at + 1)
                yield Block(client_id, clock, length, first, start, at)
            else:
                left, right, parent, key, at = _place(update, at + 1, first >> 5)
                length, at = _content(update, at, first & 0x1F)
                yield Block(
                    client_id, clock, length, first & 0x1F, start, at, left, right, parent, key
                )
            clock += length


_Id = tuple[int, int]


def _place(
    update: bytes, at: int, bits: int
) -> tuple[_Id | None, _Id | None, str | _Id | None, str | None, int]:
    """Read what says where a block stands, of what `_head` goes over."""
    left = right = None
    if bits & 4:
        left, at = _read_id(update, at)
    if bits & 2:
        right, at = _read_id(update, at)
    if bits > 1:
        return left, right, None, None, at
    parent: str | _Id
    names_root, at = _uint(update, at)
    if names_root:
        parent, at = _text(update, at)
    else:
        parent, at = _read_id(update, at)
    key = None
    if bits:
        key, at = _text(update, at)
    return None, None, parent, key, at


def _read_id(update: bytes, at: int) -> tuple[_Id, int]:
    client_id, at = _uint(update, at)
    clock, at = _uint(update, at)
    return (client_id, clock), at


def _text(update: bytes, at: int) -> tuple[str, int]:
    length, at = _uint(update, at)
    return update[at : at + length].decode(errors="surrogatepass"), at + length


def _deletes(update: bytes, at: int) -> None:
    clients, at = _uint(update, at)
    for _ in range(clients):
        _, at = _uint(update, at)
        ranges, at = _uint(update, at)
        for _ in range(ranges):
            clock, at = _uint(update, at)
            length, at = _uint(update, at)
            if clock + length > MAX_CLOCK:
                raise ValueError("a range of too much")


def _head(update: bytes, at: int, bits: int, roots: Container[bytes]) -> tuple[bool, int]:
    """Go over what says where a block stands. Returns: whether in a root itself, and the end."""
    found = _HEADS[bits](update, at)
    if found is None:
        raise ValueError("a block that stands nowhere")
    names_root = bits < 2 and update[at] == 1
    at = found.end()
    if names_root:
        length, start = _uint(update, at)
        at = start + length
        if update[start:at] not in roots:
            raise Invalid.at("update", "writes to a root that the document does not have")
    if bits == 1:
        at = _chunk(update, at)
    return names_root, at


def _content(update: bytes, at: int, kind: int) -> tuple[int, int]:
    """Go over what a block holds. Returns: its length, and the end."""
    if kind == _ANY:
        if update[at] == 1:  # nearly always
            mark = update[at + 1]
            if mark == _TEXT:
                return 1, _chunk(update, at + 2)
            if mark in _SIZES:
                return 1, at + 2 + _SIZES[mark]
        count, at = _uint(update, at)
        return count, _values(update, at, count)
    if kind == _STRING:
        size, start = _uint(update, at)
        end = _chunk(update, at)
        text = update[start : start + size]
        # Yjs counts in UTF-16.
        return size if text.isascii() else len(text.decode().encode("utf-16-le")) // 2, end
    if kind == _TYPE:
        if update[at] not in _SHARED_TYPES:
            raise ValueError("a type that no document holds")
        return 1, at + 1
    if kind == _DELETED:
        return _uint(update, at)
    if kind in (_BINARY, _EMBED):
        return 1, _chunk(update, at)
    if kind == _FORMAT:
        return 1, _chunk(update, _chunk(update, at))
    raise ValueError("a content that no document holds")


def _values(update: bytes, at: int, count: int) -> int:
    """Go over values as lib0 writes them. Returns: where they end."""
    outer: list[tuple[int, bool]] = []
    left, has_keys = count, False
    while True:
        while not left:
            if not outer:
                return at
            left, has_keys = outer.pop()
        left -= 1
        if has_keys:
            at = _chunk(update, at)
        mark = update[at]
        at += 1
        if mark in (_TEXT, _BYTES):
            at = _chunk(update, at)
        elif mark in _SIZES:
            at += _SIZES[mark]
        elif mark == _INT:
            while update[at] & 0x80:
                at += 1
            at += 1
        elif mark in (_MAP, _ARRAY):
            outer.append((left, has_keys))
            left, at = _uint(update, at)
            has_keys = mark == _MAP
            if left > len(update) - at or len(outer) > MAX_NESTED_VALUES:
                raise ValueError("values that are not there, or nested too deeply")
        else:
            raise ValueError("a value of no kind")


def _chunk(update: bytes, at: int) -> int:
    """Go over bytes that are preceded by their length. Returns: where they end."""
    length, at = (update[at], at + 1) if update[at] < 0x80 else _uint(update, at)
    if length > len(update) - at:
        raise ValueError("cut short")
    return at + length


def _uint(update: bytes, at: int) -> tuple[int, int]:
    """Read a number. Returns: it, and where it ends."""
    value = update[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 56, 7):
        byte = update[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > MAX_SAFE_INTEGER:
                break
            return value, at
    raise ValueError("a number that is too long")
