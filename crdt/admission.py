"""Who may change what, through which door, and what may be written: one row for each root.

| workout root | of who writes: a Yjs client                   | an intent                       |
|--------------|-----------------------------------------------|---------------------------------|
| `meta`       | the fields that `META` gives a shape          | the fields that `META` lists    |
| `exercises`  | an item must fit `WorkoutExerciseItem`        | whatever the intent may say     |
| `sets`       | one's own, before and after; fits `SetItem`   | one's own, before and after     |
| `timers`     | nothing: they carry the server's time         | one's own and the room's;       |
|              |                                               | everybody's by who runs         |

| template root | of who writes: a Yjs client                  | an intent                       |
|---------------|----------------------------------------------|---------------------------------|
| `meta`        | the fields that `META` gives a shape         | the fields that `META` lists    |
| `exercises`   | an item must fit `TemplateExerciseItem`      | whatever the intent may say     |
| `notes`       | any text                                     | any text                        |

`META` says which right a field asks for. What an intent writes was given its shape when the intent
was read. While `meta.locked` is set, nobody changes anything but the lock and the visibility. A
rule sees an item as it was and as it would be, and raises; the change is then refused whole.
`check_members` says who may let in whom, `check_references` which exercises a set may name, and
`check_counts` when a list is full.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from crdt.access import RIGHTS, Member, Right, visitor_roles
from crdt.errors import Conflict, Forbidden, Invalid, Locked, TooMany
from crdt.ids import DocKind, UserId, is_id
from crdt.replica import GONE, MAX_DEPTH, Delta, View
from crdt.schema import (
    Goal,
    Label,
    Mode,
    SetItem,
    TemplateExerciseItem,
    Title,
    Visibility,
    WorkoutExerciseItem,
)
from crdt.wire import is_deeper

Rule = Callable[[UserId, Right, str, Any, Any], None]
"""(who, their rights, key, value before, value after); `GONE` stands for none."""


def check(kind: DocKind, user_id: UserId, rights: Right, before: View, delta: Delta) -> None:
    """Raises Forbidden, Locked or Invalid unless this user may make this change as a Yjs client."""
    if Right.WRITE not in rights:
        raise Forbidden("this role can read the document only")
    if before["meta"].get("locked"):
        _refuse_content(delta)
    rules = RULES[kind]
    for (root, key), value in delta.items():
        try:
            rules[root](user_id, rights, key, before[root].get(key, GONE), value)
        except Forbidden as exc:
            exc.path = f"{root}.{key}"
            raise
        if value is not GONE and is_deeper(value, MAX_DEPTH):
            raise Invalid.at(f"{root}.{key}", "is nested too deeply")


class DocumentLimits(NamedTuple):
    """How large a document may become."""

    max_bytes: int = 8 * 1024 * 1024
    max_sets: int = 2_000
    max_exercises: int = 200


def check_counts(limits: DocumentLimits, before: View, delta: Delta) -> None:
    """Raises TooLarge when a change adds to a list that is full."""
    for root, most in (("sets", limits.max_sets), ("exercises", limits.max_exercises)):
        items = before.get(root)
        if items is None or len(items) + len(delta) <= most:
            continue
        changed = {key: value for (at, key), value in delta.items() if at == root}
        added = sum(value is not GONE and key not in items for key, value in changed.items())
        count = len(items) + added - sum(value is GONE for value in changed.values())
        if added and count > most:
            raise TooMany(root, count, most)


def check_references(before: View, delta: Delta, removed: Container[str]) -> None:
    """Whether the sets of a workout name exercises of its plan.

    An exercise may be taken away while somebody logs a set of it without a connection. Neither is
    refused: the set goes on naming what was there once.

    Args:
        removed: the exercises that were.
    Raises:
        Invalid: a set names an exercise that never was.
    """
    for (root, key), value in delta.items():
        if root != "sets" or value is GONE:
            continue
        named, old = value.get("exercise"), before["sets"].get(key)
        if isinstance(old, dict) and named == old.get("exercise"):
            continue
        if (
            named is not None
            and named not in before["exercises"]
            and named not in removed
            and delta.get(("exercises", named), GONE) is GONE
        ):
            raise Invalid.at(f"sets.{key}.exercise", "names no exercise of this workout")


def check_intent(kind: DocKind, user_id: UserId, rights: Right, before: View, delta: Delta) -> None:
    """The same for what an intent of this user writes. Raises Forbidden or Locked."""
    if Right.WRITE not in rights:
        raise Forbidden("this role can read the document only")
    if before["meta"].get("locked"):
        _refuse_content(delta)
    rules = INTENT_RULES[kind]
    for (root, key), value in delta.items():
        rules[root](user_id, rights, key, before[root].get(key, GONE), value)


def check_members(
    kind: DocKind,
    user_id: UserId,
    rights: Right,
    meta: Mapping[str, Any],
    roster: Mapping[UserId, Member],
    members: Iterable[Member],
) -> None:
    """Who manages the document lets others in, and out again. Who sees it may become a member as a
    visitor does, and who is one may go by another name. The owner stays the owner.

    Args:
        roster: who the members are.
        members: who they are to be; an empty role takes somebody out.
    Raises:
        Conflict, Forbidden: this user may not do that.
    """
    for member in members:
        known = roster.get(member.user_id)
        if known is not None and known.role == "owner" != member.role:
            raise Conflict("the owner stays the owner")
        is_self = member.user_id == user_id
        if is_self and known is not None and known.role == member.role:
            continue  # by another name
        if is_self and known is None and Right.READ in rights:
            if member.role not in visitor_roles(kind, meta):
                raise Forbidden("this role is given by invitation")
        elif Right.MANAGE not in rights:
            raise Forbidden("only who manages the document lets others in or out")
        elif member.role == "owner" or member.role not in ("", *RIGHTS[kind]):
            raise Forbidden("this role cannot be given")


_NO_CONTENT = {("meta", "locked"), ("meta", "visibility")}


def _refuse_content(delta: Delta) -> None:
    # A change without a delta is one of roots that are not in the schema.
    if not delta or not delta.keys() <= _NO_CONTENT:
        raise Locked("the document is locked")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of `meta`: who may change it, and what it may hold when a Yjs client writes it; a
    field without a shape is written by the server, when an intent asks for it."""

    right: Right
    shape: TypeAdapter[Any] | None = None
    is_optional: bool = False


