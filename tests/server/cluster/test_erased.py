"""What comes late to the shared log, without those who were erased since."""

from __future__ import annotations

from collections.abc import Sequence

from pycrdt import merge_updates

from crdt.ids import UserId
from crdt.ports import Part, Stored
from server.cluster.erased import Erased
from server.cluster.record import taken_back, with_parts
from server.storage import mongo_log
from tests.contracts.update_store import record
from tests.helpers.mongo_servers import opening
from tests.helpers.people import ZOE
from tests.helpers.replicas import Peer
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry


async def test_what_was_done_twice_is_taken_back_beside_somebody_who_was_erased(
    mongo_uri: str,
) -> None:
    before = Peer()
    base = before.exercise("squat")
    peer = Peer(state=base)
    updates = [
        peer.set("zoes", user_id=ZOE, note="left knee hurts"),
        peer.set("anas"),
        peer.set("bens", user_id="ben"),
    ]
    entries = [
        entry(who, op_id=f"op-{who}", answer=lambda _: {}, event="workout:set:complete")
        for who in (ZOE, "ana", "ben")
    ]
    parts = [Part(update, changes_status=False) for update in updates]
    batch = record(merge_updates(*updates), *entries)._replace(parts=parts)
    waiting = with_parts(mongo_log.draft(batch, [(), (), ()], Stored(1), NOW_MS), batch, 1)

    async def shared(_: object) -> Sequence[bytes]:
        return [base]

    async with opening(mongo_uri) as store:
        erased = Erased(store)
        assert await erased.erasures() == []
        assert await erased.cleaned(LEG_DAY, waiting, shared, []) is waiting
        await store.begin_erasure(UserId(ZOE), NOW_MS)
        told_apart = taken_back(
            waiting,
            LEG_DAY,
            [base],
            repeated={mongo_log.key("ana", "op-ana")},
            is_outpaced=False,
        )
        late = await erased.cleaned(LEG_DAY, told_apart, shared, await erased.erasures())
    before.apply(late["yjs"])
    assert before.content()["sets"].keys() == {"bens"}
    packed = mongo_log.pack(dict(late))
    assert b"zoes" not in packed
    assert b"left knee hurts" not in packed
    assert ZOE.encode() not in packed
