"""The bytes that the server reads and writes itself."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crdt.errors import Invalid, TooLarge
from crdt.wire import (
    MAX_AWARENESS_ENTRIES,
    MAX_STATE_BYTES,
    AwarenessEntry,
    Reader,
    decode_awareness,
    deleted_ends,
    encode_awareness,
    sole_writer,
    state_clocks,
    var_bytes,
    var_uint,
)
from tests.helpers.replicas import Peer

UINTS = st.integers(0, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
STATES = st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3)


@given(UINTS)
def test_a_number_comes_back_as_it_went(value: int) -> None:
    assert Reader(var_uint(value)).var_uint() == value


@pytest.mark.parametrize(
    ("value", "data"), [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_numbers_are_written_low_bits_first(value: int, data: bytes) -> None:
    assert var_uint(value) == data


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 8, b"\xff" * 9 + b"\x01"])
def test_a_number_that_does_not_end_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Reader(data).var_uint()


@given(st.binary(max_size=300))
def test_bytes_come_back_as_they_went(data: bytes) -> None:
    assert Reader(var_bytes(data)).var_bytes() == data


def test_bytes_shorter_than_they_say_are_refused() -> None:
    with pytest.raises(ValueError):
        Reader(b"\x05abc").var_bytes()


def test_a_state_vector_of_a_document_is_read() -> None:
    ana = Peer()
    ana.put("meta", "title", "Leg day")
    assert state_clocks(ana.vector()) == {ana.doc.client_id: 1}
    assert state_clocks(b"\x00") == {}


def test_the_first_clock_of_one_writers_update_is_read() -> None:
    ana = Peer()
    ana.put("meta", "title", "Leg day")
    assert sole_writer(ana.put("meta", "title", "Pull day")) == (ana.doc.client_id, 1)


def test_an_update_of_two_writers_has_no_sole_writer() -> None:
    ana, ben = Peer(), Peer()
    ana.apply(ben.set("b"))
    ana.set("a")
    assert sole_writer(ana.lacks()) is None
    assert sole_writer(b"\x00\x00") is None


def test_the_ends_of_deleted_ranges_are_read() -> None:
    ana = Peer()
    ana.put("meta", "title", "Leg day")
    deletion = ana.remove("meta", "title")
    assert list(deleted_ends(deletion[1:])) == [(ana.doc.client_id, 1)]


@given(st.lists(st.builds(AwarenessEntry, UINTS, UINTS, STATES), max_size=4))
@example([AwarenessEntry(1, 1, {"name": "Žofie 🏋️"})])
def test_awareness_comes_back_as_it_went(entries: list[AwarenessEntry]) -> None:
    assert decode_awareness(encode_awareness(entries)) == entries


def test_awareness_is_written_as_stock_clients_write_it() -> None:
    entries = [AwarenessEntry(300, 1, {"hr": 152})]
    assert encode_awareness(entries).hex() == "01ac02010a" + b'{"hr":152}'.hex()
    assert encode_awareness([AwarenessEntry(300, 2, None)]).hex() == "01ac0202046e756c6c"


def test_letters_beyond_ascii_take_no_more_bytes_than_in_a_stock_clients_update() -> None:
    state = {"about": "žluť 🏋️"}
    assert encode_awareness([AwarenessEntry(1, 1, state)])[4:].decode() == '{"about":"žluť 🏋️"}'


def test_the_length_of_a_state_counts_bytes() -> None:
    update = encode_awareness([AwarenessEntry(1, 1, {"e": "💪"})])
    assert update[3] == len(update[4:])
    assert decode_awareness(update) == [AwarenessEntry(1, 1, {"e": "💪"})]


def test_a_state_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge) as refusal:
        decode_awareness(encode_awareness([AwarenessEntry(1, 1, {"x": "y" * MAX_STATE_BYTES})]))
    assert refusal.value.details["limit_bytes"] == MAX_STATE_BYTES


def test_more_states_than_a_room_can_hold_are_invalid() -> None:
    with pytest.raises(Invalid):
        decode_awareness(var_uint(MAX_AWARENESS_ENTRIES + 1))


@pytest.mark.parametrize(
    "state", [b"5", b'"x"', b"[]", b"{", b"\xff", b"1" * 5_000, b'{"a":' * 2_000]
)
def test_a_state_that_is_no_object_is_invalid(state: bytes) -> None:
    with pytest.raises(Invalid):
        decode_awareness(b"\x01\x01\x01" + var_bytes(state))


@pytest.mark.parametrize("state", [b'{"hr":NaN}', b'{"hr":-Infinity}', b'{"hr":1e999}'])
def test_a_number_that_json_does_not_know_is_invalid(state: bytes) -> None:
    # Relayed, it would make every browser in the room fail to read the frame.
    with pytest.raises(Invalid):
        decode_awareness(b"\x01\x01\x01" + var_bytes(state))


@pytest.mark.parametrize(
    "head", [b"\x01" + var_uint(2**53) + b"\x01", b"\x01\x01" + var_uint(2**53)]
)
def test_a_number_that_javascript_cannot_read_is_invalid(head: bytes) -> None:
    with pytest.raises(Invalid):
        decode_awareness(head + var_bytes(b"{}"))


def test_half_a_character_is_no_reason_to_fail_when_the_state_is_relayed() -> None:
    try:
        entries = decode_awareness(b"\x01\x01\x01" + var_bytes(b'{"a":"\\ud800"}'))
    except Invalid:
        return
    assert encode_awareness(entries)


def nested(depth: int) -> bytes:
    return b"\x01\x01\x01" + var_bytes(b'{"a":' + b"[" * depth + b"]" * depth + b"}")


@given(st.binary(max_size=60) | st.integers(300, 1_000).map(nested))
def test_what_was_read_can_be_written_again_and_all_else_is_refused(data: bytes) -> None:
    try:
        entries = decode_awareness(data)
    except (Invalid, TooLarge):
        return
    assert decode_awareness(encode_awareness(entries)) == entries


@given(st.binary(max_size=60))
def test_hostile_bytes_raise_nothing_but_value_errors(data: bytes) -> None:
    for read in (state_clocks, lambda deletes: list(deleted_ends(deletes))):
        try:
            read(data)
        except ValueError:
            continue
    sole_writer(data)
