"""The sockets as an AsyncAPI 3.0 document.

There are two channels, as there are kinds of namespace. What a client sends is an operation that
this application receives, with the answer to its ack as the reply; what the server sends of its own
accord is one that it sends. Messages stand under `client.`, `ack.` and `server.`, each with the
event's name; a `name` is the event as it goes over the socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from pydantic import BaseModel

from crdt.errors import ErrorObject
from crdt.ids import ID_PATTERN
from crdt.shown import ROOM_EVENTS
from handlers import REGISTRY
from handlers.connection import AuthRefreshed, RefreshAuth
from handlers.membership import USER_EVENTS
from handlers.registry import Failure
from handlers.streams import STREAMS
from server import VERSION, told
from server.apidocs.schemas import Schema, Schemas, first_line, paragraph

EVENTS, DOCUMENT = "events", "document"
"""The channels."""

UPDATE, VECTOR, AWARENESS = "YjsUpdate", "YjsStateVector", "AwarenessUpdate"

_BINARY = {
    UPDATE: "A Yjs v1 update, binary.",
    VECTOR: "A Yjs v1 state vector, binary.",
    AWARENESS: "A y-protocols awareness update, binary.",
}

_DESCRIPTION = (
    "Socket.IO v4 (Engine.IO 4), polling and websocket, default parser. Every event carries one"
    " argument. One that asks for an ack gets exactly one object. Objects from the server may hold"
    " more than is said here; those of clients may not. What the events mean is told by"
    " docs/protocol.md."
)
_CONNECT_ERROR = "A client was not let in: the error's code is the message, and this is its `data`."


def server_events() -> dict[str, list[type[BaseModel]]]:
    """What the server sends on `/` of its own accord: event -> what it carries, one of these."""
    found: dict[str, list[type[BaseModel]]] = {}
    for events in (told.EVENTS, told.CONNECTION_EVENTS, ROOM_EVENTS, USER_EVENTS):
        for event, model in events.items():
            found[event] = [model]
    for kind in STREAMS.kinds.values():
        found.setdefault(kind.event, []).append(kind.value)
    return found


def asyncapi() -> dict[str, Any]:
    """The document, as plain values."""
    return _Document().made()


class _Document:
    def __init__(self) -> None:
        intents = REGISTRY.intents.values()
        self._schemas = Schemas(
            [
                told.ConnectAuth,
                ErrorObject,
                Failure,
                told.UpdateStored,
                told.AwarenessTaken,
                *(intent.payload for intent in intents),
                *(intent.reply for intent in intents),
                *chain.from_iterable(server_events().values()),
                *told.DOCUMENT_EVENTS.values(),
            ]
        )
        self._messages: dict[str, dict[str, Any]] = {}
        self._of_channel: dict[str, dict[str, Any]] = {EVENTS: {}, DOCUMENT: {}}
        self._operations: dict[str, Any] = {}

    def made(self) -> dict[str, Any]:
        for channel in (EVENTS, DOCUMENT):
            self._connecting(channel)
        for event, intent in REGISTRY.intents.items():
            payload = self._schemas.ref(intent.payload)
            answers = [self._schemas.ref(intent.reply), self._failure]
            self._from_client(EVENTS, event, payload, answers, intent.summary)
        self._documents()
        for event, models in server_events().items():
            refs = [self._schemas.ref(model) for model in models]
            payload = refs[0] if len(refs) == 1 else {"anyOf": refs}
            text = " Or: ".join(paragraph(model.__doc__) for model in models)
            self._from_server(EVENTS, event, payload, text)
        return {
            "asyncapi": "3.0.0",
            "info": {"title": "RepSync", "version": VERSION, "description": _DESCRIPTION},
            "defaultContentType": "application/json",
            "servers": {
                "this": {
                    "host": "{host}",
                    "pathname": "/socket.io/",
                    "protocol": "ws",
                    "description": "Socket.IO over websocket; `wss` behind TLS.",
                    "variables": {"host": {"default": "127.0.0.1:8000"}},
                    "security": [{"$ref": "#/components/securitySchemes/token"}],
                }
            },
            "channels": {
                EVENTS: {
                    "address": "/",
                    "title": "Namespace /",
                    "description": "Intents, streams, presence: JSON, for any Socket.IO client.",
                    "messages": self._of_channel[EVENTS],
                },
                DOCUMENT: {
                    "address": "/yjs|{document}",
                    "title": "Namespaces /yjs|<doc>",
                    "description": "One document, for Yjs clients: y-socket.io 1.x, and more.",
                    "parameters": {
                        "document": {
                            "description": "`workout:<id>` or `template:<id>`; ids match"
                            f" `{ID_PATTERN}`.",
                            "examples": ["workout:leg-day", "template:push"],
                        }
                    },
                    "messages": self._of_channel[DOCUMENT],
                },
            },
            "operations": self._operations,
            "components": {
                "schemas": {**self._schemas.components, **_binary_schemas()},
                "messages": self._messages,
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "As `token` in Socket.IO's auth payload (`connect`), never"
                        " in the address or a header.",
                    }
                },
            },
        }

    @property
    def _failure(self) -> Schema:
        return self._schemas.ref(Failure)

    def _connecting(self, channel: str) -> None:
        auth = self._schemas.ref(told.ConnectAuth)
        self._message("client.connect", "connect", auth, told.ConnectAuth.__doc__)
        self._message(
            "server.connect_error", "connect_error", self._schemas.ref(ErrorObject), _CONNECT_ERROR
        )
        self._receive(
            channel, "connect", "client.connect", reply="server.connect_error", summary="Be let in"
        )

    def _documents(self) -> None:
        refresh = REGISTRY.intents["auth:refresh"]
        answers = [self._schemas.ref(AuthRefreshed), self._failure]
        self._from_client(
            DOCUMENT,
            "auth:refresh",
            self._schemas.ref(RefreshAuth),
            answers,
            refresh.summary,
        )
        stored, taken = self._schemas.ref(told.UpdateStored), self._schemas.ref(told.AwarenessTaken)
        for event, payload, answers, text in (
            (
                "sync-step-1",
                _binary(VECTOR),
                [_binary(UPDATE), self._failure],
                "Ask for what one lacks; the answer is an update.",
            ),
            (
                "sync-update",
                _binary(UPDATE),
                [stored, self._failure],
                "Send a change; the answer comes once it is durable.",
            ),
            (
                "awareness-update",
                _binary(AWARENESS),
                [taken, self._failure],
                "Show where one is and what one does.",
            ),
        ):
            self._from_client(DOCUMENT, event, payload, answers, text)
        self._from_server(
            DOCUMENT,
            "sync-step-1",
            _binary(VECTOR),
            "Asks the client for what the server lacks, as a Yjs client is asked by another.",
            answered_by=_binary(UPDATE),
        )
        self._from_server(DOCUMENT, "sync-update", _binary(UPDATE), "A change, durable by now.")
        self._from_server(
            DOCUMENT, "awareness-update", _binary(AWARENESS), "Who is here, and what they do."
        )
        for event, model in {**told.CONNECTION_EVENTS, **told.DOCUMENT_EVENTS}.items():
            self._from_server(DOCUMENT, event, self._schemas.ref(model), model.__doc__)

    # -- parts ------------------------------------------------------------------------------

    def _from_client(
        self, channel: str, event: str, payload: Schema, answers: Iterable[Schema], text: str
    ) -> None:
        message = self._message(f"client.{_key(event)}", event, payload, text)
        answer = f"The answer to `{event}`: what it made, or why it was refused."
        ack = self._message(f"ack.{_key(event)}", event, {"oneOf": list(answers)}, answer)
        self._receive(channel, event, message, reply=ack, summary=text)

    def _receive(self, channel: str, event: str, message: str, *, reply: str, summary: str) -> None:
        self._operations[f"{channel}.receive.{_key(event)}"] = {
            "action": "receive",
            "channel": _channel(channel),
            "summary": summary,
            "messages": [self._in_channel(channel, message)],
            "reply": {
                "channel": _channel(channel),
                "messages": [self._in_channel(channel, reply)],
            },
        }

    def _from_server(
        self,
        channel: str,
        event: str,
        payload: Schema,
        text: str | None,
        *,
        answered_by: Schema | None = None,
    ) -> None:
        message = self._message(f"server.{_key(event)}", event, payload, text)
        operation: dict[str, Any] = {
            "action": "send",
            "channel": _channel(channel),
            "summary": paragraph(text),
            "messages": [self._in_channel(channel, message)],
        }
        if answered_by is not None:
            answer = "What a client answers."
            ack = self._message(f"ack.server.{_key(event)}", event, answered_by, answer)
            operation["reply"] = {
                "channel": _channel(channel),
                "messages": [self._in_channel(channel, ack)],
            }
        self._operations[f"{channel}.send.{_key(event)}"] = operation

    def _message(self, key: str, event: str, payload: Mapping[str, Any], text: str | None) -> str:
        """Describe a message, once for both channels. Returns: its key."""
        made = {
            "name": event,
            "title": event,
            "summary": first_line(text) if text else "",
            "description": paragraph(text),
            "payload": payload,
        }
        if payload.get("$ref") in [one["$ref"] for one in map(_binary, _BINARY)]:
            made["contentType"] = "application/octet-stream"
        if self._messages.setdefault(key, made) != made:
            raise ValueError(f"{key} is described twice, and differently")
        return key

    def _in_channel(self, channel: str, key: str) -> dict[str, str]:
        self._of_channel[channel][key] = {"$ref": f"#/components/messages/{key}"}
        return {"$ref": f"#/channels/{channel}/messages/{key}"}


def _key(event: str) -> str:
    """Colons are not for keys of components."""
    return event.replace(":", ".")


def _channel(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{name}"}


def _binary(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _binary_schemas() -> dict[str, Schema]:
    return {
        name: {"type": "string", "format": "binary", "description": text}
        for name, text in _BINARY.items()
    }
