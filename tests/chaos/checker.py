"""Whether what is there in the end is what the clients know of.

The replicas are what every server shows as JSON, what it gives a Yjs client that knows nothing,
what the Yjs clients have that were there all the time, and what watchers make of events alone. They
must become equal; then the clients' logs are held against what they show.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from crdt.ids import DocKind, DocName
from crdt.wire import state_clocks
from server.replay.check import template_document, workout_document
from server.replay.devices import CallFailed, DocumentClient, EventClient, Lost, Refused
from tests.chaos.clients import (
    Device,
    Laptop,
    Organiser,
    Phone,
    Racer,
    Thin,
    Trainer,
    Watcher,
    Watching,
    World,
    measures_of,
)

CONVERGENCE_S = 10.0
ASKED_AGAIN = 500
"""How many of its ops each client sends once more in the end."""
IN_FLIGHT = 20


@dataclass
class Cast:
    """Who plays, and on what. `owners` may read the documents."""

    owners: dict[DocName, str]
    phones: list[Phone] = field(default_factory=list)
    racers: list[Racer] = field(default_factory=list)
    organisers: list[Organiser] = field(default_factory=list)
    trainers: list[Trainer] = field(default_factory=list)
    laptops: list[Laptop] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)

    @property
    def thin(self) -> list[Thin]:
        return [*self.phones, *self.racers, *self.organisers, *self.trainers]

    @property
    def devices(self) -> list[Device]:
        return [*self.thin, *self.laptops, *self.watchers]

    async def close(self) -> None:
        for device in self.devices:
            await device.close()


@dataclass
class Agreed:
    """What all replicas show: by document, the snapshot and the document's content."""

    snapshots: dict[DocName, dict[str, Any]]
    contents: dict[DocName, dict[str, Any]]

    def workout(self, id_: str) -> dict[str, Any]:
        return self.snapshots[DocName(DocKind.WORKOUT, id_)]

    def template(self, id_: str) -> dict[str, Any]:
        return self.snapshots[DocName(DocKind.TEMPLATE, id_)]


async def check(world: World, cast: Cast, urls: Sequence[str]) -> Agreed:
    """Everything. Raises AssertionError, which says what is wrong."""
    agreed = await agreement(world, cast, urls)
    check_logs(cast, agreed, has_lost_books=world.has_lost_books)
    await check_answers(world, cast, urls)
    again = await agreement(world, cast, urls)
    for name, before in agreed.contents.items():
        assert again.contents[name] == before, f"{name}: a repeated operation changed something"
        if world.is_one_server:
            versions = [a.snapshots[name]["version"] for a in (agreed, again)]
            assert versions[0] == versions[1], f"{name}: a repeated operation wrote something"
    return agreed


def check_logs(cast: Cast, agreed: Agreed, *, has_lost_books: bool = False) -> None:
    """What the clients logged, held against what is there."""
    for phone in cast.phones:
        check_phone(phone, agreed)
    for racer in cast.racers:
        check_sets_by_mark(racer, agreed)
    if not has_lost_books:
        check_race(cast.racers, agreed)
    for organiser in cast.organisers:
        check_organiser(organiser, agreed)
    for trainer in cast.trainers:
        goal = agreed.template(trainer.template_id).get("goal")
        assert trainer.goal.allows(goal), (trainer.name, trainer.goal, goal)
    for laptop in cast.laptops:
        check_laptop(laptop, agreed)
    for watcher in cast.watchers:
        check_watcher(watcher)
    check_records(agreed)
    check_presence(cast, agreed)


# -- all replicas are equal -----------------------------------------------------------------------


async def agreement(
    world: World, cast: Cast, urls: Sequence[str], timeout_s: float = CONVERGENCE_S
) -> Agreed:
    """Wait until all replicas are equal. Raises AssertionError if they do not become so."""
    difference = "nothing could be read"
    agreed: Agreed | None = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with AsyncExitStack() as stack:
        readers = _Readers(world, cast, urls, stack)
        while loop.time() < deadline:
            try:
                agreed, difference = await readers.compare()
            except (Lost, Refused, CallFailed, TimeoutError) as exc:
                difference = f"{type(exc).__name__}: {exc}"
            else:
                if not difference:
                    return agreed
            await asyncio.sleep(0.1)
    raise AssertionError(f"after {timeout_s:g} s the replicas are not equal: {difference}")


