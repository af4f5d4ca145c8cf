"""Edits of a document, as a client makes them: within the schema, and against it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from pycrdt import Array, Doc, Map, Text, XmlElement, XmlFragment, XmlText

from crdt.ids import DocKind
from crdt.replica import EMPTY_UPDATE
from crdt.screen import screen_update
from tests.fuzz.splices import CLIENT_IDS
from tests.fuzz.stories import BASES, LAPTOP_IDS, Story
from tests.fuzz.target import ODD_TEXTS, odd_value, pick
from tests.helpers.replicas import Peer

Edit = Callable[[Peer, str, Random], bytes]
"""(the client's document, who, chance) -> the update."""


def _text(random: Random) -> str:
    return random.choice(("Squat", "é🏋️", "a", "low bar", "x" * 200))


def _item_id(random: Random, user_id: str) -> str:
    return random.choice((f"s-{user_id}", f"e-{user_id}", "n1", "n2", "0"))


def put_set(peer: Peer, user_id: str, random: Random) -> bytes:
    fields = {"user_id": user_id, "exercise": f"e-{user_id}", "reps": random.randrange(20)}
    return peer.set(_item_id(random, user_id), **fields)


def patch_set(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.patch("sets", f"s-{user_id}", note=_text(random), weight_kg=random.choice((0, 2.5)))


def remove_set(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.remove("sets", f"s-{user_id}")


def put_exercise(peer: Peer, user_id: str, random: Random) -> bytes:
    fields: dict[str, Any] = {"name": _text(random), "order": random.choice(("a0", "a1", "Zz"))}
    if peer.kind is DocKind.TEMPLATE:
        del fields["name"]
        fields |= {"sets": {"a": {"order": "a0", "reps": 5.0}}}
    return peer.exercise(_item_id(random, user_id), **fields)


def patch_exercise(peer: Peer, user_id: str, random: Random) -> bytes:
    exercise_id = random.choice(list(peer.roots["exercises"].keys()))
    return peer.patch("exercises", exercise_id, name=_text(random), rest_s=90.0)


def remove_exercise(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.remove("exercises", random.choice(list(peer.roots["exercises"].keys())))


def put_title(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.put("meta", "title", _text(random))


def put_visibility(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.put("meta", "visibility", random.choice(("private", "friends", "public")))


def type_notes(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.change(lambda roots: roots["notes"].insert(0, _text(random)))


def type_note(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.change(lambda roots: roots["exercises"]["e-edi"]["note"].insert(0, _text(random)))


def put_template_set(peer: Peer, user_id: str, random: Random) -> bytes:
    return peer.change(
        lambda roots: roots["exercises"]["e-edi"]["sets"].__setitem__(
            _item_id(random, user_id), Map({"reps": 8.0, "kind": "normal"})
        )
    )


def answer_a_sync(peer: Peer, user_id: str, random: Random) -> bytes:
    """All that the client has, or what it has since something."""
    return peer.lacks(random.choice((b"\x00", peer.vector())))


HONEST: dict[DocKind, tuple[Edit, ...]] = {
    DocKind.WORKOUT: (
        *(put_set, patch_set, remove_set, put_exercise, patch_exercise, remove_exercise),
        *(put_title, put_visibility, answer_a_sync),
    ),
    DocKind.TEMPLATE: (
        *(put_exercise, patch_exercise, remove_exercise, put_template_set, type_note),
        *(type_notes, put_title, put_visibility, answer_a_sync),
    ),
}


# -- against the schema ---------------------------------------------------------------------------


def odd_shared(random: Random, depth: int = 0) -> Any:
    """A value for a document that its schema does not have: plain, or shared.

    None is a document: native code never frees one that has held another. Splices write them.
    """
    how = random.randrange(8 if depth < 3 else 3)
    if how <= 1:
        value = odd_value(random)
        # What the native code cannot hold would end in the editing, not in the update.
        return value if fits(value) else "x"
    if how == 2:
        return random.choice((b"", b"\x00\xff" * 10, float("nan"), 2**53, -(2**63)))
    if how <= 4:
        return Map({key: odd_shared(random, depth + 1) for key in _odd_keys(random)})
    if how == 5:
        return Array([odd_shared(random, depth + 1) for _ in range(random.randrange(3))])
    if how == 6:
        return Text(random.choice(("", "é🏋️", "x" * 5_000)))
    return random.choice((XmlFragment, XmlText, lambda: XmlElement("p")))()


def fits(value: Any, depth: int = 0) -> bool:
    """Whether pycrdt can write a JSON value."""
    if isinstance(value, dict | list):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < 150 and all(fits(item, depth + 1) for item in items)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _odd_keys(random: Random) -> list[str]:
    known = ("user_id", "reps", "weight_kg", "order", "note", "sets", "target", "name", "kind")
    return [
        random.choice((*known, *(text for text in ODD_TEXTS if "\ud800" not in text)))
        for _ in range(random.randrange(3))
    ]


def odd_put(peer: Peer, user_id: str, random: Random) -> bytes:
    root = random.choice([name for name, type_ in peer.roots.items() if isinstance(type_, Map)])
    key = random.choice(
        (_item_id(random, user_id), "title", "status", "owner_id", "mode", *ODD_TEXTS[:8])
    )
    return peer.change(lambda roots: roots[root].__setitem__(key, odd_shared(random)))


def odd_patch(peer: Peer, user_id: str, random: Random) -> bytes:
    """One field of an item, be it one's own or not, that does not fit."""
    root = random.choice([name for name in ("sets", "exercises") if name in peer.roots])
    item_id = random.choice(list(peer.roots[root].keys()))
    key = random.choice(
        ("user_id", "reps", "weight_kg", "order", "target", "sets", "note", "name", "x")
    )
    return peer.change(lambda roots: roots[root][item_id].__setitem__(key, odd_shared(random)))


def forge(peer: Peer, user_id: str, random: Random) -> bytes:
    """Something of somebody else's, or of the server's."""
    meta: Any = peer.roots["meta"]
    how = random.randrange(6)
    if how == 0:
        return peer.put("meta", "status", random.choice(("completed", "active", 1)))
    if how == 1:
        return peer.put("meta", random.choice(("owner_id", "created_at", "locked")), user_id)
    if how == 2:
        return peer.remove("meta", random.choice(list(meta.keys())))
    if how == 3 and "timers" in peer.roots:
        return peer.put("timers", random.choice((user_id, "room")), {"kind": "rest"})
    if "sets" not in peer.roots:
        return peer.put("meta", "owner_id", user_id)
    if how == 4:
        return peer.set("s-forged", user_id=random.choice(("ana", "par", "eve", "")))
    others = [key for key in peer.roots["sets"] if key != f"s-{user_id}"]
    return peer.remove("sets", random.choice(others))


def other_roots(peer: Peer, user_id: str, random: Random) -> bytes:
    """Roots of another type, or that the schema does not have."""
    doc: Doc[Any] = Doc(client_id=peer.doc.client_id)
    name = random.choice((*peer.roots, "extras", "", "__proto__"))
    type_: Any = random.choice((Array, Text, Map, XmlFragment))
    root = doc.get(name, type=type_)
    doc.apply_update(peer.lacks())
    before = doc.get_state()
    if type_ is Map:
        root[random.choice(("a", "notes", ""))] = odd_shared(random)
    elif type_ is Array:
        root.append(odd_shared(random))
    elif type_ is XmlFragment:
        root.children.append(XmlElement("p", {"a": "b"}))
    else:
        root.insert(0, "x")
        if random.randrange(2):
            root.insert_embed(0, odd_shared(random), {"bold": True})
    update = doc.get_update(before)
    peer.apply(update)
    return update


HOSTILE: tuple[Edit, ...] = (odd_put, odd_put, odd_patch, odd_patch, forge, forge, other_roots)


def edited(story: Story, user_id: str, edit: Edit, random: Random) -> bytes:
    """The update of an edit by somebody who has seen some of the story."""
    own = LAPTOP_IDS.get(user_id, 3_001)
    # Mostly a laptop that has been here before; else one more client of the same user.
    client_id = pick(random, (4, own), (1, random.choice(CLIENT_IDS)))
    try:
        peer = Peer(story.kind, BASES[story.kind], client_id=client_id % 2**53)
        for step in story.steps:
            if not step.asks and (story.user(step) == user_id or random.randrange(2)):
                # Without it, native code may end the fuzzer instead of the server.
                screen_update(step.update, [name.encode() for name in peer.roots])
                peer.apply(step.update)
        return edit(peer, user_id, random)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        # It cannot be done to what there is now, or native code would not have it.
        return EMPTY_UPDATE
