"""What a document keeps of a person, and how it leaves the document without a trace.

Deleting something in a Yjs document drops its content, but not its place: the key under which it
stood (a timer's is its user's id) stays in every snapshot, so that whoever writes there late finds
the order. `forget_keys` takes the keys as well: the blocks become gaps of the same length, as Yjs
makes them of what stood within something deleted. The clocks stay taken, so an old replica can
bring nothing of it back, and what somebody still writes there goes nowhere.

Pure: updates in, updates out. `Room.erase` carries it out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from crdt.access import RIGHTS, Member, Right
from crdt.ids import DocKind, UserId
from crdt.replica import View
from crdt.screen import DELETED, EMBED, FORMAT, GAP, STRING, VALUE, Block, blocks
from crdt.wire import var_bytes, var_uint

PLAN = frozenset(
    {
        *("name", "order", "exercise_id", "superset", "rest_s", "target", "sets", "kind"),
        *("weight_kg", "reps", "seconds", "distance_m", "rpe"),
        *("title", "mode", "visibility", "difficulty", "owner_id", "status", "locked"),
        *("created_at", "started_at", "resumed_at", "ended_at", "active_ms"),
        *("template_id", "template_version", "forked_from"),
    }
)
"""The fields of a shared plan. What a person has set there in somebody else's document belongs to
that document; what they have written into any other field is theirs, and goes."""

Place = tuple[str | tuple[int, int], str]
"""Where a value stands: in a root, or in the type that this block made; and its key there."""


class Part(NamedTuple):
    """What a document has of a person."""

    sets: Sequence[str]
    timers: Sequence[str]
    typed: bytes
    """An update that deletes what they have typed, as far as it can be told apart."""
    typed_blocks: int
    named_blocks: int
    """How many deleted blocks still stand under a key of theirs."""


def part_of(kind: DocKind, view: View, state: bytes, user_id: str, ids: Collection[int]) -> Part:
    """What a document has of a person.

    Args:
        state: the whole document, as one update.
        ids: the Yjs client IDs that were theirs.
    """
    listed = list(blocks(state))
    places = _places(listed)
    sets = [
        id_
        for id_, item in view.get("sets", {}).items()
        if isinstance(item, dict) and item.get("user_id") == user_id
    ]
    timers = [key for key in view.get("timers", {}) if key == user_id]
    typed = [block for block in listed if block.client_id in ids and _is_typed(block, places)]
    named = [
        block
        for block in listed
        if (place := places.get((block.client_id, block.clock))) is not None
        and place[0] in ("sets", "timers")
        and (place[1] == user_id or (block.kind == DELETED and block.client_id in ids))
    ]
    return Part(sets, timers, _deleting(typed), len(typed), len(named))


def heir(
    kind: DocKind, view: View, members: Mapping[UserId, Member], owner_id: UserId
) -> Member | None:
    """Who goes on with a document when its owner is erased: of those who may write in it the one
    with the most rights, else somebody who has sets in it; None if it was the owner's alone."""
    roles = list(RIGHTS[kind])
    writers = [
        member
        for member in members.values()
        if member.user_id != owner_id and Right.WRITE in RIGHTS[kind].get(member.role, Right.NONE)
    ]
    if writers:
        return min(writers, key=lambda member: (roles.index(member.role), member.user_id))
    others = sorted(
        {
            str(item["user_id"])
            for item in view.get("sets", {}).values()
            if isinstance(item, dict) and item.get("user_id") not in (None, "", owner_id)
        }
    )
    if not others:
        return None
    known = members.get(UserId(others[0]))
    return Member(UserId(others[0]), "", known.name if known else others[0])


