"""Something that happened in a room, as JSON members are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class DomainEvent:
    """`set_id` marks the events whose `is_pr` is known only once the change is stored."""

    name: str
    payload: dict[str, Any]
    set_id: str | None = None
