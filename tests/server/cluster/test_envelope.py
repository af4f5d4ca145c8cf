"""Seals, and messages of the room's channel."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.envelope import Forged, Malformed, Sealer, Update, unpack_update

SECRET = b"a secret of the cluster"


@given(payload=st.binary(max_size=200), context=st.binary(max_size=40))
@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "secret"])
def test_what_was_sealed_is_opened(secret: bytes | None, payload: bytes, context: bytes) -> None:
    sealer = Sealer(secret)
    assert sealer.open(sealer.seal(payload, context), context) == payload


def test_the_context_is_not_carried() -> None:
    assert b"workout:a" not in Sealer(SECRET).seal(b"payload", b"workout:a")


@given(payload=st.binary(max_size=50), at=st.integers(0, 66), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed(payload: bytes, at: int, flip: int) -> None:
    sealed = bytearray(Sealer(SECRET).seal(payload))
    sealed[at % len(sealed)] ^= flip
    with pytest.raises(Malformed):
        Sealer(SECRET).open(bytes(sealed))


def test_a_record_that_is_moved_to_another_place_is_a_forgery() -> None:
    sealed = Sealer(SECRET).seal(b"payload", b"workout:a")
    with pytest.raises(Forged):
        Sealer(SECRET).open(sealed, b"workout:b")


def test_a_part_of_the_context_does_not_pass_for_payload() -> None:
    sealed = Sealer(SECRET).seal(b"bc", b"a")
    with pytest.raises(Forged):
        Sealer(SECRET).open(sealed[:17] + b"c", b"ab")


def test_another_secret_is_a_forgery() -> None:
    with pytest.raises(Forged):
        Sealer(SECRET).open(Sealer(b"another").seal(b"payload"))


def test_where_a_proof_is_due_none_is_a_forgery() -> None:
    with pytest.raises(Forged):
        Sealer(SECRET).open(Sealer(None).seal(b"payload"))


def test_a_proof_that_cannot_be_checked_is_not_taken_for_payload() -> None:
    with pytest.raises(Malformed):
        Sealer(None).open(Sealer(SECRET).seal(b"payload"))


@pytest.mark.parametrize("data", [b"", b"\x02", b"\xffpayload", b"\x01", b"\x01short"])
@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "secret"])
def test_what_nobody_sealed_is_malformed(secret: bytes | None, data: bytes) -> None:
    with pytest.raises(Malformed):
        Sealer(secret).open(data)


def test_an_empty_secret_is_none() -> None:
    with pytest.raises(ValueError):
        Sealer(b"")


UPDATE: list[Any] = [1, b"u", 7, b"e", b"o", 3, b"\x00\xff"]


def test_an_update_is_read() -> None:
    assert unpack_update(msgpack.packb(UPDATE)) == Update(7, "e", "o", 3, b"\x00\xff")


@pytest.mark.parametrize(
    ("at", "odd"),
    [
        (0, 2),
        (0, True),
        (1, b"p"),
        (2, 0),
        (2, -1),
        (2, 1.0),
        (2, True),
        (2, b"7"),
        (3, b"\xff"),
        (3, None),
        (4, 1),
        (4, b"\xed\xa0\x80"),
        (5, 0),
        (5, None),
        (6, 1),
        (6, [b"record"]),
    ],
)
def test_an_odd_update_is_malformed(at: int, odd: Any) -> None:
    with pytest.raises(Malformed):
        unpack_update(msgpack.packb([*UPDATE[:at], odd, *UPDATE[at + 1 :]]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x97",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5_000,
        msgpack.packb(UPDATE) + b"\x00",
        msgpack.packb(UPDATE[:-1]),
        msgpack.packb([*UPDATE, 1]),
        msgpack.packb({b"u": 1}),
        msgpack.packb({(1,): 1}),
    ],
)
def test_what_is_no_message_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack_update(data)


@given(st.binary(max_size=60))
def test_noise_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack_update(data)
