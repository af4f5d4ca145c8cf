"""What instances send each other: sealed records, and the messages on a room's channel. Pure.

A seal tells that a record was written by somebody who knows the secret, for this document and
under these numbers (the `context`). It does not hide what is in it.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

import msgpack
from pydantic import SecretStr

PLAIN, AUTHENTICATED = b"\x00", b"\x01"
MAC_BYTES = 16

VERSION = 1
UPDATE = b"u"
_UPDATE_TYPES = [int, bytes, int, bytes, bytes, int, bytes]


class Malformed(ValueError):
    """These bytes are none of ours."""


class Forged(Malformed):
    """Somebody wrote this who does not know the secret, or for another place."""


class Sealer:
    """Adds to a payload the proof that we made it, and checks it.

    With a secret: `01`, 16 bytes of HMAC-SHA256, payload. Without one: `00`, payload.
    """

    def __init__(self, secret: bytes | None) -> None:
        if secret is not None and not secret:
            raise ValueError("an empty secret proves nothing")
        self._secret = secret

    @classmethod
    def configured(cls, secret: SecretStr | None) -> Sealer:
        """One with `BUS_SECRET`, if that is set."""
        return cls(secret.get_secret_value().encode() if secret else None)

    def seal(self, payload: bytes, context: bytes = b"") -> bytes:
        """Seal `payload`. `context` is authenticated and not carried: who opens it must know it."""
        if self._secret is None:
            return PLAIN + payload
        return AUTHENTICATED + self._mac(self._secret, payload, context) + payload

    def open(self, data: bytes, context: bytes = b"") -> bytes:
        """The payload of what `seal` made.

        Raises:
            Malformed: it is nothing sealed, or it was sealed with a secret and we have none.
            Forged: another secret, another context, other bytes, or no proof where one is due.
        """
        kind = data[:1]
        if kind not in (PLAIN, AUTHENTICATED):
            raise Malformed("not a sealed record")
        if self._secret is None:
            if kind != PLAIN:
                raise Malformed("sealed with a secret, and there is none here")
            return data[1:]
        if kind != AUTHENTICATED:
            raise Forged("not authenticated")
        mac, payload = data[1 : 1 + MAC_BYTES], data[1 + MAC_BYTES :]
        if not hmac.compare_digest(mac, self._mac(self._secret, payload, context)):
            raise Forged("the authentication code is wrong")
        return payload

    @staticmethod
    def _mac(secret: bytes, payload: bytes, context: bytes) -> bytes:
        # With its length before it, no part of a payload can pass for context.
        said = b"".join((AUTHENTICATED, len(context).to_bytes(8, "big"), context, payload))
        return hmac.digest(secret, said, "sha256")[:MAC_BYTES]


class Update(NamedTuple):
    """A record of the log, as it is told to the others on its room's channel."""

    pos: int
    epoch: str
    origin: str
    n: int
    record: bytes


def unpack_update(data: bytes) -> Update:
    """Read `[1, "u", pos, epoch, origin, n, record]`, as `append.lua` packs it.

    Raises:
        Malformed: it is anything else.
    """
    try:
        message = msgpack.unpackb(data, raw=True)  # Lua knows no text: strings come as bytes
    # ValueError is msgpack's for most of what is wrong.
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise Malformed("not a message") from exc
    if not isinstance(message, list) or [type(part) for part in message] != _UPDATE_TYPES:
        raise Malformed("not an update")
    version, kind, pos, epoch, origin, n, record = message
    if (version, kind) != (VERSION, UPDATE) or pos < 1 or n < 1:
        raise Malformed("not an update")
    try:
        return Update(pos, epoch.decode(), origin.decode(), n, record)
    except UnicodeDecodeError as exc:
        raise Malformed("not an update") from exc
