"""The workout document: how its changes are made, what they mean, and how it is shown.

Everything here is a function of plain values. Edits take the document's view and return the
writes that make the change, or raise before anything is written; `project` turns a change, made
by whatever client, into the events that thin clients get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from crdt import order
from crdt.access import Member
from crdt.errors import Conflict, Forbidden, Invalid, NotFound
from crdt.events import DomainEvent
from crdt.ids import UserId
from crdt.progress import progress
from crdt.records import Award, Score, exercise_key, record_values
from crdt.replica import GONE, Delta, Put, Remove, View, Write

Action = Literal["start", "pause", "resume", "complete", "abandon"]

TRANSITIONS: dict[Action, tuple[frozenset[str], str]] = {
    "start": (frozenset({"planned"}), "active"),
    "pause": (frozenset({"active"}), "paused"),
    "resume": (frozenset({"paused"}), "active"),
    "complete": (frozenset({"active", "paused"}), "completed"),
    "abandon": (frozenset({"active", "paused"}), "abandoned"),
}
"""Action -> the states that it may start from, and the state that it leads to."""

LIVE = frozenset({"active", "paused"})

_STATUS_EVENTS = {
    ("planned", "active"): "workout:started",
    ("paused", "active"): "workout:resumed",
    ("active", "paused"): "workout:paused",
}
_ENDED_EVENTS = {"completed": "workout:completed", "abandoned": "workout:abandoned"}

_META_DEFAULTS: dict[str, Any] = {
    "title": "",
    "status": "planned",
    "mode": "solo",
    "visibility": "private",
    "owner_id": None,
    "template_id": None,
    "template_version": None,
    "created_at": None,
    "started_at": None,
    "resumed_at": None,
    "ended_at": None,
    "active_ms": 0,
}


# -- edits: view in, writes out -------------------------------------------------------------


def create(*, owner_id: UserId, title: str, mode: str, visibility: str, now_ms: int) -> list[Write]:
    meta = {
        "title": title,
        "owner_id": owner_id,
        "mode": mode,
        "visibility": visibility,
        "status": "planned",
        "created_at": now_ms,
        "active_ms": 0,
    }
    return [Put(("meta", key), value) for key, value in meta.items()]


def copy_template(
    template_id: str, template_version: int, template: View, new_ids: Iterable[str]
) -> list[Write]:
    """The plan of a template as the exercises of a workout: a set becomes a target."""
    writes: list[Write] = [
        Put(("meta", "template_id"), template_id),
        Put(("meta", "template_version"), template_version),
    ]
    exercises = items_of(template["exercises"])
    for exercise_id, new_id in zip(order.in_order(exercises), new_ids, strict=False):
        source = exercises[exercise_id]
        sets = items_of(source.get("sets"))
        copied = {
            key: source[key]
            for key in ("name", "exercise_id", "order", "superset", "rest_s", "note")
            if source.get(key) is not None
        }
        copied["target"] = [
            {key: value for key, value in sets[set_id].items() if key != "order"}
            for set_id in order.in_order(sets)
        ]
        writes.append(Put(("exercises", new_id), copied))
    return writes


def transition(view: View, action: Action, now_ms: int) -> list[Write]:
    """Move the workout's state machine, and its clock with it.

    `active_ms` is what has been trained until the last pause; while active, add the time since
    `resumed_at`. A clock that was set back counts as no time, never as less than none.

    Raises:
        Conflict: the action does not lead on from the present status.
    """
    meta = view["meta"]
    status = meta.get("status", "planned")
    allowed_from, target = TRANSITIONS[action]
    if status not in allowed_from:
        raise Conflict(f"cannot {action} a workout that is {status}", details={"status": status})
    writes: list[Write] = [Put(("meta", "status"), target)]
    if status == "active":
        since = meta.get("resumed_at", now_ms)
        writes.append(Put(("meta", "active_ms"), meta.get("active_ms", 0) + max(0, now_ms - since)))
    if target == "active":
        writes.append(Put(("meta", "resumed_at"), now_ms))
        if action == "start":
            writes.append(Put(("meta", "started_at"), now_ms))
    elif "resumed_at" in meta:
        writes.append(Remove(("meta", "resumed_at")))
    if target in _ENDED_EVENTS:
        writes.append(Put(("meta", "ended_at"), now_ms))
    return writes


def add_exercise(
    view: View,
    exercise_id: str,
    fields: Mapping[str, Any],
    *,
    before: str | None = None,
    after: str | None = None,
) -> list[Write]:
    if exercise_id in view["exercises"]:
        raise Conflict(f"there is an exercise {exercise_id} already")
    placed = order.place(items_of(view["exercises"]), exercise_id, before=before, after=after)
    made = {"note": "", "target": [], **fields, "order": placed.pop(exercise_id)}
    return [Put(("exercises", exercise_id), made), *_reorder(placed)]


def update_exercise(view: View, exercise_id: str, changes: Mapping[str, Any]) -> list[Write]:
    """Change fields; None removes an optional one."""
    known(view, "exercises", exercise_id)
    return _patch(("exercises", exercise_id), changes)


def move_exercise(
    view: View, exercise_id: str, *, before: str | None, after: str | None
) -> list[Write]:
    known(view, "exercises", exercise_id)
    exercises = items_of(view["exercises"])
    return _reorder(order.place(exercises, exercise_id, before=before, after=after))


def remove_exercise(view: View, exercise_id: str, user_id: UserId) -> list[Write]:
    """Take an exercise out, and the user's own sets with it.

    Raises:
        Conflict: somebody else has logged sets of it.
    """
    known(view, "exercises", exercise_id)
    logged = {
        id_: item
        for id_, item in view["sets"].items()
        if isinstance(item, dict) and item.get("exercise") == exercise_id
    }
    others = sorted({str(item.get("user_id")) for item in logged.values()} - {user_id})
    if others:
        raise Conflict("others have logged sets of this exercise", details={"user_ids": others})
    return [Remove(("exercises", exercise_id)), *(Remove(("sets", id_)) for id_ in logged)]


def complete_set(
    view: View,
    set_id: str,
    *,
    user_id: UserId,
    exercise_id: str,
    measures: Mapping[str, Any],
    completed_at: int,
    device_id: str,
) -> list[Write]:
    """Log a set. The same set sent again, by a device that missed the answer, writes nothing.

    Raises:
        NotFound: no such exercise.
        Conflict: the id is taken by another set.
    """
    known(view, "exercises", exercise_id)
    logged = {"user_id": user_id, "exercise": exercise_id, **measures}
    existing = view["sets"].get(set_id)
    if existing is not None:
        if isinstance(existing, dict) and all(
            existing.get(key) == value for key, value in logged.items()
        ):
            return []
        raise Conflict(f"there is a set {set_id} already, with other values")
    made = {
        **logged,
        "order": order.append_key(items_of(view["sets"])),
        "completed_at": completed_at,
        "device_id": device_id,
    }
    return [Put(("sets", set_id), made)]


def update_set(view: View, set_id: str, user_id: UserId, changes: Mapping[str, Any]) -> list[Write]:
    own_set(view, set_id, user_id)
    return _patch(("sets", set_id), changes)


def remove_set(view: View, set_id: str, user_id: UserId) -> list[Write]:
    own_set(view, set_id, user_id)
    return [Remove(("sets", set_id))]


def known(view: View, root: str, id_: str) -> Mapping[str, Any]:
    """The item `id_` of a root.

    Raises:
        NotFound: there is none.
    """
    item = view[root].get(id_)
    if not isinstance(item, dict):
        raise NotFound(f"there is no {root[:-1]} {id_}")
    return item


def own_set(view: View, set_id: str, user_id: UserId) -> Mapping[str, Any]:
    item = known(view, "sets", set_id)
    if item.get("user_id") != user_id:
        raise Forbidden("a set can be changed by the one who did it only")
    return item


def _patch(path: tuple[str, ...], changes: Mapping[str, Any]) -> list[Write]:
    if not changes:
        raise Invalid.at(path[0].removesuffix("s"), "holds nothing to change")
    return [
        Remove((*path, key)) if value is None else Put((*path, key), value)
        for key, value in changes.items()
    ]


def _reorder(keys: Mapping[str, str]) -> list[Write]:
    return [Put(("exercises", id_, "order"), key) for id_, key in keys.items()]


# -- what a change means --------------------------------------------------------------------


def project(
    workout_id: str, before: View, delta: Delta, names: Mapping[UserId, str]
) -> list[DomainEvent]:
    """The events that a change causes, whoever made it. `before` is the view it was made on."""
    events: list[DomainEvent] = []
    meta: dict[str, Any] = {}
    for (root, key), value in sorted(delta.items(), key=_in_turn):
        gone = value is GONE
        old = before[root].get(key)
        if root == "meta":
            meta[key] = None if gone else value
        elif old == value:
            continue
        elif root == "sets":
            events.append(_set_event(workout_id, key, old, None if gone else value, names))
        elif root == "exercises":
            shown = {**value, "id": key} if isinstance(value, dict) else None
            payload = {"exercise_id": key, "exercise": shown}
            events.append(
                DomainEvent("workout:exercise:changed", {"workout_id": workout_id, **payload})
            )
        elif root == "timers":
            payload = {"key": key, "timer": None if gone else value}
            events.append(DomainEvent("workout:timer", {"workout_id": workout_id, **payload}))
    if meta:
        events.extend(_meta_events(workout_id, before["meta"], meta))
    return events


def _in_turn(change: tuple[tuple[str, str], Any]) -> tuple[str, str, str]:
    """The plan before the sets, and the sets in the order in which they were done."""
    (root, key), value = change
    place = value.get("order") if isinstance(value, dict) else None
    return root, place if isinstance(place, str) else "", key


def _set_event(
    workout_id: str,
    set_id: str,
    old: Any,
    new: Any,
    names: Mapping[UserId, str],
) -> DomainEvent:
    payload: dict[str, Any] = {"workout_id": workout_id, "set_id": set_id}
    owner = new if isinstance(new, dict) else old
    if isinstance(owner, dict):
        user_id = str(owner.get("user_id", ""))
        payload["user"] = {"id": user_id, "name": names.get(UserId(user_id), user_id)}
    if new is None:
        return DomainEvent("workout:set:removed", payload)
    payload["set"] = {**new, "id": set_id} if isinstance(new, dict) else new
    payload["is_pr"] = False
    name = "workout:set:completed" if old is None else "workout:set:updated"
    return DomainEvent(name, payload, set_id=set_id)


def _meta_events(
    workout_id: str, before: Mapping[str, Any], changed: Mapping[str, Any]
) -> Iterable[DomainEvent]:
    old, new = before.get("status"), changed.get("status")
    if old is not None and new is not None and old != new:
        name = _STATUS_EVENTS.get((old, new)) or _ENDED_EVENTS.get(new)
        if name is not None:
            meta = {**before, **changed}
            times = {
                key: meta.get(key) for key in ("started_at", "resumed_at", "ended_at", "active_ms")
            }
            yield DomainEvent(name, {"workout_id": workout_id, "status": new, **times})
    yield DomainEvent("workout:changed", {"workout_id": workout_id, "meta": dict(changed)})


def scores(before: View, delta: Delta) -> list[Score]:
    """What the sets that a change touched are worth now, for the record book.

    A set whose exercise got another name counts for that one from then on. A set keeps its worth
    when its exercise is taken out of the plan.
    """
    touched = {key for root, key in delta if root == "sets"}
    renamed = {
        key
        for (root, key), value in delta.items()
        if root == "exercises"
        and isinstance(value, dict)
        and exercise_key(value) != _key_of(before["exercises"].get(key))
    }
    if renamed:
        touched |= {
            id_
            for id_, fields in before["sets"].items()
            if isinstance(fields, dict) and fields.get("exercise") in renamed
        }
    if not touched:
        return []
    found: list[Score] = []
    sets = {id_: delta.get(("sets", id_), before["sets"].get(id_)) for id_ in touched}
    for set_id in order.in_order(sets) if len(sets) > 1 else sets:
        old, new = before["sets"].get(set_id), sets[set_id]
        was = _whose(before, {}, old)
        now = _whose(before, delta, new)
        if was is not None and was != now:
            found.append(Score(set_id, *was, {}))
        if now is not None and isinstance(new, dict):
            found.append(Score(set_id, *now, record_values(new)))
    return found


def _whose(before: View, delta: Delta, fields: Any) -> tuple[UserId, str] | None:
    """The user and the exercise that a set counts for, if it can be told."""
    if not isinstance(fields, dict):
        return None
    user_id, exercise = fields.get("user_id"), fields.get("exercise")
    if not isinstance(user_id, str) or not isinstance(exercise, str):
        return None
    planned = delta.get(("exercises", exercise), GONE)
    if planned is GONE:
        planned = before["exercises"].get(exercise)
    key = _key_of(planned)
    return None if key is None else (UserId(user_id), key)


def _key_of(exercise: Any) -> str | None:
    return exercise_key(exercise) if isinstance(exercise, dict) else None


# -- how it is shown ------------------------------------------------------------------------


def snapshot(
    workout_id: str,
    view: View,
    *,
    members: Iterable[Mapping[str, Any]],
    awards: Mapping[str, Mapping[str, Award]],
    now_ms: int,
    version: int,
    roster: Iterable[Member],
) -> dict[str, Any]:
    """The workout as JSON, the shape of the wire contract: a function of the document, its
    members and its awards, and nothing else."""
    return {
        "id": workout_id,
        **{key: view["meta"].get(key, default) for key, default in _META_DEFAULTS.items()},
        "exercises": _listed(view["exercises"]),
        "sets": _listed(view["sets"]),
        "timers": view["timers"],
        "members": list(members),
        "progress": progress(view, awards, roster),
        "server_time": now_ms,
        "version": version,
    }


def items_of(found: Any) -> dict[str, dict[str, Any]]:
    """The items among what a client wrote into a map; whatever else is there is left out."""
    if not isinstance(found, dict):
        return {}
    return {id_: item for id_, item in found.items() if isinstance(item, dict)}


def _listed(items: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = items_of(items)
    return [{**shown[id_], "id": id_} for id_ in order.in_order(shown)]
