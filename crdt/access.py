"""Who may do what with a document.

| workout role | read | write | run | manage |      | template role | read | write | manage |
|--------------|------|-------|-----|--------|      |---------------|------|-------|--------|
| owner        |  x   |   x   |  x  |   x    |      | owner         |  x   |   x   |   x    |
| coach        |  x   |   x   |  x  |        |      | editor        |  x   |   x   |        |
| participant  |  x   |   x   |     |        |      | viewer        |  x   |       |        |
| spectator    |  x   |       |     |        |

Run is starting, pausing and ending a workout; manage is letting others in and out, and locking. A
set belongs to the user who did it, whatever the role. Who is no member reads what the visibility
shows, and nothing else: private none, friends those whose token lists the owner, public everybody.
The role in a token (`admin`) gives no right to a document.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

from crdt.ids import DocKind, UserId


class Right(Flag):
    NONE = 0
    READ = auto()
    WRITE = auto()
    RUN = auto()
    MANAGE = auto()


RIGHTS: dict[DocKind, dict[str, Right]] = {
    DocKind.WORKOUT: {
        "owner": Right.READ | Right.WRITE | Right.RUN | Right.MANAGE,
        "coach": Right.READ | Right.WRITE | Right.RUN,
        "participant": Right.READ | Right.WRITE,
        "spectator": Right.READ,
    },
    DocKind.TEMPLATE: {
        "owner": Right.READ | Right.WRITE | Right.MANAGE,
        "editor": Right.READ | Right.WRITE,
        "viewer": Right.READ,
    },
}


@dataclass(frozen=True, slots=True)
class Member:
    """A durable right to a document; an empty role is none any more. `name` is the user's name
    when last heard of."""

    user_id: UserId
    role: str
    name: str


@dataclass(frozen=True, slots=True)
class User:
    """Who a token speaks for."""

    id: UserId
    name: str
    role: str = "user"
    friends: frozenset[str] = frozenset()

    def to_wire(self) -> dict[str, str]:
        return {"id": self.id, "name": self.name}


def rights_of(
    user: User, kind: DocKind, meta: Mapping[str, Any], members: Mapping[UserId, Member]
) -> Right:
    """What `user` may do with a document of this `meta` and these members."""
    member = members.get(user.id)
    if member is not None:
        return RIGHTS[kind].get(member.role, Right.NONE)
    return Right.READ if is_visible(meta, user.friends) else Right.NONE


def visitor_roles(kind: DocKind, meta: Mapping[str, Any]) -> tuple[str, ...]:
    """As what somebody may become a member who sees the document and was not invited, the usual
    role first. A group is trained in or watched, a solo workout watched; coaches are invited, and
    a template is shared."""
    if kind is DocKind.TEMPLATE:
        return ()
    return ("participant", "spectator") if meta.get("mode") == "group" else ("spectator",)


def is_visible(meta: Mapping[str, Any], friends: Collection[str]) -> bool:
    """Whether somebody with these friends may look in without being a member."""
    return is_shown(meta.get("visibility"), meta.get("owner_id"), friends)


def is_shown(visibility: object, owner_id: object, friends: Collection[str]) -> bool:
    """The same, of what is known without the document."""
    return visibility == "public" or (visibility == "friends" and owner_id in friends)
