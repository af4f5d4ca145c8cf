"""Real Yjs updates for the load generator.

Every writer is one Yjs client that logs sets, as an app does: each update puts one key, a UUID,
into the root map `sets`, with a shared map in the shape of a workout document's set. The UUID
carries the tag that the load generator looks for in what is delivered:
`c0ffee5e-WWWW-4SSS-8SSS-SSSSSSSSSSSS`, W the writer, S the sequence number (only the last group is
read). The exercises and the user are those of the documents that bench.py makes beforehand, so
that RepSync finds a set that it admits and that can win records; the peers get the same bytes.

File: "YUPD", u32 writers, u32 updates of each; then by writer and sequence number u32 length and
the bytes. Little endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from fractional_indexing import generate_key_between
from pycrdt import Doc, Map, TransactionEvent

USER = "bench"
EXERCISES = ("bench-press", "back-squat", "deadlift", "pull-up")

SEED_TAG, SEED_CLIENT = 0xFFFF, 9_000_001
START_MS = 1_763_700_000_000


def client_id(writer: int) -> int:
    return 1_000_003 + 7_919 * writer


def write(path: Path, *, writers: int, each: int) -> None:
    """A fleet's updates: those of `writers` clients, `each` of every one."""
    _write(path, [of_writer(tag, client_id(tag), each) for tag in range(writers)])


def write_seed(path: Path, *, sets: int) -> None:
    """A document that is there before the fleet comes, by one writer whose tag is ffff."""
    _write(path, [of_writer(SEED_TAG, SEED_CLIENT, sets)])


def of_writer(tag: int, client: int, count: int) -> list[bytes]:
    """One update for each of `count` sets that this client logs."""
    doc: Doc[Any] = Doc(client_id=client)
    sets = doc.get("sets", type=Map)
    updates: list[bytes] = []

    def gather(event: TransactionEvent) -> None:
        updates.append(event.update)

    subscription = doc.observe(gather)
    order = None
    for n in range(count):
        order = generate_key_between(order, None)
        key = f"c0ffee5e-{tag:04x}-4{n & 0xFFF:03x}-8{(n >> 12) & 0xFFF:03x}-{n:012x}"
        fields = {
            "user_id": USER,
            "exercise": EXERCISES[(tag + n) % len(EXERCISES)],
            "order": order,
            "kind": "normal",
            "weight_kg": 40 + (n % 60) * 2.5,
            "reps": 3 + n % 12,
            "completed_at": START_MS + n * 90_000 + tag,
        }
        with doc.transaction():
            sets[key] = Map(fields)
    doc.unobserve(subscription)
    if len(updates) != count:
        raise RuntimeError(f"{count} sets made {len(updates)} updates")
    return updates


def _write(path: Path, writers: list[list[bytes]]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(b"YUPD" + struct.pack("<II", len(writers), len(writers[0])))
        for updates in writers:
            for update in updates:
                file.write(struct.pack("<I", len(update)) + update)
    part.replace(path)
