"""One copy of a document: Yjs updates and plain writes in, plain values out.

A replica never holds anything pending. An update that builds on changes which are not here, that
cannot be decoded, or that the native code trips over is refused, and the replica is marked
`spoiled`: its owner must replace it, because a Yjs transaction cannot be taken back.

The way of every update, `apply`, goes to pycrdt's native module directly. Its Python layer wraps
each event, key and value in an object; doing without them makes an update four times cheaper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from pycrdt import Doc, Map, Text, TransactionEvent, get_update
from pycrdt import _pycrdt as native

from crdt.errors import Invalid, Unsynced
from crdt.ids import DocKind
from crdt.schema import ROOT_TEXT, ROOTS, shared_type
from crdt.screen import Run, screen_update, screen_vector
from crdt.wire import deleted_ends, sole_writer, state_clocks

EMPTY_UPDATE = b"\x00\x00"
EMPTY_STATE_VECTOR = b"\x00"

View = dict[str, dict[str, Any]]
"""A document as plain values: root -> key -> value. Numbers that are whole are ints."""

Delta = dict[tuple[str, str], Any]
"""What a transaction left behind: (root, key) -> its new value, `GONE` where there is none."""

GONE: Any = object()

MAX_DEPTH = 8
"""How many levels of maps and lists may stand in each other under a key. Level by level, updates
could build what native code cannot take down again without overflowing its stack."""

_TOO_DEEP = ("", "too deep")
_ROOT_NAMES = {kind: frozenset(name.encode() for name in roots) for kind, roots in ROOTS.items()}


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` at `path` (root, key, ...). A dict becomes a shared map where the schema says
    so; a text that exists is edited in place, so that concurrent typing survives."""

    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete what stands at `path`; nothing there is fine."""

    path: tuple[str, ...]


Write = Put | Remove


class Transaction(NamedTuple):
    """What one transaction changed: the Yjs v1 update that repeats it, and the values it left."""

    update: bytes
    delta: Delta
    writers: Collection[int]
    """The Yjs client IDs under which something was inserted."""


class Replica:
    """A Yjs document of one kind, opened from `state` (a Yjs v1 update; empty for a new one). One
    that is not watched takes in trusted updates only, and tells nothing of what they change.

    Its Yjs client ID is random for each instance and never kept: were it fixed, a replica that
    is rebuilt after a failed append would use the same clocks for other content.
    """

    def __init__(
        self, kind: DocKind, state: bytes = EMPTY_UPDATE, *, is_watched: bool = True
    ) -> None:
        self.kind = kind
        self.spoiled = False
        self._doc: Doc[Any] = Doc()
        self._native = self._doc._doc
        self._state: bytes | None = None
        self._roots: dict[str, Map[Any] | Text] = {}
        self._updates: list[bytes] = []
        self._touched: set[tuple[str, str]] = set()
        # Client ID -> the clock at which it goes on, for those that have written here. Nearly all
        # updates begin at it, and need no state vector to be compared with.
        self._next_clocks: dict[int, int] = {}
        for name, root_type in ROOTS[kind].items():
            self._roots[name] = self._doc.get(name, type=cast(type[Map[Any]], root_type))
        self._raw = {name: root.integrated for name, root in self._roots.items()}
        if state != EMPTY_UPDATE:
            self.load(state)
        self._subscriptions: list[native.Subscription] = []
        if is_watched:
            self._subscriptions.append(self._native.observe(_noting(self._updates)))
            for name, root in self._raw.items():
                self._subscriptions.append(self._watch(name, root))

    def load(self, *updates: bytes) -> None:
        """Take in trusted updates from the log, without noting what they changed."""
        self._state = None
        txn = self._native.create_transaction()
        try:
            for update in updates:
                self._native.apply_update(txn, update)
            txn.commit()
        finally:
            txn.drop()

    @property
    def client_id(self) -> int:
        """Under which ID `write` writes."""
        return self._doc.client_id

    def apply(self, update: bytes) -> Transaction | None:
        """Apply an untrusted Yjs v1 update.

        Returns: what changed; None when everything in it was known already.
        Raises:
            Invalid: the bytes are no update, or not one that can be applied. Spoils the replica.
            Unsynced: it builds on changes that are missing here. Spoils the replica, unless the
                gap could be seen before applying.
        """
        blocks = screen_update(update, _ROOT_NAMES[self.kind])
        if not all(self._next_clocks.get(run.client_id) == run.clock for run in blocks):
            self._refuse_gap(blocks)
            # Of a block that is known in part only the rest: given the whole, a document may put
            # it elsewhere than those who get the rest.
            update = self._lacking(update)
        before = self.state_vector() if len(blocks) > 1 else b""
        self._begin()
        try:
            self.load(update)
            # What was taken in as it came is here; only what was not has to be looked into.
            complete = self._made() == update or self._holds(update)
            if _TOO_DEEP in self._touched:
                raise ValueError("it builds on what is nested too deeply")
            delta = self._delta()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            # A panic of the native code is no Exception.
            self.spoiled = True
            raise Invalid.at("update", "is not a Yjs update that can be applied") from exc
        if complete:
            for run in blocks:
                known = self._next_clocks.get(run.client_id, 0)
                self._next_clocks[run.client_id] = max(known, run.end)
        else:
            self.spoiled = True
            raise Unsynced("the update builds on changes that are missing here; sync first")
        return self._transaction(delta, self._writers(before))

    def follow(self, update: bytes) -> Delta:
        """Take in a trusted update from the log, and tell what it changed here.

        Raises:
            Invalid: it is no update. Spoils the replica.
            Unsynced: the log lacks what it builds on. Spoils the replica.
        """
        try:
            blocks = screen_update(update, _ROOT_NAMES[self.kind])
            self._begin()
            self.load(update)
            complete = self._made() == update or self._holds(update)
            delta = self._delta()
        except BaseException as exc:
            self.spoiled = True
            if isinstance(exc, Invalid | KeyboardInterrupt | SystemExit):
                raise
            raise Invalid.at("update", "is not a Yjs update that can be applied") from exc
        if not complete:
            self.spoiled = True
            raise Unsynced("the log lacks what the update builds on")
        for run in blocks:
            self._next_clocks.pop(run.client_id, None)
        return delta

    def write(self, writes: Iterable[Write]) -> Transaction | None:
        """Carry out `writes` in one transaction. They are the server's own, and checked before."""
        self._begin()
        self._state = None
        try:
            with self._doc.transaction():
                for write in writes:
                    self._carry_out(write)
            delta = self._delta()
        except BaseException as exc:
            self.spoiled = True
            if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
                raise
            raise RuntimeError("the native code panicked") from exc
        return self._transaction(delta, (self.client_id,))

    def state_vector(self) -> bytes:
        if self._state is None:
            txn = self._native.create_transaction()
            self._state = self._native.get_state(txn)
            txn.drop()
        return self._state

    def diff(self, state_vector: bytes = EMPTY_STATE_VECTOR) -> bytes:
        """What a peer with this state vector lacks, as one Yjs v1 update.

        Raises:
            Invalid: the vector cannot be decoded.
        """
        screen_vector(state_vector)
        try:
            return self._doc.get_update(state_vector)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            raise Invalid.at("state_vector", "cannot be decoded") from exc

    def lacking(self, update: bytes) -> bytes:
        """What of an untrusted update is not here yet, and all that it deletes.

        Raises:
            Invalid: the bytes are no update.
        """
        screen_update(update, _ROOT_NAMES[self.kind])
        return self._lacking(update)

    def brings_news(self, update: bytes) -> bool:
        """Whether an untrusted update holds insertions that are not here; deletions are not looked
        at. Raises Invalid."""
        return not self.lacking(update).startswith(b"\x00")

    def read(self) -> View:
        """The whole document as plain values."""
        txn = self._native.create_transaction()
        try:
            return {
                name: {ROOT_TEXT: root.get_string(txn)}
                if isinstance(root, native.Text)
                else {key: _plain(root.get(txn, key), txn) for key in root.keys(txn)}
                for name, root in self._raw.items()
            }
        finally:
            txn.drop()

    # -- what a transaction changed ---------------------------------------------------------

    def _watch(self, name: str, root: native.Map | native.Text) -> native.Subscription:
        touched = self._touched
        is_text = isinstance(root, native.Text)

        def on_events(events: list[Any]) -> None:
            for event in events:
                path = event.path
                if len(path) > MAX_DEPTH:
                    # Maybe where no reader looks: within a text, or in a map but under no key.
                    touched.add(_TOO_DEEP)
                if is_text:
                    touched.add((name, ROOT_TEXT))
                elif path:
                    touched.add((name, str(path[0])))
                else:
                    touched.update((name, key) for key in event.keys)

        return root.observe_deep(on_events)

    def _begin(self) -> None:
        self._updates.clear()
        self._touched.clear()

    def _made(self) -> bytes:
        """The update that repeats the last transaction."""
        return self._updates[-1] if self._updates else EMPTY_UPDATE

    def _delta(self) -> Delta:
        delta: Delta = {}
        txn = self._native.create_transaction()
        try:
            for name, key in self._touched:
                root = self._raw[name]
                if isinstance(root, native.Text):
                    delta[name, key] = root.get_string(txn)
                elif root.has(txn, key):
                    delta[name, key] = _plain(root.get(txn, key), txn)
                else:
                    delta[name, key] = GONE
        finally:
            txn.drop()
        return delta

    def _transaction(self, delta: Delta, writers: Collection[int]) -> Transaction | None:
        update = self._made()
        return None if update == EMPTY_UPDATE else Transaction(update, delta, writers)

    def _writers(self, before: bytes) -> Collection[int]:
        """The client IDs that inserted something in the last transaction.

        Args:
            before: the state vector before it, if several may have.
        """
        update = self._made()
        if update.startswith(b"\x00"):
            return ()  # only deletions
        writer = sole_writer(update)
        if writer is not None:
            return (writer[0],)
        known = state_clocks(before)
        clocks = state_clocks(self.state_vector()).items()
        return [client_id for client_id, clock in clocks if clock > known.get(client_id, 0)]

    # -- completeness -----------------------------------------------------------------------

    def _refuse_gap(self, blocks: Iterable[Run]) -> None:
        """See that a writer's predecessors are missing before it does any harm."""
        known = state_clocks(self.state_vector())
        for run in blocks:
            clock = known.get(run.client_id, 0)
            if run.clock > clock:
                raise Unsynced("the update builds on changes that are missing here; sync first")
            self._next_clocks[run.client_id] = clock

    def _holds(self, update: bytes) -> bool:
        """Whether everything in `update` is part of the document now.

        Applying an update whose predecessor is missing raises nothing. It shows in what the
        document's state vector still lacks of it: insertions, or deletions of unknown items.
        """
        lacking = self._lacking(update)
        if lacking == EMPTY_UPDATE:
            return True
        if not lacking.startswith(b"\x00"):
            return False
        known = state_clocks(self.state_vector())
        return all(end <= known.get(client_id, 0) for client_id, end in deleted_ends(lacking[1:]))

    def _lacking(self, update: bytes) -> bytes:
        try:
            return get_update(update, self.state_vector())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            raise Invalid.at("update", "is not a Yjs update") from exc

    # -- writes -----------------------------------------------------------------------------

    def _carry_out(self, write: Write) -> None:
        root = self._roots[write.path[0]]
        if isinstance(root, Text):
            if isinstance(write, Put):
                _retype(root, write.value)
            return
        parent: Map[Any] = root
        for depth, key in enumerate(write.path[1:-1], start=2):
            child = parent.get(key)
            if not isinstance(child, Map):
                if isinstance(write, Remove):
                    return
                # An item that some client wrote as a plain value: make it what the schema says.
                child = self._shared(write.path[:depth], child if isinstance(child, dict) else {})
                parent[key] = child
            parent = child
        key = write.path[-1]
        if isinstance(write, Remove):
            parent.pop(key, None)
            return
        current = parent.get(key)
        if isinstance(current, Text) and isinstance(write.value, str):
            _retype(current, write.value)
        else:
            parent[key] = self._shared(write.path, write.value)

    def _shared(self, path: tuple[str, ...], value: Any) -> Any:
        shape = shared_type(self.kind, path)
        if shape is Text:
            return Text(value)
        if shape is Map:
            return Map({key: self._shared((*path, key), item) for key, item in value.items()})
        return value


