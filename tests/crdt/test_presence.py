"""Who is here: ownership of client IDs, echoes, removals, and coming back."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from crdt.errors import Invalid, TooLarge
from crdt.ids import ConnectionId
from crdt.presence import MAX_ROOM_BYTES, Presence, PresenceChange
from crdt.wire import (
    MAX_STATE_BYTES,
    AwarenessEntry,
    decode_awareness,
    encode_awareness,
    var_bytes,
    var_uint,
)
from tests.helpers.rooms import user

ANA, BEN = 300, 400
Said = tuple[int, int, dict[str, Any] | None]


def hear(presence: Presence, who: str, *said: Said) -> PresenceChange:
    frame = encode_awareness(AwarenessEntry(*entry) for entry in said)
    return presence.receive(ConnectionId(who), user(who), frame)


def told(frame: bytes) -> list[Said]:
    entries = decode_awareness(frame) if frame else []
    return [(entry.client_id, entry.clock, entry.state) for entry in entries]


def state(who: str, **fields: Any) -> dict[str, Any]:
    return {**fields, "user": {"id": who, "name": who.title()}}


@pytest.fixture
def both() -> Presence:
    """Ana and ben are here."""
    presence = Presence()
    hear(presence, "ana", (ANA, 1, {}))
    hear(presence, "ben", (BEN, 1, {}))
    return presence


def test_a_state_is_relayed_to_the_others() -> None:
    change = hear(Presence(), "ana", (ANA, 1, {"hr": 152}))
    assert told(change.relay) == [(ANA, 1, state("ana", hr=152))]
    assert change.reply == b""


def test_the_room_starts_empty() -> None:
    assert Presence().everybody() == b""
    assert len(Presence()) == 0


def test_a_newcomer_is_told_of_everybody(both: Presence) -> None:
    assert told(both.everybody()) == [(ANA, 1, state("ana")), (BEN, 1, state("ben"))]


def test_who_somebody_is_comes_from_the_token() -> None:
    claimed = {"user": {"id": "ben", "name": "Ben", "color": "#f00"}}
    change = hear(Presence(), "ana", (ANA, 1, claimed))
    [(_, _, shown)] = told(change.relay)
    assert shown == {"user": {"id": "ana", "name": "Ana", "color": "#f00"}}


@pytest.mark.parametrize("claimed", ["ben", None, ["ben"], 5])
def test_a_user_field_that_is_no_object_is_replaced(claimed: Any) -> None:
    change = hear(Presence(), "ana", (ANA, 1, {"user": claimed}))
    assert told(change.relay) == [(ANA, 1, state("ana"))]


def test_an_old_clock_changes_nothing(both: Presence) -> None:
    hear(both, "ana", (ANA, 5, {"hr": 150}))
    assert hear(both, "ana", (ANA, 5, {"hr": 1})) == PresenceChange()
    assert hear(both, "ana", (ANA, 4, {"hr": 1})) == PresenceChange()
    assert (ANA, 5, state("ana", hr=150)) in told(both.everybody())


# -- ownership (e, f) -------------------------------------------------------------------------


def test_an_echo_of_somebody_else_is_ignored(both: Presence) -> None:
    assert hear(both, "ben", (ANA, 9, {"hr": 1})) == PresenceChange()
    assert told(both.everybody())[0] == (ANA, 1, state("ana"))


def test_only_a_clients_own_entry_counts_in_a_frame_of_many(both: Presence) -> None:
    change = hear(both, "ben", (ANA, 9, {"hr": 1}), (BEN, 2, {"hr": 2}))
    assert told(change.relay) == [(BEN, 2, state("ben", hr=2))]


def test_nobody_can_announce_an_id_that_a_live_connection_has(both: Presence) -> None:
    assert hear(both, "eve", (ANA, 9, {"hr": 1})) == PresenceChange()
    assert both.leave(ConnectionId("eve")) == b""


def test_a_first_frame_of_many_gives_no_id() -> None:
    presence = Presence()
    assert hear(presence, "ana", (ANA, 1, {}), (BEN, 1, {})) == PresenceChange()
    assert told(hear(presence, "ana", (ANA, 2, {})).relay) == [(ANA, 2, state("ana"))]


def test_a_connection_keeps_to_the_first_id_that_it_announced(both: Presence) -> None:
    assert hear(both, "ana", (777, 1, {"hr": 1})) == PresenceChange()
    assert told(hear(both, "ana", (ANA, 2, {})).relay) == [(ANA, 2, state("ana"))]


def test_who_reconnects_cannot_remove_the_others(both: Presence) -> None:
    assert hear(both, "eve", (ANA, 1, None), (BEN, 1, None)).relay == b""
    assert len(both) == 2


def test_who_is_said_to_be_gone_is_asked_once_for_each_clock_to_show_again(both: Presence) -> None:
    nudges = hear(both, "eve", (ANA, 1, None), (BEN, 1, None)).nudges
    assert [(owner, told(null)) for owner, null in nudges] == [
        ("ana", [(ANA, 1, None)]),
        ("ben", [(BEN, 1, None)]),
    ]
    assert hear(both, "eve", (ANA, 1, None)).nudges == ()
    hear(both, "ana", (ANA, 2, {}))
    assert len(hear(both, "eve", (ANA, 2, None)).nudges) == 1


def test_a_lone_null_for_somebody_else_is_no_claim(both: Presence) -> None:
    assert hear(both, "eve", (ANA, 1, None)).relay == b""
    assert told(hear(both, "eve", (500, 1, {})).relay) == [(500, 1, state("eve"))]
    assert told(both.leave(ConnectionId("eve"))) == [(500, 1, None)]


def test_an_id_whose_owner_is_only_silent_cannot_be_taken_over(both: Presence) -> None:
    hear(both, "ana", (ANA, 1, None))
    assert hear(both, "eve", (ANA, 2, {"hr": 1})) == PresenceChange()
    assert told(hear(both, "ana", (ANA, 3, {})).relay) == [(ANA, 3, state("ana"))]


# -- removal (b) and coming back (c, d) -------------------------------------------------------


def test_leaving_removes_the_state_at_its_own_clock(both: Presence) -> None:
    hear(both, "ana", (ANA, 7, {}))
    assert told(both.leave(ConnectionId("ana"))) == [(ANA, 7, None)]
    assert told(both.everybody()) == [(BEN, 1, state("ben"))]


def test_leaving_twice_tells_nothing_more(both: Presence) -> None:
    both.leave(ConnectionId("ana"))
    assert both.leave(ConnectionId("ana")) == b""


def test_who_announced_nothing_leaves_without_a_word() -> None:
    assert Presence().leave(ConnectionId("ana")) == b""


@pytest.mark.parametrize("clock", [1, 2])
def test_a_client_may_remove_its_own_state(both: Presence, clock: int) -> None:
    assert told(hear(both, "ana", (ANA, clock, None)).relay) == [(ANA, clock, None)]
    assert both.leave(ConnectionId("ana")) == b""


def test_a_removal_at_an_old_clock_is_ignored(both: Presence) -> None:
    hear(both, "ana", (ANA, 5, {}))
    assert hear(both, "ana", (ANA, 4, None)) == PresenceChange()
    assert len(both) == 2


def test_who_comes_back_with_the_clock_of_the_removal_is_nudged(both: Presence) -> None:
    hear(both, "ana", (ANA, 7, {}))
    both.leave(ConnectionId("ana"))
    change = hear(both, "ana-again", (ANA, 7, {}))
    assert change.relay == b""
    assert told(change.reply) == [(ANA, 7, None)]


def test_a_nudged_client_that_raises_its_clock_is_seen_again(both: Presence) -> None:
    both.leave(ConnectionId("ana"))
    hear(both, "ana-again", (ANA, 1, {}))
    assert [clock for _, clock, _ in told(hear(both, "ana-again", (ANA, 2, {})).relay)] == [2]
    assert len(both) == 2


def test_who_comes_back_with_a_higher_clock_needs_no_nudge(both: Presence) -> None:
    both.leave(ConnectionId("ana"))
    change = hear(both, "ana-again", (ANA, 2, {}))
    assert change.relay
    assert change.reply == b""


def test_many_who_left_are_not_remembered_for_ever() -> None:
    presence = Presence()
    for i in range(1_000):
        hear(presence, f"u{i}", (i, 1, {}))
        presence.leave(ConnectionId(f"u{i}"))
    assert len(presence._gone) < 1_000
    assert len(presence) == 0


# -- hostile frames ---------------------------------------------------------------------------


def test_bytes_that_are_no_frame_are_invalid(both: Presence) -> None:
    with pytest.raises(Invalid):
        both.receive(ConnectionId("ana"), user(), b"\x01\x01")


def test_a_state_over_the_limit_is_too_large_and_changes_nothing(both: Presence) -> None:
    with pytest.raises(TooLarge):
        hear(both, "ana", (ANA, 2, {"x": "y" * MAX_STATE_BYTES}))
    assert told(both.everybody())[0] == (ANA, 1, state("ana"))


def raw(state_text: bytes) -> bytes:
    return b"\x01" + var_uint(ANA) + b"\x02" + var_bytes(state_text)


def deep(depth: int) -> bytes:
    return raw(b'{"a":' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize(
    "frames", [[raw(b'{"a":"\\ud800"}')], [deep(depth) for depth in range(300, 1_000)]]
)
def test_a_state_that_cannot_be_relayed_is_refused_and_keeps_nobody_out(
    frames: list[bytes],
) -> None:
    for frame in frames:
        presence = Presence()
        with contextlib.suppress(Invalid):
            presence.receive(ConnectionId("ana"), user("ana"), frame)
        presence.everybody()


def test_an_empty_frame_changes_nothing(both: Presence) -> None:
    assert hear(both, "ana") == PresenceChange()


# -- on other instances -----------------------------------------------------------------------


def frame(*said: Said) -> bytes:
    return encode_awareness(AwarenessEntry(*entry) for entry in said)


def test_who_is_on_another_instance_is_shown_and_goes_with_it(both: Presence) -> None:
    relayed = both.hear("there", frame((500, 1, state("cyd"))))
    assert told(relayed) == [(500, 1, state("cyd"))]
    assert {client_id for client_id, *_ in told(both.everybody())} == {ANA, BEN, 500}
    assert {client_id for client_id, *_ in told(both.everybody(here=True))} == {ANA, BEN}
    assert told(both.forget("there")) == [(500, 1, None)]
    assert both.forget("there") == b""
    assert len(both) == 2


def test_what_is_told_of_another_instance_twice_is_no_news(both: Presence) -> None:
    both.hear("there", frame((500, 2, state("cyd"))))
    assert both.hear("there", frame((500, 2, state("cyd")))) == b""
    assert both.hear("there", frame((500, 1, None))) == b""
    assert told(both.hear("there", frame((500, 2, None)))) == [(500, 2, None)]


def test_who_comes_over_to_us_is_ours_whatever_the_other_instance_says_then(
    both: Presence,
) -> None:
    both.hear("there", frame((500, 1, state("cyd"))))
    change = hear(both, "cyd", (500, 2, {"set": 1}))
    assert told(change.relay) == [(500, 2, state("cyd", set=1))]
    assert both.hear("there", frame((500, 9, None))) == b""
    assert both.forget("there") == b""
    assert len(both) == 3


def test_somebody_elses_id_cannot_be_taken_over_from_another_instance(both: Presence) -> None:
    both.hear("there", frame((500, 1, state("cyd"))))
    assert hear(both, "eve", (500, 2, {})) == PresenceChange()
    assert told(both.everybody())[-1] == (500, 1, state("cyd"))


def test_who_has_come_over_is_not_taken_away_by_where_they_were(both: Presence) -> None:
    both.hear("first", frame((500, 1, state("cyd"))))
    both.hear("second", frame((500, 3, state("cyd"))))
    assert both.hear("first", frame((500, 3, None))) == b""
    assert both.forget("first") == b""
    assert told(both.forget("second")) == [(500, 3, None)]


def test_of_all_that_another_instance_shows_who_is_left_out_is_gone(both: Presence) -> None:
    both.hear("there", frame((500, 1, state("cyd")), (600, 1, state("dee"))))
    relayed = both.hear("there", frame((600, 1, state("dee"))), is_all=True)
    assert told(relayed) == [(500, 1, None)]
    assert told(both.hear("there", frame(), is_all=True)) == [(600, 1, None)]


def test_nobody_there_is_nudged_by_a_client_here(both: Presence) -> None:
    both.hear("there", frame((500, 1, state("cyd"))))
    assert hear(both, "ben", (500, 1, None)).nudges == ()


def test_the_states_of_a_room_have_a_limit_together(both: Presence) -> None:
    big = {"x": "x" * (MAX_STATE_BYTES - 100)}
    count = MAX_ROOM_BYTES // MAX_STATE_BYTES
    for number in range(1, 1 + count):
        hear(both, f"user-{number}", (1_000 + number, 1, big))
    with pytest.raises(TooLarge):
        hear(both, "one-more", (9_998, 1, big))
    count = len(both)
    both.leave(ConnectionId("user-1"))
    hear(both, "late", (9_999, 1, big))
    assert len(both) == count
