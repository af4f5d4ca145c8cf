"""The shared log: what instances append to a document, in one order for all of them.

**What is promised.** An append is one step in Redis: it gets the next position, is in the stream,
its answers are kept, and whoever listens to the room's channel is told. Positions of an *epoch*
have no gaps. An append that is repeated with the same `origin` and `n` changes nothing: one whose
outcome is unknown may simply be sent again.

**Who owns what.** Redis owns the position, the records that are not in MongoDB yet, and which
append of each origin was the last. A Redis that has lost a document's head knows nothing of it; it
is *founded* anew, in a new epoch, by who has read what MongoDB has.

**What fails.** Every method raises one of `connection.ERRORS` when Redis cannot do it now. What was
asked may have been done all the same.

Keys, for prefix P and document D (`workout:abc`); what is in braces decides the slot in a cluster:
`P:{D}:log` stream, `P:{D}:head` hash (`epoch`, `pos`, `created`, `o:ORIGIN` -> `n:pos`, `g:GUARD`
-> `pos:ORIGIN`), `P:{D}:op:KEY` an answer, `P:{D}:bus` the room's channel, `P:all` everybody's,
`P:since` a note that is there as long as nobody has emptied Redis.

**The queue of work** names documents that have records to be moved to MongoDB: `P:work`, a stream
with one consumer group. A document waits in it once at most (`{P:work}:waiting` is the set of those
that wait), so it is no longer than there are documents, however long nobody works; a limit to its
length would drop the only note of a document that is silent from then on. A task that is taken
makes room for the next: what is appended after that is announced again.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.exceptions import ResponseError

from crdt.erasure import scrubbed
from crdt.errors import Invalid
from crdt.ids import DocName, UserId
from server.cluster.connection import Connection
from server.cluster.scripts import Argument, Script, checked_prefix
from server.storage import mongo_log

APPEND, FOUND, RETIRE = Script("append"), Script("found"), Script("retire")
REFOUND = Script("refound")
ANNOUNCE, FINISH = Script("announce"), Script("finish")
SINCE = Script("since")

GROUP = "movers"

ANSWERS_KEPT_S = 86_400
UNLISTED_KEPT_S = 3_600
EPOCH_BYTES = 8
SCAN_COUNT = 1_000
PAGE = 1_000

_GLOB = re.compile(r"[][*?\\^]")


class Head(NamedTuple):
    """Where a document's log ends. `exists`: the document was created."""

    epoch: str
    pos: int
    exists: bool


class Record(NamedTuple):
    """One append: `data` as it was given, and whose it was."""

    pos: int
    origin: str
    n: int
    data: bytes


class Task(NamedTuple):
    """A document that somebody announced, and the task's id in the queue."""

    id: str
    doc: DocName


class Refused(Exception):
    """The log stands against this append. Nothing was changed."""


class Unfounded(Refused):
    """Redis knows nothing of this document, any more or yet."""


class EpochChanged(Refused):
    """The document was founded anew. What was read before may lack what others wrote."""

    def __init__(self, epoch: str) -> None:
        super().__init__(f"the epoch is {epoch} now")
        self.epoch = epoch


class Exists(Refused):
    """It was to create a document that exists."""


class Missing(Refused):
    """It does not create the document, and nobody has."""


class Repeated(Refused):
    """Another append has answered `key` already."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is answered already")
        self.key = key


class Outpaced(Refused):
    """Another origin has set the guard `name` at a position that the writer has not seen."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was changed meanwhile")
        self.name = name


NONE: Mapping[str, Any] = MappingProxyType({})


