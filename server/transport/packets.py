"""Socket.IO packets: limits on what comes in, one encoding of what goes out.

The stock decoder takes any number of attachments of any size once a client is connected, waits for
ever for the attachments of `50-`, and lets a placeholder name one that is not there. Here a packet
that breaks a limit is refused by its ack, or its connect error. One that cannot be told, or that
cannot be read at all, ends its connection, and nothing else.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import engineio.packet
import socketio.packet
from socketio.packet import ACK, BINARY_ACK, BINARY_EVENT, CONNECT, EVENT

from crdt.errors import Invalid, RepSyncError, TooLarge
from crdt.wire import is_deeper

MAX_ACK_ID = 2**53

_MESSAGE = str(engineio.packet.MESSAGE)
_CONTINUES = {BINARY_EVENT, BINARY_ACK}
_TEXT, _BINARY = 0x81, 0x82


_ONE_BINARY = re.compile(
    r"51-(/[^,?]{1,200}),(\d{0,15})"
    r'\["(sync-update|awareness-update|sync-step-1)",\{"_placeholder":true,"num":0\}\]'
)
"""What nearly every packet of a Yjs client looks like. Read as a whole, it needs no JSON."""


_HEAD = re.compile(r"([0-6])(?:(/[^,]{0,200}),)?(\d{0,15})(?=[\[{])")
"""What stands before the JSON of a packet without attachments: type, namespace, ack id."""


class PacketError(Exception):
    """What a client sent cannot be taken; its connection is closed for this reason."""


@dataclass(frozen=True, slots=True)
class PacketLimits:
    """What one packet may hold."""

    max_attachments: int = 10
    max_json_bytes: int = 1024 * 1024
    max_json_depth: int = 32


_DEFAULTS = PacketLimits()


class Packet(socketio.packet.Packet):
    """A Socket.IO packet that can be read from anybody."""

    packet_type: int
    namespace: str | None
    id: int | None
    data: Any
    attachment_count: int
    attachment_bytes = 0
    size_bytes: int
    """All of it, as far as it has come."""
    event: str | None = None
    """The name of an event whose one argument is its attachment."""
    refusal: RepSyncError | None = None
    """The limit that it breaks; its data are not to be looked at."""

    @classmethod
    def read(cls, text: str, limits: PacketLimits = _DEFAULTS) -> Packet:
        """Decode the text part of a packet.

        Raises:
            PacketError: it is no packet, or breaks a limit and asks for no answer.
        """
        common = _ONE_BINARY.fullmatch(text)
        if common is not None:
            packet = cls.__new__(cls)
            packet.packet_type, packet.attachment_count = BINARY_EVENT, 1
            packet.namespace, ack_id, packet.event = common.groups()
            packet.id = int(ack_id) if ack_id else None
            packet.size_bytes = len(text)
            return packet
        size_bytes = len(text) if text.isascii() else len(text.encode())
        if size_bytes > limits.max_json_bytes:
            return cls._refused(text, size_bytes, limits)
        packet = cls._decoded(text, limits)
        packet.size_bytes = size_bytes
        return packet

    @classmethod
    def _refused(cls, text: str, size_bytes: int, limits: PacketLimits) -> Packet:
        """A packet whose text is too long to be looked at, if only its sender can be told."""
        head = _HEAD.match(text)
        if head is None:
            raise PacketError("the text of a packet is too long")
        packet = cls.__new__(cls)
        kind, packet.namespace, ack_id = head.groups()
        packet.packet_type, packet.attachment_count = int(kind), 0
        packet.id = int(ack_id) if ack_id else None
        packet.data = None
        packet.size_bytes = size_bytes
        packet._refuse(TooLarge("the text of a packet", size_bytes, limits.max_json_bytes))
        return packet

    def _refuse(self, error: RepSyncError) -> None:
        is_event = self.packet_type in (EVENT, BINARY_EVENT)
        if self.packet_type != CONNECT and not (is_event and self.id is not None):
            raise PacketError(str(error))
        self.refusal = error

    @classmethod
    def _decoded(cls, text: str, limits: PacketLimits) -> Packet:
        try:
            packet = cls(encoded_packet=text)
        except (ValueError, IndexError, TypeError, RecursionError) as exc:
            raise PacketError("malformed packet") from exc
        count = packet.attachment_count
        is_binary = packet.packet_type in _CONTINUES
        if is_binary != (count > 0) or count > limits.max_attachments:
            raise PacketError(f"a packet of type {packet.packet_type} with {count} attachments")
        if packet.id is not None and not 0 <= packet.id < MAX_ACK_ID:
            raise PacketError("an ack id out of range")
        # Nothing can be deeper than it has brackets, and nearly every packet has few.
        depth = limits.max_json_depth
        if text.count("[") + text.count("{") > depth and is_deeper(packet.data, depth):
            packet._refuse(Invalid.at("", f"nested more than {depth} levels deep"))
        return packet

    @property
    def namespace_or_root(self) -> str:
        return self.namespace or "/"

    @property
    def event_name(self) -> str | None:
        """What an event is called, whole or not; None for what is no event."""
        if self.event is not None:
            return self.event
        data = self.data
        if self.packet_type in (EVENT, BINARY_EVENT) and isinstance(data, list) and data:
            return data[0] if isinstance(data[0], str) else None
        return None

    @property
    def is_ack(self) -> bool:
        return self.packet_type in (ACK, BINARY_ACK)

    def add_part(self, part: object, limit_bytes: int) -> bool:
        """Take in an attachment. Returns: whether that was the last one. Raises PacketError."""
        if not isinstance(part, bytes):
            raise PacketError("text where an attachment is due")
        self.attachment_bytes += len(part)
        self.size_bytes += len(part)
        if self.attachment_bytes > limit_bytes:
            raise PacketError("the attachments of a packet are too large")
        if self.event is not None:
            self.data = [self.event, part]
            return True
        if self.refusal is not None:
            self.attachments.append(b"")
            return len(self.attachments) == self.attachment_count
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


def json_event(event: str, text: str) -> Outgoing:
    """An event of `/` whose one argument is JSON already; `event` needs no escaping."""
    return Outgoing([f'{_MESSAGE}{EVENT}["{event}",{text}]'])


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


__all__ = [
    "ACK",
    "EVENT",
    "Outgoing",
    "Packet",
    "PacketError",
    "json_event",
    "outgoing",
    "update_event",
]
