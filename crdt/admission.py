"""What a Yjs client may change, and what it may write: one row for each root of a document.

| workout root | rule                                                                    |
|--------------|-------------------------------------------------------------------------|
| `meta`       | title; mode and visibility by who manages; the rest is the server's     |
| `exercises`  | everybody who writes; an item must fit `WorkoutExerciseItem`            |
| `sets`       | one's own only, before and after; an item must fit `SetItem`            |
| `timers`     | the server's: they carry its time                                       |

| template root | rule                                                                   |
|---------------|------------------------------------------------------------------------|
| `meta`        | title, goal, difficulty; visibility by who manages; the rest is the server's |
| `exercises`   | everybody who writes; an item must fit `TemplateExerciseItem`          |
| `notes`       | everybody who writes                                                   |

A rule sees an item as it was and as it would be, and raises; the change is then refused whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from crdt.access import Right
from crdt.errors import Forbidden, Invalid
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
    """Raises Forbidden or Invalid unless this user may make this change."""
    if Right.WRITE not in rights:
        raise Forbidden("this role can read the document only")
    rules = RULES[kind]
    for (root, key), value in delta.items():
        rules[root](user_id, rights, key, before[root].get(key, GONE), value)
        if value is not GONE and is_deeper(value, MAX_DEPTH):
            raise Invalid.at(f"{root}.{key}", "is nested too deeply")


def _meta(fields: Mapping[str, tuple[TypeAdapter[Any], Right]]) -> Rule:
    def rule(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
        if key not in fields:
            raise Forbidden(f"meta.{key} cannot be changed by a document's client")
        shape, right = fields[key]
        if right not in rights:
            raise Forbidden(f"meta.{key} can be changed by who manages the document only")
        if new is GONE:
            raise Invalid.at(f"meta.{key}", "cannot be removed")
        _fit(shape, f"meta.{key}", new)

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
        if new.get("user_id") != user_id:
            raise Forbidden("a set is written in the name of the one who did it")
    if isinstance(old, dict) and old.get("user_id") != user_id:
        raise Forbidden("a set can be changed by the one who did it only")


def _server_only(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    raise Forbidden("timers carry the server's time and are set by the server")


def _anything(user_id: UserId, rights: Right, key: str, old: Any, new: Any) -> None:
    """A text is a text."""


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

RULES: dict[DocKind, dict[str, Rule]] = {
    DocKind.WORKOUT: {
        "meta": _meta(
            {
                "title": (TypeAdapter(Title), Right.WRITE),
                "mode": (TypeAdapter(Mode), Right.MANAGE),
                "visibility": (TypeAdapter(Visibility), Right.MANAGE),
            }
        ),
        "exercises": _items("exercises", WorkoutExerciseItem),
        "sets": _own_sets,
        "timers": _server_only,
    },
    DocKind.TEMPLATE: {
        "meta": _meta(
            {
                "title": (TypeAdapter(Title), Right.WRITE),
                "goal": (TypeAdapter(Goal), Right.WRITE),
                "difficulty": (TypeAdapter(Label), Right.WRITE),
                "visibility": (TypeAdapter(Visibility), Right.MANAGE),
            }
        ),
        "exercises": _items("exercises", TemplateExerciseItem),
        "notes": _anything,
    },
}
