"""What goes on in the rooms of this instance: how often each changes, and who wins records.

It is told of every change (`committed`), so that is a few dictionary look-ups. What is shown is
worked out when somebody asks.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from crdt.hub import RoomHub
from crdt.ids import DocKind, DocName, UserId
from crdt.live import LiveRoom
from crdt.ports import Clock, Committed
from crdt.revocations import Revocation, TokenFacts

WINDOW_S = 5.0
MAX_BUSIEST, MAX_LIVE, MAX_RECORDS = 10, 20, 20
LIVE = ("active", "paused")


class Activity:
    """Counts changes by document, in a window that ends when `turn` is called, and the one before.

    Args:
        now: seconds that never go back.
    """

    def __init__(
        self, hub: RoomHub, clock: Clock, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._now = now
        self._counts: Counter[DocName] = Counter()
        self._before: Counter[DocName] = Counter()
        self._began_s = now()
        self._before_s = 0.0
        self._records: dict[tuple[DocName, str, str], dict[str, Any]] = {}
        """By set and type: a room that is read again may tell of the same ones once more."""
        self.updates = 0
        """Changes since the start, of all documents."""

    def committed(self, commit: Committed) -> None:
        """A change is durable, and shown."""
        self.updates += 1
        self._counts[commit.doc] += 1
        for event in commit.events:
            if event.set_id is not None and event.payload.get("is_pr"):
                self._note_records(commit.doc, event.set_id, event.payload)

    def turn(self) -> None:
        """Begin another window; to be called about every `WINDOW_S`."""
        now = self._now()
        self._before, self._counts = self._counts, Counter()
        self._before_s, self._began_s = now - self._began_s, now

    def _note_records(self, doc: DocName, set_id: str, payload: dict[str, Any]) -> None:
        live = self._hub.find(doc)
        if live is None:
            return
        view = live.room.view
        of = view["exercises"].get(view["sets"].get(set_id, {}).get("exercise"), {})
        for type_, award in live.room.awards.get(set_id, {}).items():
            self._records.setdefault(
                (doc, set_id, type_),
                {
                    "at_ms": self._clock.now_ms(),
                    "workout_id": doc.id,
                    "user": payload.get("user") or {"id": award.user_id, "name": ""},
                    "exercise": str(of.get("name") or award.exercise),
                    "type": type_,
                    "value": award.value,
                },
            )
        for oldest in list(islice(self._records, max(0, len(self._records) - MAX_RECORDS))):
            del self._records[oldest]

    def forget(self, erased: Revocation) -> None:
        """Somebody is erased: what they won is told of no more."""
        for won, shown in list(self._records.items()):
            if erased.covers(TokenFacts(UserId(shown["user"]["id"]), None, None)):
                del self._records[won]

    # -- what is shown ----------------------------------------------------------------------

    def busiest(self) -> list[dict[str, Any]]:
        """The documents that change most often now, at most `MAX_BUSIEST`."""
        over_s = self._now() - self._began_s + self._before_s
        counts = self._before + self._counts
        shown = []
        for doc, count in counts.most_common():
            if (live := self._hub.find(doc)) is None:
                continue
            shown.append(
                {
                    "doc": str(doc),
                    "title": _title(live),
                    "members": _present(live),
                    "updates_per_s": round(count / max(over_s, 1.0), 2),
                }
            )
            if len(shown) == MAX_BUSIEST:
                break
        return shown

    def live(self) -> list[dict[str, Any]]:
        """Workouts that go on and are in memory here, those that began last first, at most
        `MAX_LIVE`."""
        going_on = (
            live
            for live in self._hub.live
            if live.name.kind is DocKind.WORKOUT and live.room.view["meta"].get("status") in LIVE
        )
        newest = heapq.nlargest(
            MAX_LIVE, going_on, key=lambda live: live.room.view["meta"].get("started_at") or 0
        )
        return [_workout(live) for live in newest]

    def records(self) -> list[dict[str, Any]]:
        """The records that were won here last, at most `MAX_RECORDS`, the newest first."""
        return list(reversed(self._records.values()))


def _workout(live: LiveRoom) -> dict[str, Any]:
    meta = live.room.view["meta"]
    roles = [member.role for member in live.room.members.values()]
    return {
        "workout_id": live.name.id,
        "title": _title(live),
        "status": meta.get("status"),
        "participants": sum(1 for role in roles if role in ("owner", "participant")),
        "sets": len(live.room.view["sets"]),
        "mode": meta.get("mode"),
    }


def _title(live: LiveRoom) -> str:
    return str(live.room.view["meta"].get("title") or "")


def _present(live: LiveRoom) -> int:
    """How many people are in the room, here or on other instances."""
    return len({*live.sockets_of, *(guest.user.id for guest in live.elsewhere.guests)})
