"""Since when a dependency is as it is, and which changes are told."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.health.standings import WORST_FIRST, Change, Standings, worst

STATES = st.sampled_from(WORST_FIRST)


def test_a_state_has_lasted_since_it_came() -> None:
    standings = Standings()
    assert standings.observe({"store": {"state": "healthy"}}, 1_000) == [
        Change("store", None, "healthy", 0, None)
    ]
    assert standings.observe({"store": {"state": "healthy"}}, 2_000) == []
    assert standings.since_ms("store") == 1_000
    (fell,) = standings.observe({"store": {"state": "degraded", "error": "slow"}}, 5_000)
    assert fell == Change("store", "healthy", "degraded", 4_000, "slow")
    assert standings.since_ms("store") == 5_000
    (rose,) = standings.observe({"store": {"state": "healthy"}}, 6_000)
    assert rose.is_recovery
    assert not fell.is_recovery


def test_a_dependency_that_is_no_more_is_forgotten() -> None:
    standings = Standings()
    standings.observe({"webhook": {"state": "degraded"}}, 1_000)
    assert standings.observe({}, 2_000) == []
    (again,) = standings.observe({"webhook": {"state": "healthy"}}, 3_000)
    assert again.before is None


def test_the_whole_is_as_the_worst_of_its_parts() -> None:
    assert worst([]) == "healthy"
    assert worst(["healthy", "degraded"]) == "degraded"
    assert worst(["degraded", "unhealthy", "healthy"]) == "unhealthy"


@given(st.lists(st.tuples(st.integers(0, 10_000), st.dictionaries(st.sampled_from("ab"), STATES))))
def test_the_changes_that_are_told_lead_to_what_is(
    looks: list[tuple[int, dict[str, Any]]],
) -> None:
    standings, told, now_ms = Standings(), dict[str, str](), 0
    for after_ms, states in looks:
        now_ms += after_ms
        seen = {name: {"state": state} for name, state in states.items()}
        for change in standings.observe(seen, now_ms):
            assert change.before != change.after
            assert told.get(change.name) == change.before
            told[change.name] = change.after
            assert standings.since_ms(change.name) == now_ms
        told = {name: state for name, state in told.items() if name in states}
        assert told == states