class _Readers:
    """Clients that read every document at every server, by JSON and as a new replica."""

    def __init__(
        self, world: World, cast: Cast, urls: Sequence[str], stack: AsyncExitStack
    ) -> None:
        self._world = world
        self._cast = cast
        self._urls = urls
        self._stack = stack
        self._phones: dict[tuple[str, str], EventClient] = {}

    async def compare(self) -> tuple[Agreed, str]:
        """Returns: what the first server shows, and where another replica differs ("": nowhere)."""
        agreed, difference = Agreed({}, {}), ""
        for name, owner in self._cast.owners.items():
            for url in self._urls:
                snapshot = await self._snapshot(url, name, owner)
                replica = await self._new_replica(url, name, owner)
                document = _document(name, snapshot, replica["content"])
                if name not in agreed.snapshots:
                    agreed.snapshots[name], agreed.contents[name] = snapshot, replica["content"]
                    first = replica
                pairs = (
                    ("the snapshot", _still(snapshot), _still(agreed.snapshots[name])),
                    ("the document's JSON", document, replica["content"]),
                    ("the replica", replica, first),
                )
                for what, found, wanted in pairs:
                    if found != wanted:
                        difference = f"{name} at {url}, {what}: {first_difference(found, wanted)}"
            for laptop in self._cast.laptops:
                if laptop.document == name:
                    found = _replica(laptop.replica)
                    if found != first:
                        difference = f"{laptop.name}: {first_difference(found, first)}"
        for watcher in self._cast.watchers:
            shown = kept_up(watcher.watchings[-1])
            wanted = as_watched(agreed.workout(watcher.workout_id))
            if shown != wanted:
                difference = f"{watcher.name}: {first_difference(shown, wanted)}"
        return agreed, difference

    async def _snapshot(self, url: str, name: DocName, owner: str) -> dict[str, Any]:
        phone = self._phones.get((url, owner))
        if phone is None or not phone.is_connected:
            phone = EventClient(url, self._world.token(owner), {"id": "reader", "name": "Reader"})
            self._stack.push_async_callback(phone.close)
            self._phones[url, owner] = await phone.connect()
        kind = name.kind.value
        event = "workout:sync" if name.kind is DocKind.WORKOUT else "template:get"
        found: dict[str, Any] = (await phone.do(event, {f"{kind}_id": name.id}))[kind]
        return found

    async def _new_replica(self, url: str, name: DocName, owner: str) -> dict[str, Any]:
        client = DocumentClient(
            url, name, self._world.token(owner), {"id": "reader-laptop", "name": "Reader"}
        )
        try:
            await client.connect()
            return _replica(client)
        finally:
            await client.close()


def _replica(client: DocumentClient) -> dict[str, Any]:
    return {"content": client.content(), "clocks": state_clocks(client.doc.get_state())}


