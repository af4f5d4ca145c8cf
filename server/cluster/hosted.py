"""The documents of which this instance follows the log: where it stands in each, and what it holds.

**What is promised.** There is one entry for a document, and one lock, which orders appending,
reading on and healing; what the channel brings comes between. `tails_bytes` is what all entries
hold together. **Who owns what.** This owns the table, and the tails in it; the other fields of an
entry are for who opens, follows and heals its document. **What fails.** Nothing: it is memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

from crdt.ids import DocName
from server.cluster.envelope import Update


class Held(NamedTuple):
    """A record that is not known to be in MongoDB."""

    pos: int
    origin: str
    n: int
    data: bytes


@dataclass(slots=True)
class Hosted:
    """Where we stand in one document's log."""

    doc: DocName
    epoch: str | None = None
    """None as long as Redis has not told."""
    pos: int = 0
    """The last position that the room has got, or that is our own."""
    persisted: int = 0
    """Up to where it is known to be in MongoDB, in this epoch."""
    listed_at: int = 0
    local: int = 0
    """How many of its records are in the spool."""
    given: set[tuple[str, str]] = field(default_factory=set)
    """(set id, type) of the records that sets have won here."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """Those of the records in the spool."""
    tail: deque[Held] = field(default_factory=deque)
    tail_bytes: int = 0
    is_unsure: bool = False
    """The channel may have left something out: until it is read, what is said of our positions
    may be of others' records."""
    is_behind: bool = False
    """Redis was away: what is appended goes to the spool until this is healed."""
    is_short: bool = False
    """The room lacks something of what stands before `pos`: it hears of nothing more, and is to be
    read again as soon as the spool is empty, and all others have given back what they hold."""
    is_given_up: bool = False
    """The room lacks something of what stands before `pos`, and is being read again."""
    arriving: list[Update] | None = None
    """What the channel brings while the document is being read."""

    def has(self, held: Held) -> bool:
        """Whether the channel has brought this record of ours already."""
        return any((one.origin, one.n) == (held.origin, held.n) for one in self.tail)


class Hosts:
    """All of them.

    Args:
        channel_of: the channel that brings what others append to a document.
    """

    def __init__(self, channel_of: Callable[[DocName], str]) -> None:
        self._channel_of = channel_of
        self._by_doc: dict[DocName, Hosted] = {}
        self._by_channel: dict[str, Hosted] = {}
        self._locks: WeakValueDictionary[DocName, asyncio.Lock] = WeakValueDictionary()
        self.tails_bytes = 0

    def __len__(self) -> int:
        return len(self._by_doc)

    def __iter__(self) -> Iterator[Hosted]:
        """Those that there are now; they may change meanwhile."""
        return iter(list(self._by_doc.values()))

    def __contains__(self, doc: DocName) -> bool:
        return doc in self._by_doc

    def get(self, doc: DocName) -> Hosted | None:
        return self._by_doc.get(doc)

    def at(self, channel: str) -> Hosted | None:
        return self._by_channel.get(channel)

    def has(self, hosted: Hosted) -> bool:
        """Whether this is still what we have of its document."""
        return self._by_doc.get(hosted.doc) is hosted

    @asynccontextmanager
    async def locked(self, doc: DocName) -> AsyncIterator[None]:
        async with self._locks.setdefault(doc, asyncio.Lock()):
            yield

    def place(self, hosted: Hosted) -> None:
        """Make this what we have of its document."""
        before = self._by_doc.get(hosted.doc)
        self.tails_bytes += hosted.tail_bytes - (before.tail_bytes if before else 0)
        self._by_doc[hosted.doc] = self._by_channel[self._channel_of(hosted.doc)] = hosted

    def displace(self, hosted: Hosted) -> bool:
        """Have nothing of its document any more. Returns: False if it is not what we have of it."""
        if not self.has(hosted):
            return False
        del self._by_doc[hosted.doc], self._by_channel[self._channel_of(hosted.doc)]
        self.tails_bytes -= hosted.tail_bytes
        return True

    # -- the tails --------------------------------------------------------------------------

    def hold(self, hosted: Hosted, held: Held) -> None:
        hosted.tail.append(held)
        self._resize(hosted, len(held.data))

    def let_go(self, hosted: Hosted, count: int) -> None:
        """Of the oldest that it holds, so many."""
        for _ in range(count):
            self._resize(hosted, -len(hosted.tail.popleft().data))

    def inherit(self, hosted: Hosted, before: Hosted) -> None:
        """Let this, which holds nothing yet, hold what was held before it was placed."""
        hosted.tail = before.tail
        self._resize(hosted, before.tail_bytes)

    def _resize(self, hosted: Hosted, by_bytes: int) -> None:
        hosted.tail_bytes += by_bytes
        if self.has(hosted):
            self.tails_bytes += by_bytes
