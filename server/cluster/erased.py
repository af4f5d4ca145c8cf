"""What comes late to the shared log, from a spool or a tail, goes in without those who were erased
since: this instance may have been away when they were.

Their blocks stay in the update as gaps, so that what others built on them still has its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from crdt import erasure
from crdt.erasure import ERASED
from crdt.ids import DocName, UserId
from crdt.ports import SERVER
from crdt.replica import EMPTY_UPDATE, Put, Remove, Replica, Write
from crdt.revocations import Revocation, RevocationList, TokenFacts
from crdt.screen import blocks
from server.cluster.record import without_parts
from server.storage import mongo_log
from server.storage.mongo import MongoStore

Shared = Callable[[DocName], Awaitable[Iterable[bytes]]]
"""A document as Yjs updates."""


class Erased:
    """Who was erased, read from the store each time: it is asked seldom.

    What fails: `Unavailable`, if the store cannot be read; nothing may be appended late then.
    """

    def __init__(self, store: MongoStore) -> None:
        self._store = store

    async def erasures(self) -> Sequence[Revocation]:
        """Who was erased until now.

        Raises:
            Unavailable: the store cannot be read.
        """
        return [r for r in await self._store.revocations(0) if r.kind == "erased"]

    async def cleaned(
        self,
        doc: DocName,
        draft: Mapping[str, Any],
        shared: Shared,
        erasures: Sequence[Revocation],
    ) -> Mapping[str, Any]:
        """A draft without what was erased since it was made; the same one if nothing was.

        Args:
            shared: reads the document as the shared log has it, with all that stands before the
                draft.
            erasures: as they were a moment ago.
        """
        if not erasures:
            return draft
        gone = {id_ for id_ in _named_in(draft) if _is_erased(id_, draft, erasures)}
        for user_id in sorted(gone):
            draft = await self._without(doc, draft, UserId(user_id), shared)
        return draft

    async def _without(
        self, doc: DocName, draft: Mapping[str, Any], user_id: UserId, shared: Shared
    ) -> Mapping[str, Any]:
        entries = []
        for entry in draft["entries"]:
            if entry["user_id"] == user_id:
                entry = {**entry, "user_id": SERVER, "name": ERASED, "device_id": "", "op_id": None}
                entry.pop("answer", None)
            entries.append(entry)
        made = {
            **without_parts(draft),
            "entries": entries,
            "ops": [op for op in draft.get("ops", ()) if op != _op_of(draft, user_id, op)],
            "members": [m for m in draft.get("members", ()) if m["user_id"] != user_id],
            "scores": [s for s in draft.get("scores", ()) if s["user_id"] != user_id],
            "awards": [a for a in draft.get("awards", ()) if a["user_id"] != user_id],
            "client_ids": [
                [client_id, SERVER if whose == user_id else whose]
                for client_id, whose in draft.get("client_ids", ())
            ],
        }
        if (summary := draft.get("summary")) and summary["owner_id"] == user_id:
            made["summary"] = None
        made = {name: value for name, value in made.items() if value or name == "entries"}
        if "yjs" in draft:
            is_theirs_alone = all(entry["user_id"] == user_id for entry in draft["entries"])
            update = draft["yjs"]
            ids = {id_ for id_, whose in draft.get("client_ids", ()) if whose == user_id}
            if is_theirs_alone:
                ids |= {block.client_id for block in blocks(update)}
            update = _update_without(doc, await shared(doc), update, user_id, ids)
            made |= {"yjs": update, "crc": mongo_log.checksum(update)}
        return made


def _update_without(
    doc: DocName, shared: Iterable[bytes], update: bytes, user_id: UserId, ids: set[int]
) -> bytes:
    replica = Replica(doc.kind)
    replica.load(*shared)
    before = replica.state_vector()
    replica.load(update)
    part = erasure.part_of(doc.kind, replica.read(), replica.diff(), user_id, ids)
    writes: list[Write] = [Remove(("sets", id_)) for id_ in part.sets]
    writes += [Remove(("timers", key)) for key in part.timers]
    owner_id = replica.read()["meta"].get("owner_id")
    if owner_id == user_id:
        writes.append(Put(("meta", "owner_id"), SERVER))
    replica.write(writes)
    if part.typed != EMPTY_UPDATE:
        replica.load(part.typed)
    sets = {*part.sets, *erasure.sets_in([update], user_id)}
    keys: dict[str, set[str]] = {"sets": sets, "timers": {user_id}}
    clean = Replica(doc.kind, erasure.forget_keys(replica.diff(), keys, ids), is_watched=False)
    return clean.diff(before)


def _named_in(draft: Mapping[str, Any]) -> set[str]:
    found = {entry["user_id"] for entry in draft["entries"]}
    for field in ("members", "scores", "awards"):
        found |= {row["user_id"] for row in draft.get(field, ())}
    found |= {whose for _, whose in draft.get("client_ids", ())}
    if summary := draft.get("summary"):
        found.add(summary["owner_id"])
    return found - {SERVER}


def _is_erased(user_id: str, draft: Mapping[str, Any], erasures: Sequence[Revocation]) -> bool:
    at_ms = max(entry["at_ms"] for entry in draft["entries"])
    known = RevocationList()
    for one in erasures:
        known.add(one, 0)
    return known.refuses(TokenFacts(UserId(user_id), None, at_ms), 0)


def _op_of(draft: Mapping[str, Any], user_id: str, op: str) -> str | None:
    """The same operation, if it is one of this user's."""
    theirs = {
        mongo_log.key(user_id, entry["op_id"])
        for entry in draft["entries"]
        if entry["user_id"] == user_id and entry["op_id"] is not None
    }
    return op if op in theirs else None
