"""Workouts: making, joining, inviting, and the one that is under way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crdt import ids
from crdt.ids import ConnectionId, UserId
from crdt.replica import Put
from tests.helpers.rooms import NOW_MS, Desk, idle

STEPS = ["start", "pause", "resume", "complete", "abandon"]


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def step(desk: Desk, workout_id: str, action: str, who: str = "ana") -> Any:
    return await desk.do(who, f"workout:{action}", workout_id=workout_id)


async def status(desk: Desk, workout_id: str) -> str:
    return str((await desk.shown(workout_id))["status"])


# -- making -----------------------------------------------------------------------------------


async def test_a_new_workout_is_planned_and_its_owners(desk: Desk) -> None:
    answer = await desk.do("ana", "workout:create", title="Leg day", mode="group")
    made = answer["workout"]
    assert (made["title"], made["status"], made["mode"]) == ("Leg day", "planned", "group")
    assert (made["owner_id"], made["visibility"], made["version"]) == ("ana", "private", 1)
    assert (made["created_at"], made["started_at"], made["active_ms"]) == (NOW_MS, None, 0)
    assert answer["durability"] == "memory"


async def test_the_answer_to_a_creation_is_what_a_sync_shows(desk: Desk) -> None:
    made = (await desk.do("ana", "workout:create"))["workout"]
    assert await desk.shown(made["id"]) == made


async def test_whoever_creates_joins(desk: Desk) -> None:
    workout_id = await desk.workout()
    assert desk.bench.hub.joined(ConnectionId("ana-phone")) == {ids.workout(workout_id)}


async def test_a_client_may_choose_the_id(desk: Desk) -> None:
    assert await desk.workout(workout_id="leg-day") == "leg-day"
    error = await desk.refused("ben", "workout:create", workout_id="leg-day")
    assert error["code"] == "conflict"


async def make_template(desk: Desk, who: str = "ana", **data: Any) -> str:
    made = await desk.do(who, "template:create", **{"title": "Push", **data})
    template_id = str(made["template"]["id"])
    async with desk.bench.room(ids.template(template_id)) as live:
        writes = [
            Put(("exercises", "e"), {"name": "Bench", "order": "a0", "note": "slow", "sets": {}}),
            Put(("exercises", "e", "sets", "s"), {"order": "a0", "kind": "normal", "reps": 5}),
        ]
        author = desk.caller(who).author
        await desk.bench.hub.edit(live, writes, author, "test", answer=lambda _: {})
    return template_id


async def test_a_workout_made_from_a_template_has_its_plan(desk: Desk) -> None:
    template_id = await make_template(desk)
    made = (await desk.do("ana", "workout:create", template_id=template_id))["workout"]
    assert (made["template_id"], made["title"]) == (template_id, "Push")
    [exercise] = made["exercises"]
    assert (exercise["name"], exercise["note"]) == ("Bench", "slow")
    assert exercise["target"] == [{"kind": "normal", "reps": 5}]
    assert exercise["id"] != "e"
    assert made["progress"]["ana"]["sets_planned"] == 1


async def test_a_title_of_its_own_beats_the_templates(desk: Desk) -> None:
    template_id = await make_template(desk)
    data = {"template_id": template_id, "title": "Monday"}
    assert (await desk.do("ana", "workout:create", **data))["workout"]["title"] == "Monday"


async def test_somebody_elses_private_template_cannot_be_used(desk: Desk) -> None:
    template_id = await make_template(desk)
    error = await desk.refused("ben", "workout:create", template_id=template_id, workout_id="w")
    assert error["code"] == "forbidden"
    assert (await desk.refused("ben", "workout:sync", workout_id="w"))["code"] == "not_found"


async def test_a_public_template_can_be_used_by_everybody(desk: Desk) -> None:
    template_id = await make_template(desk, visibility="public")
    made = await desk.do("ben", "workout:create", template_id=template_id)
    assert made["workout"]["owner_id"] == "ben"


async def test_a_template_that_is_not_there_is_not_found(desk: Desk) -> None:
    error = await desk.refused("ana", "workout:create", template_id="nothing")
    assert error["code"] == "not_found"


# -- joining ----------------------------------------------------------------------------------

VISITS = [
    ("private", "solo", None, None),
    ("private", "group", None, None),
    ("friends", "solo", None, "spectator"),
    ("friends", "group", None, "participant"),
    ("public", "solo", "spectator", "spectator"),
    ("public", "group", "participant", "participant"),
]


@pytest.mark.parametrize(("visibility", "mode", "stranger", "friend"), VISITS)
async def test_who_may_join_as_what_follows_from_visibility_and_mode(
    desk: Desk, visibility: str, mode: str, stranger: str | None, friend: str | None
) -> None:
    workout_id = await desk.workout(visibility=visibility, mode=mode)
    desk.knows("fay", friends=frozenset({"ana"}))
    for who, role in (("ben", stranger), ("fay", friend)):
        answer = await desk.ask(who, "workout:join", {"workout_id": workout_id})
        found = answer["role"] if answer["ok"] else None
        assert found == role
        assert answer["ok"] or answer["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    ("mode", "wanted", "is_given"),
    [
        ("group", "spectator", True),
        ("group", "coach", False),
        ("solo", "participant", False),
        ("solo", "coach", False),
    ],
)
async def test_a_visitor_may_ask_for_a_role_that_is_offered(
    desk: Desk, mode: str, wanted: str, is_given: bool
) -> None:
    workout_id = await desk.workout(visibility="public", mode=mode)
    answer = await desk.ask("ben", "workout:join", {"workout_id": workout_id, "role": wanted})
    assert answer["ok"] is is_given
    assert is_given or answer["error"]["code"] == "forbidden"


async def test_joining_gives_the_workout_and_its_members(desk: Desk) -> None:
    workout_id = await desk.workout(visibility="public", mode="group")
    answer = await desk.do("ben", "workout:join", workout_id=workout_id)
    assert answer["workout"] == await desk.shown(workout_id)
    roles = {member["user"]["id"]: member["role"] for member in answer["members"]}
    assert roles == {"ana": "owner", "ben": "participant"}
    assert answer["workout"]["progress"].keys() == {"ana", "ben"}


async def test_who_joined_once_is_a_member_for_good(desk: Desk) -> None:
    workout_id = await desk.workout(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.do("ben", "workout:leave", workout_id=workout_id)
    [listed] = (await desk.do("ben", "workout:list"))["workouts"]
    assert (listed["id"], listed["role"]) == (workout_id, "participant")
    assert not desk.bench.hub.joined(ConnectionId("ben-phone"))


async def test_an_owner_joins_as_owner_and_as_nothing_else(desk: Desk) -> None:
    workout_id = await desk.workout()
    assert (await desk.do("ana/watch", "workout:join", workout_id=workout_id))["role"] == "owner"
    error = await desk.refused("ana", "workout:join", workout_id=workout_id, role="coach")
    assert error["code"] == "forbidden"


async def test_coming_and_going_is_told_to_the_room(desk: Desk) -> None:
    workout_id = await desk.workout(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.do("ben", "workout:leave", workout_id=workout_id)
    told = [(event, payload["user"]["id"]) for event, payload in desk.outlet.presences[1:]]
    assert told == [("workout:member:joined", "ben"), ("workout:member:left", "ben")]


async def test_leaving_what_one_never_joined_is_fine(desk: Desk) -> None:
    assert await desk.do("ben", "workout:leave", workout_id="nothing") == {"ok": True}


# -- inviting ---------------------------------------------------------------------------------


async def test_who_is_invited_may_join_with_that_role(desk: Desk) -> None:
    workout_id = await desk.workout()
    await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role="coach")
    assert (await desk.do("ben", "workout:join", workout_id=workout_id))["role"] == "coach"


async def test_an_invitation_is_told_to_the_one_who_is_invited(desk: Desk) -> None:
    workout_id = await desk.workout(title="Leg day")
    await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role="coach")
    assert desk.sessions.told == [
        (
            "ben",
            "workout:invited",
            {
                "workout_id": workout_id,
                "title": "Leg day",
                "role": "coach",
                "by": {"id": "ana", "name": "Ana"},
            },
        )
    ]


async def test_nobody_is_told_of_an_invitation_that_was_not_stored(desk: Desk) -> None:
    workout_id = await desk.workout()
    desk.store.fail("append", RuntimeError("full"))
    data = {"workout_id": workout_id, "user_id": "ben", "role": "coach"}
    assert (await desk.refused("ana", "workout:invite", **data))["code"] == "unavailable"
    assert desk.sessions.told == []


async def test_a_member_may_get_another_role(desk: Desk) -> None:
    workout_id = await desk.workout()
    for role in ("coach", "spectator"):
        await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role=role)
    assert (await desk.do("ben", "workout:join", workout_id=workout_id))["role"] == "spectator"


async def test_the_owner_stays_the_owner(desk: Desk) -> None:
    workout_id = await desk.workout()
    data = {"workout_id": workout_id, "user_id": "ana", "role": "spectator"}
    assert (await desk.refused("ana", "workout:invite", **data))["code"] == "conflict"


async def test_an_invited_member_is_shown_by_the_name_of_the_token(desk: Desk) -> None:
    workout_id = await desk.workout()
    await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role="coach")
    desk.knows("ben", name="Ben B")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    names = [member["user"]["name"] for member in (await desk.shown(workout_id))["members"]]
    assert names == ["Ana", "Ben B"]


# -- who may do what --------------------------------------------------------------------------

INTENTS: dict[str, dict[str, Any]] = {
    "workout:sync": {},
    "workout:start": {},
    "workout:pause": {},
    "workout:resume": {},
    "workout:complete": {},
    "workout:abandon": {},
    "workout:invite": {"user_id": "zoe", "role": "coach"},
    "workout:exercise:add": {"exercise": {"name": "Row"}},
    "workout:exercise:update": {"exercise_id": "e", "exercise": {"rest_s": 90}},
    "workout:exercise:move": {"exercise_id": "e"},
    "workout:exercise:remove": {"exercise_id": "e"},
    "workout:set:complete": {"exercise_id": "e", "set": {"reps": 5}},
    "workout:set:update": {"set_id": "s", "set": {"reps": 5}},
    "workout:set:remove": {"set_id": "s"},
}
MAY = {
    "owner": set(INTENTS),
    "coach": set(INTENTS) - {"workout:invite"},
    "participant": set(INTENTS) - {f"workout:{action}" for action in STEPS} - {"workout:invite"},
    "spectator": {"workout:sync"},
    "stranger": set(),
}


@pytest.mark.parametrize("role", list(MAY))
@pytest.mark.parametrize("event", list(INTENTS))
async def test_a_role_may_do_what_the_table_says(desk: Desk, role: str, event: str) -> None:
    workout_id = await desk.workout()
    who = "ana" if role == "owner" else "ben"
    if role not in ("owner", "stranger"):
        await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role=role)
    answer = await desk.ask(who, event, {"workout_id": workout_id, **INTENTS[event]})
    is_forbidden = not answer["ok"] and answer["error"]["code"] == "forbidden"
    assert is_forbidden is (event not in MAY[role])


@pytest.mark.parametrize("event", [*INTENTS, "workout:join"])
async def test_a_workout_that_is_not_there_is_not_found(desk: Desk, event: str) -> None:
    data = {"workout_id": "nothing", **INTENTS.get(event, {})}
    assert (await desk.refused("ana", event, **data))["code"] == "not_found"


async def test_membership_gives_the_right_to_act_without_joining(desk: Desk) -> None:
    workout_id, exercise_id = await desk.training(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.set(workout_id, exercise_id, "ben/watch", reps=5)


# -- the state machine ------------------------------------------------------------------------


async def test_a_workout_goes_through_its_states(desk: Desk) -> None:
    workout_id = await desk.workout()
    for action, expected in zip(
        ["start", "pause", "resume", "complete"],
        ["active", "paused", "active", "completed"],
        strict=True,
    ):
        desk.bench.clock.advance(1_000)
        assert (await step(desk, workout_id, action))["status"] == expected
    shown = await desk.shown(workout_id)
    assert (shown["started_at"], shown["ended_at"]) == (NOW_MS + 1_000, NOW_MS + 4_000)
    assert shown["active_ms"] == 2_000


async def test_every_step_is_told_to_the_room(desk: Desk) -> None:
    workout_id = await desk.workout()
    for action in ("start", "pause", "resume", "abandon"):
        await step(desk, workout_id, action)
    told = [event.name for event in desk.outlet.events if event.name != "workout:changed"]
    verbs = [name.removeprefix("workout:") for name in told]
    assert verbs == ["started", "paused", "resumed", "abandoned"]


@pytest.mark.parametrize("action", ["pause", "resume", "complete", "abandon"])
async def test_a_step_that_does_not_lead_on_is_a_conflict(desk: Desk, action: str) -> None:
    error = await desk.refused("ana", f"workout:{action}", workout_id=await desk.workout())
    assert (error["code"], error["details"]) == ("conflict", {"status": "planned"})


async def test_a_workout_cannot_be_started_twice(desk: Desk) -> None:
    workout_id = await desk.workout()
    await step(desk, workout_id, "start")
    error = await desk.refused("ana", "workout:start", workout_id=workout_id)
    assert (error["code"], error["details"]) == ("conflict", {"status": "active"})


async def test_two_starts_at_once_are_one_start_and_one_conflict(desk: Desk) -> None:
    workout_id = await desk.workout()
    asked = [desk.ask("ana", "workout:start", {"workout_id": workout_id}) for _ in "12"]
    outcomes = [answer["ok"] for answer in await asyncio.gather(*asked)]
    assert sorted(outcomes) == [False, True]


# -- one at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [["start"], ["start", "pause"]])
async def test_an_owner_has_one_live_workout_at_a_time(desk: Desk, steps: list[str]) -> None:
    live, other = await desk.workout(), await desk.workout()
    for action in steps:
        await step(desk, live, action)
    error = await desk.refused("ana", "workout:start", workout_id=other)
    assert (error["code"], error["details"]) == ("conflict", {"active_workout": live})
    assert await status(desk, other) == "planned"


@pytest.mark.parametrize("end", ["complete", "abandon"])
async def test_the_next_may_start_when_the_last_has_ended(desk: Desk, end: str) -> None:
    first, second = await desk.workout(), await desk.workout()
    await step(desk, first, "start")
    await step(desk, first, end)
    await step(desk, second, "start")
    assert await desk.store.active_workout(UserId("ana")) == second


async def test_two_owners_do_not_stand_in_each_others_way(desk: Desk) -> None:
    for who in ("ana", "ben"):
        await step(desk, await desk.workout(who), "start", who)


async def test_of_two_workouts_started_at_once_one_is_live(desk: Desk) -> None:
    both = [await desk.workout(), await desk.workout()]
    asked = [desk.ask("ana", "workout:start", {"workout_id": id_}) for id_ in both]
    outcomes = [answer["ok"] for answer in await asyncio.gather(*asked)]
    assert sorted(outcomes) == [False, True]
    assert sorted([await status(desk, id_) for id_ in both]) == ["active", "planned"]


async def test_a_coach_who_starts_uses_the_owners_one(desk: Desk) -> None:
    workout_id = await desk.workout()
    await desk.do("ana", "workout:invite", workout_id=workout_id, user_id="ben", role="coach")
    await step(desk, workout_id, "start", "ben")
    assert await desk.store.active_workout(UserId("ana")) == workout_id
    assert await desk.store.active_workout(UserId("ben")) is None


async def test_a_claim_whose_start_never_came_stands_in_nobodys_way(desk: Desk) -> None:
    stale, other = await desk.workout(), await desk.workout()
    await desk.store.claim_active(UserId("ana"), stale)  # and then the server died
    await step(desk, other, "start")
    assert await desk.store.active_workout(UserId("ana")) == other


async def test_a_claim_of_a_workout_that_never_was_stands_in_nobodys_way(desk: Desk) -> None:
    await desk.store.claim_active(UserId("ana"), "never-made")
    await step(desk, await desk.workout(), "start")


async def test_a_start_that_could_not_be_stored_may_be_tried_again(desk: Desk) -> None:
    first, second = await desk.workout(), await desk.workout()
    desk.store.fail("append", RuntimeError("full"))
    error = await desk.refused("ana", "workout:start", workout_id=first)
    assert error["code"] == "unavailable"
    await step(desk, second, "start")
    assert await status(desk, first) == "planned"


async def test_a_start_whose_room_is_read_anew_meanwhile_is_answered(desk: Desk) -> None:
    workout_id = await desk.workout()
    gate = desk.store.hold("claim_active")
    started = asyncio.ensure_future(desk.ask("ana", "workout:start", {"workout_id": workout_id}))
    await idle()
    desk.store.fail("append", RuntimeError("full"))
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}}
    assert (await desk.refused("ana", "workout:exercise:add", **add))["code"] == "unavailable"
    gate.set()
    [answer] = await asyncio.gather(started, return_exceptions=True)
    assert isinstance(answer, dict)
    assert await status(desk, workout_id) == ("active" if answer["ok"] else "planned")


# -- reading ----------------------------------------------------------------------------------


async def test_a_list_shows_ones_own_newest_first(desk: Desk) -> None:
    first = await desk.workout(title="First")
    second = await desk.workout(title="Second")
    await desk.workout("ben")
    await step(desk, first, "start")
    listed = (await desk.do("ana", "workout:list"))["workouts"]
    assert [(item["id"], item["status"]) for item in listed] == [
        (second, "planned"),
        (first, "active"),
    ]
    assert listed[1]["started_at"] == NOW_MS


async def test_a_sync_tells_the_servers_time(desk: Desk) -> None:
    desk.bench.clock.advance(5)
    answer = await desk.do("ana", "workout:sync", workout_id=await desk.workout())
    assert answer["server_time"] == answer["workout"]["server_time"] == NOW_MS + 5
