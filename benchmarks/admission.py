"""What it costs to check an update, on top of applying it.

One lifter's Yjs client logs set after set. The same updates are applied to a bare document, and
admitted by a room: screened, applied, checked against every rule, projected to events and scores.
Neither stores or sends anything. CPU time of this process; the median of several rounds.

    python benchmarks/admission.py
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pycrdt import Doc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import updates
from crdt import ids, workout
from crdt.access import RIGHTS, Member, User
from crdt.ids import ConnectionId, DocKind, UserId
from crdt.ports import Author, Stored
from crdt.room import Room

SIZES = (10, 1_000)
ROUNDS, EACH = 9, 300
MAX_ON_TOP_US = 60.0

LIFTER = User(UserId(updates.USER), "Lifter")
AUTHOR = Author(LIFTER.id, LIFTER.name, "phone", ConnectionId("c"))


def measure() -> list[dict[str, Any]]:
    """One row for each size: {sets, apply_us, admit_us, on_top_us, ratio}."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)  # as the server sets it
    return [_measure(size) for size in SIZES]


def _measure(sets: int) -> dict[str, Any]:
    before = updates.of_writer(updates.SEED_TAG, updates.SEED_CLIENT, sets)
    applied, admitted = [], []
    for number in range(ROUNDS):
        fresh = updates.of_writer(number, updates.client_id(number), EACH)
        applied.append(_apply(before, fresh))
        admitted.append(_admit(before, fresh))
    apply_us, admit_us = statistics.median(applied), statistics.median(admitted)
    return {
        "sets": sets,
        "apply_us": round(apply_us, 1),
        "admit_us": round(admit_us, 1),
        "on_top_us": round(admit_us - apply_us, 1),
        "ratio": round(admit_us / apply_us, 1),
    }


def _apply(before: list[bytes], fresh: list[bytes]) -> float:
    doc: Doc[Any] = Doc()
    for update in before:
        doc.apply_update(update)
    started = time.process_time()
    for update in fresh:
        doc.apply_update(update)
    return 1e6 * (time.process_time() - started) / len(fresh)


def _admit(before: list[bytes], fresh: list[bytes]) -> float:
    room = Room(ids.workout("w"))
    plan = workout.create(
        owner_id=UserId("coach"), title="Legs", mode="group", visibility="private", now_ms=1
    )
    members = [Member(UserId("coach"), "owner", "Coach"), Member(LIFTER.id, "participant", "L")]
    room.edit(plan, AUTHOR, 1, "workout:create", members=members)
    for exercise in updates.EXERCISES:
        room.edit(workout.add_exercise(room.head, exercise, {"name": exercise}), AUTHOR, 1, "add")
    rights = RIGHTS[DocKind.WORKOUT]["participant"]
    for update in before:
        room.admit(update, AUTHOR, 1, rights)
    _settle(room)
    started = time.process_time()
    for update in fresh:
        room.admit(update, AUTHOR, 1, rights)
    spent = time.process_time() - started
    _settle(room)
    return 1e6 * spent / len(fresh)


def _settle(room: Room) -> None:
    while (batch := room.take_batch()) is not None:
        room.commit(batch, Stored(room.seq + 1))


def report(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with what was promised."""
    lines = [
        "**Admission**: one set of a participant's, CPU µs per update",
        "",
        "| sets in the document | plain apply | admitted | on top | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {row['sets']:,} | {row['apply_us']} | {row['admit_us']}"
            f" | {row['on_top_us']} | {row['ratio']} |"
            for row in rows
        ),
        "",
    ]
    worst = max(row["on_top_us"] for row in rows)
    holds = "held" if worst <= MAX_ON_TOP_US else "MISSED"
    return "\n".join([*lines, f"- on top ≤ {MAX_ON_TOP_US:g} µs: {holds} ({worst})"])


if __name__ == "__main__":
    found = measure()
    print(json.dumps(found) if "--json" in sys.argv[1:] else report(found))
