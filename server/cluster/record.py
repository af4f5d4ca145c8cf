"""A log record as it stands in the stream and comes by a room's channel: packed and sealed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crdt.ids import DocName
from server.cluster.envelope import Malformed, Sealer
from server.cluster.log import Record
from server.storage import mongo_log
from server.storage.mongo_log import Damaged


def seal_record(
    sealer: Sealer, doc: DocName, origin: str, n: int, draft: Mapping[str, Any]
) -> bytes:
    return sealer.seal(mongo_log.pack(draft), _place(doc, origin, n))


def open_record(sealer: Sealer, doc: DocName, record: Record) -> Mapping[str, Any]:
    """What is in a record of the log.

    Raises:
        Damaged: it is none of ours.
    """
    try:
        data = sealer.open(record.data, _place(doc, record.origin, record.n))
    except Malformed as exc:
        raise Damaged(str(exc)) from exc
    return mongo_log.unpack(data)


def _place(doc: DocName, origin: str, n: int) -> bytes:
    # Not the position: Redis gives that, and it is another one in another epoch.
    return f"{doc} {origin} {n}".encode()