def _document(name: DocName, snapshot: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    shaped = workout_document if name.kind is DocKind.WORKOUT else template_document
    return shaped(snapshot, content["meta"])


def _still(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what differs from server to server: its clock, its position, the order of
    what is in no order, and the devices of the readers, who are on their way out."""
    shown = {key: value for key, value in snapshot.items() if key not in ("server_time", "version")}
    if "members" in shown:
        shown["members"] = {
            member["user"]["id"]: (member["role"], devices_of(member))
            for member in snapshot["members"]
        }
        shown["progress"] = {
            user_id: {**progress, "records": sorted(progress["records"], key=_record_key)}
            for user_id, progress in snapshot["progress"].items()
        }
    return shown


def _record_key(record: dict[str, Any]) -> tuple[str, str]:
    return record["set_id"], record["type"]


def devices_of(member: dict[str, Any]) -> set[str]:
    return {device["id"] for device in member["devices"]} - {"reader-laptop"}


def first_difference(left: Any, right: Any, path: str = "") -> str:
    """Where two JSON values differ first, and how."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys(), key=str):
            if left.get(key) != right.get(key):
                return first_difference(left.get(key), right.get(key), f"{path}.{key}")
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            here = [one for one in left if one not in right]
            there = [one for one in right if one not in left]
            return f"{path} has {str(here)[:1_000]}, but not {str(there)[:1_000]}"
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{index}]")
    return f"{path} is {str(left)[:200]!r}, not {str(right)[:200]!r}"


# -- every acked change is there, once ------------------------------------------------------------


def check_phone(phone: Phone, agreed: Agreed) -> None:
    for op in phone.by_event("workout:exercise:add"):
        shown = agreed.workout(op.data["workout_id"])["exercises"]
        check_times(phone, op, [item["name"] for item in shown].count(op.mark))
    check_sets_by_mark(phone, agreed)
    for logged in phone.sets.values():
        sets = {item["id"]: item for item in agreed.workout(logged.workout_id)["sets"]}
        there = sets.get(logged.set_id)
        assert logged.allows(measures_of(there)), (phone.name, logged, there)
        if there:
            assert there["user_id"] == phone.user_id
            assert there["exercise"] == logged.exercise_id


def check_sets_by_mark(client: Thin, agreed: Agreed) -> None:
    """Each set that was completed is there once, unless it was removed."""
    marks: dict[str, Counter[str]] = {}
    for op in client.by_event("workout:set:complete"):
        workout_id = op.data["workout_id"]
        if workout_id not in marks:
            shown = agreed.workout(workout_id)["sets"]
            marks[workout_id] = Counter(item.get("note") for item in shown)
        times = marks[workout_id][op.mark]
        if op.answer is None:
            check_times(client, op, times)
            continue
        logged = client.sets.get(op.answer["set_id"]) if isinstance(client, Phone) else None
        if logged is None or not logged.allows(None):
            check_times(client, op, times)
        else:
            assert times <= 1, (client.name, op, f"is there {times} times")


def check_times(client: Thin, op: Any, times: int) -> None:
    assert not op.is_open, (client.name, op, "is open")
    if op.answer is not None:
        wanted = {1}
    elif op.is_refused:
        wanted = {0}
    else:
        wanted = {0, 1}
    assert times in wanted, (client.name, op, f"is there {times} times")


def check_laptop(laptop: Laptop, agreed: Agreed) -> None:
    found = laptop.found(agreed.contents[laptop.document])
    for edit in laptop.edits:
        if edit.is_acked:
            assert found[edit.mark] == 1, (laptop.name, edit, found[edit.mark])
        else:
            assert edit.is_abandoned, (laptop.name, edit)
            assert found[edit.mark] <= 1, (laptop.name, edit, found[edit.mark])


def check_organiser(organiser: Organiser, agreed: Agreed) -> None:
    workout = agreed.workout(organiser.workout_id)
    assert organiser.status.allows(workout["status"]), (organiser.status, workout["status"])
    roles = {member["user"]["id"]: member["role"] for member in workout["members"]}
    for guest, register in organiser.guests.items():
        assert register.allows(roles.get(guest)), (organiser.name, guest, register, roles)


# -- nothing is told or won twice -----------------------------------------------------------------

STATUS_EVENTS = frozenset(
    f"workout:{name}" for name in ("started", "paused", "resumed", "completed", "abandoned")
)


def check_watcher(watcher: Watcher) -> None:
    """No connection was told of anything twice."""
    for watching in watcher.watchings:
        check_told_once(watcher, watching)


def check_told_once(watcher: Watcher, watching: Watching) -> None:
    completed = Counter(
        payload["set_id"] for event, payload in watching.events if event == "workout:set:completed"
    )
    transitions = Counter(
        json.dumps([event, payload], sort_keys=True)
        for event, payload in watching.events
        if event in STATUS_EVENTS
    )
    for told in (completed, transitions):
        twice = [what for what, times in told.items() if times > 1]
        assert not twice, f"{watcher.name} was told twice: {twice[:5]}"


def kept_up(watching: Watching) -> dict[str, Any]:
    """A workout as events alone make it, from where the watcher joined."""
    shown = as_watched(watching.base)
    sets, exercises = shown["sets"], shown["exercises"]
    for event, payload in watching.events:
        if event in ("workout:set:completed", "workout:set:updated"):
            sets[payload["set_id"]] = payload["set"]
        elif event == "workout:set:removed":
            sets.pop(payload["set_id"], None)
        elif event == "workout:exercise:changed" and payload["exercise"] is None:
            exercises.pop(payload["exercise_id"], None)
        elif event == "workout:exercise:changed":
            exercises[payload["exercise_id"]] = payload["exercise"]
        elif event in STATUS_EVENTS:
            shown["status"] = payload["status"]
    return shown


def as_watched(workout: dict[str, Any]) -> dict[str, Any]:
    """What events tell of a workout, of its snapshot."""
    return {
        "status": workout["status"],
        "sets": {item["id"]: item for item in workout["sets"]},
        "exercises": {item["id"]: item for item in workout["exercises"]},
    }


def check_records(agreed: Agreed) -> None:
    """A set has each of its records once."""
    for snapshot in agreed.snapshots.values():
        for progress in snapshot.get("progress", {}).values():
            won = Counter((item["set_id"], item["type"]) for item in progress["records"])
            assert not won or max(won.values()) == 1, (snapshot["id"], won.most_common(3))


def check_race(racers: Iterable[Racer], agreed: Agreed) -> None:
    """A value was a record for one set only, whichever device and server it came from."""
    racers = list(racers)
    winners: dict[tuple[str, float], set[str]] = defaultdict(set)
    for racer in racers:
        for op in racer.ops:
            for record in (op.answer or {}).get("records", ()):
                winners[record["type"], record["value"]].add(op.answer["set_id"])
        progress = agreed.workout(racer.workout_id)["progress"].get(racer.user_id, {})
        for record in progress.get("records", ()):
            winners[record["type"], record["value"]].add(record["set_id"])
    for value, sets in winners.items():
        assert len(sets) == 1, f"{value} was a record of {len(sets)} sets"


def check_presence(cast: Cast, agreed: Agreed) -> None:
    """Online is who is connected, with these devices and no others."""
    here: dict[DocName, set[str]] = defaultdict(set)
    for laptop in cast.laptops:
        here[laptop.document].add(laptop.name)
    for watcher in cast.watchers:
        here[DocName(DocKind.WORKOUT, watcher.workout_id)].add(watcher.name)
    for name, snapshot in agreed.snapshots.items():
        if name.kind is DocKind.WORKOUT:
            shown = set().union(*(devices_of(member) for member in snapshot["members"]))
            assert shown == here[name], f"{name}: {shown} are shown, {here[name]} are there"


# -- an op is answered the same way every time ----------------------------------------------------


async def check_answers(world: World, cast: Cast, urls: Sequence[str]) -> None:
    """Operations that are sent once more, anywhere, are answered as they were the first time."""
    for client in cast.thin:
        acked = [op for op in client.ops if op.answer is not None]
        sample = world.random.sample(acked, min(ASKED_AGAIN, len(acked)))
        for url in urls:
            asker = EventClient(
                url, world.token(client.user_id), {"id": client.name, "name": client.name}
            )
            await asker.connect()
            try:
                for start in range(0, len(sample), IN_FLIGHT):
                    part = sample[start : start + IN_FLIGHT]
                    answers = await asyncio.gather(*(asker.ask(op.event, op.data) for op in part))
                    for op, answer in zip(part, answers, strict=True):
                        assert _lasting(answer) == _lasting(op.answer), (client.name, url, op)
            finally:
                await asker.close()


def _lasting(answer: dict[str, Any] | None) -> dict[str, Any]:
    """An answer without how durable it was then: what was `local` is `cluster` later."""
    return {key: value for key, value in (answer or {}).items() if key != "durability"}
