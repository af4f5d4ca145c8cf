"""The fuzzer's targets with a modest number of inputs, and with those that once broke something.

`make fuzz` looks for more. An input that it finds goes into `regressions/<target>/`, under a name
that says what it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import REGISTRY
from tests.fuzz import intents
from tests.fuzz.findings import REGRESSIONS
from tests.fuzz.target import ACCEPTED, CODES, Target
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
CASES = sorted(path for path in REGRESSIONS.rglob("*") if path.is_file())


@contextlib.contextmanager
def opened(name: str) -> Iterator[Target]:
    with TARGETS[name]() as target:
        yield target


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False), mutations=st.integers(0, 3))
def test_whatever_comes_in_is_taken_or_refused_and_harms_nobody(
    name: str, random: Random, mutations: int
) -> None:
    with opened(name) as target:
        data = target.generate(random)
        for _ in range(mutations):
            data = target.mutate(data, random)
        target.feed(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200), random=st.randoms(use_true_random=False))
def test_any_bytes_at_all_are_an_input(name: str, data: bytes, random: Random) -> None:
    with opened(name) as target:
        target.feed(data)
        target.feed(target.mutate(data, random))


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_starts_from_reaches_the_server(name: str) -> None:
    """Else it would fuzz a door that is shut."""
    with opened(name) as target:
        outcomes = [target.feed(data) for data in target.seeds()]
    assert sum(bool(outcome[ACCEPTED]) for outcome in outcomes) > len(outcomes) / 4


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}: {path.stem}")
def test_what_once_broke_something_does_so_no_more(path: Path) -> None:
    with opened(path.parent.name) as target:
        target.feed(path.read_bytes())


def test_every_event_of_the_registry_is_fuzzed() -> None:
    assert REGISTRY.intents.keys() <= intents.PAYLOADS.keys()


def test_no_client_is_told_of_an_internal_error() -> None:
    assert "internal" not in CODES