def forget_keys(
    state: bytes, keys: Mapping[str, Collection[str]], client_ids: Collection[int]
) -> bytes:
    """A document's state without the keys of what was deleted.

    Args:
        state: the whole document, as one update.
        keys: root -> keys that are to leave it. One under which something stands is left alone.
        client_ids: whose deleted items leave `sets` and `timers` as well, whatever their keys.
    """
    listed = list(blocks(state))
    places = _places(listed)
    chains: defaultdict[Place, list[Block]] = defaultdict(list)
    for block in listed:
        place = places.get((block.client_id, block.clock))
        if place is not None and isinstance(place[0], str):
            chains[place].append(block)
    doomed: set[int] = set()
    for (root, key), chain in chains.items():
        is_theirs = key in keys.get(str(root), ()) or (
            root in ("sets", "timers") and any(block.client_id in client_ids for block in chain)
        )
        # A block that goes takes along all that refers to it, so a key goes as a whole.
        if is_theirs and all(block.kind == DELETED for block in chain):
            doomed.update(block.start for block in chain)
    if not doomed:
        return state
    parts: list[bytes] = []
    at = 0
    for block in listed:
        if block.start in doomed:
            parts += (state[at : block.start], b"\x00", var_uint(block.length))
            at = block.end
    return b"".join((*parts, state[at:]))


def sets_in(updates: Collection[bytes], user_id: str) -> set[str]:
    """The keys of all sets that say in these updates that they are a person's, be they deleted
    since."""
    listed = [block for update in updates for block in blocks(update)]
    theirs = var_bytes(user_id.encode())
    places = _places(listed)
    said = [
        block.parent
        for update in updates
        if theirs in update
        for block in blocks(update)
        if block.kind == VALUE
        and block.key == "user_id"
        and isinstance(block.parent, tuple)
        and update[block.start : block.end].endswith(theirs)
    ]
    found = (places.get(parent) for parent in said)
    return {place[1] for place in found if place is not None and place[0] == "sets"}


def holds(state: bytes, text: str) -> bool:
    """Whether a text stands in an update by itself, as a value or a key."""
    return var_bytes(text.encode()) in state


def scrubbed(value: Any, user_id: str) -> Any:
    """A JSON value without a person: their id and the name beside it become `erased`."""
    if isinstance(value, dict):
        is_theirs = user_id in (value.get("id"), value.get("user_id"))
        return {
            ERASED if key == user_id else key: ERASED
            if is_theirs and key == "name"
            else scrubbed(item, user_id)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [scrubbed(item, user_id) for item in value]
    return ERASED if value == user_id else value


ERASED = "erased"
"""What stands where somebody's name or id was."""


def _is_typed(block: Block, places: Mapping[tuple[int, int], Place]) -> bool:
    if block.kind in (STRING, EMBED, FORMAT):
        return True
    place = places.get((block.client_id, block.clock))
    return (
        block.kind == VALUE
        and place is not None
        and place[1] not in PLAN
        and (not isinstance(place[0], str) or place[0] == "meta")
    )


def _places(listed: Iterable[Block]) -> dict[tuple[int, int], Place]:
    """Where each block of a map stands. Only the first one under a key says so, the others refer
    to the one before."""
    found: dict[tuple[int, int], Place | None] = {}
    clocks: defaultdict[int, list[int]] = defaultdict(list)
    referring: dict[tuple[int, int], tuple[int, int]] = {}
    for block in listed:
        at = (block.client_id, block.clock)
        clocks[block.client_id].append(block.clock)
        if block.kind != GAP and (neighbour := block.left or block.right) is not None:
            referring[at] = neighbour
        else:
            is_placed = block.parent is not None and block.key is not None
            found[at] = (block.parent, block.key) if is_placed else None  # type: ignore[assignment]
    for theirs in clocks.values():
        theirs.sort()
    for at in referring:
        trail: list[tuple[int, int]] = []
        here = at
        while here not in found:
            found[here] = None  # until it is known; a ring would stand nowhere
            trail.append(here)
            client_id, clock = referring[here]
            index = bisect_right(clocks.get(client_id, []), clock)
            if not index:
                break  # it refers to something that is not here
            here = (client_id, clocks[client_id][index - 1])
        if (place := found.get(here)) is not None:
            found.update(dict.fromkeys(trail, place))
    return {at: place for at, place in found.items() if place is not None}


def _deleting(doomed: Iterable[Block]) -> bytes:
    by_client: defaultdict[int, list[Block]] = defaultdict(list)
    for block in doomed:
        by_client[block.client_id].append(block)
    parts = [b"\x00", var_uint(len(by_client))]
    for client_id, theirs in by_client.items():
        parts += (var_uint(client_id), var_uint(len(theirs)))
        for block in theirs:
            parts += (var_uint(block.clock), var_uint(block.length))
    return b"".join(parts)
