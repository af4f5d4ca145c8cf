"""What is wrong, as the health report has it: one cause, one alert."""

from __future__ import annotations

from typing import Any

import pytest

from server.alerts import conditions
from server.alerts.book import Condition

WELL: dict[str, Any] = {"state": "healthy"}
REDIS = {**WELL, "spool_bytes": 0, "spool_max_bytes": 1_000, "spool_records": 0}
BUS = {**WELL, "deaf_s": 0.2, "is_deaf": False}


def found(quarantined: int = 0, **dependencies: dict[str, Any]) -> dict[str, Condition]:
    report = {"quarantined": quarantined, "dependencies": dependencies}
    return {condition.key: condition for condition in conditions.of_report(report)}


def ill(state: str = "degraded", error: str = "it is away", **more: Any) -> dict[str, Any]:
    return {"state": state, "error": error, **more}


def test_a_server_that_is_well_has_nothing_to_tell() -> None:
    assert found(store=WELL, event_loop=WELL, redis=REDIS, bus=BUS, backlog=WELL) == {}


@pytest.mark.parametrize(
    ("state", "severity"), [("degraded", "warning"), ("unhealthy", "critical")]
)
def test_a_dependency_that_is_not_well_is_told(state: str, severity: str) -> None:
    (told,) = found(store=ill(state)).values()
    assert (told.key, told.severity) == ("dependency:store", severity)
    assert told.message == f"It is {state}: it is away."
    assert told.for_s == conditions.LASTS_S


def test_what_follows_from_a_redis_that_is_away_is_not_told_besides() -> None:
    told = found(
        redis={**REDIS, **ill()},
        bus={**BUS, **ill(), "deaf_s": 7.0, "is_deaf": True},
        backlog=ill(),
        store=WELL,
    )
    assert told.keys() == {"dependency:redis"}


def test_an_instance_that_is_deaf_while_redis_is_well_is_told() -> None:
    told = found(redis=REDIS, bus={**BUS, **ill(), "deaf_s": 7.25, "is_deaf": True}, backlog=WELL)
    assert told["deaf"].severity == "critical"
    assert "7.25 s" in told["deaf"].message
    assert "dependency:bus" in told


@pytest.mark.parametrize(
    ("used", "severity"), [(499, None), (500, "warning"), (874, "warning"), (875, "critical")]
)
def test_a_spool_that_fills_up_is_told(used: int, severity: str | None) -> None:
    told = found(redis={**REDIS, "spool_bytes": used, "spool_records": 12})
    if severity is None:
        assert told == {}
    else:
        assert (told["spool"].severity, told["spool"].count) == (severity, 12)


def test_documents_that_cannot_be_read_are_told_with_their_number() -> None:
    (told,) = found(3, store=WELL).values()
    assert (told.key, told.severity, told.count) == ("quarantined", "warning", 3)


def test_errors_are_told_when_a_group_has_too_many() -> None:
    told = conditions.of_errors({"a: failed": 9, "b: failed": 10, "c: failed": 60})
    assert [(one.key, one.severity, one.count) for one in told] == [
        ("errors:b: failed", "info", 10),
        ("errors:c: failed", "critical", 60),
    ]
