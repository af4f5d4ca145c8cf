"""How far everybody has come in one workout, and one user in all. Projections: computed, never
stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from crdt.access import Member
from crdt.ids import DocName, UserId
from crdt.order import in_order
from crdt.ports import Best, Summary, Trained, Training
from crdt.records import Award, RecordType, positive, record_values
from crdt.replica import View


def progress(
    view: View, awards: Mapping[str, Mapping[str, Award]], roster: Iterable[Member]
) -> dict[str, dict[str, Any]]:
    """User id -> `{sets_done, sets_planned, volume_kg, reps, best, records}`.

    Everybody who trains has an entry: owner, participants, and whoever logged a set. `volume_kg`
    and `reps` count all kinds of sets but warm-ups. `best` maps exercise id -> the heaviest,
    longest, most: `{weight_kg, reps, volume_kg, e1rm_kg, seconds}`, each where it applies.
    `records` lists the awards that the user's sets won and still deserve.
    """
    planned = sum(
        len(exercise["target"])
        for exercise in view["exercises"].values()
        if isinstance(exercise, dict) and isinstance(exercise.get("target"), list)
    )
    found: dict[str, dict[str, Any]] = {
        member.user_id: _nothing_yet(planned)
        for member in roster
        if member.role in ("owner", "participant")
    }
    sets = {id_: fields for id_, fields in view["sets"].items() if isinstance(fields, dict)}
    for set_id in in_order(sets):
        fields = sets[set_id]
        if not isinstance(fields.get("user_id"), str):
            continue
        entry = found.setdefault(fields["user_id"], _nothing_yet(planned))
        entry["sets_done"] += 1
        _count(entry, fields)
        values = record_values(fields)
        for _, award in sorted(awards.get(set_id, {}).items()):
            value = values.get(award.type)
            if value is not None and (award.previous is None or value > award.previous):
                # A set that was corrected since is shown with what it is worth now.
                won = {**award.to_wire(), "value": value}
                entry["records"].append(
                    {"set_id": set_id, "exercise": fields.get("exercise"), **won}
                )
    for entry in found.values():
        entry["volume_kg"] = _tidy(entry["volume_kg"])
    return found


class SetWorth(NamedTuple):
    """What one set of a user's is worth."""

    doc: DocName
    set_id: str
    exercise: str
    values: Mapping[RecordType, float]


def training(
    workouts: Sequence[Summary],
    shown: Container[DocName],
    sets: Iterable[SetWorth],
    *,
    limit: int,
) -> Training:
    """What `Store.training` returns, of everything that a store has of a user.

    Args:
        workouts: the user's, newest first.
        shown: the documents that are not left out.
        sets: those that count for records.
    """
    counts: Counter[DocName] = Counter()
    volumes: defaultdict[DocName, float] = defaultdict(float)
    bests: dict[tuple[str, RecordType], Best] = {}
    for worth in sets:
        if worth.doc not in shown:
            continue
        counts[worth.doc] += 1
        volumes[worth.doc] += worth.values.get("volume", 0)
        for type_, value in worth.values.items():
            best = Best(worth.exercise, type_, value, worth.doc, worth.set_id)
            known = bests.get((worth.exercise, type_))
            if known is None or best_first(best) < best_first(known):
                bests[worth.exercise, type_] = best
    listed = [summary for summary in workouts if summary.doc in shown]
    return Training(
        [Trained(each, counts[each.doc], volumes[each.doc]) for each in listed[:limit]],
        [bests[name] for name in sorted(bests)],
        len(listed),
        counts.total(),
        sum(volumes.values()),
        frozenset(each.owner_id for each in workouts if each.visibility == "friends"),
        any(each.visibility == "public" for each in workouts),
    )


def best_first(best: Best) -> tuple[float, str, str]:
    """What the bests of an exercise and type are sorted by."""
    return -best.value, str(best.doc), best.set_id


def user_progress(user_id: UserId, done: Training) -> dict[str, Any]:
    """`{user_id, workouts: [{workout_id, title, status, started_at, ended_at, sets, volume_kg}],
    records: {exercise: {type: {value, workout_id, set_id}}}, totals: {workouts, sets, volume_kg}}`.

    `sets` are those that count for records: no warm-ups, and none without a measure.
    """
    records: dict[str, dict[str, Any]] = {}
    for best in done.bests:
        records.setdefault(best.exercise, {})[best.type] = {
            "value": _tidy(best.value),
            "workout_id": best.doc.id,
            "set_id": best.set_id,
        }
    return {
        "user_id": user_id,
        "workouts": [
            {
                "workout_id": summary.doc.id,
                "title": summary.title,
                "status": summary.status,
                "started_at": summary.started_at,
                "ended_at": summary.ended_at,
                "sets": sets,
                "volume_kg": _tidy(volume_kg),
            }
            for summary, sets, volume_kg in done.workouts
        ],
        "records": records,
        "totals": {
            "workouts": done.workout_count,
            "sets": done.sets,
            "volume_kg": _tidy(done.volume_kg),
        },
    }


def _nothing_yet(planned: int) -> dict[str, Any]:
    return {
        "sets_done": 0,
        "sets_planned": planned,
        "volume_kg": 0,
        "reps": 0,
        "best": {},
        "records": [],
    }


def _count(entry: dict[str, Any], fields: Mapping[str, Any]) -> None:
    if fields.get("kind") == "warmup":
        return
    weight_kg, reps, seconds = (
        positive(fields.get(key)) for key in ("weight_kg", "reps", "seconds")
    )
    entry["reps"] += int(reps)
    entry["volume_kg"] += weight_kg * reps
    done = {"weight_kg": weight_kg, "reps": reps, "volume_kg": weight_kg * reps, "seconds": seconds}
    estimate = record_values(fields).get("e1rm")
    if estimate is not None:
        done["e1rm_kg"] = estimate
    best = entry["best"].setdefault(str(fields.get("exercise")), {})
    for key, value in done.items():
        if value > best.get(key, 0):
            best[key] = _tidy(value)


def _tidy(value: float) -> float:
    """Rounded to a gram, and an int where it is whole, as JSON shows it."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
