"""What was carried out twice is taken back where it comes second, whatever was done since."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import Unsynced
from crdt.ids import DocKind
from crdt.repeated import take_back
from crdt.replica import Replica, View
from tests.helpers.replicas import Peer, exercise_fields

SETS = ("a", "b", "c")
Edit = Callable[[Peer], bytes]


def put(key: str, reps: int) -> Edit:
    return lambda peer: peer.set(key, reps=reps)


def patch(key: str, field: str, value: int) -> Edit:
    def edit(peer: Peer) -> bytes:
        if key not in peer.roots["sets"]:
            return peer.set(key, **{field: value})
        return peer.patch("sets", key, **{field: value})

    return edit


def remove(key: str) -> Edit:
    return lambda peer: peer.change(lambda roots: roots["sets"].pop(key, None))


def edits(keys: Sequence[str]) -> st.SearchStrategy[Edit]:
    key, value = st.sampled_from(keys), st.integers(1, 9)
    return st.one_of(
        st.builds(put, key, value),
        st.builds(patch, key, st.sampled_from(("reps", "weight_kg", "rpe")), value),
        st.builds(remove, key),
    )


def shown(*updates: bytes, kind: DocKind = DocKind.WORKOUT) -> View:
    replica = Replica(kind)
    replica.load(*updates)
    return replica.read()


def made(edits: Sequence[Edit], base: bytes) -> list[bytes]:
    peer = Peer(state=base)
    return [edit(peer) for edit in edits]


@given(
    before=st.lists(edits(SETS), max_size=5),
    here=st.lists(edits(SETS), min_size=1, max_size=5),
    there=st.lists(edits(SETS), max_size=5),
)
def test_all_of_it_leaves_nothing_behind(
    before: list[Edit], here: list[Edit], there: list[Edit]
) -> None:
    author = Peer()
    base = [edit(author) for edit in before]
    start = author.doc.get_update()
    shared = [*base, *made(there, start)]
    taken = take_back(DocKind.WORKOUT, shared, [(update, True) for update in made(here, start)])
    assert shown(*shared, taken.update) == shown(*shared)


@given(
    repeated=st.lists(edits(("a", "b")), min_size=1, max_size=4),
    kept=st.lists(edits(("x", "y")), min_size=1, max_size=4),
    there=st.lists(edits(("a", "b", "x", "y")), max_size=5),
    data=st.data(),
)
def test_what_was_not_done_twice_stays(
    repeated: list[Edit], kept: list[Edit], there: list[Edit], data: st.DataObject
) -> None:
    both = [(edit, True) for edit in repeated] + [(edit, False) for edit in kept]
    mixed = data.draw(st.permutations(both))
    updates = made([edit for edit, _ in mixed], Peer().doc.get_update())
    shared = made(there, Peer().doc.get_update())
    changes = [(update, twice) for update, (_, twice) in zip(updates, mixed, strict=True)]
    sets = shown(*shared, take_back(DocKind.WORKOUT, shared, changes).update)["sets"]
    alone, merged = shown(*shared)["sets"], shown(*shared, *updates)["sets"]
    for key in ("a", "b"):
        assert sets.get(key) == alone.get(key)
    for key in ("x", "y"):
        assert sets.get(key) == merged.get(key)


def test_what_is_built_on_it_later_finds_its_place() -> None:
    here = Peer()
    first, second = here.set("a", reps=5), here.set("b", reps=6)
    taken = take_back(DocKind.WORKOUT, [], [(first, True)])
    assert set(shown(taken.update, second)["sets"]) == {"b"}


def test_a_note_and_a_plan_are_given_back() -> None:
    there = Peer(DocKind.TEMPLATE)
    plan = there.put("exercises", "squat", exercise_fields(target=None, sets={"1": {"reps": 5}}))
    noted = there.change(lambda roots: roots["notes"].insert(0, "slowly"))
    here = Peer(DocKind.TEMPLATE, there.doc.get_update())
    undone = [
        here.change(lambda roots: roots["notes"].insert(0, "very ")),
        here.remove("exercises", "squat"),
    ]
    taken = take_back(DocKind.TEMPLATE, [plan, noted], [(update, True) for update in undone])
    before, after = (
        shown(plan, noted, *more, kind=DocKind.TEMPLATE) for more in ([], [taken.update])
    )
    assert after == before


def test_changes_that_build_on_what_is_missing_are_refused() -> None:
    here = Peer()
    here.set("a")
    later = here.patch("sets", "a", reps=9)
    with pytest.raises(Unsynced):
        take_back(DocKind.WORKOUT, [], [(later, True)])
