"""Socket.IO packets: limits on what comes in, one encoding of what goes out.

The stock decoder takes any number of attachments of any size once a client is connected, waits for
ever for the attachments of `50-`, and lets a placeholder name one that is not there. Here a packet
that breaks a limit ends its connection, and nothing else.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import engineio.packet
import socketio.packet
from socketio.packet import ACK, BINARY_ACK, BINARY_EVENT, EVENT

MAX_ATTACHMENTS = 10
MAX_JSON_BYTES = 1024 * 1024
MAX_ACK_ID = 2**53

_MESSAGE = str(engineio.packet.MESSAGE)
_CONTINUES = {BINARY_EVENT, BINARY_ACK}
_TEXT, _BINARY = 0x81, 0x82


_ONE_BINARY = re.compile(
    r"51-(/[^,?]{1,200}),(\d{0,15})"
    r'\["(sync-update|awareness-update|sync-step-1)",\{"_placeholder":true,"num":0\}\]'
)
"""What nearly every packet of a Yjs client looks like. Read as a whole, it needs no JSON."""


class PacketError(Exception):
    """What a client sent cannot be taken; its connection is closed for this reason."""


class Packet(socketio.packet.Packet):
    """A Socket.IO packet that can be read from anybody."""

    packet_type: int
    namespace: str | None
    id: int | None
    data: Any
    attachment_count: int
    attachment_bytes = 0
    event: str | None = None
    """The name of an event whose one argument is its attachment."""

    @classmethod
    def read(cls, text: str) -> Packet:
        """Decode the text part of a packet.

        Raises:
            PacketError: it is no packet, or breaks a limit.
        """
        common = _ONE_BINARY.fullmatch(text)
        if common is not None:
            packet = cls.__new__(cls)
            packet.packet_type, packet.attachment_count = BINARY_EVENT, 1
            packet.namespace, ack_id, packet.event = common.groups()
            packet.id = int(ack_id) if ack_id else None
            return packet
        if len(text) > MAX_JSON_BYTES:
            raise PacketError("the text of a packet is too long")
        try:
            packet = cls(encoded_packet=text)
        except (ValueError, IndexError, TypeError, RecursionError) as exc:
            raise PacketError("malformed packet") from exc
        count = packet.attachment_count
        is_binary = packet.packet_type in _CONTINUES
        if is_binary != (count > 0) or count > MAX_ATTACHMENTS:
            raise PacketError(f"a packet of type {packet.packet_type} with {count} attachments")
        if packet.id is not None and not 0 <= packet.id < MAX_ACK_ID:
            raise PacketError("an ack id out of range")
        return packet

    @property
    def namespace_or_root(self) -> str:
        return self.namespace or "/"

    @property
    def is_ack(self) -> bool:
        return self.packet_type in (ACK, BINARY_ACK)

    def add_part(self, part: object, limit_bytes: int) -> bool:
        """Take in an attachment. Returns: whether that was the last one. Raises PacketError."""
        if not isinstance(part, bytes):
            raise PacketError("text where an attachment is due")
        self.attachment_bytes += len(part)
        if self.attachment_bytes > limit_bytes:
            raise PacketError("the attachments of a packet are too large")
        if self.event is not None:
            self.data = [self.event, part]
            return True
        try:
            return bool(self.add_attachment(part))
        except (ValueError, IndexError, TypeError, RecursionError) as exc:
            raise PacketError("a placeholder without its attachment") from exc


class Outgoing:
    """A message on its way to any number of clients: encoded once, framed once."""

    __slots__ = ("_frame", "parts")

    def __init__(self, parts: list[str | bytes]) -> None:
        self.parts = parts
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """All parts as unmasked, uncompressed websocket frames in one piece of memory."""
        if self._frame is None:
            self._frame = b"".join(
                websocket_frame(_BINARY, part)
                if isinstance(part, bytes)
                else websocket_frame(_TEXT, part.encode())
                for part in self.parts
            )
        return self._frame

    def for_polling(self) -> list[engineio.packet.Packet]:
        """The parts as Engine.IO packets of their own: a packet keeps its first encoding, and
        polling needs binary in base64."""
        return [
            engineio.packet.Packet(engineio.packet.MESSAGE, part)
            if isinstance(part, bytes)
            else engineio.packet.Packet(encoded_packet=part)
            for part in self.parts
        ]


def outgoing(kind: int, namespace: str, data: Any, ack_id: int | None = None) -> Outgoing:
    """A Socket.IO packet, ready to be sent."""
    encoded = socketio.packet.Packet(kind, namespace=namespace, data=data, id=ack_id).encode()
    text, *attachments = encoded if isinstance(encoded, list) else [encoded]
    return Outgoing([_MESSAGE + text, *attachments])


def update_event(namespace: str, event: str, data: bytes) -> Outgoing:
    """`event` with one binary argument: what a busy room sends all the time."""
    return Outgoing(
        [f'{_MESSAGE}{BINARY_EVENT}1-{namespace},["{event}",{{"_placeholder":true,"num":0}}]', data]
    )


def websocket_frame(opcode: int, payload: bytes) -> bytes:
    """A websocket frame from a server (RFC 6455, 5.2): final, not masked."""
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", opcode, 126, size) + payload
    return struct.pack("!BBQ", opcode, 127, size) + payload


__all__ = ["ACK", "EVENT", "Outgoing", "Packet", "PacketError", "outgoing", "update_event"]