def _meta(fields: Mapping[str, Field]) -> Rule:
    def rule(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
        field = fields.get(key)
        if field is None or field.shape is None:
            raise Forbidden(f"meta.{key} cannot be changed by a document's client")
        if field.right not in rights:
            raise Forbidden(f"meta.{key} can be changed by who manages the document only")
        if new is not GONE:
            _fit(field.shape, f"meta.{key}", new)
        elif not field.is_optional:
            raise Invalid.at(f"meta.{key}", "cannot be removed")

    return rule


def _meta_by_intent(fields: Mapping[str, Field]) -> Rule:
    def rule(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
        field = fields.get(key)
        if field is None:
            raise Forbidden(f"meta.{key} is written once, when the document is made")
        if field.right not in rights:
            raise Forbidden(f"meta.{key} cannot be changed by this role")

    return rule


def _items(root: str, model: type[BaseModel]) -> Rule:
    shape: TypeAdapter[Any] = TypeAdapter(model)

    def rule(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
        if new is not GONE:
            _fit_item(shape, root, key, new)

    return rule


def _own_sets(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    if new is not GONE:
        _fit_item(_SET, "sets", key, new)
    _own(user_id, rights, key, old, new)


def _own(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    if new is not GONE and new.get("user_id") != user_id:
        raise Forbidden("a set is written in the name of the one who did it")
    if isinstance(old, dict) and old.get("user_id") != user_id:
        raise Forbidden("a set can be changed by the one who did it only")


def _server_only(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    raise Forbidden("timers carry the server's time and are set by the server")


def _own_timers(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    if key not in (user_id, ROOM_TIMER) and Right.RUN not in rights:
        raise Forbidden("somebody else's timer is theirs")


def _anything(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    """Whoever writes may write it: a text is a text, and an intent's item has its shape."""


def _fit_item(shape: TypeAdapter[Any], root: str, key: str, value: Any) -> None:
    if not is_id(key):
        raise Invalid.at(root, "an id must match [A-Za-z0-9_-]{1,64}")
    _fit(shape, f"{root}.{key}", value)


def _fit(shape: TypeAdapter[Any], path: str, value: Any) -> None:
    try:
        shape.validate_python(value)
    except ValidationError as exc:
        details = [
            {
                "path": ".".join([path, *(str(part) for part in error["loc"])]),
                "message": error["msg"],
            }
            for error in exc.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise Invalid(
            f"{details[0]['path']}: {details[0]['message']}", details=details[:20]
        ) from exc


_SET: TypeAdapter[Any] = TypeAdapter(SetItem)

ROOM_TIMER = "room"
"""The key of the timer that everybody in a workout shares; the others are user ids."""

META: dict[DocKind, dict[str, Field]] = {
    DocKind.WORKOUT: {
        "title": Field(Right.WRITE, TypeAdapter(Title)),
        "mode": Field(Right.MANAGE, TypeAdapter(Mode)),
        "visibility": Field(Right.MANAGE, TypeAdapter(Visibility)),
        "status": Field(Right.RUN),
        "started_at": Field(Right.RUN),
        "resumed_at": Field(Right.RUN),
        "ended_at": Field(Right.RUN),
        "active_ms": Field(Right.RUN),
    },
    DocKind.TEMPLATE: {
        "title": Field(Right.WRITE, TypeAdapter(Title)),
        "goal": Field(Right.WRITE, TypeAdapter(Goal), is_optional=True),
        "difficulty": Field(Right.WRITE, TypeAdapter(Label), is_optional=True),
        "visibility": Field(Right.MANAGE, TypeAdapter(Visibility)),
        "locked": Field(Right.MANAGE),
    },
}
"""The fields that can be changed; all others are written when the document is made."""

RULES: dict[DocKind, dict[str, Rule]] = {
    DocKind.WORKOUT: {
        "meta": _meta(META[DocKind.WORKOUT]),
        "exercises": _items("exercises", WorkoutExerciseItem),
        "sets": _own_sets,
        "timers": _server_only,
    },
    DocKind.TEMPLATE: {
        "meta": _meta(META[DocKind.TEMPLATE]),
        "exercises": _items("exercises", TemplateExerciseItem),
        "notes": _anything,
    },
}

INTENT_RULES: dict[DocKind, dict[str, Rule]] = {
    DocKind.WORKOUT: {
        "meta": _meta_by_intent(META[DocKind.WORKOUT]),
        "exercises": _anything,
        "sets": _own,
        "timers": _own_timers,
    },
    DocKind.TEMPLATE: {
        "meta": _meta_by_intent(META[DocKind.TEMPLATE]),
        "exercises": _anything,
        "notes": _anything,
    },
}
