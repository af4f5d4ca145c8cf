"""Yjs clients without a network: documents to edit, and the updates that come of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pycrdt import Array, Doc, Map, Text

from crdt.ids import DocKind
from crdt.schema import ROOT_TEXT, ROOTS
from crdt.wire import state_clocks

EMPTY = b"\x00\x00"


def exercise_fields(**changes: Any) -> dict[str, Any]:
    return {"name": "Squat", "order": "a0", "note": "", "target": [], **changes}


def set_fields(**changes: Any) -> dict[str, Any]:
    return {
        "user_id": "ana",
        "order": "a0",
        "kind": "normal",
        "weight_kg": 100,
        "reps": 5,
        "completed_at": 1_700_000_000_000,
        **changes,
    }


class Peer:
    """A client's document. Each method that edits returns the update of its transaction."""

    def __init__(
        self,
        kind: DocKind = DocKind.WORKOUT,
        state: bytes = EMPTY,
        *,
        client_id: int | None = None,
    ) -> None:
        self.kind = kind
        self.doc: Doc[Any] = Doc(client_id=client_id)
        self.roots: dict[str, Any] = {
            name: self.doc.get(name, type=cast(type[Map[Any]], root_type))
            for name, root_type in ROOTS[kind].items()
        }
        self._updates = updates = list[bytes]()
        self.apply(state)
        # Not by `Doc.observe`: what that makes leads from native code back to the document, a ring
        # which nothing ever frees.
        self._subscription = self.doc._doc.observe(lambda event: updates.append(event.update))

    def change(self, edit: Callable[[dict[str, Any]], Any]) -> bytes:
        """Edit the roots in one transaction. Returns: its update."""
        self._updates.clear()
        with self.doc.transaction():
            edit(self.roots)
        return self._updates[-1] if self._updates else EMPTY

    def put(self, root: str, key: str, value: Any) -> bytes:
        """Write an item; a dict becomes a shared map."""
        return self.change(lambda roots: roots[root].__setitem__(key, _shared(value)))

    def patch(self, root: str, key: str, **fields: Any) -> bytes:
        """Write fields inside an item."""

        def edit(roots: dict[str, Any]) -> None:
            for field, value in fields.items():
                roots[root][key][field] = _shared(value)

        return self.change(edit)

    def remove(self, root: str, key: str) -> bytes:
        return self.change(lambda roots: roots[root].pop(key))

    def set(self, set_id: str, **changes: Any) -> bytes:
        return self.put("sets", set_id, set_fields(**changes))

    def exercise(self, exercise_id: str, **changes: Any) -> bytes:
        return self.put("exercises", exercise_id, exercise_fields(**changes))

    def apply(self, update: bytes) -> None:
        if update != EMPTY:
            self.doc.apply_update(update)

    def vector(self) -> bytes:
        return self.doc.get_state()

    def vector_clocks(self) -> dict[int, int]:
        """The state vector, whatever the order in which it is written."""
        return state_clocks(self.vector())

    def lacks(self, vector: bytes = b"\x00") -> bytes:
        """What one who has `vector` lacks of this document."""
        return self.doc.get_update(vector)

    def content(self) -> dict[str, Any]:
        return {
            name: {ROOT_TEXT: str(root)} if isinstance(root, Text) else _plain(root.to_py())
            for name, root in self.roots.items()
        }


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return Map({key: _shared(item) for key, item in value.items()})
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Map | Text | Array):
        return _plain(value.to_py())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
