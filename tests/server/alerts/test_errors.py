"""Errors in groups: what belongs together, how many there were, and that they stay few."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.alerts.errors import (
    BUDGET,
    MAX_GROUPS,
    MAX_KEY_CHARS,
    OTHERS,
    WINDOW_S,
    ErrorCounts,
    ErrorHandler,
    normalised,
    severity_of,
)


@pytest.fixture
def handler() -> Iterator[ErrorHandler]:
    """Hears what the logger of these tests says."""
    made, logger = ErrorHandler(), logging.getLogger("tests.errors")
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("workout:leg-day is damaged at position 12", "workout:w is damaged at position 7"),
        ("no user 'ana'", 'no user "ben"'),
        ("GET https://a.example/x?token=y failed", "GET http://b.example failed"),
        ("set 6f9619ff-8b86-d011-b42d-00c04fc964ff", "set 5a4b3c2d-8b86-d011-b42d-00c04fc964ff"),
        ("mail from ana1@x.example", "mail from ben2@y.example"),
        ("10.0.0.1:6379 is away", "192.168.0.17:6380  is away"),
    ],
)
def test_texts_that_differ_in_ids_and_numbers_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_texts_that_say_something_else_stay_apart() -> None:
    assert normalised("the store cannot be read") != normalised("the store cannot be written")


@given(st.text(max_size=2_000))
def test_a_text_is_normalised_once_for_all(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert len(once) <= MAX_KEY_CHARS
    assert not any(char.isdecimal() for char in once)


def test_errors_are_grouped_by_logger_message_event_and_kind(handler: ErrorHandler) -> None:
    log = logging.getLogger("tests.errors")
    for number in range(3):
        try:
            raise KeyError(f"set-{number}")
        except KeyError:
            log.exception("handler failed", extra={"intent": "workout:start", "connection": number})
    log.error("append failed for %s", "workout:w")
    log.warning("this is none")
    *handled, append = handler.take()
    assert set(handled) == {"tests.errors: handler failed workout:start KeyError"}
    assert append == "tests.errors: append failed for %s"
    assert handler.take() == []


def test_what_tells_of_errors_makes_none_of_its_own(handler: ErrorHandler) -> None:
    ours = logging.getLogger("server.alerts.webhook")
    ours.addHandler(handler)
    ours.error("an alert cannot be sent")
    ours.removeHandler(handler)
    assert handler.take() == []


def test_a_group_is_counted_over_the_last_minute() -> None:
    counts = ErrorCounts()
    for second in range(30):
        counts.add("a", second)
    assert counts.groups(30)["a"] == 30
    assert 0 < counts.groups(WINDOW_S + 15)["a"] < 30
    assert counts.groups(WINDOW_S + 40) == {}
    assert counts.total.total() == 30


@pytest.mark.parametrize(
    ("count", "severity"),
    [(0, None), (9, None), (10, "info"), (24, "info"), (25, "warning"), (50, "critical")],
)
def test_how_bad_it_is_goes_by_how_many_there_are(count: int, severity: str | None) -> None:
    assert severity_of(count) == severity


def test_each_error_counts_under_what_its_group_had_come_to() -> None:
    counts = ErrorCounts()
    for _ in range(60):
        counts.add("a", 0)
    assert counts.total == {"none": 9, "info": 15, "warning": 25, "critical": 11}


def test_the_budget_of_a_minute_comes_back() -> None:
    counts = ErrorCounts()
    for number in range(BUDGET + 5):
        assert counts.budget_left(0) == max(0, BUDGET - number)
        counts.add(f"group {number}", 0)
    assert counts.budget_left(2 * WINDOW_S) == BUDGET


def test_there_are_only_so_many_groups() -> None:
    counts = ErrorCounts()
    for number in range(3 * MAX_GROUPS):
        counts.add(f"group {number}", 0)
    groups = counts.groups(0)
    assert len(groups) == MAX_GROUPS + 1
    assert groups[OTHERS] == 2 * MAX_GROUPS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60))
def test_what_is_counted_is_what_came_in_the_window(errors: list[tuple[str, float]]) -> None:
    counts, now_s, came = ErrorCounts(), 0.0, []
    for key, after_s in errors:
        now_s += after_s
        counts.add(key, now_s)
        came.append((key, now_s))
        for group in "abc":
            found = counts.groups(now_s).get(group, 0)
            most = sum(1 for one, at_s in came if one == group and at_s > now_s - WINDOW_S)
            least = sum(1 for one, at_s in came if one == group and at_s > now_s - WINDOW_S + 5)
            assert least <= found <= most
