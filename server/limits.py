"""The configured limits, in the shapes in which the parts and the clients want them."""

from __future__ import annotations

from pydantic import TypeAdapter

from crdt.admission import DocumentLimits
from crdt.schema import Goal, Label, Name, Note, Title
from crdt.wire import MAX_STATE_BYTES
from handlers.context import Limits
from server.settings import Settings
from server.transport.allowance import Rate
from server.transport.packets import PacketLimits
from server.transport.server import TransportLimits

MAX_DEVICE_CHARS = 100

_TOLD = (
    "max_update_bytes",
    "max_document_bytes",
    "max_sets_per_workout",
    "max_exercises_per_document",
    "max_json_bytes",
    "max_json_depth",
    "max_attachments_per_packet",
    "max_sessions_per_user",
    "max_namespaces_per_connection",
    "max_rooms_per_connection",
    "max_streams_per_connection",
    "max_room_members",
    "max_room_connections",
    "max_page_size",
    "max_events_per_s",
    "max_events_burst",
    "max_bytes_per_s",
    "max_bytes_burst",
    "max_user_events_per_s",
    "max_user_events_burst",
    "max_user_bytes_per_s",
    "max_user_bytes_burst",
)

_TEXTS = {"title": Title, "name": Name, "note": Note, "goal": Goal, "label": Label}


def told(settings: Settings) -> dict[str, int]:
    """What `welcome` says: everything that a well-meant client might run into."""
    return {
        **{name: getattr(settings, name) for name in _TOLD},
        "max_packet_bytes": max_packet_bytes(settings),
        "max_awareness_state_bytes": MAX_STATE_BYTES,
        "max_device_chars": MAX_DEVICE_CHARS,
        **{
            f"max_{name}_chars": TypeAdapter(text).json_schema()["maxLength"]
            for name, text in _TEXTS.items()
        },
    }


def max_packet_bytes(settings: Settings) -> int:
    """What the transport takes: more than an update may have, so that one that is too large can
    still be answered. A larger packet closes the socket, and its client would send it again."""
    return 2 * settings.max_update_bytes + 64 * 1024


def of_transport(settings: Settings) -> TransportLimits:
    return TransportLimits(
        max_packet_bytes=max_packet_bytes(settings),
        send_budget_bytes=settings.send_budget_bytes,
        stall_timeout_s=settings.stall_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        ping_interval_s=settings.ping_interval_s,
        ping_timeout_s=settings.ping_timeout_s,
        max_connections=settings.max_connections,
        max_connections_per_address=settings.max_connections_per_address,
        max_connects_per_s=settings.max_connects_per_s,
        max_namespaces=settings.max_namespaces_per_connection,
        rate=Rate(
            settings.max_events_per_s,
            settings.max_events_burst,
            settings.max_bytes_per_s,
            settings.max_bytes_burst,
        ),
        packet=PacketLimits(
            settings.max_attachments_per_packet,
            settings.max_json_bytes,
            settings.max_json_depth,
        ),
        body_timeout_s=settings.http_body_timeout_s,
    )


def of_documents(settings: Settings) -> DocumentLimits:
    return DocumentLimits(
        settings.max_document_bytes,
        settings.max_sets_per_workout,
        settings.max_exercises_per_document,
    )


def of_user(settings: Settings) -> Rate:
    """For all connections of one user together."""
    return Rate(
        settings.max_user_events_per_s,
        settings.max_user_events_burst,
        settings.max_user_bytes_per_s,
        settings.max_user_bytes_burst,
    )


def of_handlers(settings: Settings) -> Limits:
    return Limits(
        max_rooms_per_connection=settings.max_rooms_per_connection,
        max_streams_per_connection=settings.max_streams_per_connection,
        max_page_size=settings.max_page_size,
    )