def _noting(updates: list[bytes]) -> Callable[[TransactionEvent], None]:
    """What native code calls must not lead back to the replica: no garbage collector would see
    that ring, and every replica would stay in memory for ever."""
    return lambda event: updates.append(event.update)


def _plain(value: Any, txn: native.Transaction) -> Any:
    """A value of a document as JSON-able Python: maps as dicts, texts as str, whole numbers as int.

    pycrdt hands every number out as a float; the JSON of the native side keeps 5 apart from 5.5.
    """
    if isinstance(value, native.Map | native.Array):
        return json.loads(value.to_json(txn))
    if isinstance(value, native.Text):
        return value.get_string(txn)
    return _tidy(value)


def _tidy(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None  # JSON has no word for it, and neither has a workout
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tidy(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    raise Invalid.at("update", f"holds a value of type {type(value).__name__}")


def apply_delta(view: View, delta: Delta) -> None:
    """Bring a view up to date with a transaction."""
    for (root, key), value in delta.items():
        if value is GONE:
            view[root].pop(key, None)
        else:
            view[root][key] = value


def _retype(text: Text, wanted: str) -> None:
    """Turn a text into `wanted` by replacing only the middle that differs."""
    present = str(text)
    if present == wanted:
        return
    head = 0
    while head < min(len(present), len(wanted)) and present[head] == wanted[head]:
        head += 1
    tail = 0
    while (
        tail < min(len(present), len(wanted)) - head
        and present[len(present) - 1 - tail] == wanted[len(wanted) - 1 - tail]
    ):
        tail += 1
    # pycrdt counts in bytes of UTF-8, not in characters.
    start = len(present[:head].encode())
    removed = len(present[head : len(present) - tail].encode())
    if removed:
        del text[start : start + removed]
    if head + tail < len(wanted):
        text.insert(start, wanted[head : len(wanted) - tail])
