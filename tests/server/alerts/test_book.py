"""Alerts: when they fire, how often they are told, and that they are resolved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.alerts.book import COOL_DOWN_S, RANK, AlertBook, Condition

NOW_MS = 1_700_000_000_000
AWAY = Condition("dependency:redis", "warning", "Redis", "It is degraded.")


class Tower:
    """A book with a clock."""

    def __init__(self) -> None:
        self.book = AlertBook("one")
        self.now_s = 0.0

    def see(self, *conditions: Condition, after_s: float = 0.5) -> list[dict[str, Any]]:
        """Let time pass, then look."""
        self.now_s += after_s
        return self.book.update(conditions, self.now_s, NOW_MS + round(self.now_s * 1_000))

    def firing(self) -> list[str]:
        return [alert["key"] for alert in self.book.firing()]


def brief(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(alert["severity"], alert["state"]) for alert in told]


@pytest.fixture
def tower() -> Tower:
    return Tower()


def test_an_alert_is_told_when_it_fires_and_when_it_is_resolved(tower: Tower) -> None:
    (fired,) = tower.see(AWAY)
    assert tower.see(AWAY) == tower.see(AWAY) == []
    (resolved,) = tower.see()
    assert (fired["state"], resolved["state"]) == ("firing", "resolved")
    assert fired["id"] == resolved["id"]
    assert fired["first_at"] == fired["last_at"] == resolved["first_at"] == NOW_MS + 500
    assert resolved["last_at"] == NOW_MS + 2_000
    assert {**fired, "id": "", "first_at": 0, "last_at": 0} == {
        "id": "",
        "key": "dependency:redis",
        "severity": "warning",
        "state": "firing",
        "title": "Redis",
        "message": "It is degraded.",
        "count": 1,
        "window_s": 0.0,
        "first_at": 0,
        "last_at": 0,
        "instance": "one",
    }
    assert tower.see() == []


def test_what_is_over_before_it_counts_is_never_told(tower: Tower) -> None:
    hasty = replace(AWAY, for_s=1.0)
    assert tower.see(hasty) == tower.see(hasty) == []
    assert tower.firing() == []
    assert tower.see() == []
    assert tower.see(hasty) == []
    assert brief(tower.see(hasty, after_s=1.0)) == [("warning", "firing")]


def test_what_becomes_worse_is_told_at_once_and_what_becomes_better_is_not(tower: Tower) -> None:
    tower.see(replace(AWAY, severity="info"))
    assert brief(tower.see(replace(AWAY, severity="critical"))) == [("critical", "firing")]
    assert tower.see(AWAY) == []
    assert [alert["severity"] for alert in tower.book.firing()] == ["warning"]
    assert tower.see(replace(AWAY, severity="critical"), after_s=1_000) == []
    assert brief(tower.see()) == [("critical", "resolved")]


def test_one_that_comes_back_soon_is_held_until_its_cool_down_is_over(tower: Tower) -> None:
    tower.see(AWAY)
    tower.see()
    assert tower.see(AWAY) == []
    assert tower.firing() == ["dependency:redis"]
    assert tower.see(AWAY, after_s=COOL_DOWN_S["warning"] - 2) == []
    (again,) = tower.see(AWAY, after_s=1)
    assert again["state"] == "firing"
    assert again["first_at"] < again["last_at"]
    assert brief(tower.see()) == [("warning", "resolved")]


def test_one_that_was_held_and_is_over_is_never_told(tower: Tower) -> None:
    tower.see(AWAY)
    tower.see()
    tower.see(AWAY)
    assert tower.see() == []


def test_alerts_do_not_hold_each_other(tower: Tower) -> None:
    deaf = replace(AWAY, key="deaf", severity="critical")
    assert len(tower.see(AWAY, deaf)) == 2
    assert tower.firing() == ["deaf", "dependency:redis"]
    assert brief(tower.see(deaf)) == [("warning", "resolved")]


class BookMachine(RuleBasedStateMachine):
    """Conditions come, change and go at random."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.wrong: dict[str, Condition] = {}
        self.told: list[tuple[float, dict[str, Any]]] = []

    @rule(
        key=st.sampled_from("abc"),
        severity=st.sampled_from(["info", "warning", "critical"]),
        for_s=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, key: str, severity: Any, for_s: float) -> None:
        self.wrong[key] = Condition(key, severity, "title", "message", for_s=for_s)

    @rule(key=st.sampled_from("abc"))
    def end(self, key: str) -> None:
        self.wrong.pop(key, None)

    @rule(seconds=st.one_of(st.just(0.5), st.floats(0.1, 700)))
    def look(self, seconds: float) -> None:
        for alert in self.tower.see(*self.wrong.values(), after_s=seconds):
            self.told.append((self.tower.now_s, alert))

    @invariant()
    def the_same_is_not_told_again_before_its_cool_down_is_over(self) -> None:
        last: dict[tuple[str, str], float] = {}
        for at_s, alert in self.told:
            if alert["state"] == "firing":
                what = alert["key"], alert["severity"]
                assert at_s - last.get(what, -1e9) >= COOL_DOWN_S[alert["severity"]]
                last[what] = at_s

    @invariant()
    def each_is_told_to_fire_ever_worse_and_then_to_be_resolved_once(self) -> None:
        seen: dict[str, str | None] = {}
        for _, alert in self.told:
            before = seen.get(alert["id"])
            assert before != "resolved"
            if alert["state"] == "firing":
                assert before is None or RANK[alert["severity"]] > RANK[before]
                seen[alert["id"]] = alert["severity"]
            else:
                assert before == alert["severity"]
                seen[alert["id"]] = "resolved"

    def teardown(self) -> None:
        # Whatever has been, when it stays as it is what was told last becomes what is so.
        self.look(1.0)
        self.look(max(COOL_DOWN_S.values()))
        self.look(0.5)
        last = {alert["key"]: alert for _, alert in self.told}
        assert set(self.tower.firing()) == set(self.wrong)
        for key in "abc":
            is_told = key in last and last[key]["state"] == "firing"
            assert is_told == (key in self.wrong)
            if is_told:
                assert RANK[last[key]["severity"]] >= RANK[self.wrong[key].severity]


TestAlertBook = BookMachine.TestCase
