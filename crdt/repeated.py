"""Operations that were carried out twice, at servers that could not know of each other.

A client that gets no answer asks elsewhere, and goes on from there. What the first server had done
must not come back then: later it would stand beside, or above, what was done since. It cannot be
left out either, as other changes may build on it. So it is taken in and taken back in one update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from crdt.ids import DocKind
from crdt.replica import GONE, Delta, Put, Remove, Replica, View, Write, apply_delta


class TakenBack(NamedTuple):
    """An update, the Yjs client ID under which it takes back, and the document after it."""

    update: bytes
    client_id: int
    view: View


def take_back(
    kind: DocKind, shared: Iterable[bytes], changes: Iterable[tuple[bytes, bool]]
) -> TakenBack:
    """One update with all of `changes`, of which some leave nothing behind.

    Args:
        shared: the document as it stands without these changes, as Yjs updates.
        changes: in turn, each with whether it is to be taken back: then what it has changed is as
            it was in the document before it.

    Raises:
        Invalid, Unsynced: the changes do not go with this document.
    """
    replica = Replica(kind)
    replica.load(*shared)
    vector, view = replica.state_vector(), replica.read()
    for update, is_taken_back in changes:
        delta = replica.follow(update)
        if is_taken_back:
            replica.write(_restoring(view, delta))
        else:
            apply_delta(view, delta)
    return TakenBack(replica.diff(vector), replica.client_id, replica.read())


def _restoring(before: View, delta: Delta) -> Iterator[Write]:
    """The writes after which all that a change touched is as before."""
    for (root, key), value in delta.items():
        yield from _restore((root, key), before[root].get(key, GONE), value)


def _restore(path: tuple[str, ...], wanted: Any, present: Any) -> Iterator[Write]:
    if wanted is GONE:
        yield Remove(path)
    elif isinstance(wanted, Mapping) and isinstance(present, Mapping):
        for key in wanted.keys() | present.keys():
            values = wanted.get(key, GONE), present.get(key, GONE)
            if values[0] != values[1]:
                yield from _restore((*path, key), *values)
    elif wanted != present:
        yield Put(path, wanted)
