"""What comes in at a document, in order: its kind, and a row of (who, update) as bytes.

All is made the same each time, so that an input means the same each time.
"""

from __future__ import annotations

from dataclasses import dataclass

from pycrdt import Text

from crdt.ids import DocKind, DocName
from crdt.wire import Reader, var_bytes, var_uint
from tests.helpers.replicas import Peer
from tests.helpers.rooms import new_workout

KINDS = (DocKind.WORKOUT, DocKind.TEMPLATE)
ROLES = {
    DocKind.WORKOUT: {
        "ana": "owner",
        "coa": "coach",
        "par": "participant",
        "spe": "spectator",
        "eve": "",
    },
    DocKind.TEMPLATE: {"ana": "owner", "edi": "editor", "vie": "viewer", "eve": ""},
}
"""Who is what in the room; an empty role is a stranger's."""

USERS = {kind: tuple(roles) for kind, roles in ROLES.items()}
LAPTOP_IDS = {user_id: 2_001 + n for n, user_id in enumerate(("ana", "coa", "par", "spe", "edi"))}
"""The Yjs client IDs with which members have written already."""

SERVER_ID = 1_000

MAX_STEPS = 8
TOGETHER, ASKS = 0x80, 0x40
"""Set in a step's first byte: the next one comes before this one is stored; the bytes are a state
vector, and the room is asked for what it lacks."""


@dataclass
class Step:
    """One thing that comes in. `who` counts the users of the story's kind of document."""

    who: int
    update: bytes
    is_together: bool = False
    asks: bool = False


@dataclass
class Story:
    """What comes in, in order."""

    kind: DocKind
    steps: list[Step]

    def encode(self) -> bytes:
        parts = [bytes((KINDS.index(self.kind),))]
        for step in self.steps:
            flags = (TOGETHER if step.is_together else 0) | (ASKS if step.asks else 0)
            parts += (bytes((step.who % 16 | flags,)), var_bytes(step.update))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Story:
        """Read any bytes at all: what is cut short is an update that is cut short."""
        kind = KINDS[data[0] % 2] if data else DocKind.WORKOUT
        steps = []
        rest = data[1:]
        while rest and len(steps) < MAX_STEPS:
            head, reader = rest[0], Reader(rest[1:])
            try:
                update = reader.var_bytes()
                rest = rest[1 + len(var_uint(len(update))) + len(update) :]
            except ValueError:
                update, rest = rest[1:], b""
            steps.append(Step(head % 16, update, bool(head & TOGETHER), bool(head & ASKS)))
        return cls(kind, steps)

    def user(self, step: Step) -> str:
        return USERS[self.kind][step.who % len(USERS[self.kind])]


# -- the document that is there -------------------------------------------------------------------


def _workout() -> bytes:
    """Ana's and par's, with an exercise and a set of each. Made the same each time, so that an
    input means the same each time."""
    server = Peer(client_id=SERVER_ID)
    meta = {write.path[1]: write.value for write in new_workout("ana", mode="group")}
    base = server.change(lambda roots: roots["meta"].update(meta))
    for user_id in ("ana", "par"):
        peer = Peer(state=base, client_id=LAPTOP_IDS[user_id])
        peer.exercise(f"e-{user_id}", target=[{"reps": 5}])
        peer.set(f"s-{user_id}", user_id=user_id, exercise=f"e-{user_id}")
        peer.patch("sets", f"s-{user_id}", note="low bar")
        base = peer.lacks()
    return base


def _template() -> bytes:
    edi = Peer(DocKind.TEMPLATE, client_id=LAPTOP_IDS["edi"])
    for key, value in {"title": "Push", "owner_id": "ana", "visibility": "private"}.items():
        edi.put("meta", key, value)
    edi.exercise("e-edi", sets={"a": {"reps": 5}})
    edi.change(lambda roots: roots["exercises"]["e-edi"].__setitem__("note", Text("slow")))
    edi.change(lambda roots: roots["notes"].insert(0, "Week 1"))
    return edi.lacks()


BASES = {DocKind.WORKOUT: _workout(), DocKind.TEMPLATE: _template()}
NAMES = {kind: DocName(kind, "w") for kind in KINDS}
