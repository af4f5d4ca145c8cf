"""What every store promises: one class, subclassed by each adapter with a `store` fixture."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crdt import ids
from crdt.access import Member
from crdt.errors import Conflict
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Append, Best, Entry, Store, Stored, Summary, Trained, Training
from crdt.records import Award, Score
from crdt.revocations import Revocation
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry

ANA, BEN = UserId("ana"), UserId("ben")
PULL_DAY = ids.workout("pull-day")
PUSH = ids.template("push")
LATER_MS = 4_000_000_000_000
OWNER = Member(ANA, "owner", "Ana")


def summary(doc: DocName = LEG_DAY, **changes: Any) -> Summary:
    fields = {"owner_id": ANA, "title": "Leg day", "status": "planned", "mode": "solo"}
    return Summary(doc, **{**fields, "visibility": "private", "created_at": NOW_MS, **changes})


def record(
    update: bytes | None,
    *entries: Entry,
    doc: DocName = LEG_DAY,
    creates: bool = False,
    **shown: Any,
) -> Append:
    return Append(doc, update, entries or (entry(),), summary(doc, **shown), creates)


async def create(store: Store, doc: DocName = LEG_DAY, *, at_ms: int = NOW_MS) -> None:
    """Make a document of ana's with `created` as its first record."""
    made = entry(at_ms=at_ms, members=[OWNER])
    await store.append(record(b"created", made, doc=doc, creates=True))


def score(
    set_id: str, user_id: UserId = ANA, exercise: str = "name:squat", **values: float
) -> Score:
    return Score(set_id, user_id, exercise, values)  # type: ignore[arg-type]


async def log_set(store: Store, *scores: Score, doc: DocName = LEG_DAY) -> set[tuple[str, str]]:
    """Store what sets are worth. Returns: who won what, as (set id, type)."""
    stored = await store.append(record(b"set", entry(scores=scores), doc=doc))
    return won(stored)


def won(stored: Stored) -> set[tuple[str, str]]:
    return {(set_id, type_) for set_id, awards in stored.awards.items() for type_ in awards}


