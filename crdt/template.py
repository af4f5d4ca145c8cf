"""The template document: how its changes are made, what they mean, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crdt import order
from crdt.errors import Invalid
from crdt.events import DomainEvent
from crdt.ids import UserId
from crdt.replica import GONE, Delta, Put, Remove, View, Write
from crdt.schema import ROOT_TEXT

_META_DEFAULTS: dict[str, Any] = {
    "title": "",
    "owner_id": None,
    "goal": None,
    "difficulty": None,
    "visibility": "private",
    "locked": False,
    "forked_from": None,
}


def create(
    *, owner_id: UserId, title: str, visibility: str, optional: Mapping[str, Any]
) -> list[Write]:
    meta = {
        "title": title,
        "owner_id": owner_id,
        "visibility": visibility,
        "locked": False,
        **optional,
    }
    return [Put(("meta", key), value) for key, value in meta.items()]


def update_meta(changes: Mapping[str, Any]) -> list[Write]:
    """Change fields; None removes an optional one."""
    if not changes:
        raise Invalid.at("meta", "holds nothing to change")
    return [
        Remove(("meta", key)) if value is None else Put(("meta", key), value)
        for key, value in changes.items()
    ]


def set_lock(view: View, is_locked: bool) -> list[Write]:
    """Lock or unlock; a template that is so already needs nothing."""
    if view["meta"].get("locked", False) is is_locked:
        return []
    return [Put(("meta", "locked"), is_locked)]


def project(template_id: str, before: View, delta: Delta) -> list[DomainEvent]:
    """One `template:changed` for each transaction, with what it touched as it is now."""
    payload: dict[str, Any] = {"template_id": template_id}
    meta = {
        key: None if value is GONE else value
        for (root, key), value in delta.items()
        if root == "meta"
    }
    exercises = {
        key: None if value is GONE else _shown(key, value)
        for (root, key), value in delta.items()
        if root == "exercises" and before["exercises"].get(key) != value
    }
    if meta:
        payload["meta"] = meta
    if exercises:
        payload["exercises"] = exercises
    if ("notes", ROOT_TEXT) in delta:
        payload["notes"] = delta["notes", ROOT_TEXT]
    return [DomainEvent("template:changed", payload)] if len(payload) > 1 else []


def snapshot(template_id: str, view: View, *, version: int) -> dict[str, Any]:
    """The template as JSON, the shape of the wire contract."""
    exercises = {id_: item for id_, item in view["exercises"].items() if isinstance(item, dict)}
    return {
        "id": template_id,
        **{key: view["meta"].get(key, default) for key, default in _META_DEFAULTS.items()},
        "notes": view["notes"][ROOT_TEXT],
        "exercises": [_shown(id_, exercises[id_]) for id_ in order.in_order(exercises)],
        "version": version,
    }


def _shown(exercise_id: str, exercise: Any) -> Any:
    if not isinstance(exercise, dict):
        return exercise
    sets = exercise.get("sets")
    sets = sets if isinstance(sets, dict) else {}
    sets = {id_: item for id_, item in sets.items() if isinstance(item, dict)}
    return {
        "note": "",
        **exercise,
        "id": exercise_id,
        "sets": [{**sets[id_], "id": id_} for id_ in order.in_order(sets)],
    }
