"""What the hub of streams promises to watchers, whatever happens in whatever order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.access import User
from crdt.errors import Forbidden, NotFound, RepSyncError, Unavailable
from crdt.ids import ConnectionId
from handlers.streams import Sources, StreamRegistry, StreamValue, Value, View
from server import streams as module
from server.streams import StreamHub, Update
from tests.helpers.rooms import FakeClock, until, user

INTERVAL_S = 0.01
STREAM = "number:n"
ANA, BEN, CLEO = (ConnectionId(name) for name in ("ana", "ben", "cleo"))


@dataclass
class Numbers:
    """A stream of a number, which friends see with a sign: what it shows, and who may see it."""

    number: int = 0
    looks: int = 0
    shown: int = 0
    banned: set[str] = field(default_factory=set)
    friends: set[str] = field(default_factory=set)
    faults: list[Exception] = field(default_factory=list)
    made_at_s: list[float] = field(default_factory=list)
    every_s: float | None = None

    def registry(self, **options: Any) -> StreamRegistry:
        kinds = StreamRegistry()
        options = {"interval_s": INTERVAL_S, "is_personal": True, **options}

        async def look(sources: Sources, id_: str, since_s: float) -> Numbers:
            self.looks += 1
            await asyncio.sleep(0)
            if self.faults:
                raise self.faults.pop(0)
            return self

        kinds.on("number:<id>", "number", StreamValue, **options)(look)
        kinds.on("items:<id>", "item", StreamValue, kept=3)(look)
        return kinds

    def view(self, user: User) -> View:
        if user.id in self.banned:
            raise Forbidden("not for you")
        return user.id in self.friends

    async def show(self, view: View) -> Value:
        self.shown += 1
        self.made_at_s.append(asyncio.get_running_loop().time())
        return {"number": self.number, "friendly": view}


@dataclass
class Watchers:
    """An audience that remembers."""

    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    over: list[tuple[str, str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def __hash__(self) -> int:
        return id(self)

    def user_of(self, watcher: ConnectionId) -> User | None:
        return None if watcher in self.gone else user(watcher)

    def show(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        self.updates.append(update)
        for watcher in watchers:
            self.seen.setdefault(watcher, []).append(json.loads(update.text))

    def tell(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        self.show(watchers, update)

    def ended(self, watcher: ConnectionId, stream: str, error: RepSyncError) -> None:
        self.over.append((watcher, stream, error.code))

    def last(self, watcher: str) -> Any:
        seen = self.seen.get(watcher)
        return (seen[-1]["number"], seen[-1]["friendly"]) if seen else None


class Scene:
    def __init__(self, **options: Any) -> None:
        self.numbers = Numbers()
        self.watchers = Watchers()
        kinds = self.numbers.registry(**options)
        nothing: Any = None
        sources = Sources(nothing, nothing, dict, dict)
        self.hub = StreamHub(sources, FakeClock(), self.watchers, "abc", kinds)

    async def subscribe(self, watcher: ConnectionId, stream: str = STREAM, seen: int = 0) -> None:
        view = await self.hub.admit(user(watcher), stream)
        self.hub.subscribe(watcher, {stream: view}, seen=seen)

    def set(self, number: int) -> None:
        self.numbers.number = number
        self.hub.changed(STREAM)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    return Scene()


def numbers_of(scene: Scene, watcher: str) -> list[int]:
    return [value["number"] for value in scene.watchers.seen.get(watcher, [])]


async def test_a_change_that_changes_nothing_is_not_told(scene: Scene) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana") == (0, False))
    scene.hub.changed(STREAM)
    await until(lambda: scene.numbers.shown == 2)
    scene.set(1)
    await until(lambda: scene.watchers.last("ana") == (1, False))
    assert [value["seq"] for value in scene.watchers.seen["ana"]] == [1, 2]


async def test_a_thousand_who_see_the_same_cost_one_value(scene: Scene) -> None:
    names = [ConnectionId(f"w{number}") for number in range(1_000)]
    for name in names:
        scene.hub.subscribe(name, {STREAM: False})
    await until(lambda: len(scene.watchers.seen) == 1_000)
    scene.set(1)
    await until(lambda: all(scene.watchers.last(name) == (1, False) for name in names))
    assert scene.numbers.shown == scene.hub.stats.made == 2
    assert len({id(update) for update in scene.watchers.updates}) == 2


async def test_who_comes_to_a_value_that_is_current_costs_none(scene: Scene) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana"))
    await scene.subscribe(BEN)
    await until(lambda: scene.watchers.last("ben"))
    assert scene.watchers.seen["ben"] == scene.watchers.seen["ana"]
    assert scene.numbers.shown == 1


async def test_each_view_has_a_value_of_its_own_with_one_number(scene: Scene) -> None:
    scene.numbers.friends = {"ben", "cleo"}
    for name in (ANA, BEN, CLEO):
        await scene.subscribe(name)
    await until(lambda: len(scene.watchers.seen) == 3)
    scene.set(5)
    await until(lambda: all(scene.watchers.last(name) == (5, name != ANA) for name in (ANA, BEN)))
    assert scene.watchers.seen["ben"][-1]["seq"] == scene.watchers.seen["ana"][-1]["seq"]
    assert scene.watchers.seen["ben"][-1] == scene.watchers.seen["cleo"][-1]


async def test_who_becomes_a_friend_sees_more_at_once(scene: Scene) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana") == (0, False))
    scene.numbers.friends.add("ana")
    scene.hub.renewed(ANA)
    await until(lambda: scene.watchers.last("ana") == (0, True))


async def test_who_may_watch_no_more_is_told_once_and_shown_nothing(scene: Scene) -> None:
    for name in (ANA, BEN):
        await scene.subscribe(name)
    await until(lambda: len(scene.watchers.seen) == 2)
    scene.numbers.banned.add("ben")
    scene.set(1)
    await until(lambda: scene.watchers.last("ana") == (1, False))
    assert numbers_of(scene, "ben") == [0]
    assert scene.watchers.over == [("ben", STREAM, "forbidden")]
    assert scene.hub.streams_of(BEN) == ()


async def test_who_is_shut_out_before_the_first_value_gets_none(scene: Scene) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana"))
    await scene.subscribe(BEN)
    scene.numbers.banned.add("ben")
    scene.hub.renewed(BEN)
    await until(lambda: scene.watchers.over)
    assert numbers_of(scene, "ben") == []


async def test_a_stream_whose_thing_is_gone_ends_for_all(scene: Scene) -> None:
    for name in (ANA, BEN):
        await scene.subscribe(name)
    await until(lambda: len(scene.watchers.seen) == 2)
    scene.numbers.faults = [NotFound("it is no more")]
    scene.set(1)
    await until(lambda: len(scene.watchers.over) == 2)
    assert {code for _, _, code in scene.watchers.over} == {"not_found"}
    assert scene.hub.watcher_count == 0


@pytest.mark.parametrize("fault", [Unavailable("not now"), ZeroDivisionError()])
async def test_a_value_that_cannot_be_made_is_made_later(scene: Scene, fault: Exception) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana"))
    scene.numbers.faults = [fault, fault]
    scene.set(1)
    await until(lambda: scene.watchers.last("ana") == (1, False))
    assert scene.hub.stats.failures == 2
    assert scene.watchers.over == []


async def test_what_is_pushed_comes_to_all_in_order_and_the_last_ones_to_who_comes_later(
    scene: Scene,
) -> None:
    async def push(*numbers: int) -> None:
        for number in numbers:
            scene.hub.push("items:i", {"number": number})

    await push(1, 2)
    await scene.subscribe(ANA, "items:i")
    await push(3)
    await until(lambda: numbers_of(scene, "ana") == [1, 2, 3])
    await push(4, 5)
    await scene.subscribe(BEN, "items:i")
    await scene.subscribe(CLEO, "items:i", seen=4)
    await until(lambda: numbers_of(scene, "ben") == [3, 4, 5])
    await until(lambda: numbers_of(scene, "cleo") == [5])
    await push(6)
    assert numbers_of(scene, "ana") == [1, 2, 3, 4, 5, 6]
    assert [value["seq"] for value in scene.watchers.seen["ana"]] == [1, 2, 3, 4, 5, 6]


async def test_a_stream_of_items_is_at_rest_between_them(scene: Scene) -> None:
    scene.hub.push("items:i", {"number": 1})
    await scene.subscribe(ANA, "items:i")
    await until(lambda: numbers_of(scene, "ana") == [1])
    scene.hub.changed("items:i")
    looks = scene.numbers.looks
    await asyncio.sleep(0.05)
    assert scene.numbers.looks == looks
    (stream,) = scene.hub._streams.values()
    assert (stream.timer, stream.making) == (None, None)


async def test_rights_that_cannot_be_checked_are_checked_later_and_not_at_once(
    scene: Scene,
) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana"))
    looks = scene.numbers.looks
    scene.numbers.faults = [Unavailable("not now")] * 3
    scene.numbers.banned.add("ana")
    scene.hub.renewed(ANA)
    await until(lambda: scene.watchers.over)
    assert scene.numbers.looks == looks + 4


async def test_no_number_comes_twice_on_one_instance(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    for number in range(1, 4):
        await scene.subscribe(ANA)
        await until(lambda number=number: len(scene.watchers.seen.get("ana", [])) == number)
        scene.hub.forget(ANA)
        await until(lambda: scene.hub.stream_count == 0)
        scene.numbers.number += 1
    assert [value["seq"] for value in scene.watchers.seen["ana"]] == [1, 2, 3]


async def test_who_has_the_current_value_is_told_nothing(scene: Scene) -> None:
    await scene.subscribe(ANA)
    await until(lambda: scene.watchers.last("ana"))
    scene.hub.forget(ANA)
    await scene.subscribe(BEN, seen=1)
    await scene.subscribe(CLEO, seen=7)
    await until(lambda: scene.watchers.last("cleo"))
    assert numbers_of(scene, "ben") == []


async def test_what_is_made_anew_anyway_is_not_made_while_nobody_watches() -> None:
    scene = Scene(every_s=0.005)
    await scene.subscribe(ANA)
    await until(lambda: scene.numbers.shown >= 3)
    scene.hub.forget(ANA)
    await asyncio.sleep(0)
    shown = scene.numbers.shown
    await asyncio.sleep(0.03)
    assert scene.numbers.shown <= shown + 1  # one may have been under way
    scene.numbers.number = 9
    await scene.subscribe(BEN)
    await until(lambda: scene.watchers.last("ben"))
    assert numbers_of(scene, "ben")[0] == 9


def test_a_kind_that_is_there_already_stops_the_start() -> None:
    kinds = Numbers().registry()
    look = kinds.kinds["number:<id>"].look
    with pytest.raises(ValueError, match="twice"):
        kinds.on("number:<id>", "number", StreamValue)(look)


# -- in any order --------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("subscribe"), st.sampled_from([ANA, BEN, CLEO])),
        st.tuples(st.just("leave"), st.sampled_from([ANA, BEN, CLEO])),
        st.tuples(st.just("set"), st.integers(0, 3)),
        st.tuples(st.just("friend"), st.sampled_from([ANA, BEN, CLEO])),
        st.tuples(st.just("ban"), st.sampled_from([ANA, BEN, CLEO])),
        st.tuples(st.just("fail"), st.just(ANA)),
        st.tuples(st.just("wait"), st.integers(0, 4)),
    ),
    max_size=30,
)


async def play(scene: Scene, actions: list[tuple[str, Any]]) -> None:
    numbers = scene.numbers
    for action, what in actions:
        match action:
            case "subscribe" if what not in numbers.banned and not numbers.faults:
                await scene.subscribe(what)
            case "leave":
                scene.hub.forget(what)
            case "set":
                scene.set(what)
            case "friend":
                numbers.friends ^= {what}
                scene.hub.renewed(what)
            case "ban":
                numbers.banned ^= {what}
                scene.hub.renewed(what)
            case "fail":
                numbers.faults.append(Unavailable("not now"))
            case "wait":
                await asyncio.sleep(what * INTERVAL_S / 2)


@settings(max_examples=80, deadline=None)
@given(ACTIONS)
def test_in_the_end_everybody_has_the_last_value_and_nobody_saw_anything_else(
    actions: list[tuple[str, Any]],
) -> None:
    async def run() -> None:
        scene = Scene()
        numbers, watchers, hub = scene.numbers, scene.watchers, scene.hub
        await play(scene, actions)
        scene.hub.changed(STREAM)

        def settled() -> bool:
            watching = [name for name in (ANA, BEN, CLEO) if hub.streams_of(name)]
            return not numbers.banned & set(watching) and all(
                watchers.last(name) == (numbers.number, name in numbers.friends)
                for name in watching
            )

        await until(settled)
        texts: dict[tuple[int, bool], set[str]] = {}
        for update in watchers.updates:
            value = json.loads(update.text)
            texts.setdefault((value["seq"], value["friendly"]), set()).add(update.text)
        assert all(len(same) == 1 for same in texts.values())
        for values in watchers.seen.values():
            # Only who comes anew, or is shown more, gets a number again.
            seqs = [value["seq"] for value in values]
            assert seqs == sorted(seqs)
        assert all(gap >= INTERVAL_S * 0.9 for gap in _gaps(numbers))
        hub.close()

    original = module.RETRY_S
    module.RETRY_S = INTERVAL_S
    try:
        asyncio.run(run())
    finally:
        module.RETRY_S = original


def _gaps(numbers: Numbers) -> list[float]:
    """The times between values; those of several views are made in one go."""
    gaps = (later - at_s for at_s, later in pairwise(numbers.made_at_s))
    return [gap for gap in gaps if gap > INTERVAL_S / 4]
