"""The API documents as a judge of what really comes: every object, to its last field.

A document lets objects hold more than it says, because clients must. Here they may not, unless the
document says so itself: what the server sends and nobody has described is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from server.apidocs import asyncapi

URI = "urn:document"
EVENTS, DOCUMENT = "events", "document"


class Undocumented(AssertionError):
    """Something came that the document does not have, or not like this."""


class ApiDocument:
    """An AsyncAPI or OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        closed = _closed(copy.deepcopy(dict(document)))
        self._registry: Registry[Any] = Registry().with_resource(
            URI, DRAFT202012.create_resource(closed)
        )
        self._closed = closed

    def check(self, value: Any, *place: str, what: str) -> None:
        """Raises Undocumented unless the schema at `place` in the document takes the value."""
        schema = self.at(place)
        if isinstance(value, bytes | bytearray):
            if schema.get("format") != "binary":
                raise Undocumented(f"{what} is binary")
            return
        pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in place)
        validator = Draft202012Validator({"$ref": f"{URI}#/{pointer}"}, registry=self._registry)
        errors = [_told(error) for error in validator.iter_errors(value)]
        if schema.get("format") == "binary" or errors:
            raise Undocumented(f"{what}: {errors}\n{value}")

    def at(self, place: tuple[str, ...]) -> Mapping[str, Any]:
        """What stands there, or where that points."""
        found: Any = self._closed
        for part in place:
            if part not in found:
                raise Undocumented(f"there is no {'/'.join(place)}")
            found = found[part]
        while "$ref" in found:
            found = self.at(tuple(found["$ref"].removeprefix("#/").split("/")))
        return found  # type: ignore[no-any-return]

    # -- AsyncAPI ---------------------------------------------------------------------------

    def check_sent(self, channel: str, event: str, payload: Any) -> None:
        """What a client sends."""
        self._check_message(channel, f"client.{_key(event)}", payload)

    def check_answer(self, channel: str, event: str, answer: Any) -> None:
        """What a client's ack is given."""
        if isinstance(answer, bytes):
            key = f"ack.{_key(event)}"
            options = self.at(("components", "messages", key, "payload"))["oneOf"]
            if not any(self.at(_place(option)).get("format") == "binary" for option in options):
                raise Undocumented(f"{key} is binary")
            return
        self._check_message(channel, f"ack.{_key(event)}", answer)

    def check_told(self, channel: str, event: str, payload: Any) -> None:
        """What the server sends of its own accord."""
        self._check_message(channel, f"server.{_key(event)}", payload)

    def _check_message(self, channel: str, key: str, payload: Any) -> None:
        if key not in self.document["channels"][channel]["messages"]:
            raise Undocumented(f"there is no {key} in {channel}")
        self.check(payload, "components", "messages", key, "payload", what=key)

    def events(self, channel: str, side: str) -> set[str]:
        """The events of a channel that come from a side, `client` or `server`."""
        found = self.document["channels"][channel]["messages"]
        messages = self.document["components"]["messages"]
        return {messages[key]["name"] for key in found if key.startswith(f"{side}.")}


@cache
def sockets_document() -> ApiDocument:
    return ApiDocument(asyncapi())


def _key(event: str) -> str:
    return event.replace(":", ".")


def _place(reference: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(reference.get("$ref", "").removeprefix("#/").split("/"))


def _told(error: Any) -> str:
    """What is wrong, and in a choice of several what is with each."""
    inner = "; ".join(_leaves(error)) if error.context else error.message
    return f"{error.json_path}: {inner}"


def _leaves(error: Any) -> Iterator[str]:
    for cause in error.context:
        yield from _leaves(cause) if cause.context else [f"{cause.json_path}: {cause.message}"]


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
