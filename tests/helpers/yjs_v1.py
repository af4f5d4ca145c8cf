"""Yjs v1 updates taken apart and put together again, whatever they say.

For updates that no client would write: changed by their structure, they get past a decoder to where
documents are put together. What the parts mean is for the server to judge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crdt.wire import Reader, var_bytes, var_uint

GC, DELETED, JSON, BINARY, STRING, EMBED, FORMAT, TYPE, ANY, DOC, SKIP, MOVE = range(12)
MAP_TYPE = b"\x01"

Id = tuple[int, int]
"""(client ID, clock)"""


@dataclass
class Struct:
    """One block of an update. `length` is by how much it moves its client's clock."""

    kind: int
    content: bytes = b""
    length: int = 1
    origin: Id | None = None
    right: Id | None = None
    parent: bytes | Id | None = None
    """A root's name, or the item that holds the parent; None where an origin tells."""
    key: bytes | None = None

    def encode(self) -> bytes:
        if self.kind in (GC, SKIP):
            return var_uint(self.kind) + var_uint(self.length)
        has_neighbour = self.origin is not None or self.right is not None
        info = (
            self.kind
            | (0x80 if self.origin is not None else 0)
            | (0x40 if self.right is not None else 0)
            | (0x20 if self.key is not None and not has_neighbour else 0)
        )
        parts = [bytes((info,))]
        for neighbour in (self.origin, self.right):
            if neighbour is not None:
                parts.append(_id(neighbour))
        if not has_neighbour:
            if isinstance(self.parent, tuple):
                parts += (b"\x00", _id(self.parent))
            else:
                parts += (b"\x01", var_bytes(self.parent or b""))
            if self.key is not None:
                parts.append(var_bytes(self.key))
        return b"".join((*parts, self.content))


@dataclass
class Section:
    """The blocks of one client, from a clock on."""

    client: int
    clock: int
    structs: list[Struct] = field(default_factory=list)


@dataclass
class Update:
    sections: list[Section]
    deletes: list[tuple[int, list[tuple[int, int]]]]
    """(client ID, [(clock, length)])"""

    def encode(self) -> bytes:
        parts = [var_uint(len(self.sections))]
        for section in self.sections:
            parts += (
                var_uint(len(section.structs)),
                var_uint(section.client),
                var_uint(section.clock),
                *(struct.encode() for struct in section.structs),
            )
        parts.append(var_uint(len(self.deletes)))
        for client, ranges in self.deletes:
            parts += (var_uint(client), var_uint(len(ranges)))
            parts += (var_uint(clock) + var_uint(length) for clock, length in ranges)
        return b"".join(parts)


def _id(found: Id) -> bytes:
    return var_uint(found[0]) + var_uint(found[1])


class _Parser(Reader):
    """A reader that can say what it has gone over."""

    @property
    def at(self) -> int:
        return self._at

    def since(self, start: int) -> bytes:
        return self._data[start : self._at]

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("cut short")
        self._at += 1
        return self._data[self._at - 1]

    def skip(self, count: int) -> None:
        if self._at + count > len(self._data):
            raise ValueError("cut short")
        self._at += count

    def id(self) -> Id:
        return self.var_uint(), self.var_uint()

    def any(self) -> None:
        """Go over one value of lib0's `any`."""
        left = 1
        while left:
            left -= 1
            tag = self.byte()
            if tag == 125:
                while self.byte() & 0x80:
                    pass
            elif tag in (122, 123, 124):
                self.skip(4 if tag == 124 else 8)
            elif tag in (119, 116):
                self.var_bytes()
            elif tag == 117:
                left += self.var_uint()
            elif tag == 118:
                for _ in range(self.var_uint()):
                    self.var_bytes()
                    self.any()

    def struct(self) -> Struct:
        info = self.byte()
        kind = info & 0x1F
        if kind in (GC, SKIP):
            return Struct(kind, length=self.var_uint())
        struct = Struct(kind)
        struct.origin = self.id() if info & 0x80 else None
        struct.right = self.id() if info & 0x40 else None
        if not info & 0xC0:
            struct.parent = self.var_bytes() if self.var_uint() else self.id()
            struct.key = self.var_bytes() if info & 0x20 else None
        start = self.at
        struct.length = self._content(kind)
        struct.content = self.since(start)
        return struct

    def _content(self, kind: int) -> int:
        """Go over a content. Returns: its length."""
        length = 1
        if kind == DELETED:
            length = self.var_uint()
        elif kind in (JSON, ANY):
            length = self.var_uint()
            for _ in range(length):
                if kind == JSON:
                    self.var_bytes()
                else:
                    self.any()
        elif kind == STRING:
            length = len(self.var_bytes().decode(errors="replace").encode("utf-16-le")) // 2
        elif kind in (BINARY, EMBED):
            self.var_bytes()
        elif kind == FORMAT:
            self.var_bytes()
            self.var_bytes()
        elif kind == TYPE:
            if self.var_uint() in (3, 5):
                self.var_bytes()
        elif kind == DOC:
            self.var_bytes()
            self.any()
        else:
            raise ValueError(f"a content of kind {kind}")
        return length


def parse(update: bytes) -> Update:
    """Take an update apart.

    Raises:
        ValueError: it is none.
    """
    parser = _Parser(update)
    sections = []
    for _ in range(parser.var_uint()):
        count, client, clock = parser.var_uint(), parser.var_uint(), parser.var_uint()
        sections.append(Section(client, clock, [parser.struct() for _ in range(count)]))
    deletes = []
    for _ in range(parser.var_uint()):
        client = parser.var_uint()
        deletes.append((client, [parser.id() for _ in range(parser.var_uint())]))
    return Update(sections, deletes)
