"""Lists that several people rearrange at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import Invalid, NotFound
from crdt.order import append_key, append_keys, in_order, place

Lists = dict[str, dict[str, str]]


def listed(**keys: str) -> Lists:
    return {id_: {"order": key} for id_, key in keys.items()}


def placed(items: Lists, moved: str, **where: str) -> list[str]:
    """The order of ids after a move."""
    fresh = place(items, moved, **where)
    return in_order({**items, **listed(**fresh)})


KEYS = st.one_of(
    st.sampled_from(["a0", "a1", "a1", "Zz", "a0V"]), st.text(max_size=4), st.just("a00")
)
LISTS = st.dictionaries(st.sampled_from("abcdef"), KEYS.map(lambda key: {"order": key}), min_size=2)


def test_an_item_appended_to_nothing_gets_an_index() -> None:
    assert in_order(listed(a=append_key({}))) == ["a"]


@given(LISTS)
def test_an_appended_item_is_the_last(items: Lists) -> None:
    assert in_order({**items, "~": {"order": append_key(items)}})[-1] == "~"


def test_two_who_append_at_once_get_one_index_and_the_ids_decide() -> None:
    items = listed(a="a0")
    key = append_key(items)
    assert in_order({**items, **listed(c=key, b=key)}) == ["a", "b", "c"]


def test_the_indices_of_a_new_list_are_in_order() -> None:
    keys = append_keys(40)
    assert keys == sorted(set(keys))
    assert append_keys(0) == []


def test_an_item_without_an_index_comes_first() -> None:
    assert in_order({"b": {"order": "a0"}, "a": {}, "c": {"order": 7}}) == ["a", "c", "b"]


def test_a_move_between_two_indices_touches_one_item_only() -> None:
    assert list(place(listed(a="a0", b="a1", c="a2"), "c", after="a")) == ["c"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"before": "a"}, ["c", "a", "b"]),
        ({"after": "a"}, ["a", "c", "b"]),
        ({"before": "b"}, ["a", "c", "b"]),
        ({"after": "b"}, ["a", "b", "c"]),
        ({}, ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("keys", [("a0", "a1", "a2"), ("a0", "a0", "a0"), ("", "a0", "?")])
def test_an_item_goes_where_it_is_asked_to(
    keys: tuple[str, ...], where: dict[str, str], expected: list[str]
) -> None:
    items = listed(**dict(zip("abc", keys, strict=True)))
    assert placed(items, "c", **where) == expected


@given(LISTS, st.data())
def test_place_puts_any_item_beside_any_other(items: Lists, data: st.DataObject) -> None:
    moved = data.draw(st.sampled_from([*items, "new"]))
    neighbour = data.draw(st.sampled_from([id_ for id_ in items if id_ != moved]))
    side = data.draw(st.sampled_from(["before", "after"]))
    order = placed(items, moved, **{side: neighbour})
    assert order.index(moved) - order.index(neighbour) == (-1 if side == "before" else 1)


@given(LISTS, st.data())
def test_a_move_leaves_the_order_of_the_others_alone(items: Lists, data: st.DataObject) -> None:
    moved = data.draw(st.sampled_from(list(items)))
    neighbour = data.draw(st.sampled_from([id_ for id_ in items if id_ != moved]))
    others = [id_ for id_ in in_order(items) if id_ != moved]
    assert [id_ for id_ in placed(items, moved, after=neighbour) if id_ != moved] == others


@given(LISTS, st.data())
def test_concurrent_moves_neither_lose_nor_double_an_item(
    items: Lists, data: st.DataObject
) -> None:
    merged = dict(items)
    for _ in range(2):  # both see the list as it was; the later write of an index wins
        moved, neighbour = data.draw(st.permutations(list(items)))[:2]
        merged.update(listed(**place(items, moved, before=neighbour)))
    order = in_order(merged)
    assert sorted(order) == sorted(items)
    again = data.draw(st.sampled_from(order[1:]))
    assert placed(merged, again, before=order[0])[0] == again


def test_a_new_item_can_be_placed_in_an_empty_list() -> None:
    assert placed({}, "a") == ["a"]


def test_two_neighbours_are_refused() -> None:
    with pytest.raises(Invalid) as refusal:
        place(listed(a="a0", b="a1", c="a2"), "c", before="a", after="b")
    assert refusal.value.details[0]["path"] == "before"


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_item_cannot_stand_next_to_itself(side: str) -> None:
    with pytest.raises(Invalid) as refusal:
        place(listed(a="a0"), "a", **{side: "a"})
    assert refusal.value.details[0]["path"] == side


def test_a_neighbour_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound):
        place(listed(a="a0"), "a", before="z")
