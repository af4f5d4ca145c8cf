"""Token buckets, with a clock that the tests move."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.transport.allowance import Allowance, Rate

NOW = 5_000_000.0
"""Seconds of a machine that has been up for two months: floats are coarse there."""

RATE = Rate(events_per_s=10, events_burst=5, bytes_per_s=1_000, bytes_burst=4_000)


@pytest.fixture
def allowance() -> Allowance:
    return Allowance(RATE, NOW)


def test_a_burst_is_allowed_and_not_one_event_more(allowance: Allowance) -> None:
    assert [allowance.spend(1, NOW) for _ in range(5)] == [0.0] * 5
    assert allowance.spend(1, NOW) == pytest.approx(0.1)


def test_bytes_are_allowed_to_the_last_and_not_one_more(allowance: Allowance) -> None:
    assert allowance.spend(3_999, NOW) == 0.0
    assert allowance.spend(2, NOW) == pytest.approx(0.001)
    assert allowance.spend(1, NOW) == 0.0


def test_what_has_to_wait_has_room_when_it_was_told_to_come(allowance: Allowance) -> None:
    allowance.spend(3_000, NOW)
    wait_s = allowance.spend(2_000, NOW)
    assert wait_s == pytest.approx(1.0)
    assert allowance.spend(2_000, NOW + wait_s * 0.99) > 0.0
    assert allowance.spend(2_000, NOW + wait_s + 0.001) == 0.0


def test_what_is_refused_costs_nothing(allowance: Allowance) -> None:
    allowance.spend(3_000, NOW)
    for _ in range(10):
        assert allowance.spend(2_000, NOW) > 0.0
    assert [allowance.spend(1, NOW) for _ in range(4)] == [0.0] * 4


def test_a_pause_earns_a_burst_and_no_more(allowance: Allowance) -> None:
    later = NOW + 3_600
    assert [allowance.spend(1, later) for _ in range(5)] == [0.0] * 5
    assert allowance.spend(1, later) > 0.0


def test_it_is_known_when_it_is_whole_again(allowance: Allowance) -> None:
    assert allowance.whole_in_s(NOW) == 0.0
    allowance.spend(1_000, NOW)
    assert allowance.whole_in_s(NOW) == pytest.approx(1.0)
    allowance.charge(19)
    assert allowance.whole_in_s(NOW + 1) == pytest.approx(1.0)
    assert allowance.whole_in_s(NOW + 3) == 0.0


def test_a_message_larger_than_the_burst_goes_out_of_a_full_bucket(allowance: Allowance) -> None:
    assert allowance.spend(6_000, NOW) == 0.0
    assert allowance.spend(1, NOW) == pytest.approx(2.001)
    assert allowance.spend(6_000, NOW + 5.9) > 0.0
    assert allowance.spend(6_000, NOW + 6.001) == 0.0


def test_what_is_shared_is_taken_by_all_who_share_it() -> None:
    shared = Allowance(RATE, NOW)
    one, other = Allowance(RATE, NOW), Allowance(RATE, NOW)
    assert [one.spend(1, NOW, shared) for _ in range(3)] == [0.0] * 3
    assert [other.spend(1, NOW, shared) for _ in range(2)] == [0.0] * 2
    assert one.spend(1, NOW, shared) > 0.0
    assert other.spend(1, NOW, shared) > 0.0


def test_who_is_stopped_by_the_others_keeps_what_is_their_own() -> None:
    shared = Allowance(Rate(10, 1, 1_000, 4_000), NOW)
    own = Allowance(RATE, NOW)
    own.spend(1, NOW, shared)
    for _ in range(10):
        assert own.spend(1, NOW, shared) > 0.0
    assert [own.spend(1, NOW) for _ in range(4)] == [0.0] * 4


def test_a_clock_that_stands_still_or_goes_back_earns_nothing(allowance: Allowance) -> None:
    for _ in range(5):
        allowance.spend(1, NOW)
    assert allowance.spend(1, NOW - 3_600) == pytest.approx(0.1)
    assert allowance.spend(1, NOW) == pytest.approx(0.1)


def test_those_who_are_refused_are_told_one_time_after_the_other(allowance: Allowance) -> None:
    """An offline queue sent at once: told the same time, all but one would be refused again."""
    while not (wait_s := allowance.spend(1, NOW)):
        pass
    told = [allowance.retry_after_s(wait_s, 1, NOW) for _ in range(4)]
    assert told == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for after_s in told:
        assert after_s is not None
        assert allowance.spend(1, NOW + after_s + 0.001) == 0.0


def test_who_takes_no_heed_is_told_nothing_more(allowance: Allowance) -> None:
    while not (wait_s := allowance.spend(1, NOW)):
        pass
    told = [allowance.retry_after_s(wait_s, 1, NOW) for _ in range(50)]
    refused = [after_s for after_s in told if after_s is not None]
    assert told == refused + [None] * (50 - len(refused))
    # As many as a burst, and all of them before it would be full again.
    assert len(refused) == pytest.approx(RATE.events_burst, abs=1)
    assert max(refused) <= RATE.patience_s + 0.2
    assert allowance.retry_after_s(wait_s, 1, NOW + 1.0) is not None


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, 6_000)),
        max_size=60,
    )
)
def test_nobody_gets_more_than_the_burst_and_what_was_earned_since(
    steps: list[tuple[float, int]],
) -> None:
    allowance = Allowance(RATE, NOW)
    now, taken = NOW, [(NOW, 0, 0)]
    for passed_s, size in steps:
        now += passed_s
        if not allowance.spend(size, now):
            taken.append((now, 1, size))
    assert all(a[0] <= b[0] for a, b in pairwise(taken))
    for start in range(len(taken)):
        events = sum(entry[1] for entry in taken[start:])
        size = sum(entry[2] for entry in taken[start:])
        since_s = taken[-1][0] - taken[start][0]
        assert events <= RATE.events_burst + since_s * RATE.events_per_s + 1e-6
        # The last one may be larger than the burst, and then leaves a debt.
        largest = max((entry[2] for entry in taken), default=0)
        bound = RATE.bytes_burst + since_s * RATE.bytes_per_s
        assert size <= bound + max(0, largest - RATE.bytes_burst) + 1e-3
