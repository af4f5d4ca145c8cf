"""A store that lasts as long as the process: for tests, and as the plainest reading of the port."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, islice

from crdt.access import Member, is_shown
from crdt.errors import Conflict
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import (
    TRAINING_ROLES,
    Answer,
    Append,
    Durability,
    Entry,
    Loaded,
    Stored,
    Summary,
    Training,
)
from crdt.progress import SetWorth, training
from crdt.records import Award, RecordType, Score
from crdt.revocations import Revocation, RevocationKind


@dataclass(slots=True)
class _Document:
    summary: Summary
    seq: int = 0
    snapshot: bytes | None = None
    snapshot_seq: int = 0
    log: dict[int, bytes] = field(default_factory=dict)
    members: dict[UserId, Member] = field(default_factory=dict)
    awards: dict[str, dict[str, Award]] = field(default_factory=dict)
    client_ids: dict[int, UserId] = field(default_factory=dict)
    removed_exercises: set[str] = field(default_factory=set)


class MemoryStore:
    """A `Store` in dictionaries."""

    durability: Durability = "memory"

    def __init__(self) -> None:
        self._documents: dict[DocName, _Document] = {}
        self._answers: dict[tuple[UserId, str], Answer] = {}
        self._active: dict[UserId, str] = {}
        self._revocations: dict[tuple[RevocationKind, str], Revocation] = {}
        self._scores: dict[
            tuple[UserId, str], dict[tuple[DocName, str], dict[RecordType, float]]
        ] = {}

    async def load(self, doc: DocName) -> Loaded | None:
        found = self._documents.get(doc)
        if found is None:
            return None
        return Loaded(
            found.snapshot,
            [found.log[seq] for seq in sorted(found.log)],
            found.seq,
            found.snapshot_seq,
            dict(found.members),
            {set_id: dict(won) for set_id, won in found.awards.items()},
            dict(found.client_ids),
            frozenset(found.removed_exercises),
        )

    async def append(self, batch: Append) -> Stored:
        if batch.creates:
            if batch.doc in self._documents:
                raise Conflict(f"{batch.doc} exists already")
            assert batch.summary is not None
            self._documents[batch.doc] = _Document(batch.summary)
        document = self._documents[batch.doc]
        document.summary = batch.summary or document.summary
        if batch.update is not None:
            document.seq += 1
            document.log[document.seq] = batch.update
        owner_id = document.summary.owner_id
        ended = document.summary.status in ("completed", "abandoned")
        if ended and self._active.get(owner_id) == batch.doc.id:
            del self._active[owner_id]
        won: dict[str, dict[str, Award]] = {}
        by_entry: list[dict[str, dict[str, Award]]] = []
        for entry in batch.entries:
            by_entry.append({})
            for member in entry.members:
                if member.role:
                    document.members[member.user_id] = member
                else:
                    document.members.pop(member.user_id, None)
            for client_id, user_id in entry.client_ids:
                document.client_ids.setdefault(client_id, user_id)
            document.removed_exercises.update(entry.removed_exercises)
            for score in entry.scores:
                for award in self._keep_score(batch.doc, score):
                    won.setdefault(award.set_id, {})[award.type] = award
                    by_entry[-1].setdefault(award.set_id, {})[award.type] = award
                    document.awards.setdefault(award.set_id, {})[award.type] = award
        stored = Stored(document.seq, won, by_entry)
        for index, entry in enumerate(batch.entries):
            self._keep_answer(entry, stored.of(index))
        return stored

    def _keep_answer(self, entry: Entry, stored: Stored) -> None:
        if entry.op_id is not None and entry.answer is not None:
            self._answers[entry.author.user_id, entry.op_id] = entry.answer(stored)

    def _keep_score(self, doc: DocName, score: Score) -> list[Award]:
        scores = self._scores.setdefault((score.user_id, score.exercise), {})
        scores.pop((doc, score.set_id), None)
        given = self._documents[doc].awards.get(score.set_id, {})
        won: list[Award] = []
        for type_, value in score.values.items():
            best = max(
                (values[type_] for values in scores.values() if type_ in values), default=None
            )
            if (best is None or value > best) and type_ not in given:
                won.append(Award(score.set_id, score.user_id, score.exercise, type_, value, best))
        if score.values:
            scores[doc, score.set_id] = dict(score.values)
        return won

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        document = self._documents.get(doc)
        if document is None or document.snapshot_seq != base:
            return False
        document.snapshot, document.snapshot_seq = snapshot, upto
        document.log = {seq: update for seq, update in document.log.items() if seq > upto}
        return True

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        return self._answers.get((user_id, op_id))

    async def summaries(
        self, user_id: UserId, kind: DocKind, *, limit: int, before: DocName | None = None
    ) -> Sequence[tuple[Summary, str]]:
        newest_first: Iterator[tuple[DocName, _Document]] = reversed(self._documents.items())
        if before is not None:
            newest_first = dropwhile(lambda item: item[0] != before, newest_first)
            next(newest_first, None)
        mine = (
            (document.summary, document.members[user_id].role)
            for doc, document in newest_first
            if doc.kind is kind and user_id in document.members
        )
        return list(islice(mine, limit))

    async def training(
        self, user_id: UserId, *, limit: int, circles: Collection[UserId] | None = None
    ) -> Training:
        mine = [
            document.summary
            for doc, document in reversed(self._documents.items())
            if doc.kind is DocKind.WORKOUT
            and (member := document.members.get(user_id)) is not None
            and member.role in TRAINING_ROLES
        ]
        shown = {
            doc
            for doc, document in self._documents.items()
            if circles is None
            or is_shown(document.summary.visibility, document.summary.owner_id, circles)
        }
        sets = [
            SetWorth(doc, set_id, exercise, values)
            for (whose, exercise), scores in self._scores.items()
            if whose == user_id
            for (doc, set_id), values in scores.items()
        ]
        return training(mine, shown, sets, limit=limit)

    async def summary(self, doc: DocName) -> Summary | None:
        found = self._documents.get(doc)
        return found.summary if found else None

    async def active_workout(self, owner_id: UserId) -> str | None:
        return self._active.get(owner_id)

    async def claim_active(
        self, owner_id: UserId, workout_id: str, instead_of: str | None = None
    ) -> str:
        holder = self._active.get(owner_id)
        if holder is None or holder == instead_of:
            self._active[owner_id] = workout_id
        return self._active[owner_id]

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        name = (revocation.kind, revocation.id)
        known = self._revocations.get(name)
        self._revocations[name] = revocation.merged(known) if known else revocation
        self._keep_answer(entry, Stored(0))

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        return [found for found in self._revocations.values() if found.until_ms > now_ms]