class RedisLog:
    """The logs of all documents, in one Redis."""

    def __init__(self, redis: Connection, prefix: str = "repsync") -> None:
        """Nothing is sent before the first call.

        Args:
            redis: made by `connect`; stays the caller's.
            prefix: of all keys; no braces.
        """
        self._redis = redis
        self._prefix = checked_prefix(prefix)
        self._work = f"{prefix}:work"
        self._waiting = f"{{{prefix}:work}}:waiting"
        self._timeout_s: float = redis.get_connection_kwargs().get("socket_timeout") or 1.0

    async def ping(self) -> None:
        """Ask for a word."""
        await _plain(self._redis.ping())

    async def since(self, *, is_new: bool) -> tuple[str, float]:
        """A name for what this Redis holds, another one after it was emptied; and how long it has
        had that, in seconds.

        Args:
            is_new: whether a Redis that has no name yet has lost nothing.
        """
        arguments: list[Argument] = [secrets.token_hex(EPOCH_BYTES), int(is_new)]
        name, age_ms = await SINCE(self._redis, [f"{self._prefix}:since"], arguments)
        return name.decode(), int(age_ms) / 1_000

    def channel(self, doc: DocName | None) -> str:
        """The name of a room's channel; None for the channel of all instances."""
        return f"{self._prefix}:all" if doc is None else self._key(doc, "bus")

    async def publish(self, doc: DocName | None, data: bytes) -> None:
        """Tell whoever listens now. Nothing is kept."""
        await self._redis.publish(self.channel(doc), data)

    async def head(self, doc: DocName) -> Head | None:
        """Where the log ends; None if the document was never founded here, or is retired."""
        found = await _plain(self._redis.hmget(self._key(doc, "head"), ["epoch", "pos", "created"]))
        return None if found[0] is None else _head(found)

    async def found(self, doc: DocName, pos: int, exists: bool) -> Head:
        """Make the head of a document, in a new epoch, unless there is one.

        Args:
            pos: the position before the first one that will be given.
            exists: whether the document was created.

        Returns: the head that stands. Its position is a later one than `pos` if the stream has
            outlived its head.
        """
        keys = [self._key(doc, "head"), self._key(doc, "log")]
        epoch = secrets.token_hex(EPOCH_BYTES)
        return _head(await FOUND(self._redis, keys, [epoch, pos, int(exists)]))

    async def refound(self, doc: DocName, epoch: str, pos: int) -> Head:
        """Give up an epoch, with all that the stream has of it, because it went back behind what
        had been told of it: a replica that lagged has taken over, or a disk has lost its last
        second. To be done by who has what it lost, after what it still has was moved.

        Args:
            epoch: the one that is given up; if it is another one by now, nothing is changed.
            pos: the position before the first one that the new epoch will give.
        Returns: the head that stands.
        """
        keys = [self._key(doc, "head"), self._key(doc, "log")]
        return _head(await REFOUND(self._redis, keys, [epoch, secrets.token_hex(EPOCH_BYTES), pos]))

    async def append(
        self,
        doc: DocName,
        record: bytes,
        *,
        epoch: str,
        origin: str,
        n: int,
        creates: bool = False,
        answers: Mapping[str, bytes] = NONE,
        guards: Mapping[str, int] = NONE,
        takes_back: bool = False,
    ) -> int:
        """Append one record, and tell it on the room's channel (`envelope.unpack_update`).

        Args:
            epoch: of the head that the writer goes by.
            origin: the writer, in this life of its process.
            n: counts the writer's appends to this document, from 1.
            creates: the record makes the document. Else it must have been made.
            answers: key -> what to answer to who asks again; kept for 24 hours.
            guards: name -> the position up to which the writer knows what was changed there.
            takes_back: what is guarded is as the log had it: what the same writer has planned
                without knowing that is to be stopped by the guards, too.

        Returns: its position. If this `n` of the origin has been here already, the position it got
            then; if a later one was the last, that one's. Nothing is changed then.

        Raises:
            Unfounded, EpochChanged, Repeated, Exists, Missing, Outpaced: looked at in this order.
        """
        names = list(answers)
        keys = [self._key(doc, "head"), self._key(doc, "log")]
        keys += [self._key(doc, f"op:{name}") for name in names]
        arguments: list[Argument] = [epoch, origin, n, int(creates), record]
        arguments += [self.channel(doc), ANSWERS_KEPT_S, "" if takes_back else origin]
        arguments += answers.values()
        for name, seen in guards.items():
            arguments += [name, seen]
        outcome, *which = await APPEND(self._redis, keys, arguments)
        match outcome:
            case b"ok":
                return int(which[0])
            case b"unfounded":
                raise Unfounded(f"nothing is known of {doc}")
            case b"epoch":
                raise EpochChanged(which[0].decode())
            case b"repeated":
                raise Repeated(names[which[0] - 1])
            case b"exists":
                raise Exists(f"{doc} exists")
            case b"missing":
                raise Missing(f"{doc} does not exist")
            case b"outpaced":
                raise Outpaced(which[0].decode())
        raise AssertionError(f"append.lua said {outcome!r}")

    async def read(self, doc: DocName, after: int, limit: int = PAGE) -> list[Record]:
        """Up to `limit` records that come after position `after`, oldest first."""
        found = await _plain(
            self._redis.xrange(self._key(doc, "log"), min=f"{after + 1}-0", max="+", count=limit)
        )
        return [_record(id_, fields) for id_, fields in found]

    async def read_on(self, doc: DocName, after: int) -> AsyncIterator[Record]:
        """All that comes after position `after`, and that comes while it is read."""
        while records := await self.read(doc, after, PAGE):
            for record in records:
                yield record
            after = records[-1].pos

    async def answer(self, doc: DocName, key: str) -> bytes | None:
        """What was answered to `key` by an append of the last 24 hours."""
        answer: bytes | None = await _plain(self._redis.get(self._key(doc, f"op:{key}")))
        return answer

    async def unlisted(self, user_id: UserId) -> list[DocName]:
        """Documents whose place in this user's lists may not be in MongoDB yet."""
        found = await _plain(self._redis.smembers(self._lists(user_id)))
        return [DocName.parse(name.decode()) for name in found]

    async def mark_unlisted(self, user_ids: Iterable[UserId], doc: DocName) -> None:
        """Say so."""
        for user_id in user_ids:
            key = self._lists(user_id)
            await _plain(self._redis.sadd(key, str(doc)))
            await _plain(self._redis.expire(key, UNLISTED_KEPT_S))

    async def mark_listed(self, user_id: UserId, docs: Iterable[DocName]) -> None:
        """They are in MongoDB now. What was appended meanwhile is marked anew, and may be lost:
        to be done after the documents were moved, with those that were named before."""
        if names := [str(doc) for doc in docs]:
            await _plain(self._redis.srem(self._lists(user_id), *names))

    def _lists(self, user_id: UserId) -> str:
        return f"{self._prefix}:{{{user_id}}}:unlisted"

    async def length(self, doc: DocName) -> int:
        """How many records the stream holds."""
        return int(await self._redis.xlen(self._key(doc, "log")))

    async def trim(self, doc: DocName, upto: int, keep: int = 256) -> None:
        """Drop the records up to position `upto`, but for the `keep` last positions of them."""
        first = upto - keep + 1
        if first > 0:
            await _plain(
                self._redis.xtrim(self._key(doc, "log"), minid=f"{first}-0", approximate=False)
            )

    async def drop(self, doc: DocName) -> None:
        """Forget a document that was deleted for good, with all that it was answered."""
        await _plain(self._redis.delete(self._key(doc, "head"), self._key(doc, "log")))
        pattern = _GLOB.sub(r"\\\g<0>", self._key(doc, "op:")) + "*"
        async for key in self._redis.scan_iter(match=pattern, count=SCAN_COUNT):
            await _plain(self._redis.delete(key))
        pattern = _GLOB.sub(r"\\\g<0>", f"{self._prefix}:{{") + "*}:unlisted"
        async for key in self._redis.scan_iter(match=pattern, count=SCAN_COUNT):
            await _plain(self._redis.srem(key, str(doc)))
        await self._unqueue(doc)

    async def _unqueue(self, doc: DocName) -> None:
        """There is nothing to be done for a document any more, be it somebody's task already."""
        name, start = str(doc).encode(), "-"
        while page := await _plain(self._redis.xrange(self._work, min=start, count=SCAN_COUNT)):
            if ids := [id_ for id_, fields in page if fields.get(b"d") == name]:
                await FINISH(self._redis, [self._work], [GROUP, *ids])
            start = f"({page[-1][0].decode()}"
        await _plain(self._redis.srem(self._waiting, str(doc)))

    async def forget_user(self, user_id: UserId) -> Counter[str]:
        """Delete what is kept of a user beside streams: answers to them, and what others' answers
        say of them, their record books, their lists. All keys are looked at.

        Returns: how many of what.
        """
        asked_by = mongo_log.key(user_id, "").removesuffix('"]').encode()  # ["ana","
        named = json.dumps(user_id).encode()
        counts: Counter[str] = Counter()
        pattern = _GLOB.sub(r"\\\g<0>", self._prefix) + ":*"
        async for key in self._redis.scan_iter(match=pattern, count=SCAN_COUNT):
            rest = key.removeprefix(self._prefix.encode())
            _, is_answer, asked = rest.partition(b"}:op:")
            if rest.startswith(b":{" + asked_by) or rest == f":{{{user_id}}}:unlisted".encode():
                counts["books"] += await _plain(self._redis.delete(key))
            elif is_answer and asked.startswith(asked_by):
                counts["answers"] += await _plain(self._redis.delete(key))
            elif is_answer and (answer := await _plain(self._redis.get(key))) and named in answer:
                told = json.dumps(scrubbed(json.loads(answer), user_id))
                await _plain(self._redis.set(key, told, xx=True, keepttl=True))
                counts["mentions_in_answers"] += 1
        return counts

    async def retire(self, doc: DocName, pos: int) -> bool:
        """Forget a document of which all is in MongoDB up to `pos`, unless something was appended
        since or an instance listens to its room. What was answered stays.

        In a cluster each node knows its own listeners alone. They are asked before, so who begins
        to listen right then is not seen: its next append is `Unfounded`, and loses nothing.

        Returns: whether it is forgotten.
        """
        channel = self.channel(doc)
        if isinstance(self._redis, RedisCluster):
            everywhere = RedisCluster.ALL_NODES
            told = await _plain(self._redis.pubsub_numsub(channel, target_nodes=everywhere))
            if any(count for _, count in told):
                return False
        keys = [self._key(doc, "head"), self._key(doc, "log")]
        return bool(await RETIRE(self._redis, keys, [pos, channel]))

    async def heads(self) -> AsyncIterator[DocName]:
        """All documents that have a head. One may come twice; one that is founded or retired
        meanwhile may come or not."""
        before, after = f"{self._prefix}:{{", "}:head"
        pattern = _GLOB.sub(r"\\\g<0>", before) + "*" + after
        async for key in self._redis.scan_iter(match=pattern, count=SCAN_COUNT):
            with contextlib.suppress(Invalid):  # a newer version's
                yield DocName.parse(key.decode().removeprefix(before).removesuffix(after))

    # -- the queue of work ------------------------------------------------------------------------

    async def announce(self, docs: Iterable[DocName]) -> None:
        """Queue documents, once each. One that is being worked on is queued again."""
        if names := [str(doc) for doc in docs]:
            await ANNOUNCE(self._redis, [self._work, self._waiting], names)

    async def take(self, consumer: str, *, count: int = 32, block_s: float = 1.0) -> list[Task]:
        """The next tasks, oldest first; waits for the first of them.

        They are this consumer's until `finish`, or until another takes them over.
        """
        ends_s = time.monotonic() + block_s
        while True:
            left_s = ends_s - time.monotonic()
            # Shorter than the time after which a server counts as away.
            block_ms = math.ceil(1_000 * min(left_s, self._timeout_s / 2))
            try:
                found = await _plain(
                    self._redis.xreadgroup(
                        GROUP,
                        consumer,
                        {self._work: ">"},
                        count=count,
                        block=block_ms if block_ms > 0 else None,
                    )
                )
            except ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                await self._make_group()
                continue
            if found:
                return await self._begin(found[0][1])
            if left_s <= 0:
                return []

    async def take_over(self, consumer: str, *, idle_s: float, count: int = 32) -> list[Task]:
        """Tasks that another consumer took `idle_s` ago or longer, and has not finished."""
        cursor = "0-0"
        while True:
            try:
                cursor, found, *_ = await _plain(
                    self._redis.xautoclaim(
                        self._work,
                        GROUP,
                        consumer,
                        min_idle_time=int(1_000 * idle_s),
                        start_id=cursor,
                        count=count,
                    )
                )
            except ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                return []
            if found or cursor == b"0-0":
                return await self._begin(found)

    async def finish(self, tasks: Iterable[Task]) -> None:
        """They are done, whoever has them."""
        if ids := [task.id for task in tasks]:
            await FINISH(self._redis, [self._work], [GROUP, *ids])

    async def _begin(self, found: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Task]:
        tasks = []
        for id_, fields in found:
            with contextlib.suppress(Invalid):  # a newer version's, left to whoever knows it
                tasks.append(Task(id_.decode(), DocName.parse(fields[b"d"].decode())))
        if tasks:
            # Before anybody reads what there is to do: from now on there may be more of it.
            await _plain(self._redis.srem(self._waiting, *(str(task.doc) for task in tasks)))
        return tasks

    async def _make_group(self) -> None:
        try:
            await _plain(self._redis.xgroup_create(self._work, GROUP, id="0", mkstream=True))
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):  # somebody else was faster
                raise

    def _key(self, doc: DocName, name: str) -> str:
        return f"{self._prefix}:{{{doc}}}:{name}"


async def _plain(answer: Any) -> Any:
    """redis-py's types say that an answer may come at once, which it does in its other half."""
    return await answer


def _head(found: list[bytes]) -> Head:
    epoch, pos, created = found
    return Head(epoch.decode(), int(pos), created == b"1")


def _record(id_: bytes, fields: Mapping[bytes, bytes]) -> Record:
    """An entry of a stream. Of one that none of us has written, something that cannot be opened: it
    is for who opens records to say so."""
    n = fields.get(b"n", b"")
    return Record(
        int(id_.partition(b"-")[0]),
        fields.get(b"o", b"").decode(errors="replace"),
        int(n) if n.isdigit() else 0,
        fields.get(b"r", b""),
    )
