"""How far everybody has come in one workout. A projection: computed, never stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crdt.access import Member
from crdt.order import in_order
from crdt.records import Award, positive, record_values
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