class StoreContract:
    counts_updates = True
    """Whether positions count updates; else they count records."""

    # -- the log --------------------------------------------------------------------------------

    async def test_a_document_that_never_was_cannot_be_loaded(self, store: Store) -> None:
        assert await store.load(LEG_DAY) is None
        assert await store.summary(LEG_DAY) is None

    async def test_records_come_back_in_the_order_in_which_they_went(self, store: Store) -> None:
        await create(store)
        seqs = [(await store.append(record(bytes([i])))).seq for i in range(3)]
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert seqs == [2, 3, 4]
        assert (list(loaded.updates), loaded.seq) == ([b"created", b"\0", b"\1", b"\2"], 4)
        assert (loaded.snapshot, loaded.snapshot_seq) == (None, 0)

    async def test_a_record_without_an_update_takes_no_position(self, store: Store) -> None:
        await create(store)
        taken = 0 if self.counts_updates else 1
        assert (await store.append(record(None))).seq == 1 + taken
        assert (await store.append(record(b"next"))).seq == 2 + taken

    async def test_updates_are_kept_to_the_byte(self, store: Store) -> None:
        await create(store)
        everything = bytes(range(256)) * 40
        await store.append(record(everything))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert loaded.updates[-1] == everything

    async def test_documents_do_not_mix(self, store: Store) -> None:
        await create(store)
        await create(store, PULL_DAY)
        await create(store, ids.template("leg-day"))
        await store.append(record(b"legs"))
        loaded = await store.load(PULL_DAY)
        assert loaded is not None
        assert (list(loaded.updates), loaded.seq) == ([b"created"], 1)

    async def test_appends_to_many_rooms_at_once_all_arrive(self, store: Store) -> None:
        docs = [ids.workout(f"w{i}") for i in range(20)]
        await asyncio.gather(*(create(store, doc) for doc in docs))
        appends = [record(bytes([i]), doc=doc) for i in range(5) for doc in docs]
        await asyncio.gather(*(store.append(append) for append in appends))
        for doc in docs:
            loaded = await store.load(doc)
            assert loaded is not None
            assert list(loaded.updates) == [b"created", *(bytes([i]) for i in range(5))]

    async def test_what_is_known_beside_the_log_comes_back(self, store: Store) -> None:
        await create(store)
        first = entry(client_ids=[(7, ANA), (2**53 - 1, BEN)], removed_exercises=["squat"])
        await store.append(record(b"x", first))
        again = entry("ben", client_ids=[(7, BEN), (8, UserId(""))], removed_exercises=["squat"])
        await store.append(record(b"y", again))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert dict(loaded.client_ids) == {7: ANA, 2**53 - 1: BEN, 8: ""}
        assert list(loaded.removed_exercises) == ["squat"]

    # -- creating -------------------------------------------------------------------------------

    async def test_a_document_is_created_once(self, store: Store) -> None:
        await create(store)
        with pytest.raises(Conflict):
            await store.append(record(b"mine", entry("ben"), creates=True, owner_id=BEN))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert list(loaded.updates) == [b"created"]
        assert (await store.summary(LEG_DAY)) == summary()

    async def test_of_two_creations_at_once_one_wins(self, store: Store) -> None:
        outcomes = await asyncio.gather(create(store), create(store), return_exceptions=True)
        assert sorted(type(outcome) for outcome in outcomes if outcome) == [Conflict]
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert len(loaded.updates) == 1

    async def test_a_creation_that_lost_leaves_nothing_of_itself(self, store: Store) -> None:
        await create(store)
        op = entry(
            "ben",
            op_id="op",
            answer=lambda stored: {"ok": True},
            members=[Member(BEN, "owner", "Ben")],
            scores=[score("s", BEN, weight=100)],
        )
        with pytest.raises(Conflict):
            await store.append(record(b"mine", op, creates=True, owner_id=BEN))
        assert await store.answer(BEN, "op", LEG_DAY) is None
        assert await store.summaries(BEN, DocKind.WORKOUT, limit=10) == []
        assert await log_set(store, score("t", BEN, weight=90)) == {("t", "weight")}

    # -- snapshots ------------------------------------------------------------------------------

    async def test_compaction_keeps_what_came_later(self, store: Store) -> None:
        await create(store)
        for update in (b"a", b"b"):
            await store.append(record(update))
        assert await store.compact(LEG_DAY, b"snapshot", upto=2, base=0)
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert (loaded.snapshot, list(loaded.updates)) == (b"snapshot", [b"b"])
        assert (loaded.snapshot_seq, loaded.seq) == (2, 3)

    async def test_the_log_goes_on_after_a_snapshot(self, store: Store) -> None:
        await create(store)
        await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
        assert (await store.append(record(b"a"))).seq == 2
        assert await store.compact(LEG_DAY, b"newer", upto=2, base=1)
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert (loaded.snapshot, list(loaded.updates), loaded.seq) == (b"newer", [], 2)

    async def test_who_comes_second_with_a_snapshot_changes_nothing(self, store: Store) -> None:
        await create(store)
        await store.append(record(b"a"))
        assert await store.compact(LEG_DAY, b"first", upto=1, base=0)
        assert not await store.compact(LEG_DAY, b"second", upto=2, base=0)
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert (loaded.snapshot, list(loaded.updates)) == (b"first", [b"a"])

    async def test_a_snapshot_of_what_never_was_is_refused(self, store: Store) -> None:
        assert not await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
        assert await store.load(LEG_DAY) is None

    # -- members and lists ----------------------------------------------------------------------

    async def test_members_are_kept_with_the_document(self, store: Store) -> None:
        await create(store)
        await store.append(record(None, entry(members=[Member(BEN, "coach", "Ben")])))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert loaded.members == {ANA: OWNER, BEN: Member(BEN, "coach", "Ben")}

    async def test_the_last_word_about_a_member_counts(self, store: Store) -> None:
        await create(store)
        roles = [entry(members=[Member(BEN, role, "Ben")]) for role in ("coach", "spectator")]
        await store.append(record(None, *roles))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert loaded.members[BEN].role == "spectator"

    async def test_a_role_of_nothing_ends_a_membership(self, store: Store) -> None:
        await create(store)
        for role in ("coach", "", ""):
            await store.append(record(None, entry(members=[Member(BEN, role, "Ben")])))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert loaded.members.keys() == {ANA}
        assert await store.summaries(BEN, DocKind.WORKOUT, limit=10) == []

    async def test_a_list_shows_the_newest_first_with_the_users_role(self, store: Store) -> None:
        for i, doc in enumerate((LEG_DAY, PULL_DAY)):
            await create(store, doc, at_ms=NOW_MS + i)
        await store.append(record(None, entry(members=[Member(BEN, "coach", "Ben")])))
        mine = await store.summaries(ANA, DocKind.WORKOUT, limit=10)
        assert [(shown.doc, role) for shown, role in mine] == [
            (PULL_DAY, "owner"),
            (LEG_DAY, "owner"),
        ]
        assert list(await store.summaries(BEN, DocKind.WORKOUT, limit=10)) == [(summary(), "coach")]

    async def test_a_change_does_not_move_a_document_up_the_list(self, store: Store) -> None:
        for i, doc in enumerate((LEG_DAY, PULL_DAY)):
            await create(store, doc, at_ms=NOW_MS + i)
        await store.append(record(b"later", entry(at_ms=NOW_MS + 9)))
        mine = await store.summaries(ANA, DocKind.WORKOUT, limit=10)
        assert [shown.doc for shown, _ in mine] == [PULL_DAY, LEG_DAY]

    @pytest.mark.parametrize("same_time", [False, True])
    async def test_a_list_can_be_read_a_page_at_a_time(self, store: Store, same_time: bool) -> None:
        docs = [DocName(DocKind.WORKOUT, f"w{number}") for number in range(5)]
        for number, doc in enumerate(docs):
            await create(store, doc, at_ms=NOW_MS if same_time else NOW_MS + number)
        await create(store, PUSH)
        every = [shown.doc for shown, _ in await store.summaries(ANA, DocKind.WORKOUT, limit=9)]
        assert sorted(every, key=str) == docs
        pages: list[DocName] = []
        before = None
        for size in (2, 2, 1, 0):
            found = await store.summaries(ANA, DocKind.WORKOUT, limit=2, before=before)
            assert len(found) == size
            pages += [shown.doc for shown, _ in found]
            before = pages[-1]
        assert pages == every

    async def test_nothing_comes_after_a_document_that_there_is_not(self, store: Store) -> None:
        await create(store)
        assert await store.summaries(ANA, DocKind.WORKOUT, limit=9, before=PULL_DAY) == []

    async def test_workouts_and_templates_are_listed_apart(self, store: Store) -> None:
        await create(store)
        await create(store, PUSH)
        listed = await store.summaries(ANA, DocKind.TEMPLATE, limit=10)
        assert [shown.doc for shown, _ in listed] == [PUSH]

    async def test_a_summary_follows_every_append(self, store: Store) -> None:
        await create(store)
        shown = {"title": "Žofie's 🏋️", "status": "active", "started_at": 5, "mode": None}
        await store.append(record(None, **shown))
        assert await store.summary(LEG_DAY) == summary(**shown)

    # -- answers --------------------------------------------------------------------------------

    async def test_an_operation_is_answered_as_the_first_time(self, store: Store) -> None:
        await create(store)
        op = entry(op_id="op", answer=lambda stored: {"ok": True, "at": stored.seq, "x": [None]})
        await store.append(record(b"a", op))
        assert await store.answer(ANA, "op", LEG_DAY) == {"ok": True, "at": 2, "x": [None]}

    async def test_an_answer_belongs_to_the_user_who_asked(self, store: Store) -> None:
        await create(store)
        for who in ("ana", "ben"):
            op = entry(who, op_id="op", answer=lambda stored, who=who: {"for": who})
            await store.append(record(b"a", op))
        assert await store.answer(ANA, "op", LEG_DAY) == {"for": "ana"}
        assert await store.answer(BEN, "op", LEG_DAY) == {"for": "ben"}
        assert await store.answer(UserId("eve"), "op", LEG_DAY) is None

    async def test_every_entry_of_a_record_has_its_own_answer(self, store: Store) -> None:
        await create(store)
        ops = [entry(op_id=op, answer=lambda stored, op=op: {"op": op}) for op in ("a", "b")]
        await store.append(record(b"merged", *ops, entry()))
        assert [await store.answer(ANA, op, LEG_DAY) for op in ("a", "b")] == [
            {"op": "a"},
            {"op": "b"},
        ]

    async def test_an_answer_knows_the_records_that_were_won(self, store: Store) -> None:
        await create(store)
        op = entry(
            op_id="op",
            scores=[score("s", weight=100)],
            answer=lambda stored: {"records": sorted(stored.awards.get("s", {}))},
        )
        await store.append(record(b"a", op))
        assert await store.answer(ANA, "op", LEG_DAY) == {"records": ["weight"]}

    # -- records --------------------------------------------------------------------------------

    async def test_the_first_set_is_the_first_record(self, store: Store) -> None:
        await create(store)
        stored = await store.append(
            record(b"a", entry(scores=[score("s", weight=100, volume=500)]))
        )
        assert stored.awards["s"]["weight"] == Award(
            "s", ANA, "name:squat", "weight", 100, previous=None
        )
        assert won(stored) == {("s", "weight"), ("s", "volume")}

    async def test_only_what_is_strictly_better_is_a_record(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", weight=100, volume=500))
        assert await log_set(store, score("b", weight=100, volume=500.5)) == {("b", "volume")}
        assert await log_set(store, score("c", weight=99, volume=500)) == set()

    async def test_a_record_tells_what_it_beat(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", weight=100))
        stored = await store.append(record(b"x", entry(scores=[score("b", weight=102.5)])))
        award = stored.awards["b"]["weight"]
        assert (award.previous, award.value) == (100, 102.5)
        assert repr(award.previous) == "100"

    async def test_a_set_wins_once_however_often_it_comes(self, store: Store) -> None:
        await create(store)
        assert await log_set(store, score("s", weight=100)) == {("s", "weight")}
        for weight in (100, 110, 90, 120):
            assert await log_set(store, score("s", weight=weight)) == set()

    async def test_a_set_that_comes_twice_in_one_record_wins_once(self, store: Store) -> None:
        await create(store)
        twice = [entry(scores=[score("s", weight=weight)]) for weight in (100, 110)]
        stored = await store.append(record(b"merged", *twice))
        assert [award.value for award in stored.awards["s"].values()] == [100]

    async def test_a_set_may_win_another_type_later(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("s", reps=10))
        corrected = await log_set(store, score("s", weight=20, volume=200))
        assert corrected == {("s", "weight"), ("s", "volume")}

    async def test_a_set_that_was_edited_down_gives_the_record_free(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("typo", weight=1_000))
        await log_set(store, score("typo", weight=100))
        assert await log_set(store, score("next", weight=105)) == {("next", "weight")}

    async def test_a_removed_set_gives_the_record_free(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("s", weight=100))
        await log_set(store, score("s"))
        stored = await store.append(record(b"x", entry(scores=[score("t", weight=90)])))
        assert stored.awards["t"]["weight"].previous is None

    async def test_a_removed_set_that_comes_back_wins_nothing_again(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("s", weight=100))
        await log_set(store, score("s"))
        assert await log_set(store, score("s", weight=100)) == set()

    async def test_two_sets_of_one_record_compete_in_their_order(self, store: Store) -> None:
        await create(store)
        sets = [score("a", weight=100), score("b", weight=110), score("c", weight=105)]
        assert await log_set(store, *sets) == {("a", "weight"), ("b", "weight")}

    async def test_the_types_do_not_mix(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", reps=500))
        assert await log_set(store, score("b", seconds=60, weight=20)) == {
            ("b", "seconds"),
            ("b", "weight"),
        }

    async def test_two_users_do_not_mix(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", weight=200))
        assert await log_set(store, score("b", BEN, weight=60)) == {("b", "weight")}

    async def test_two_exercises_do_not_mix(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", weight=200))
        press = score("b", exercise="name:press", weight=60)
        assert await log_set(store, press) == {("b", "weight")}

    async def test_one_exercise_is_the_same_in_every_workout(self, store: Store) -> None:
        await create(store)
        await create(store, PULL_DAY)
        await log_set(store, score("s", weight=100))
        assert await log_set(store, score("s", weight=90), doc=PULL_DAY) == set()
        assert await log_set(store, score("t", weight=110), doc=PULL_DAY) == {("t", "weight")}

    async def test_a_set_that_counts_for_another_exercise_leaves_the_first(
        self, store: Store
    ) -> None:
        await create(store)
        await log_set(store, score("s", weight=200))
        await log_set(store, score("s"), score("s", exercise="name:press", weight=200))
        assert await log_set(store, score("t", weight=100)) == {("t", "weight")}

    async def test_awards_are_kept_with_the_document(self, store: Store) -> None:
        await create(store)
        await log_set(store, score("a", weight=100, e1rm=116.7))
        await log_set(store, score("a"))
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert loaded.awards["a"].keys() == {"weight", "e1rm"}
        assert loaded.awards["a"]["e1rm"] == Award("a", ANA, "name:squat", "e1rm", 116.7, None)

    @pytest.mark.parametrize("value", [1e300, float("inf"), 10**400], ids=["1e300", "inf", "1e400"])
    async def test_a_value_beyond_reason_does_not_stop_the_store(
        self, store: Store, value: float
    ) -> None:
        await create(store)
        await log_set(store, score("s", weight=value))
        assert await store.load(LEG_DAY) is not None

    # -- what a user has done -------------------------------------------------------------------

    async def test_who_has_done_nothing_has_no_training(self, store: Store) -> None:
        await create(store)
        await create(store, PUSH)
        await log_set(store, score("s", weight=100, volume=500))
        nothing = Training([], [], 0, 0, 0, frozenset(), is_public=False)
        assert await store.training(BEN, limit=9) == nothing

    async def test_training_is_all_workouts_and_all_sets_that_count(self, store: Store) -> None:
        await create(store, at_ms=NOW_MS)
        await create(store, PULL_DAY, at_ms=NOW_MS + 1)
        await create(store, PUSH, at_ms=NOW_MS + 2)
        sets = [score("a", weight=100, volume=500), score("b", weight=90, volume=900.5)]
        await log_set(store, *sets, score("gone", weight=300, volume=300))
        await log_set(store, score("gone"), score("other", BEN, weight=200))
        await log_set(store, score("c", exercise="name:plank", seconds=60), doc=PULL_DAY)
        done = await store.training(ANA, limit=9)
        assert list(done.workouts) == [
            Trained(summary(PULL_DAY), 1, 0),
            Trained(summary(LEG_DAY), 2, 1_400.5),
        ]
        assert list(done.bests) == [
            Best("name:plank", "seconds", 60, PULL_DAY, "c"),
            Best("name:squat", "volume", 900.5, LEG_DAY, "b"),
            Best("name:squat", "weight", 100, LEG_DAY, "a"),
        ]
        assert (done.workout_count, done.sets, done.volume_kg) == (2, 3, 1_400.5)
        assert repr(done.bests[0].value) == "60"

    async def test_of_equal_bests_the_first_by_name_is_told(self, store: Store) -> None:
        await create(store)
        await create(store, PULL_DAY)
        await log_set(store, score("a", weight=100), doc=PULL_DAY)
        await log_set(store, score("z", weight=100), score("b", weight=100))
        done = await store.training(ANA, limit=9)
        assert list(done.bests) == [Best("name:squat", "weight", 100, LEG_DAY, "b")]

    async def test_training_lists_no_more_than_asked_for_and_counts_all(self, store: Store) -> None:
        for number in range(4):
            await create(store, ids.workout(f"w{number}"), at_ms=NOW_MS + number)
            await log_set(store, score("s", volume=10), doc=ids.workout(f"w{number}"))
        done = await store.training(ANA, limit=2)
        assert [each.summary.doc.id for each in done.workouts] == ["w3", "w2"]
        assert (done.workout_count, done.sets, done.volume_kg) == (4, 4, 40)

    async def test_a_workout_that_was_left_is_listed_no_more_and_its_sets_count(
        self, store: Store
    ) -> None:
        await create(store)
        joined = entry(
            members=[Member(BEN, "participant", "Ben")], scores=[score("s", BEN, weight=60)]
        )
        await store.append(record(b"x", joined))
        assert (await store.training(BEN, limit=9)).workout_count == 1
        await store.append(record(None, entry(members=[Member(BEN, "", "Ben")])))
        done = await store.training(BEN, limit=9)
        assert (done.workout_count, done.sets) == (0, 1)

    @pytest.mark.parametrize("role", ["coach", "spectator"])
    async def test_who_looks_on_does_not_train(self, store: Store, role: str) -> None:
        await create(store)
        await store.append(record(None, entry(members=[Member(BEN, role, "Ben")])))
        assert (await store.training(BEN, limit=9)).workout_count == 0

    async def test_others_see_what_is_in_workouts_that_are_shown_to_them(
        self, store: Store
    ) -> None:
        shown = {"public": 100.0, "friends": 110.0, "private": 120.0}
        for number, (visibility, weight) in enumerate(shown.items()):
            doc = ids.workout(visibility)
            made = entry(at_ms=NOW_MS + number, members=[OWNER])
            await store.append(record(b"x", made, doc=doc, creates=True, visibility=visibility))
            sets = entry(scores=[score("s", weight=weight, volume=weight)])
            await store.append(record(b"y", sets, doc=doc, visibility=visibility))

        async def seen_by(*circles: str) -> tuple[list[str], list[float], int, float]:
            done = await store.training(ANA, limit=9, circles=[UserId(one) for one in circles])
            assert (done.circles, done.is_public) == ({ANA}, True)
            weights = [best.value for best in done.bests if best.type == "weight"]
            assert done.workout_count == len(done.workouts)
            return [one.summary.doc.id for one in done.workouts], weights, done.sets, done.volume_kg

        assert await seen_by() == (["public"], [100], 1, 100)
        assert await seen_by("ben", "it's") == (["public"], [100], 1, 100)
        assert await seen_by("ana", "ben") == (["friends", "public"], [110], 2, 210)

    @pytest.mark.parametrize("odd", ["Žofie 🏋️", 'a"b', "a,b", "%_", "a\x00b", "x" * 200])
    async def test_an_odd_user_has_a_training_of_its_own(self, store: Store, odd: str) -> None:
        await create(store)
        for name in (odd, odd + "b", "a"):
            user_id = UserId(name)
            joined = [Member(user_id, "participant", "Odd")]
            scores = [score(f"of-{len(name)}", user_id, weight=60)]
            await store.append(record(b"x", entry(members=joined, scores=scores)))
        done = await store.training(UserId(odd), limit=9)
        assert [best.set_id for best in done.bests] == [f"of-{len(odd)}"]

    # -- the one active workout -----------------------------------------------------------------

    async def test_the_first_claim_wins(self, store: Store) -> None:
        assert await store.active_workout(ANA) is None
        assert await store.claim_active(ANA, "leg-day") == "leg-day"
        assert await store.claim_active(ANA, "pull-day") == "leg-day"
        assert await store.active_workout(ANA) == "leg-day"

    async def test_of_many_claims_at_once_one_wins(self, store: Store) -> None:
        holders = await asyncio.gather(*(store.claim_active(ANA, f"w{i}") for i in range(10)))
        assert len(set(holders)) == 1

    async def test_a_claim_may_be_made_again(self, store: Store) -> None:
        await store.claim_active(ANA, "leg-day")
        assert await store.claim_active(ANA, "leg-day") == "leg-day"

    async def test_each_owner_has_a_claim_of_its_own(self, store: Store) -> None:
        await store.claim_active(ANA, "leg-day")
        assert await store.claim_active(BEN, "pull-day") == "pull-day"

    async def test_a_claim_is_taken_over_from_the_one_that_is_named(self, store: Store) -> None:
        await store.claim_active(ANA, "stale")
        assert await store.claim_active(ANA, "new", instead_of="other") == "stale"
        assert await store.claim_active(ANA, "new", instead_of="stale") == "new"
        assert await store.claim_active(ANA, "late", instead_of="stale") == "new"

    async def test_a_claim_instead_of_one_that_is_gone_is_an_ordinary_claim(
        self, store: Store
    ) -> None:
        assert await store.claim_active(ANA, "new", instead_of="stale") == "new"

    @pytest.mark.parametrize("status", ["completed", "abandoned"])
    async def test_a_claim_ends_with_its_workout(self, store: Store, status: str) -> None:
        await create(store)
        await store.claim_active(ANA, "leg-day")
        await store.append(record(b"end", status=status))
        assert await store.active_workout(ANA) is None

    @pytest.mark.parametrize("status", ["planned", "active", "paused"])
    async def test_a_claim_stays_while_its_workout_is_live(self, store: Store, status: str) -> None:
        await create(store)
        await store.claim_active(ANA, "leg-day")
        await store.append(record(b"x", status=status))
        assert await store.active_workout(ANA) == "leg-day"

    async def test_the_end_of_another_workout_frees_nothing(self, store: Store) -> None:
        await create(store)
        await store.claim_active(ANA, "pull-day")
        await store.append(record(b"end", status="completed"))
        assert await store.active_workout(ANA) == "pull-day"

    # -- revocations ----------------------------------------------------------------------------

    async def test_what_was_revoked_is_kept(self, store: Store) -> None:
        assert list(await store.revocations(NOW_MS)) == []
        revoked = [
            Revocation("user", "ana", LATER_MS, NOW_MS),
            Revocation("token", "t1", LATER_MS + 1),
            Revocation("token", "ana", LATER_MS + 2),
        ]
        for revocation in revoked:
            await store.revoke(revocation, entry("root"))
        found = await store.revocations(NOW_MS)
        assert sorted(found, key=lambda one: one.until_ms) == revoked

    async def test_what_was_revoked_twice_is_so_for_the_longer_time(self, store: Store) -> None:
        for until_ms, issued_ms in ((LATER_MS, 10), (LATER_MS - 5, 20), (LATER_MS - 9, 5)):
            await store.revoke(Revocation("user", "ana", until_ms, issued_ms), entry("root"))
        assert list(await store.revocations(NOW_MS)) == [Revocation("user", "ana", LATER_MS, 20)]

    async def test_a_revocation_that_has_ended_is_not_told(self, store: Store) -> None:
        await store.revoke(Revocation("token", "t1", LATER_MS), entry("root"))
        assert len(await store.revocations(LATER_MS - 1)) == 1
        assert list(await store.revocations(LATER_MS)) == []

    async def test_a_revocation_keeps_its_answer(self, store: Store) -> None:
        await create(store)
        op = entry("root", op_id="op", answer=lambda stored: {"ok": True, "disconnected": 2})
        await store.revoke(Revocation("token", "t1", LATER_MS), op)
        assert await store.answer(UserId("root"), "op") == {"ok": True, "disconnected": 2}

    async def test_an_odd_name_is_revoked_like_any_other(self, store: Store) -> None:
        for odd in ("Žofie 🏋️", "'; DROP TABLE revocations; --", "a\x00b", "x" * 500):
            await store.revoke(Revocation("token", odd, LATER_MS), entry("root"))
            assert Revocation("token", odd, LATER_MS) in await store.revocations(NOW_MS)
