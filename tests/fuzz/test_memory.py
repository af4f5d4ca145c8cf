"""Nothing is kept of what came in: neither by the server, nor by the fuzzer that looks for that."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from crdt.errors import RepSyncError
from crdt.replica import Replica
from crdt.room import Room
from tests.fuzz.memory import MAX_KEPT_BYTES, kept_bytes
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.updates import Updates

INPUTS = 100


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with TARGETS[request.param]() as target:
        yield target


def made(target: Target, number: int) -> bytes:
    """An input of the target; of the same number always the same."""
    random = Random(number)
    data = target.generate(random)
    for _ in range(number % 4):
        data = target.mutate(data, random)
    return data


def test_the_server_keeps_nothing_of_what_it_is_sent(target: Target) -> None:
    inputs = [made(target, number) for number in range(INPUTS)]
    assert kept_bytes(target.feed, inputs) < MAX_KEPT_BYTES


def test_the_fuzzer_keeps_nothing_of_what_it_makes(target: Target) -> None:
    numbers = [b"%d" % number for number in range(4 * INPUTS)]
    assert kept_bytes(lambda number: made(target, int(number)), numbers) < MAX_KEPT_BYTES


def test_a_server_that_kept_a_little_of_each_input_would_be_found() -> None:
    kept: list[bytes] = []
    assert (
        kept_bytes(lambda data: kept.append(data * 2_048), [b"a", b"b"] * INPUTS) > MAX_KEPT_BYTES
    )


def test_a_room_that_kept_the_document_of_each_refused_update_would_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Replica] = []
    admit = Room.admit

    def keeping_admit(room: Room, *args: object) -> object:
        head = room._head
        try:
            return admit(room, *args)  # type: ignore[arg-type]
        except RepSyncError:
            kept.append(head)
            raise

    monkeypatch.setattr(Room, "admit", keeping_admit)
    with Updates() as target:
        inputs = [made(target, number) for number in range(INPUTS)]
        assert kept_bytes(target.feed, inputs) > 10 * MAX_KEPT_BYTES
