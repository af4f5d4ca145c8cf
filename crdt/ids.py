"""Names of things: documents, users, connections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from crdt.errors import Invalid

UserId = NewType("UserId", str)
ConnectionId = NewType("ConnectionId", str)

ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
"""Ids stand in Socket.IO namespaces, which end at a comma and are cut at a question mark."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_text(text: str) -> bool:
    """Whether it can be written in UTF-8. JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class DocKind(StrEnum):
    WORKOUT = "workout"
    TEMPLATE = "template"


@dataclass(frozen=True, slots=True)
class DocName:
    """The name of one document, written `workout:<id>` or `template:<id>`."""

    kind: DocKind
    id: str

    @classmethod
    def parse(cls, text: str) -> DocName:
        """Read a name as it stands on the wire.

        Raises:
            Invalid: no such kind, or an id outside `[A-Za-z0-9_-]{1,64}`.
        """
        kind, _, id_ = text.partition(":")
        if kind not in DocKind._value2member_map_ or not is_id(id_):
            raise Invalid.at("document", "must be workout:<id> or template:<id>")
        return cls(DocKind(kind), id_)

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.id}"


def workout(workout_id: str) -> DocName:
    return DocName(DocKind.WORKOUT, workout_id)


def template(template_id: str) -> DocName:
    return DocName(DocKind.TEMPLATE, template_id)
